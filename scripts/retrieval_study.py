"""How the shipped model of retrieval finds a key's value: which heads look, and what they look by.

    python scripts/retrieval_study.py --out docs/mechanisms/retrieval

Heads that look from the query at its value are found by their attention; then their attention is
cut, and turned to another pair's value, which should become the answer; and each value is kept from
seeing the key before it, by which it is found. Ends with a claim and a picture.
"""

from __future__ import annotations

from typing import Any

import mechanism
import numpy as np
import xarray as xr

import jaxinterp as ji
from jaxinterp import circuits, claims, report
from jaxinterp.algorithmic import retrieval

LOOKS = 0.3  # mean attention from the query to its value, from which a head is a retrieval head


def main() -> None:
    args = mechanism.parser(__doc__, "retrieval", "retrieval-2l", n=64).parse_args()
    model, _ = ji.load(args.model)
    chosen_on, task = (retrieval.task(args.n, args.seed + i) for i in (0, 1))
    looks = mechanism.attention(model, chosen_on, "END", "VALUE")
    found = np.argwhere(looks.mean("prompt").values > LOOKS).tolist()
    if not found:
        raise SystemExit("No head looks from the query at its value: the claim has no subject.")
    patched = circuits.patch_edges(
        model, clean=chosen_on.clean, corrupted=chosen_on.corrupted, metric=chosen_on.metric
    )
    before = mechanism.attention(model, chosen_on, "VALUE", "KEY").mean("prompt").values
    tellers = np.flatnonzero(before[0] > LOOKS).tolist()
    if not tellers:
        raise SystemExit("No head of the first layer looks from a value at its key.")
    claim = ji.Claim(
        f"In {model.name} every value is told the key before it by "
        f"{mechanism.named([(0, head) for head in tellers])}, and found by that key and brought to "
        f"the query by {mechanism.named(found)}.",
        model, task=task, dataset=f"{args.n} prompts of 8 pairs and 5 distractors; heads were "
        "chosen on others",
        components=[f"layer {a}, head {b}" for a, b in [*((0, h) for h in tellers), *found]],
        experiments=experiments(model, task, tellers, found, args.seed),
        limits=[
            "Which heads of the first layer carry the values themselves, and what the MLPs "
            "contribute, was measured by edges only (the report's table).",
            f"{mechanism.named([(0, head) for head in tellers])} were cut together; what each does "
            "alone is under Localization.",
            "Prompts with 8 pairs and one query; more pairs and later queries were not tried here.",
            "The model was trained to do this alone: there is no unrelated behaviour to be spared; "
            "attention to another pair's value, cut alike, stands in for it.",
        ],
    ).run(model)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    report.score_map(looks, args.out / "looks.png", title="attention from the query to its value")
    mechanism.state(args, claim, [
        *means(model, chosen_on, before, looks), "",
        *mechanism.strongest_edges(patched, "where two values have changed places"), "",
        "![attention](looks.png)",
    ])  # fmt: skip


def cut(task: ji.Task, query: str, source: str, **where: Any) -> ji.Edit:
    """A head's attention between two roles, taken away."""
    return ji.replace(
        "pattern", np.float32(0), position=task.roles[query], source=task.roles[source], **where
    )


def experiments(
    model: ji.Model, task: ji.Task, tellers: list[int], found: list[list[int]], seed: int
) -> list[ji.Experiment]:
    c, clean = model.config, task.clean
    # Of the two values: the log-probability is 0 to begin with, and would hide what a control does.
    answer = ji.logit_diff(task.answers, task.wrong)
    every = ji.product(layer=range(c.n_layers), head=range(c.n_heads))
    zeroed = [ji.zero("z", layer=layer, head=head) for layer, head in found]
    telling = [ji.zero("z", layer=0, head=head) for head in tellers]
    at = [{"layer": layer, "head": head} for layer, head in found]
    turned = [
        edit for place in at for edit in (
            cut(task, "END", "VALUE", **place),
            ji.replace("pattern", np.float32(1), position=task.roles["END"],
                       source=task.roles["OTHER_VALUE"], **place),
        )
    ]  # fmt: skip
    return [
        ji.Experiment("each head zeroed", "localization", clean, ji.zero("z", **every), answer,
                      grid=True),
        ji.Experiment("the retrieval heads zeroed", "effect", clean, zeroed, answer),
        ji.Experiment("their attention from the query to its value cut", "effect", clean,
                      [cut(task, "END", "VALUE", **place) for place in at], answer),
        ji.Experiment("their attention turned to another pair's value", "effect", clean, turned,
                      answer, note="Below 0 the other value is the answer."),
        ji.Experiment("the value kept from seeing its key by those heads", "effect", clean,
                      [cut(task, "VALUE", "KEY", layer=0, head=h) for h in tellers], answer),
        ji.Experiment("as many other heads zeroed", "control", clean,
                      claims.random_components(zeroed, c, seed=seed, sparing=telling), answer,
                      grid=True),
        ji.Experiment("the value kept from seeing another key", "control", clean,
                      cut(task, "VALUE", "OTHER_KEY", layer=0), answer, margin=1.0),
        ji.Experiment("attention from the query to another pair's value cut", "control", clean,
                      [cut(task, "END", "OTHER_VALUE", **place) for place in at], answer,
                      margin=1.0),
    ]  # fmt: skip


def means(model: ji.Model, task: ji.Task, before: np.ndarray, looks: xr.DataArray) -> list[str]:
    """What the model can do, and where every head looks."""
    able = ji.tasks.check(model, task)
    at = looks.mean("prompt").values
    rows = [
        [f"{layer}.{head}", f"{before[layer, head]:.2f}", f"{at[layer, head]:.2f}"]
        for layer, head in np.ndindex(at.shape)
    ]
    return [
        f"On other prompts than the claim's ({', '.join(f'{k} {v:.3g}' for k, v in able.items())}) "
        "the mean attention of every head:", "",
        *mechanism.table(["head", "from a value to its key", "from the query to its value"], rows),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
