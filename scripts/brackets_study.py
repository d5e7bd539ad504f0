"""How the shipped classifier of brackets counts: an average, made into flags, by which it answers.

    python scripts/brackets_study.py --out docs/mechanisms/brackets

A string of brackets is balanced if as many close as open and no beginning has more that close. Of
every string there are two kinds of flags: at the first position, that the sum is not 0 and that it
is below 0; at every bracket, that more close than open up to there, or more open than close from
there on. They are read by ridge regression, before and after the first layer's attention and MLP,
and erased (LEACE, Belrose et al. 2023, arXiv:2306.03819): strings that fail in one way should pass
without the flags of that way alone. Ends with a claim.
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
PENALTY = 1e-3
POINTS = {"before layer 0": "resid_pre", "after its attention": "resid_mid",
          "after its MLP": "resid_post"}  # fmt: skip
SUM = ("the sum is not 0", "the sum is below 0")
DIP = ("more close up to here", "more open from here on")


@dataclasses.dataclass(frozen=True)
class Stream:
    """What layer 0 has of some strings at each of `POINTS` [n P D], and their steps [n P].

    A step is +1 for an opening bracket, -1 for a closing one, 0 for what is none.
    """

    x: dict[str, np.ndarray]
    steps: np.ndarray

    @classmethod
    def of(cls, model: ji.Model, drawn: brackets.Strings) -> Stream:
        out = ji.forward(model, as_prompts(drawn.ids), record=tuple(POINTS.values())).activations
        steps = np.diff(brackets.heights(drawn.ids), axis=1, prepend=0)
        return cls({site: np.asarray(out[site][0]) for site in POINTS.values()}, steps)

    @property
    def at_first(self) -> dict[str, np.ndarray]:
        """What can be said of whole strings: [n] each."""
        total = self.steps.sum(1)
        share = total / np.abs(self.steps).sum(1)
        return {"sum / length": share, **dict(zip(SUM, (total != 0, total < 0), strict=True))}

    @property
    def at_brackets(self) -> dict[str, np.ndarray]:
        """What can be said of every bracket: [m] each."""
        height = np.cumsum(self.steps, 1)
        rest = height[:, -1:] - height + self.steps
        real = self.steps != 0
        return {"height": height[real], **dict(zip(DIP, (height[real] < 0, rest[real] > 0),
                                                   strict=True))}  # fmt: skip

    def examples(self, what: str, site: str) -> np.ndarray:
        """The stream [m D] where this is said."""
        x = self.x[site]
        return x[:, 0] if what in self.at_first else x[self.steps != 0]

    def said(self, *what: str) -> np.ndarray:
        """Columns [m k] of what is said there."""
        every = self.at_first | self.at_brackets
        return np.stack([every[name] for name in what], 1).astype(np.float32)


def main() -> None:
    args = mechanism.parser(__doc__, "brackets", "brackets-2l", n=256).parse_args()
    model, _ = ji.load(args.model)
    made_of, held = (brackets.strings(3000, (4, args.seed, i)) for i in (0, 1))
    fitted, tested = (Stream.of(model, part) for part in (made_of, held))
    untrained = ji.init(model.config, jax.random.key(args.seed))
    chance = [Stream.of(untrained, part) for part in (made_of, held)]
    claim = ji.Claim(
        f"{model.name} counts: its first layer flags a wrong sum at the first position and a dip "
        "at the brackets, and it calls strings unbalanced by these flags.",
        model, task="are the brackets balanced?",
        dataset=f"{args.n} strings of 20 brackets of each kind; directions are from others",
        components=[
            f"resid_post of layer 0 at the first position: {' and '.join(SUM)}, two directions",
            f"resid_post of layer 0 at every bracket: {' and '.join(DIP)}, two directions",
        ],
        experiments=experiments(model, args, fitted),
        limits=[
            "A wrong sum is also a dip, from the left or from the right: the two ways to fail "
            "cannot be had apart in that direction, and without the first position's flags alone "
            "many of those strings are still rejected (the table of those that pass).",
            "The flags of a dip are found by ridge regression, which tells only part of them (the "
            "first table): what else the MLP writes at the brackets was not looked at.",
            "Which neurons make the flags, and which heads of the second layer collect them, was "
            "measured only head by head.",
            "Strings of 20 brackets; longer and shorter ones were not intervened on.",
        ],
    ).run(model)  # fmt: skip
    columns = [(what, site) for what in (*fitted.at_first, *fitted.at_brackets)
               for site in POINTS.values()]  # fmt: skip
    pairs = ((fitted, tested), tuple(chance))
    found = {key: [read(*pair, *key) for pair in pairs] for key in columns}
    rows = [
        [what, *(f"{found[what, site][0]:.3f} ({found[what, site][1]:.3f})"
                 for site in POINTS.values())]
        for what in (*fitted.at_first, *fitted.at_brackets)
    ]  # fmt: skip
    kinds = [[kind, f"{right(model, kind, args.seed):.4f}"] for kind in brackets.KINDS]
    mechanism.state(args, claim, [
        "The share of the variance that ridge regression finds on other strings, the first three "
        "at the first position, the others at every bracket; in parentheses the same "
        "architecture before training:", "",
        *mechanism.table(["what is read", *POINTS], rows), "",
        "Attention leaves an average, the share by which opening brackets prevail, as it does "
        "before training; the MLP learns to make flags of it: plain ones at the first position, "
        "while those at the brackets are linear in part only. From there on the average is no "
        "longer what counts (last of the effects, last of the controls).", "",
        *passing(claim), "",
        "Accuracy by kind of string (4,000 each). Flipped: a balanced one with one bracket turned; "
        "exchanged: two of its brackets have changed places, so that it dips; shuffled: as many of "
        "both in any order.", "",
        *mechanism.table(["kind", "accuracy"], kinds),
    ])  # fmt: skip


def read(fitted: Stream, tested: Stream, what: str, site: str) -> float:
    """R^2 of one thing at a point of the stream, on other strings."""
    X, y = fitted.examples(what, site), fitted.said(what)
    found = probes.fit_ridge(X, y, np.ones((1, len(X)), np.float32), np.array([PENALTY]))
    X, y = tested.examples(what, site), tested.said(what)[:, 0]
    said = (X @ np.asarray(found.W[0, 0]) + np.asarray(found.b[0, 0]))[:, 0]
    return float(1 - np.square(said - y).sum() / np.square(y - y.mean()).sum())


def right(model: ji.Model, kind: str, seed: int) -> float:
    drawn = brackets.strings(4000, (5, seed), kind)
    answer = ji.accuracy(drawn.answers, 0)
    return float(np.mean(ji.evaluate(answer, model, as_prompts(drawn.ids))))


def passing(claim: ji.Claim) -> list[str]:
    """How many strings are called balanced without and with each intervention."""
    rows = [
        [e.name, *(f"{(values > 0).mean():.3f}" for values in (e.found.without, e.found.values))]
        for e in claim.of_role("effect", "control", "specificity")
    ]
    return ["The share of strings that pass as balanced (where there are draws, over all of "
            "them):", "", *mechanism.table(["experiment", "without", "with"], rows)]  # fmt: skip


def experiments(model: ji.Model, args: Any, fitted: Stream) -> list[ji.Experiment]:
    c, D = model.config, model.config.d_model
    wrong_sum, dipping = (
        brackets.task(args.n, args.seed + 1, corruption=how) for how in ("flip", "exchange")
    )
    first = np.arange(wrong_sum.clean.shape[1]) == 0
    every = ji.product(layer=range(c.n_layers), head=range(c.n_heads))

    def erased(*what: str, site: str = "resid_post") -> ji.Edit:
        one = erasure.leace(fitted.examples(what[0], site), fitted.said(*what))
        return ji.apply(site, one, layer=0, position=place(what))

    def place(what: tuple[str, ...]) -> np.ndarray:
        return first if what[0] in fitted.at_first else ~first

    def random(*what: str) -> ji.Edit:
        """Draws of the same rank about the same mean, at the same place."""
        centre = fitted.examples(what[0], "resid_post").mean(0)
        drawn = [erasure.random_eraser(D, len(what), args.seed + i, centre) for i in range(DRAWS)]
        return ji.apply("resid_post", mechanism.stacked(drawn), layer=np.zeros(DRAWS, int),
                        position=ji.Shared(place(what)))  # fmt: skip

    sound, metric = wrong_sum.clean, wrong_sum.metric
    of_sum, of_dip = (wrong_sum.corrupted, metric), (dipping.corrupted, dipping.metric)
    both = [erased(*SUM), erased(*DIP)]
    note = "The logit of balanced minus that of unbalanced; above 0 the string passes."
    count = "sum / length"
    return [
        ji.Experiment("each head zeroed, balanced strings", "localization", sound,
                      ji.zero("z", **every), metric, grid=True),
        ji.Experiment("dip flags erased, strings that dip", "effect", of_dip[0], erased(*DIP),
                      of_dip[1], note=note),
        ji.Experiment("sum flags erased, wrong sum", "effect", of_sum[0], erased(*SUM), of_sum[1]),
        ji.Experiment("both erased, wrong sum", "effect", of_sum[0], both, of_sum[1]),
        ji.Experiment("the average erased before the MLP, wrong sum", "effect", of_sum[0],
                      erased(count, site="resid_mid"), of_sum[1]),
        ji.Experiment(f"random erasures at the brackets, {DRAWS} draws, dip", "control", of_dip[0],
                      random(*DIP), of_dip[1], grid=True),
        ji.Experiment(f"random erasures at the first position, {DRAWS} draws, wrong sum",
                      "control", of_sum[0], random(*SUM), of_sum[1], grid=True),
        ji.Experiment("the average erased after the MLP, wrong sum", "control", of_sum[0],
                      erased(count), of_sum[1], margin=1.0),
        ji.Experiment("sum flags erased, strings that dip", "specificity", of_dip[0],
                      erased(*SUM), of_dip[1], margin=1.0, note="Their sum is right."),
        ji.Experiment("dip flags erased, wrong sum", "specificity", of_sum[0], erased(*DIP),
                      of_sum[1], margin=1.0, note="Their sum still says it."),
        ji.Experiment("both erased, balanced strings", "specificity", sound, both, metric,
                      margin=1.0),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
