"""Gendered pronouns (Mathwin et al. 2023, "Identifying a Preliminary Circuit for Predicting
Gendered Pronouns in GPT-2 Small").

"So Mary is a really great friend, isn't" -> " she". The roles: the name, and END.
"""

from __future__ import annotations

import numpy as np

from jaxinterp.tasks.ioi import NAMES
from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct, fitting
from jaxinterp.tasks.words import fill, single_kinds
from jaxinterp.tokens import Tokenizer

# No template begins with a name: every name follows a space, so that it is the same token.
TEMPLATES = (
    "So {name} is a really great {noun}, isn't",
    "So {name} is such a great {noun}, isn't",
    "The {noun} called {name} was tired because",
    "When {name} worked as a {noun},",
    "When {name} was a young {noun},",
    "Long before {name} became a {noun},",
    "Our {noun} {name} was so happy because",
    "Yesterday we asked {name} the {noun} what",
    "Last year {name} became a {noun}, and now",
)
NOUNS = (
    "friend", "teacher", "student", "doctor", "writer", "singer", "player", "driver", "lawyer",
    "painter", "dancer", "manager", "reporter", "cook", "swimmer", "leader",
)  # fmt: skip
_FEMALE = """
    Alice Amy Anna Barbara Carol Christine Diana Elizabeth Emily Emma Grace Hannah Helen Jane
    Jennifer Jessica Joan Julia Karen Kate Katherine Laura Linda Lisa Lucy Margaret Maria Marie
    Mary Michelle Nancy Rachel Rose Ruth Sarah Susan Victoria
"""
FEMALE = tuple(_FEMALE.split())
_EITHER = ("Alex", "Ashley", "Chris", "Dylan", "Kelly", "Kim", "Kyle", "Tyler")
MALE = tuple(name for name in NAMES if name not in (*FEMALE, *_EITHER))
_CORRUPTION = "other_gender"


def gendered_pronouns(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    prepend_bos: bool | None = None,
    equal_length: bool = True,
) -> Task:
    """n distinct prompts that call for " he" or " she", in turn, by a name.

    The corrupted twin has a name of the other gender, so that the answer flips; one token
    differs. Names that are commonly given to both are not used. prepend_bos: None follows the
    tokenizer's policy. equal_length: use only the templates of the commonest token length.

    Names and nouns are one token each; ``meta["dropped"]`` names those that are not, and the
    templates left out. The metric is the logit difference of the two pronouns at END.

    Raises ``ValueError`` when no name of a gender, noun or pronoun remains, when n is more than
    half of the distinct prompts there are, and for tokenizers that end a prompt with a token of
    their own.
    """
    check_request(tokenizer, n, seed, prepend_bos)
    listed = {"male names": MALE, "female names": FEMALE, "nouns": NOUNS, "pronouns": ("he", "she")}
    words, dropped = single_kinds(tokenizer, "gendered pronouns", listed, {"pronouns": 2})
    men, women, nouns, _ = words.values()
    samples = {
        template: _pair(template, men[0], women[0], nouns[0], "he") for template in TEMPLATES
    }
    kept, left_out = fitting(tokenizer, "gendered pronouns", samples, equal_length)
    rng = np.random.default_rng(seed)

    def make(i: int) -> Twins:
        man, woman = men[rng.integers(len(men))], women[rng.integers(len(women))]
        template, noun = kept[rng.integers(len(kept))], nouns[rng.integers(len(nouns))]
        return _pair(template, man, woman, noun, ("he", "she")[i % 2])

    possible = 2 * min(len(men), len(women)) * len(kept) * len(nouns)
    return build(
        "gendered_pronouns", tokenizer, distinct(n, possible, make), seed=seed,
        corruption=_CORRUPTION, prepend_bos=prepend_bos,
        meta={"dropped": {**dropped, "templates": left_out}},
    )  # fmt: skip


def _pair(template: str, man: str, woman: str, noun: str, pronoun: str) -> Twins:
    own, other = (man, woman) if pronoun == "he" else (woman, man)
    clean, at = fill(template, {"name": own, "noun": noun})
    return Twins(
        clean,
        fill(template, {"name": other, "noun": noun})[0],
        {"name": at["name"]},
        answers=[f" {pronoun}"],
        wrong=[" she" if pronoun == "he" else " he"],
        about={"template": template, "name": own, "pronoun": pronoun},
    )
