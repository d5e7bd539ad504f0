"""Sequences that come back to what they said before, over a background of likely successors.

The world of induction heads (Olsson et al. 2022, arXiv:2209.11895). Token 0 is BOS, 1 to 120 are
syllables. Outside repeats a token is one of four favoured successors of the token before it, or one
of four of the token before that, or any. At random places a sequence turns back to a random earlier
place and repeats what stood there from then on, for a random length: neither position nor
favourites tell what comes next there.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxinterp.algorithmic.prompts import at_least_one, generator, task_of, tokenizer_of
from jaxinterp.checks import whole_number
from jaxinterp.tasks import Task
from jaxinterp.tasks.twins import check_request
from jaxinterp.tokens import Tokenizer

BOS = 0
TOKENS = ("[BOS]", *(c + v for c in "bcdfghjklmnpqrstvwxz" for v in "aeiouy"))
SIZE = len(TOKENS)
CONTEXT = 96
FAVOURED = 4  # successors of each token, at either distance
SHARES = (0.35, 0.35)  # of the time one of them follows: next, and next but one
NEAREST = 4  # places back, at least, that a sequence turns
LENGTHS = (4, 40)  # of what is repeated, at most up to the place of turning
RATES = (0.02, 0.12)  # how often a sequence turns back, drawn for each


class Sequences(NamedTuple):
    """n sequences of P tokens, each begun by BOS.

    ids: int32 [n P]. source: int32 [n P], the place that a token repeats, given that the token
    before repeats the one before that place; -1 for all others (and the first of what is repeated,
    which nothing foretells).
    """

    ids: np.ndarray
    source: np.ndarray


@functools.cache
def tokenizer() -> Tokenizer:
    """Of syllables between spaces; BOS is put before every prompt."""
    return tokenizer_of("repeats", TOKENS, bos=BOS)


@functools.cache
def favoured() -> np.ndarray:
    """The favourites [2 121 4] of every token, next and next but one: always the same."""
    return _different(np.random.default_rng(0), 2 * SIZE, FAVOURED).reshape(2, SIZE, FAVOURED)


def background(before: Any, present: Any) -> np.ndarray:
    """Probabilities [... 121] of the token after two [...], outside repeats.

    In the place of what stands before the first token, BOS.
    """
    before, present = np.broadcast_arrays(before, present)
    table = np.full((*present.shape, SIZE), (1 - sum(SHARES)) / (SIZE - 1))
    table[..., BOS] = 0
    for of, token, share in zip(favoured(), (present, before), SHARES, strict=True):
        table += share / FAVOURED * (of[token][..., None] == np.arange(SIZE)).sum(-2)
    return table


def sequences(n: int, seed: Any = 0, length: int = CONTEXT) -> Sequences:
    """n sequences of ``length`` tokens. seed: as `numpy.random.default_rng` takes it.

    Raises ``ValueError`` for sizes below 1.
    """
    at_least_one(n=n, length=length)
    rng, rows = generator(seed), np.arange(n)
    ids, source = np.full((n, length), BOS, np.int32), np.full((n, length), -1, np.int32)
    rate = rng.uniform(*RATES, n)
    place, left = np.zeros(n, int), np.zeros(n, int)  # what is repeated next, and how long still
    for t in range(1, length):
        goes_on = left > 0
        turns = ~goes_on & (rng.random(n) < rate) & (t > NEAREST)
        place = np.where(turns, rng.integers(1, max(2, t - NEAREST + 1), n), place)
        drawn = rng.integers(LENGTHS[0], LENGTHS[1] + 1, n)
        left = np.where(turns, np.minimum(drawn, t - place), left)  # no further than to here
        kind = np.searchsorted(np.cumsum(SHARES), rng.random(n), side="right")
        which, any_one = rng.integers(0, FAVOURED, n), rng.integers(1, SIZE, n)
        by_one, by_two = (
            of[ids[:, max(t - back, 0)], which] for back, of in enumerate(favoured(), 1)
        )
        new = np.choose(kind, [by_one, by_two, any_one])
        ids[:, t] = np.where(left > 0, ids[rows, place], new)
        source[:, t] = np.where(goes_on, place, -1)
        place, left = place + 1, left - 1
    return Sequences(ids, source)


def said_twice(n: int, length: int = 40, seed: Any = 0) -> np.ndarray:
    """Ids [n 1+2*length]: BOS, and ``length`` different syllables, drawn evenly, twice.

    Raises ``ValueError`` for n < 1 and lengths that are not within 1 to 120.
    """
    at_least_one(n=n)
    whole_number("length", length, 1, SIZE - 1)  # there are no more syllables, and none repeats
    half = _different(generator(seed), n, length)
    return np.concatenate([np.full((n, 1), BOS, np.int32), half, half], 1)


def task(
    n: int = 64,
    seed: int = 0,
    *,
    length: int = 48,
    copy: int = 12,
    corruption: Literal["break", "swap_answer"] = "break",
) -> Task:
    """n prompts of ``length`` tokens, in which ``copy`` syllables come again but for the last.

    BOS, some syllables, the first copy, some more, and the second copy without its last syllable,
    which is the answer. How the other syllables fall before and between is drawn; otherwise no
    syllable comes twice. corruption: "break" draws the first copy anew, so that nothing repeats;
    "swap_answer" puts another syllable in the place of the first copy's last. The wrong token is
    the one that stands there in the twin. The metric is the logit difference at END.

    Roles: A, the first mention of the last token; B, the token after it (the answer's); START1 and
    START2, the first tokens of both copies; END, the second A.

    Raises ``ValueError`` for n < 1, a copy below 2, a length that two copies do not fit, and more
    tokens than there are syllables.
    """
    check_request(tokenizer(), n, seed, None, corruption=(corruption, "break", "swap_answer"))
    whole_number("length", length, 4)
    whole_number("copy", copy, 2)
    others, fresh = length - 2 * copy, copy if corruption == "break" else 1
    most = SIZE - 1 + copy - fresh
    if others < 0 or length > most:
        raise ValueError(
            f"length={length}, copy={copy}: expected a copy of 2 or more, and prompts of twice as "
            f"many tokens up to {most}."
        )
    rng = np.random.default_rng(seed)
    drawn = _different(rng, n, others + copy + fresh)
    rest, said, new = np.split(drawn, [others, others + copy], 1)
    before = rng.integers(0, others + 1, n)
    clean, corrupted = np.empty((2, n, length), np.int32)
    first = said.copy()
    first[:, copy - fresh :] = new
    for i, k in enumerate(before):
        for ids, one in ((clean, said), (corrupted, first)):
            ids[i] = [BOS, *rest[i, :k], *one[i], *rest[i, k:], *said[i, :-1]]
    return task_of(
        "repeats", tokenizer(), clean, corrupted, said[:, -1], first[:, -1],
        {
            "START1": 1 + before, "A": before + copy - 1, "B": before + copy,
            "START2": length - copy + 1, "END": length - 1,
        },
        seed=seed, corruption=corruption, about={"before": before}, copy=copy,
    )  # fmt: skip


def _different(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """Syllables int32 [n length], no row holds one twice."""
    order = rng.permuted(np.broadcast_to(np.arange(1, SIZE, dtype=np.int32), (n, SIZE - 1)), axis=1)
    return order[:, :length]
