"""Name movers: the heads that look from the end at the indirect object's name and write it.

    python scripts/name_mover_study.py --out docs/mechanisms/name_mover

"When Mary and John went to the store, John gave a drink to" calls for " Mary" (Wang et al. 2022,
arXiv:2211.00593). On some prompts heads are chosen by two tests, attention and what their direct
path to the logits carries; on others they are ablated (the mean in their place), and their
attention is turned to the other name. Ends with a claim and a picture.
"""

from __future__ import annotations

from typing import Any

import mechanism
import numpy as np

import jaxinterp as ji
from jaxinterp import circuits, claims, report
from jaxinterp.ablation.means import as_value

LOOKS, WRITES = 0.25, 0.05  # attention to the name; share of the metric's fall by the direct path


def main() -> None:
    args = mechanism.parser(__doc__, "name_mover", "smollm2-135m-instruct", n=48).parse_args()
    model, tokenizer = ji.load(args.model)
    chosen_on, task = (ji.tasks.ioi(tokenizer, n=args.n, seed=args.seed + i) for i in (0, 1))
    looks = mechanism.attention(model, chosen_on, "END", "IO")
    wrote = writing(model, chosen_on)
    mean = looks.mean("prompt").values
    found = np.argwhere((mean > LOOKS) & (wrote > WRITES)).tolist()
    if not found:
        raise SystemExit("No head passes both tests: the claim has no subject.")
    names = mechanism.named(found)
    other = ji.tasks.subject_verb_agreement(tokenizer, n=args.n, seed=args.seed)
    claim = ji.Claim(
        f"In {model.name} {names} look from the end at the indirect object's name, and where they "
        "look decides which name is preferred.",
        model, task=task, dataset=f"{args.n} prompts; heads were chosen on as many others",
        components=[f"layer {layer}, head {head}" for layer, head in found],
        experiments=experiments(model, task, other, found, args.seed),
        limits=[
            "How they know which name to look at (S-inhibition, induction) is the circuit study's.",
            "Prompts of the task's templates, with names of one token.",
            "Heads below the thresholds (attention 0.25, 5% of the fall) may do the same.",
        ],
    ).run(model)  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    report.score_map(looks, args.out / "looks.png", title="attention from the end to the name")
    rows = [[f"{a}.{b}", f"{mean[a, b]:.2f}", f"{wrote[a, b]:.3f}"] for a, b in found]
    near = [[f"{a}.{b}", f"{mean[a, b]:.2f}", f"{wrote[a, b]:.3f}"]
            for a, b in np.argwhere(mean > LOOKS).tolist() if [a, b] not in found]  # fmt: skip
    mechanism.state(args, claim, [
        f"Chosen on other prompts than the claim's: mean attention above {LOOKS:g}, and of the "
        f"metric's fall from the clean to the corrupted prompts more than {WRITES:.0%} by the "
        "head's direct edge to the logits.", "",
        *mechanism.table(["head", "attention", "direct edge"], rows), "",
        "Those that look and do not pass the second test (below 0: they write against it):", "",
        *mechanism.table(["head", "attention", "direct edge"], near), "", "![looks](looks.png)",
    ])  # fmt: skip


def writing(model: ji.Model, task: ji.Task) -> np.ndarray:
    """The share of the metric's fall [L H] by each head's direct edge to the logits."""
    L, H = model.config.n_layers, model.config.n_heads
    patched = circuits.patch_edges(
        model, clean=task.clean, corrupted=task.corrupted, metric=task.metric,
        edges=[f"a{layer}.h{head}->logits" for layer in range(L) for head in range(H)],
    )  # fmt: skip
    clean, corrupted = (patched[name].mean() for name in ("clean", "corrupted"))
    share = (patched.mean("prompt") - clean) / (corrupted - clean)
    by_name = dict(zip(patched.edge.values.tolist(), share.values.tolist(), strict=True))
    return np.array([[by_name[f"a{a}.h{b}->logits"] for b in range(H)] for a in range(L)])


def experiments(
    model: ji.Model, task: ji.Task, other: ji.Task, found: list[list[int]], seed: int
) -> list[ji.Experiment]:
    c, clean = model.config, task.clean
    mean = ji.mean_activations(model, [task.clean, task.corrupted], ["z"])["z"]
    value = as_value(mean, "z", task.clean)  # [L 1 1 H K]: of all tokens of both kinds

    def ablated(layer: Any, head: Any) -> ji.Edit:
        return ji.replace("z", ji.Shared(value), layer=layer, head=head)

    movers = [ji.replace("z", value, layer=layer, head=head) for layer, head in found]
    every = ji.product(layer=range(c.n_layers), head=range(c.n_heads))
    end, swapped = task.roles["END"], exchanged(model, task)
    turned = [
        ji.replace("pattern", swapped, layer=layer, head=head, position=end)
        for layer, head in found
    ]
    return [
        ji.Experiment("the mean in place of each head", "localization", clean,
                      ablated(**every), task.metric, grid=True),
        ji.Experiment("the mean in place of the name movers", "effect", clean, movers, task.metric,
                      texts=task.clean_text),
        ji.Experiment("their attention to IO and S1 exchanged", "effect", clean, turned,
                      task.metric),
        ji.Experiment("the mean in place of as many random heads", "control", clean,
                      claims.random_components(movers, c, seed=seed), task.metric, grid=True),
        ji.Experiment("attention to IO and S1 exchanged in as many random heads", "control", clean,
                      claims.random_components(turned, c, seed=seed), task.metric, grid=True),
        ji.Experiment("the mean in place of the name movers: agreement", "specificity", other.clean,
                      movers, other.metric, margin=0.5, note="Prompts that call for is or are."),
    ]  # fmt: skip


def exchanged(model: ji.Model, task: ji.Task) -> np.ndarray:
    """What every head gives to IO, given to S1 and the reverse, at END: [L B H 1 S]."""
    pattern = ji.forward(model, task.clean, record=("pattern",)).activations["pattern"]
    rows = np.arange(len(task))
    at_end = np.array(pattern[:, rows, :, task.roles["END"]]).transpose(1, 0, 2, 3)  # [L B H S]
    io, s1 = (task.roles[role] for role in ("IO", "S1"))
    at_end[:, rows, :, io], at_end[:, rows, :, s1] = at_end[:, rows, :, s1], at_end[:, rows, :, io]
    return at_end[:, :, :, None]


if __name__ == "__main__":
    main()
