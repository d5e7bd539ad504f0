"""Edges in plain NumPy: the float64 oracle's forward, with every reader's input changed."""

import numpy as np
import oracle

from jaxinterp.circuits.graph import Graph


def run(model, ids, come=lambda receiver, written: 0.0, hold=None):
    """(logits, written): one pass in which ``come(receiver, written)`` [P D] is added to what each
    receiver reads. ``written`` maps every sender's name to what it wrote so far. ``hold``: senders
    that write given values.
    """
    c, p = model.config, model.params.blocks
    written, result, scale, hold = {}, {}, {}, hold or {}

    def edit(site, layer, value):
        if site == "resid_pre" and layer == 0:
            value = hold.get("input", value)
            written["input"] = value.copy()
        elif site in ("q_input", "k_input", "v_input"):
            for head in range(value.shape[1]):
                value[:, head] += come(f"a{layer}.h{head}<{site[0]}>", written)
        elif site == "result":
            result[layer] = value
        elif site == "ln1_post_scale":
            scale[layer] = value
        elif site == "attn_out":
            for head in range(c.n_heads):
                own = result[layer][:, head]
                if p.ln1_post is not None:
                    if p.attn.b_O is not None:
                        own = own + np.asarray(p.attn.b_O, float)[layer] / c.n_heads
                    if c.norm == "layer":
                        own = own - own.mean(-1, keepdims=True)
                    own = own / scale[layer] * np.asarray(p.ln1_post.w, float)[layer]
                name = f"a{layer}.h{head}"
                written[name] = hold.get(name, own)
                value = value + written[name] - own
        elif site == "mlp_in":
            seen = written
            if c.parallel:  # its MLP reads what this layer's heads read
                seen = {k: v for k, v in written.items() if not k.startswith(f"a{layer}.")}
            value = value + come(f"m{layer}", seen)
        elif site == "mlp_out":
            written[f"m{layer}"] = value = hold.get(f"m{layer}", value)
        elif site == "resid_post" and layer == c.n_layers - 1:
            value = value + come("logits", written)
        return value

    return oracle.forward(model, ids, edit=edit)[0], written


def masked(model, ids, mask, alternative):
    """Logits [P V] of a circuit: mask [R S] (or [R S P]), alternative: by sender's name."""
    graph = Graph(model.config)

    def come(receiver, written):
        row = mask[graph.receivers.index(receiver)]
        total = 0.0
        for s, sender in enumerate(graph.senders):
            if np.any(row[s]):
                weight = row[s][:, None] if row.ndim == 2 else row[s]
                total = total + weight * (alternative[sender] - written[sender])
        return total

    return run(model, ids, come)[0]
