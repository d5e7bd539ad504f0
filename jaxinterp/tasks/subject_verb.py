"""Subject-verb agreement (Linzen et al. 2016, arXiv:1611.01368; Finlayson et al. 2021,
arXiv:2106.06087).

"The keys to the cabinet" -> " are", not " is", whatever the number of the noun in between, the
attractor. The roles: subject, attractor, and END, where the attractor stands.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct, fitting
from jaxinterp.tasks.words import fill, single_kinds, single_pairs
from jaxinterp.tokens import Tokenizer

Attractor = Literal["both", "same", "opposite"]

TEMPLATES = (
    "The {subject} near the {attractor}",
    "The {subject} behind the {attractor}",
    "The {subject} next to the {attractor}",
    "We know that the {subject} near the {attractor}",
    "I think that the {subject} behind the {attractor}",
    "They believe that the {subject} beside the {attractor}",
    "People say that the {subject} near the {attractor}",
    "You see that the {subject} behind the {attractor}",
    "People ask why the {subject} beside the {attractor}",
    "We wonder whether the {subject} near the {attractor}",
)
_SUBJECTS = """
    boy girl teacher student doctor farmer dog cat horse bird king writer soldier artist driver
    player friend brother sister guard worker singer lawyer key picture book flower chair bag toy
"""
_ATTRACTORS = """
    cabinet car house tree door table window building bridge river wall garden tower road boat
    truck school farm store lake hill
"""
SUBJECTS, ATTRACTORS = (
    tuple((word, f"{word}s") for word in nouns.split()) for nouns in (_SUBJECTS, _ATTRACTORS)
)
_CORRUPTION = "other_number"


def subject_verb_agreement(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    attractors: Attractor = "both",
    prepend_bos: bool | None = None,
    equal_length: bool = True,
) -> Task:
    """n distinct prompts that call for " is" or " are", in turn, by their subject's number.

    The corrupted twin has the subject in the other number, so that the answer flips; one token
    differs. attractors: the number of the noun before the verb: the "same" as the (clean)
    subject's, the "opposite" one, or both equally often. prepend_bos: None follows the
    tokenizer's policy. equal_length: use only the templates of the commonest token length.

    Nouns are one token each, in both numbers; ``meta["dropped"]`` names those that are not, and
    the templates left out. The metric is the logit difference of the two verbs at END.

    Raises ``ValueError`` when no subject, attractor or verb remains, when n is more than half of
    the distinct prompts there are, and for tokenizers that end a prompt with a token of their
    own.
    """
    check_request(
        tokenizer, n, seed, prepend_bos, attractors=(attractors, "both", "same", "opposite")
    )
    task = "subject-verb agreement"
    _, dropped = single_kinds(tokenizer, task, {"verbs": ("is", "are")}, {"verbs": 2})
    nouns = {}
    for kind, listed in {"subjects": SUBJECTS, "attractors": ATTRACTORS}.items():
        nouns[kind], dropped[kind] = single_pairs(tokenizer, task, kind, listed)
    samples = {
        template: _pair(template, nouns["subjects"][0], nouns["attractors"][0], 0, 0)
        for template in TEMPLATES
    }
    kept, left_out = fitting(tokenizer, task, samples, equal_length)
    rng = np.random.default_rng(seed)

    def make(i: int) -> Twins:
        template = kept[rng.integers(len(kept))]
        subject, attractor = (listed[rng.integers(len(listed))] for listed in nouns.values())
        number, opposite = i % 2, i // 2 % 2 if attractors == "both" else attractors == "opposite"
        return _pair(template, subject, attractor, number, number ^ opposite)

    possible = 2 * len(kept) * len(nouns["subjects"]) * len(nouns["attractors"])
    possible *= 2 if attractors == "both" else 1
    return build(
        "subject_verb_agreement", tokenizer, distinct(n, possible, make), seed=seed,
        corruption=_CORRUPTION, prepend_bos=prepend_bos,
        meta={"attractors": attractors, "dropped": {**dropped, "templates": left_out}},
    )  # fmt: skip


def _pair(
    template: str,
    subject: tuple[str, str],
    attractor: tuple[str, str],
    number: int,
    attractor_number: int,
) -> Twins:
    """A prompt about nouns given as (singular, plural); a number is 0 or 1."""
    words = {"subject": subject[number], "attractor": attractor[attractor_number]}
    clean, at = fill(template, words)
    return Twins(
        clean,
        fill(template, {**words, "subject": subject[1 - number]})[0],
        at,
        answers=[(" is", " are")[number]],
        wrong=[(" are", " is")[number]],
        about={
            "template": template,
            **words,
            "number": ("singular", "plural")[number],
            "attractor_number": ("singular", "plural")[attractor_number],
        },
    )
