"""How the shipped classifier of brackets counts: heights are in its stream, and it answers by them.

    python scripts/brackets_study.py --out docs/mechanisms/brackets

A string of brackets is balanced if as many close as open and the height never falls below 0. Is the
height of every bracket, and at the first position the sum of all, a direction of the stream after
the first layer? Both are read by ridge regression beside what position and token alone give; then
they are erased (LEACE of numbers, Belrose et al. 2023) in strings whose sum is wrong, and in
strings that dip below 0: each should pass as balanced by its own erasure. Ends with a claim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import mechanism
import numpy as np

import jaxinterp as ji
from jaxinterp import erasure, probes
from jaxinterp.algorithmic import brackets
from jaxinterp.algorithmic.prompts import as_prompts

DRAWS = 20
PENALTY = 1e-2


@dataclasses.dataclass(frozen=True)
class Stream:
    """What each layer leaves [L n P D] of strings, their heights [n P], and which are brackets."""

    x: np.ndarray
    heights: np.ndarray
    real: np.ndarray

    @classmethod
    def of(cls, model: ji.Model, drawn: brackets.Strings) -> Stream:
        tokens = as_prompts(drawn.ids)
        out = ji.forward(model, tokens, record=("resid_pre", "resid_post")).activations
        x = np.concatenate([np.asarray(out["resid_pre"])[:1], np.asarray(out["resid_post"])])
        return cls(x, brackets.heights(drawn.ids), np.asarray(tokens.mask))

    @property
    def total(self) -> np.ndarray:
        """The sum of all brackets [n]."""
        return self.heights[:, -1]

    def at_brackets(self, point: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples [m D] and their heights [m]."""
        real = self.real.copy()
        real[:, 0] = False
        return self.x[point][real], self.heights[real]


def main() -> None:
    args = mechanism.parser(__doc__, "brackets", "brackets-2l", n=128).parse_args()
    model, _ = ji.load(args.model)
    made_of, held = (brackets.strings(3000, (4, args.seed, i)) for i in (0, 1))
    fitted, tested = (Stream.of(model, part) for part in (made_of, held))
    untrained = ji.init(model.config, jax.random.key(args.seed))
    chance = [Stream.of(untrained, part) for part in (made_of, held)]
    claim = ji.Claim(
        f"{model.name} counts: after its first layer a few directions of the stream hold each "
        "bracket's height, and it calls strings unbalanced by them.",
        model, task="are the brackets balanced?",
        dataset=f"{args.n} strings of 20 brackets of each kind; directions are from others",
        components=[
            "resid_post of layer 0 at every bracket: the height, and whether it is below 0",
            "beside it, resid_post of layer 0 at the first position: the sum",
        ],
        experiments=experiments(model, args, fitted),
        limits=[
            "Which heads count, and how the second layer finds a dip, was measured only head by "
            "head.",
            "Strings of 20 brackets; longer and shorter ones were not intervened on.",
            "Erasing moves the answer part of the way: what else says that a string is unbalanced "
            "was not found.",
        ],
    ).run(model)  # fmt: skip
    rows = [
        [name, *(f"{read(*pair, what, point):.3f}" for what, point in
                 (("sum", 0), ("sum", 1), ("height", 0), ("height", 1)))]
        for name, pair in ((model.name, (fitted, tested)), ("before training", chance))
    ]  # fmt: skip
    kinds = [[kind, f"{right(model, kind, args.seed):.4f}"] for kind in brackets.KINDS]
    mechanism.state(args, claim, [
        "The share of the variance that ridge regression finds on other strings: of the sum at the "
        "first position, and of every bracket's height at the bracket, before any layer and after "
        "the first:", "",
        *mechanism.table(
            ["model", "sum, before", "sum, after layer 0", "height, before", "height, after"], rows
        ), "",
        "Accuracy by kind of string (4,000 each):", "",
        *mechanism.table(["kind", "accuracy"], kinds),
    ])  # fmt: skip


def read(fitted: Stream, tested: Stream, what: str, point: int) -> float:
    """R^2 of the sum or the heights at a point of the stream, on other strings."""
    if what == "sum":
        pairs = [(s.x[point][:, 0], s.total) for s in (fitted, tested)]
    else:
        pairs = [s.at_brackets(point) for s in (fitted, tested)]
    (X, y), (X_other, y_other) = pairs
    weights = np.ones((1, len(X)), np.float32)
    found = probes.fit_ridge(
        X.astype(np.float32), y[:, None].astype(np.float32), weights, np.array([PENALTY])
    )
    said = X_other @ np.asarray(found.W[0, 0]) + np.asarray(found.b[0, 0])
    rest = np.square(said[:, 0] - y_other).sum()
    return float(1 - rest / np.square(y_other - y_other.mean()).sum())


def right(model: ji.Model, kind: str, seed: int) -> float:
    drawn = brackets.strings(4000, (5, seed), kind)
    answer = ji.accuracy(drawn.answers, 0)
    return float(np.mean(ji.evaluate(answer, model, as_prompts(drawn.ids))))


def experiments(model: ji.Model, args: Any, fitted: Stream) -> list[ji.Experiment]:
    c, D = model.config, model.config.d_model
    flipped, dipping = (
        brackets.task(args.n, args.seed + 1, corruption=how) for how in ("flip", "exchange")
    )
    other, heights = fitted.at_brackets(1)
    total = erasure.leace(fitted.x[1][:, 0], fitted.total[:, None].astype(float))
    height = erasure.leace(other, np.stack([heights, heights < 0], 1).astype(float))
    first = np.arange(flipped.clean.shape[1]) == 0
    every = ji.product(layer=range(c.n_layers), head=range(c.n_heads))
    top, low = total.rank, height.rank

    def random(rank: int, centre: Any) -> Any:
        drawn = [erasure.random_eraser(D, rank, args.seed + i, centre) for i in range(DRAWS)]
        return mechanism.stacked(drawn)

    def erased(one: Any, at: np.ndarray, n: int = 0) -> ji.Edit:
        """After the first layer; n draws of a grid."""
        layer = np.zeros(n, int) if n else 0
        return ji.apply("resid_post", one, layer=layer, position=ji.Shared(at) if n else at)

    sound, metric = flipped.clean, flipped.metric
    return [
        ji.Experiment("each head zeroed, balanced strings", "localization", sound,
                      ji.zero("z", **every), metric, grid=True),
        ji.Experiment("the sum erased, strings with a wrong sum", "effect", flipped.corrupted,
                      erased(total, first), metric,
                      note="The logit of balanced minus that of unbalanced; above 0 it passes."),
        ji.Experiment(f"random erasures of rank {top}, wrong sum", "control", flipped.corrupted,
                      erased(random(top, total.centre), first, DRAWS), metric, grid=True),
        ji.Experiment("heights erased, strings that dip", "effect", dipping.corrupted,
                      erased(height, ~first), dipping.metric),
        ji.Experiment("heights erased, strings with a wrong sum", "effect", flipped.corrupted,
                      erased(height, ~first), metric),
        ji.Experiment(f"random erasures of rank {low}, wrong sum", "control", flipped.corrupted,
                      erased(random(low, height.centre), ~first, DRAWS), metric, grid=True),
        ji.Experiment(f"random erasures of rank {low}, dip", "control", dipping.corrupted,
                      erased(random(low, height.centre), ~first, DRAWS), dipping.metric, grid=True),
        ji.Experiment("the sum erased, strings that dip", "specificity", dipping.corrupted,
                      erased(total, first), dipping.metric, margin=1.0,
                      note="Their sum is right: another way to fail."),
        ji.Experiment("the sum erased, balanced strings", "specificity", sound,
                      erased(total, first), metric, margin=1.0),
        ji.Experiment("heights erased, balanced strings", "specificity", sound,
                      erased(height, ~first), metric, margin=1.0),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
