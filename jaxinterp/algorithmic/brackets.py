"""Balanced brackets: the world of a classifier that reads both ways.

Token 0 is BOS, 1 is "(", 2 is ")"; 3 and 4 are the answers, "balanced" and "unbalanced", which
stand in no prompt. A prompt is BOS and an even number of brackets, at most 40; the answer is read
at BOS. Most unbalanced strings are nearly balanced: one bracket flipped, or as many of both kinds
and yet a closing one too early.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxinterp.algorithmic.prompts import at_least_one, generator, pick, task_of, tokenizer_of
from jaxinterp.checks import whole_number
from jaxinterp.tasks import Task
from jaxinterp.tasks.twins import check_request
from jaxinterp.tokens import Tokenizer

BOS, OPEN, CLOSE, BALANCED, UNBALANCED = range(5)
TOKENS = ("[BOS]", "(", ")", "balanced", "unbalanced")
LONGEST = 40
CONTEXT = 1 + LONGEST
KINDS = ("balanced", "flipped", "exchanged", "shuffled", "random")
SHARES = (0.5, 0.175, 0.175, 0.075, 0.075)  # of the kinds


class Strings(NamedTuple):
    """n prompts and their answers.

    ids: int32 [n 41], -1 after the end. answers: int32 [n]. kind: int [n], of `KINDS`: one
    bracket flipped; an opening one and a later closing one that changed places, so that the string
    dips below zero; as many of both in any order; any brackets.
    """

    ids: np.ndarray
    answers: np.ndarray
    kind: np.ndarray


@functools.cache
def tokenizer() -> Tokenizer:
    """Of texts like ``"(()())"``; BOS is put before every prompt."""
    return tokenizer_of("brackets", TOKENS, bos=BOS, pieces="unbalanced|balanced|.")


def heights(ids: np.ndarray) -> np.ndarray:
    """Brackets open after each token: int [n P], of ids [n P]; other tokens change nothing."""
    return np.cumsum(_steps(ids), 1)


def is_balanced(ids: np.ndarray) -> np.ndarray:
    """Whether every bracket of each prompt [n P] has its partner: bool [n]."""
    height = heights(ids)
    return (height.min(1) >= 0) & (height[:, -1] == 0)


def strings(n: int, seed: Any = 0, kind: str | None = None) -> Strings:
    """n prompts of 1 to 20 pairs of places, half of them balanced (or all of one kind).

    seed: as `numpy.random.default_rng` takes it. Balanced strings of a length are drawn evenly.
    Raises ``ValueError`` for n < 1 and another kind.
    """
    at_least_one(n=n)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}, expected one of {', '.join(KINDS)}.")
    rng = generator(seed)
    drawn = rng.choice(len(KINDS), n, p=SHARES)
    kinds = drawn if kind is None else np.full(n, KINDS.index(kind))
    pairs = rng.integers(1, LONGEST // 2 + 1, n)
    sound = _balanced(rng, pairs)
    held = sound != 0
    any_order = _shuffled(rng, pairs, pairs, sound.shape[1])
    anything = np.where(held, rng.choice([-1, 1], sound.shape), 0)
    made = [sound, *(_broken(rng, sound, how)[0] for how in ("flip", "exchange"))]
    for steps, how in ((any_order, "exchange"), (anything, "flip")):
        good = is_balanced(_ids(steps))  # which happens: break those too
        made.append(np.where(good[:, None], _broken(rng, np.where(good[:, None], steps, sound),
                                                    how)[0], steps))  # fmt: skip
    ids = _ids(np.choose(kinds[:, None], made))
    return Strings(ids, np.where(kinds == 0, BALANCED, UNBALANCED).astype(np.int32), kinds)


def task(
    n: int = 64,
    seed: int = 0,
    *,
    pairs: int = 10,
    corruption: Literal["flip", "exchange"] = "flip",
) -> Task:
    """n balanced prompts of ``pairs`` pairs of brackets, and unbalanced twins.

    corruption: "flip" turns one bracket into the other kind; "exchange" lets an opening and a
    later closing bracket change places, so that the counts stay equal and the height falls below
    zero. The metric is the logit of "balanced" minus that of "unbalanced" at BOS.

    Roles: BOS; FLIPPED, or OPEN and CLOSE, the brackets that differ; DIP, the first bracket of the
    twin after which its height is below zero (for "exchange"); LAST, the last bracket.

    Raises ``ValueError`` for n < 1 and numbers of pairs that are not within 1 to 20.
    """
    check_request(tokenizer(), n, seed, None, corruption=(corruption, "flip", "exchange"))
    whole_number("pairs", pairs, 1, LONGEST // 2)
    rng = np.random.default_rng(seed)
    steps = _balanced(rng, np.full(n, pairs))
    broken, places = _broken(rng, steps, corruption)
    clean, corrupted = _ids(steps)[:, : 1 + 2 * pairs], _ids(broken)[:, : 1 + 2 * pairs]
    roles: dict[str, Any] = {"BOS": 0, "LAST": 2 * pairs}
    if corruption == "flip":
        roles["FLIPPED"] = 1 + places[0]
    else:
        roles |= {"OPEN": 1 + places[0], "CLOSE": 1 + places[1]}
        roles["DIP"] = (heights(corrupted) < 0).argmax(1)
    return task_of(
        "brackets", tokenizer(), clean, corrupted, np.full(n, BALANCED), np.full(n, UNBALANCED),
        roles, seed=seed, corruption=corruption, position=0, pairs=pairs,
    )  # fmt: skip


# Strings as steps [n P] without BOS: 1 for "(", -1 for ")", 0 after the end.


def _steps(ids: np.ndarray) -> np.ndarray:
    return (ids == OPEN).astype(int) - (ids == CLOSE)


def _ids(steps: np.ndarray) -> np.ndarray:
    ids = np.full((len(steps), CONTEXT), -1, np.int32)
    ids[:, 0] = BOS
    ids[:, 1 : 1 + steps.shape[1]] = np.select([steps > 0, steps < 0], [OPEN, CLOSE], -1)
    return ids


def _shuffled(rng: np.random.Generator, up: np.ndarray, down: np.ndarray, width: int) -> np.ndarray:
    """That many steps up and down [n] in random order, [n width]."""
    place = np.arange(width)
    up, down = up[:, None], down[:, None]
    steps = np.where(place < up, 1, np.where(place < up + down, -1, 0))
    # What stands after the end stays there.
    order = np.where(place < up + down, rng.random(steps.shape), 2).argsort(1)
    return np.take_along_axis(steps, order, 1)


def _balanced(rng: np.random.Generator, pairs: np.ndarray) -> np.ndarray:
    """Balanced strings [n 2*max], drawn evenly from all of their lengths.

    By the cycle lemma (Dvoretzky & Motzkin 1947): of k steps up and k + 1 down in any order, just
    one rotation is a balanced string and a last step down. It begins after the first lowest point.
    """
    width = 2 * int(pairs.max()) + 1
    steps = _shuffled(rng, pairs, pairs + 1, width)
    place, length = np.arange(width), 2 * pairs[:, None] + 1
    height = np.where(place < length, np.cumsum(steps, 1), width)
    begin = height.argmin(1)[:, None] + 1
    turned = np.take_along_axis(steps, (begin + place) % length, 1)
    return np.where(place < length - 1, turned, 0)[:, :-1]


def _broken(
    rng: np.random.Generator, steps: np.ndarray, how: str
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Balanced strings [n P] that no longer are, and the places [n] that were flipped."""
    if how == "flip":
        places: tuple[np.ndarray, ...] = (pick(rng, steps != 0),)
    else:
        # Exchanging an opening bracket up to a low place with a closing one after it takes 2 from
        # the height there.
        place, length = np.arange(steps.shape[1]), (steps != 0).sum(1)[:, None]
        low = pick(rng, (np.cumsum(steps, 1) <= 1) & (place < length - 1))[:, None]
        places = (
            pick(rng, (steps > 0) & (place <= low)),
            pick(rng, (steps < 0) & (place > low)),
        )
    out, rows = steps.copy(), np.arange(len(steps))
    for at in places:
        out[rows, at] *= -1
    return out, places
