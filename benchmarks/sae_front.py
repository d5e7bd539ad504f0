"""A front of dictionaries in one vmapped run, against one after another, here and in PyTorch.

BatchTopK dictionaries of SmolLM2-135M's residual stream on WikiText-2: eight values of k times
three seeds, on the same batches in the same order, with the same learning rates; interleaved in
one run::

    python benchmarks/make_peer_env.py saes-env sae-lens
    python benchmarks/sae_front.py --peers saes-env/bin/python

Peers, and our own one after another, train one seed of each k to the end: what a step costs does
not depend on the seed. The table goes to stdout and to ``benchmarks/results/sae_front.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import page
from peers import Peer, timed
from roofline import rate
from tqdm import tqdm

import jaxinterp as ji
from jaxinterp import corpora, sae
from jaxinterp.sae.sparse import slots_for

LIBRARIES = {"dictionary_learning": "dictionary_learning", "sae_lens": "SAELens"}
FRONT = "one vmapped run"
KS = (8, 12, 16, 24, 32, 40, 48, 64)
LONGEST = 4.0  # times the median norm: 0.02% of tokens lie above, at a hundred times
WARMUP, DECAY = 0.05, 0.2  # fractions of the steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="Python with sae-lens, dictionary-learning")
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--width", type=int, default=9216, help="features (default 16 x 576)")
    parser.add_argument("--ks", type=int, nargs="+", default=list(KS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=60, help="seen again and again")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    batches, held = activations(args)
    everyone = [(k, seed) for k in args.ks for seed in range(args.seeds)]
    runs: dict[str, Ours | Theirs] = {
        FRONT: Ours(args, batches, [everyone]),
        "one after another": Ours(args, batches, [[(k, 0)] for k in args.ks]),
    }
    versions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/batches.npy"
        np.save(path, batches)
        for library in args.libraries if args.peers else ():
            peer = stack.enter_context(Peer(args.peers))
            versions |= peer.ask("about")["versions"]
            runs[LIBRARIES[library]] = Theirs(args, peer, library, path)
        seconds, rates = interleaved(args, runs)
        explained = {name: run.explained(held) for name, run in runs.items()}
    floor = 10 * args.width * batches[0].size / statistics.median(rates)
    rows = table(seconds, explained, floor)
    print(page.table(HEAD, rows))
    page.write(
        args.out, "sae_front.md", "A front of sparse dictionaries", page.stamp(versions),
        f"BatchTopK, {args.width} features of {batches.shape[-1]} dimensions: the stream after "
        f"block {args.layer} of {args.model} on WikiText-2, k = {', '.join(map(str, args.ks))}, "
        f"{args.seeds} seeds each; {args.steps} steps of {args.batch} examples "
        f"({args.batches * args.batch:,} different ones, without the few above {LONGEST:g} times "
        "the median norm), float32, decoder rows of norm 1, "
        "b_dec subtracted from what is read, slopes cut to a global norm of 1, one learning rate, "
        "its warm-up and decay. Seconds are medians of "
        f"{args.rounds} interleaved rounds, without compiling (least to most); those who train one "
        "after another train one seed of each k, the front all. Explained variance is that of "
        f"{len(held)} held-out examples with the k features per example that are most active among "
        "all of them, seed 0. The floor: five products of a step (features, reconstruction, and "
        "the slopes of features, decoder and encoder) at the rate of large products.",
        page.table(HEAD, rows),
        "Recipe: `python benchmarks/make_peer_env.py saes-env sae-lens`, `python "
        "benchmarks/sae_front.py --peers saes-env/bin/python`.",
    )  # fmt: skip


def activations(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Batches [N B D] in random order, centred and scaled, and held-out examples [B D]."""
    model, tokenizer = ji.load(args.model)
    config = sae.DictionaryConfig(
        model.config.d_model, args.width, site="resid_post", layers=(args.layer,)
    )
    wanted = (args.batches + 1) * args.batch
    blocks = corpora.packed(
        corpora.read_lines(ji.fetch("wikitext-2") / "train.raw.gz"), tokenizer, 128, 16
    )
    read = jax.jit(lambda tokens: sae.values_at(model, tokens, config, first=False)[0])
    found: list[np.ndarray] = []
    with tqdm(total=wanted, desc="harvest", unit=" tokens") as bar:
        for tokens in blocks:
            found.append(ordinary(np.asarray(read(tokens))))
            bar.update(len(found[-1]))
            if sum(map(len, found)) >= wanted:
                break
    x = np.random.default_rng(0).permutation(np.concatenate(found))[:wanted]
    x = x.reshape(-1, args.batch, x.shape[-1])
    sample = x[:8].reshape(-1, x.shape[-1])
    scaled = np.asarray(sae.measure_scaling(sample, sample)(x, x)[0], np.float32)
    return scaled[:-1], scaled[-1]


def ordinary(x: np.ndarray) -> np.ndarray:
    """Without the few examples of huge norms, to which any loss would be due."""
    norms = np.linalg.norm(x, axis=1)
    return x[norms <= LONGEST * np.median(norms)]


class Ours:
    """Fronts, one after another; each a list of (k, seed)."""

    def __init__(
        self, args: argparse.Namespace, batches: np.ndarray, fronts: list[list[tuple[int, int]]]
    ) -> None:
        config = sae.DictionaryConfig(
            batches.shape[-1], args.width, activation="batch_topk", subtract_bias=True
        )
        self.training = sae.TrainingConfig(
            args.steps, warmup=WARMUP, decay=DECAY, unit_norm=True,
            slots=slots_for(config, max(args.ks)),
        )  # fmt: skip
        zero, one = np.zeros(batches.shape[-1], np.float32), np.float32(1)
        self.scaling = sae.Scaling(zero, one, zero, one)
        self.batches, self.count = batches, sum(map(len, fronts))
        self.members = [
            sae.Hyperparameters(
                k=np.array([k for k, _ in front]), seed=np.array([seed for _, seed in front]),
                learning_rate=args.learning_rate,
            ).spread() for front in fronts
        ]  # fmt: skip
        self.states = [
            jax.vmap(lambda m: sae.start(config, self.training, m))(m) for m in self.members
        ]
        copies = jax.tree.map(jnp.copy, self.states[0])  # compiling: the update takes its states
        jax.block_until_ready(self._one(copies, self.members[0], 0))

    def _one(self, states: Any, members: Any, step: int) -> Any:
        batch = self.batches[step % len(self.batches)]
        return sae.advance(
            states, sae.Given(), members, self.scaling, batch, training=self.training
        )[0]

    def steps(self, first: int, n: int) -> float:
        """Seconds per step and member of ``n`` more steps of all."""

        def run() -> None:
            for i, members in enumerate(self.members):
                for step in range(first, first + n):
                    self.states[i] = self._one(self.states[i], members, step)
                jax.block_until_ready(self.states[i])

        return timed(run)[1] / (n * self.count)

    def explained(self, held: np.ndarray) -> list[float]:
        """Of held-out examples, for seed 0 of each k."""
        found = []
        for states, members in zip(self.states, self.members, strict=True):
            for i in np.flatnonzero(members.seed == 0):
                one = jax.tree.map(lambda leaf, i=i: leaf[i], states.dictionary)
                code = sae.encode(one, jnp.asarray(held), together=True)
                found.append(share(held, np.asarray(one.decode(code.features))))
        return found


class Theirs:
    """A library's trainer, one dictionary after another."""

    def __init__(self, args: argparse.Namespace, peer: Peer, library: str, path: str) -> None:
        self.peer, self.path, self.count = peer, path, len(args.ks)
        for member, k in enumerate(args.ks):
            peer.ask(
                "new_dictionary", library=library, member=member, k=k, seed=0, steps=args.steps,
                d=int(np.load(path, mmap_mode="r").shape[-1]), width=args.width, batch=args.batch,
                rate=args.learning_rate, warmup=round(WARMUP * args.steps),
                decay=round(DECAY * args.steps),
            )  # fmt: skip

    def steps(self, first: int, n: int) -> float:
        seconds = [
            self.peer.ask("train_dictionary", member=m, path=self.path, first=first, steps=n)
            for m in range(self.count)
        ]
        return sum(answer["seconds"] for answer in seconds) / (n * self.count)

    def explained(self, held: np.ndarray) -> list[float]:
        found = [
            self.peer.exchange("reconstruct", {"x": held}, member=m) for m in range(self.count)
        ]
        return [share(held, answer["y"]) for answer in found]


def share(x: np.ndarray, y: np.ndarray) -> float:
    """The variance explained."""
    return float(1 - np.square(x - y).sum() / np.square(x - x.mean(0)).sum())


def interleaved(
    args: argparse.Namespace, runs: dict[str, Ours | Theirs]
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds per step and dictionary, round by round, and the machine's rate."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    n, rates = args.steps // args.rounds, []
    with tqdm(total=args.rounds * len(runs), desc="rounds") as bar:
        for number in range(args.rounds):
            rates.append(rate())
            for name, run in runs.items():
                seconds[name].append(run.steps(number * n, n))
                bar.update()
                bar.set_postfix({name: f"{seconds[name][-1] * 1e3:.0f} ms"})
    return seconds, rates


HEAD = (
    "", "a step of one dictionary", "ratio to the front's", "to the floor",
    "explained variance, by k",
)  # fmt: skip


def table(
    seconds: dict[str, list[float]], explained: dict[str, list[float]], floor: float
) -> list[list[str]]:
    ours = statistics.median(seconds[FRONT])
    rows = []
    for name, runs in seconds.items():
        each = statistics.median(runs)
        rows.append([
            name, f"{each * 1e3:.0f} ms ({min(runs) * 1e3:.0f} to {max(runs) * 1e3:.0f})",
            f"**{each / ours:.1f}x**", f"{each / floor:.1f}",
            ", ".join(f"{value:.3f}" for value in explained[name]),
        ])  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
