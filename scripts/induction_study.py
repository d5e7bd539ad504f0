"""The induction circuit of the shipped two-layer model: one head says what stood before, another
looks it up.

    python scripts/induction_study.py --out docs/mechanisms/induction

Which heads look where (patterns), which can read which (composition of weights), which matter
(ablation), and through which edge (exact edge patching): four tests that could disagree (Olsson et
al. 2022, arXiv:2209.11895; Elhage et al. 2021). Ends with a claim and a picture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import mechanism
import numpy as np
import training_run
import xarray as xr

import jaxinterp as ji
from jaxinterp import circuits, heads, report
from jaxinterp.algorithmic import repeats

LOOKS = 0.3  # mean attention from which a head of the second layer is an induction head


@dataclasses.dataclass(frozen=True)
class Found:
    """Tests of every head, all by number within its layer; ``induction`` are those that look."""

    previous: int
    induction: list[int]
    before: np.ndarray
    looked: np.ndarray
    composed: np.ndarray
    ablated: np.ndarray


def main() -> None:
    args = mechanism.parser(__doc__, "induction", "induction-2l", n=64).parse_args()
    model, _ = ji.load(args.model)
    chosen_on, task = (repeats.task(args.n, args.seed + i) for i in (0, 1))
    found = tested(model, chosen_on)
    patched = circuits.patch_edges(
        model, clean=chosen_on.clean, corrupted=chosen_on.corrupted, metric=chosen_on.metric
    )
    lookers = mechanism.named([(1, head) for head in found.induction])
    claim = ji.Claim(
        f"In {model.name} every token is told what stood before it by head 0.{found.previous}; "
        f"what once came after the present token is found by that, and repeated, by {lookers}.",
        model, task=task, dataset=f"{args.n} sequences of syllables; heads were chosen on others",
        components=[f"layer 0, head {found.previous}",
                    *(f"layer 1, head {head}" for head in found.induction)],
        experiments=experiments(model, task, found, args.seed),
        limits=[
            "How a head's output becomes the right logit (its OV circuit) was not taken apart.",
            "The world is syllables with a background of likely successors, not language.",
            "Repeats at other distances, and of fewer tokens, were not told apart.",
        ],
    ).run(model)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    looked = looks(model, len(chosen_on), "induction")
    report.score_map(looked, args.out / "scores.png", title="attention to the induction target")
    mechanism.state(args, claim, [
        *halves(model, args.seed), "", *agreement(found), "",
        *mechanism.strongest_edges(patched, "where the first copy is another"), "",
        "![scores](scores.png)",
    ])  # fmt: skip


def looks(model: ji.Model, n: int, kind: str) -> xr.DataArray:
    """How much every head looks one back, or at the induction target, in syllables said twice."""
    return heads.pattern_scores(model, repeats.said_twice(n, seed=(7, 0)), kind)


def tested(model: ji.Model, task: ji.Task) -> Found:
    before, looked = (
        looks(model, len(task), kind).mean("prompt").values
        for kind in ("previous_token", "induction")
    )
    composed = heads.composition_scores(model, "k").values[0, :, 1, :]
    grid = ji.product(layer=range(2), head=range(model.config.n_heads))
    base = np.asarray(ji.evaluate(task.metric, model, task.clean)).mean()
    values = np.asarray(ji.sweep(model, task.clean, ji.zero("z", **grid), task.metric)).mean(1)
    induction = np.flatnonzero(looked[1] > LOOKS).tolist() or [int(looked[1].argmax())]
    return Found(
        int(before[0].argmax()), induction, before[0], looked[1], composed,
        (values - base).reshape(2, -1),
    )  # fmt: skip


def experiments(model: ji.Model, task: ji.Task, found: Found, seed: int) -> list[ji.Experiment]:
    answer, clean = ji.log_prob(task.answers), task.clean
    every = ji.product(layer=range(2), head=range(model.config.n_heads))
    teller = ji.zero("z", layer=0, head=found.previous)
    lookers = [ji.zero("z", layer=1, head=head) for head in found.induction]
    circuit = [teller, *lookers]
    named = {(0, found.previous), *((1, head) for head in found.induction)}
    rest = [
        ji.zero("z", layer=layer, head=head)
        for layer, head in np.ndindex(2, model.config.n_heads) if (layer, head) not in named
    ]  # fmt: skip
    end, b = task.roles["END"], task.roles["B"]
    blind = [
        ji.replace("pattern", np.float32(0), layer=1, head=head, position=end, source=b)
        for head in found.induction
    ]
    heard = keys(model, task, found.previous)
    others = [h for h in range(model.config.n_heads) if h != found.previous]
    plain, likely = unrepeated(len(task), seed)
    return [
        ji.Experiment("each head zeroed", "localization", clean, ji.zero("z", **every), answer,
                      grid=True),
        ji.Experiment("all of these heads zeroed", "effect", clean, circuit, answer),
        ji.Experiment("the induction heads' attention from END to B cut", "effect", clean, blind,
                      answer, note="B came after the earlier place of the present token."),
        ji.Experiment(
            f"what 0.{found.previous} writes, kept from their keys at B", "effect", clean,
            [without(heard, head, b) for head in found.induction], answer,
            note="One edge between two layers: all else that it writes stays.",
        ),
        ji.Experiment(
            "what the other heads of layer 0 write, kept from the same keys", "control", clean,
            [without(np.stack([keys(model, task, h) for h in others]), head, b, grid=True)
             for head in found.induction],
            answer, grid=True, names=[f"head 0.{h}" for h in others],
        ),
        ji.Experiment("all other heads zeroed", "control", clean, rest, answer),
        ji.Experiment(
            "all of these heads zeroed, where nothing repeats", "specificity", plain, circuit,
            likely, margin=0.1,
            note="Log-probability of what the background favours after the last two tokens.",
        ),
    ]  # fmt: skip


def keys(model: ji.Model, task: ji.Task, head: int) -> np.ndarray:
    """What a head of layer 0 writes at B: [n 1 1 D]."""
    written = ji.forward(model, task.clean, record=("result",)).activations["result"]
    rows = np.arange(len(task))
    return np.asarray(written)[0, rows, task.roles["B"], head][:, None, None]


def without(said: np.ndarray, head: int, position: np.ndarray, *, grid: bool = False) -> ji.Edit:
    """The keys of a head of layer 1 read a place without ``said``."""
    at = ji.Shared(position) if grid else position
    one = np.full(len(said), head) if grid else head
    return ji.add("k_input", -said, layer=1 if not grid else np.ones(len(said), int), head=one,
                  position=at)  # fmt: skip


def unrepeated(n: int, seed: int) -> tuple[Any, ji.Metric]:
    """Sequences in which no token comes twice, and the log-probability of the favourites."""
    drawn = repeats.sequences(40 * n, (8, seed), length=24).ids
    single = np.array([len(set(row)) == len(row) for row in drawn.tolist()])
    ids = drawn[single][:n]
    favoured = repeats.favoured()
    both = np.concatenate([favoured[0, ids[:, -1]], favoured[1, ids[:, -2]]], 1)
    return ids, ji.log_prob([sorted(set(row)) for row in both.tolist()])


# What is no intervention of the claim


def halves(model: ji.Model, seed: int) -> list[str]:
    """The loss of random syllables said twice, by half."""
    ids = repeats.said_twice(256, seed=(6, seed))
    loss = np.asarray(training_run.next_token_losses(model, ids), np.float64)
    first, second = loss.reshape(len(ids), 2, -1).mean((0, 2))
    return [
        f"40 random syllables said twice, 256 sequences: {first:.3f} nats per token in the first "
        f"half, {second:.3f} in the second ({second / first:.2f} of it). To know nothing costs "
        f"{np.log(repeats.SIZE - 1):.2f}; the first half costs more where a model expects the "
        "successors of its training, which random syllables do not have."
    ]


def agreement(found: Found) -> list[str]:
    """What the patterns, the weights and the ablations say of each head."""
    looker = int(found.looked.argmax())
    reads = np.argmax(found.composed, 0)
    rows = [
        [f"0.{h}", f"{found.before[h]:.2f}", "", f"{found.ablated[0, h]:+.2f}",
         ", ".join(f"1.{i} {found.composed[h, i]:+.3f}" for i in range(len(found.before)))]
        for h in range(len(found.before))
    ] + [
        [f"1.{h}", "", f"{found.looked[h]:.2f}", f"{found.ablated[1, h]:+.2f}", ""]
        for h in range(len(found.looked))
    ]  # fmt: skip
    same = [
        bool(np.all(reads[found.induction] == found.previous)),
        int(found.ablated[0].argmin()) == found.previous,
        int(found.ablated[1].argmin()) in found.induction,
    ]
    words = ["no", "yes"]
    return [
        "On other prompts than the claim's: attention to the token before and to the induction "
        "target (random syllables said twice), the change of the logit difference when the head "
        "is zeroed, and the K-composition score of the two heads' weights (over random ones):", "",
        *mechanism.table(
            ["head", "looks one back", "looks at the target", "zeroed", "K-composition with"], rows
        ), "",
        f"Do they agree? The induction heads' keys compose most with 0.{found.previous}: "
        f"{words[same[0]]}. Zeroing 0.{found.previous} does most in layer 0: {words[same[1]]}; "
        f"zeroing an induction head (1.{looker} looks most) in layer 1: {words[same[2]]}.",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
