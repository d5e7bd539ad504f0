"""Subject-verb agreement: the subject's number, erased and exchanged where the model keeps it.

    python scripts/agreement_study.py --out docs/mechanisms/agreement

"The keys near the cabinet" calls for "are". The number is erased from the stream at the subject
(LEACE, Belrose et al. 2023, arXiv:2306.03819, fitted on prompts of other nouns), and moved to the
other one along the difference of means; the same edits should leave tense alone. Which layers'
subjects still matter is a sweep over all. Ends with a claim.
"""

from __future__ import annotations

from typing import Any

import mechanism
import numpy as np
from difference import Difference

import jaxinterp as ji
from jaxinterp.tokens import Tokenizer

DRAWS = 10


def main() -> None:
    parser = mechanism.parser(__doc__, "agreement", "smollm2-135m-instruct", n=96)
    parser.add_argument("--layer", type=int, default=12, help="after which the subject is edited")
    args = parser.parse_args()
    model, tokenizer = ji.load(args.model)
    made_of, task = by_nouns(ji.tasks.subject_verb_agreement(tokenizer, n=4 * args.n), args.n)
    able = ji.tasks.check(model, task)
    at, plural = made_of.roles["subject"], number(made_of)
    known = Difference.of(
        model, made_of.clean[plural], made_of.clean[~plural], at[plural], at[~plural]
    )
    claim = ji.Claim(
        f"{model.name} keeps the subject's number in a direction of the stream at the subject, and "
        "chooses between is and are by it.",
        model, task=task, dataset=f"{len(task)} prompts of nouns that the direction was not made "
        f"of ({len(made_of)} other prompts)",
        components=[f"resid_post of layer {args.layer} at the subject, one direction"],
        experiments=experiments(args, tokenizer, task, known),
        limits=[
            "One verb (is, are) and the templates of the task.",
            "Which heads carry the number from the subject to the verb was not tested here.",
            "Erasing what is linear says nothing of what is kept otherwise, or elsewhere.",
        ],
    ).run(model)  # fmt: skip
    said = ", ".join(f"{name} {value:.3g}" for name, value in able.items())
    mechanism.state(args, claim, [
        f"{len(task)} prompts such as `{task.clean_text[0]}`: {said}.",
    ])  # fmt: skip


def by_nouns(task: ji.Task, n: int) -> tuple[ji.Task, ji.Task]:
    """Two parts that share no subject; the second is of n prompts at most."""
    nouns = np.char.rstrip(np.asarray(task.prompts["subject"], str), "s")
    names = np.unique(nouns)
    half = np.isin(nouns, np.random.default_rng(0).permutation(names)[: len(names) // 2])
    return task[np.flatnonzero(half)], task[np.flatnonzero(~half)[:n]]


def number(task: ji.Task) -> np.ndarray:
    """Whether the subject is plural [n]."""
    return np.asarray(task.prompts["number"]) == "plural"


def experiments(
    args: Any, tokenizer: Tokenizer, task: ji.Task, known: Difference
) -> list[ji.Experiment]:
    at, clean, layer = task.roles["subject"], task.clean, args.layer
    other = np.where(number(task), -1, 1)
    past, present = (
        [[tokenizer.single_token(f" {word}") for word in words]] * len(task)
        for words in (("was", "were"), ("is", "are"))
    )
    tense = ji.logit_diff(np.array(past), np.array(present))
    return [
        ji.Experiment("the number erased at the subject, after each layer", "localization", clean,
                      known.erased_after_each(at), task.metric, grid=True),
        ji.Experiment("the number erased", "effect", clean, known.erased(at, layer), task.metric,
                      texts=task.clean_text),
        ji.Experiment("the number moved to the other", "effect", clean,
                      known.moved(at, layer, other), task.metric,
                      note="Below 0 the other verb is preferred."),
        ji.Experiment(f"random erasures of the same rank, {DRAWS} draws", "control", clean,
                      known.random_erasures(at, layer, DRAWS, args.seed), task.metric, grid=True),
        ji.Experiment(f"moved as far along random directions, {DRAWS} draws", "control", clean,
                      known.random_moves(at, layer, DRAWS, args.seed), task.metric, grid=True),
        ji.Experiment("the number erased: tense", "specificity", clean, known.erased(at, layer),
                      tense, margin=0.5,
                      note="Was and were against is and are, the same prompts."),
        ji.Experiment("the number moved: tense", "specificity", clean,
                      known.moved(at, layer, other), tense, margin=0.5),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
