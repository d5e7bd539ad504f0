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

import jaxinterp as ji
from jaxinterp import erasure
from jaxinterp.tokens import Tokenizer

DRAWS = 10


def main() -> None:
    parser = mechanism.parser(__doc__, "agreement", "smollm2-135m-instruct", n=96)
    parser.add_argument("--layer", type=int, default=12, help="after which the subject is edited")
    args = parser.parse_args()
    model, tokenizer = ji.load(args.model)
    made_of, task = by_nouns(ji.tasks.subject_verb_agreement(tokenizer, n=4 * args.n), args.n)
    able = ji.tasks.check(model, task)
    X = ji.collect(model, made_of.clean, made_of.roles["subject"])[1:]  # what each block leaves
    plural = number(made_of)
    claim = ji.Claim(
        f"{model.name} keeps the subject's number in a direction of the stream at the subject, and "
        "chooses between is and are by it.",
        model, task=task, dataset=f"{len(task)} prompts of nouns that the direction was not made "
        f"of ({len(made_of)} other prompts)",
        components=[f"resid_post of layer {args.layer} at the subject, one direction"],
        experiments=experiments(args, tokenizer, task, X, plural),
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
    args: Any, tokenizer: Tokenizer, task: ji.Task, X: np.ndarray, plural: np.ndarray
) -> list[ji.Experiment]:
    at, clean, layer = task.roles["subject"], task.clean, args.layer
    every = [erasure.leace(x, plural) for x in X]
    placebos = [
        erasure.random_eraser(X.shape[-1], every[layer].rank, args.seed + i, X[layer].mean(0))
        for i in range(DRAWS)
    ]
    step = X[layer][plural].mean(0) - X[layer][~plural].mean(0)
    sign = np.where(number(task), -1, 1)[:, None]
    turned = (sign * step)[:, None].astype(np.float32)
    rng = np.random.default_rng(args.seed)
    drawn = rng.normal(size=(DRAWS, len(step)))
    drawn *= np.linalg.norm(step) / np.linalg.norm(drawn, axis=1, keepdims=True)
    aside = (sign[None] * drawn[:, None])[:, :, None].astype(np.float32)
    past, present = (
        [[tokenizer.single_token(f" {word}") for word in words]] * len(task)
        for words in (("was", "were"), ("is", "are"))
    )
    tense = ji.logit_diff(np.array(past), np.array(present))

    def erased(one: Any, layer: Any) -> ji.Edit:
        position = ji.Shared(at) if np.ndim(layer) else at
        return ji.apply("resid_post", one, layer=layer, position=position)

    layers = np.arange(len(X))
    return [
        ji.Experiment("the number erased at the subject, after each layer", "localization", clean,
                      erased(mechanism.stacked(every), layers), task.metric, grid=True),
        ji.Experiment("the number erased", "effect", clean, erased(every[layer], layer),
                      task.metric, texts=task.clean_text),
        ji.Experiment("the number moved to the other", "effect", clean,
                      ji.add("resid_post", turned, layer=layer, position=at), task.metric,
                      note="Below 0 the other verb is preferred."),
        ji.Experiment(f"random erasures of the same rank, {DRAWS} draws", "control", clean,
                      erased(mechanism.stacked(placebos), np.full(DRAWS, layer)), task.metric,
                      grid=True),
        ji.Experiment(
            f"moved as far along random directions, {DRAWS} draws", "control", clean,
            ji.add("resid_post", aside, layer=np.full(DRAWS, layer), position=ji.Shared(at)),
            task.metric, grid=True,
        ),
        ji.Experiment("the number erased: tense", "specificity", clean,
                      erased(every[layer], layer), tense, margin=0.5,
                      note="Was and were against is and are, the same prompts."),
        ji.Experiment("the number moved: tense", "specificity", clean,
                      ji.add("resid_post", turned, layer=layer, position=at), tense, margin=0.5),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
