"""Induction: a random sequence repeated (Elhage et al. 2021; Olsson et al. 2022, arXiv:2209.11895).

"[A] [B] ... [A]" -> "[B]". The roles: A, the first mention of the last token; B, the token after
it, which is the answer; START2, the first token of the second copy; and END, the second A.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxinterp.checks import MANY, whole_number
from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct
from jaxinterp.tasks.words import fill
from jaxinterp.tokens import Tokenizer

Corruption = Literal["break", "swap_answer"]

_OPENING = "Words:"  # so that every word follows a space, and something rests on the first token
_POOL = 2000


def induction(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    length: int = 20,
    corruption: Corruption = "break",
    prepend_bos: bool | None = None,
) -> Task:
    """n prompts of ``length`` different random words, repeated but for the last: the answer.

    corruption: "break" draws the first copy anew, so that nothing repeats; "swap_answer" puts
    another word in the place of B, which is then right (one token differs). Either way the
    wrong token is the one that stands at B in the corrupted prompt. prepend_bos: None follows
    the tokenizer's policy. All prompts have one length; they begin with "Words:".

    The words are those of the tokenizer's own vocabulary that are letters after a space,
    drawn evenly, common and rare ones alike. The metric is the logit difference at END.

    Raises ``ValueError`` when length is below 2, when the vocabulary has fewer than twice that
    many words, and for tokenizers that end a prompt with a token of their own.
    """
    check_request(tokenizer, n, seed, prepend_bos, corruption=(corruption, "break", "swap_answer"))
    whole_number("length", length, 2, MANY)
    rng = np.random.default_rng(seed)
    pool = list(itertools.islice(_vocabulary(tokenizer, rng), max(_POOL, 4 * length)))
    if len(pool) < 2 * length:
        raise ValueError(
            f"{tokenizer!r} has {len(pool)} words of letters that are one token after a space; "
            f"length={length} needs {2 * length}: pass a smaller length."
        )

    def make(_: int) -> Twins:
        drawn = [pool[i] for i in rng.choice(len(pool), 2 * length, replace=False)]
        return _pair(drawn[:length], drawn[length:], corruption)

    return build(
        "induction", tokenizer, distinct(n, math.perm(len(pool), length), make), seed=seed,
        corruption=corruption, prepend_bos=prepend_bos,
        meta={"length_of_copy": length, "words": len(pool), "dropped": {}},
    )  # fmt: skip


def _vocabulary(tokenizer: Tokenizer, rng: np.random.Generator) -> Iterator[str]:
    """The words of the vocabulary, in random order."""
    for token in rng.permutation(tokenizer.vocab_size).tolist():
        word = tokenizer.str_tokens([token])[0].removeprefix(" ")
        if not (word.isascii() and word.isalpha() and tokenizer.is_single_token(f" {word}")):
            continue
        if tokenizer.single_token(f" {word}") == token:
            yield word


def _pair(copy: list[str], others: list[str], corruption: str) -> Twins:
    a, b = copy[-2:]
    first = others if corruption == "break" else [*copy[:-1], others[-1]]
    fields = [f"first{i}" for i in range(len(copy))]
    again = [f"second{i}" for i in range(len(copy) - 1)]
    template = " ".join([_OPENING, *("{" + field + "}" for field in (*fields, *again))])
    seconds = dict(zip(again, copy[:-1], strict=True))
    clean, at = fill(template, dict(zip(fields, copy, strict=True)) | seconds)
    corrupted, _ = fill(template, dict(zip(fields, first, strict=True)) | seconds)
    return Twins(
        clean,
        corrupted,
        {"A": at[fields[-2]], "B": at[fields[-1]], "START2": at[again[0]]},
        answers=[f" {b}"],
        wrong=[f" {first[-1]}"],
        about={"A": a, "B": b},
    )
