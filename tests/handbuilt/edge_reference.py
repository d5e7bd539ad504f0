"""Every edge of a graph, patched one at a time by whole forwards of the NumPy oracle."""

import numpy as np
from oracle import forward


def edges_of(config):
    """All edges' names: a sender and a receiver that reads after it has written."""
    found, senders = [], ["input"]
    for layer in range(config.n_layers):
        heads = [f"a{layer}.h{h}" for h in range(config.n_heads)]
        groups = [f"a{layer}.h{g}" for g in range(config.n_kv_heads)]
        reads = [f"{h}<q>" for h in heads] + [f"{g}<{x}>" for x in "kv" for g in groups]
        found += [f"{s}->{r}" for s in senders for r in reads]
        before = list(senders)
        senders += heads
        if config.d_mlp:
            found += [f"{s}->m{layer}" for s in (before if config.parallel else senders)]
            senders.append(f"m{layer}")
    return found + [f"{s}->logits" for s in senders]


class Patched:
    """An edit for the oracle: at each edge's receiver, an alternative in place of the sender.

    ``alternative``: sender to its contribution [P D], or None for zero. ``written`` holds what
    each sender contributes in this very run.
    """

    def __init__(self, config, edges=(), alternative=None):
        self.last, self.alternative, self.written = config.n_layers - 1, alternative, {}
        self.senders = {}
        for edge in edges:
            sender, receiver = edge.split("->")
            self.senders.setdefault(receiver, []).append(sender)

    def change(self, receiver):
        total = 0.0
        for sender in self.senders.get(receiver, []):
            now = self.written[sender]
            total += (0.0 if self.alternative is None else self.alternative[sender]) - now
        return total

    def __call__(self, site, layer, value):
        if site == "resid_pre" and layer == 0:
            self.written["input"] = value.copy()
        elif site == "result":
            for head in range(value.shape[1]):
                self.written[f"a{layer}.h{head}"] = value[:, head].copy()
        elif site == "mlp_out":
            self.written[f"m{layer}"] = value.copy()
        elif site in ("q_input", "k_input", "v_input"):
            for head in range(value.shape[1]):
                value[:, head] += self.change(f"a{layer}.h{head}<{site[0]}>")
        elif site == "mlp_in":
            value += self.change(f"m{layer}")
        elif site == "resid_post" and layer == self.last:
            value += self.change("logits")
        return value


def score(logits, answers, wrong):
    """Answer minus wrong at the last position, or the mean over the positions from 0."""
    if np.ndim(answers) == 0:
        return logits[-1, answers] - logits[-1, wrong]
    pairs = [(a, w) for a, w in zip(answers, wrong, strict=True) if a >= 0]
    return np.mean([logits[p, a] - logits[p, w] for p, (a, w) in enumerate(pairs)])


def alternatives(known, pairs, ablation):
    """What takes a sender's place, per prompt: the corrupted run's contributions, or zero."""
    out = []
    for ids in pairs.corrupted.ids:
        run = Patched(known.model.config)
        if ablation == "resample":
            forward(known.model, ids, edit=run)
        out.append(run.written if ablation == "resample" else None)
    return out


def scores(known, pairs, edges, instead):
    """The metric [n] with those edges patched together; ``instead``: see `alternatives`."""
    out = []
    for row, ids in enumerate(pairs.clean.ids):
        edit = Patched(known.model.config, edges, instead[row])
        logits, _ = forward(known.model, ids, edit=edit)
        out.append(score(logits, pairs.answers[row], pairs.wrong[row]))
    return np.array(out)
