"""Looking a key up: pairs of keys and values, drawn anew for every prompt, then a query.

"[BOS] c 31 . 52 a 17 , f 40 ? a" -> 17. Token 0 is BOS, 1 is "?"; then come 26 keys (letters), 32
values (two-digit numbers) and 8 signs. No key stands twice among the pairs of a prompt; values may.
Between pairs stand distractors: signs, and stray values that belong to no key. Only the order of
tokens binds a value to its key: it is the one right after it.
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

BOS, QUERY = 0, 1
TOKENS = ("[BOS]", "?", *"abcdefghijklmnopqrstuvwxyz", *map(str, range(10, 42)), *".,;:-+*/")
KEYS, VALUES, SIGNS = np.split(np.arange(2, len(TOKENS), dtype=np.int32), [26, 58])
PAIRS = (2, 12)  # in a prompt, at least and at most
DISTRACTORS = (0, 11)
QUERIES = 4  # of a prompt to learn from
CONTEXT = 1 + 2 * PAIRS[1] + DISTRACTORS[1] + 3 * QUERIES


class Prompts(NamedTuple):
    """n prompts to learn from, each with several queries and their answers: "? a 17 ? f 40".

    ids: int32 [n 48], -1 after the end. at: int32 [n 4], where the queries' keys stand. answers:
    int32 [n 4], what follows there. pairs: int [n], how many each prompt holds.
    """

    ids: np.ndarray
    at: np.ndarray
    answers: np.ndarray
    pairs: np.ndarray


@functools.cache
def tokenizer() -> Tokenizer:
    """Of letters, numbers and signs between spaces; BOS is put before every prompt."""
    return tokenizer_of("retrieval", TOKENS, bos=BOS)


def prompts(n: int, seed: Any = 0, pairs: int | None = None) -> Prompts:
    """n prompts of 2 to 12 pairs (or of ``pairs``) and 0 to 11 distractors among them.

    seed: as `numpy.random.default_rng` takes it. Raises ``ValueError`` for n < 1 and numbers of
    pairs that are not within 2 to 12.
    """
    at_least_one(n=n)
    pairs = whole_number("pairs", pairs, *PAIRS, optional=True)
    low, high = PAIRS if pairs is None else (pairs, pairs)
    rng, rows = generator(seed), np.arange(n)[:, None]
    count = rng.integers(low, high + 1, n)
    others = rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1, n)
    keys, values = _keys(rng, n, high), rng.choice(VALUES, (n, high))
    ids = _bodies(rng, keys, values, count, others)
    chosen = rng.integers(0, count[:, None], (n, QUERIES))
    begin = (1 + 2 * count + others)[:, None] + 3 * np.arange(QUERIES)
    ids[rows, begin] = QUERY
    ids[rows, begin + 1] = keys[rows, chosen]
    ids[rows, begin + 2] = answers = values[rows, chosen]
    return Prompts(ids, (begin + 1).astype(np.int32), answers, count)


def task(
    n: int = 64,
    seed: int = 0,
    *,
    pairs: int = 8,
    distractors: int = 5,
    corruption: Literal["values", "query"] = "values",
) -> Task:
    """n prompts with one query; the twin's answer is the value of another pair of the prompt.

    corruption: "values" lets the queried pair's value and the other's change places; "query" asks
    for the other key (one token differs). The pairs' values differ. The wrong token is the twin's
    answer, the metric the logit difference at END.

    Roles: KEY, VALUE, OTHER_KEY, OTHER_VALUE (of both pairs), QUERY ("?"), END (the query's key).

    Raises ``ValueError`` for n < 1, numbers of pairs that are not within 2 to 12, and of
    distractors that are not within 0 to 11.
    """
    check_request(tokenizer(), n, seed, None, corruption=(corruption, "values", "query"))
    for name, size, (low, high) in (
        ("pairs", pairs, PAIRS), ("distractors", distractors, DISTRACTORS),
    ):  # fmt: skip
        whole_number(name, size, low, high)
    rng, rows = np.random.default_rng(seed), np.arange(n)
    keys = _keys(rng, n, pairs)
    values = rng.permuted(np.broadcast_to(VALUES, (n, len(VALUES))), axis=1)[:, :pairs]
    body = _bodies(rng, keys, values, np.full(n, pairs), np.full(n, distractors))
    end = 2 + 2 * pairs + distractors
    clean = body[:, : end + 1].copy()
    clean[:, end - 1] = QUERY
    # The first two pairs are anywhere in the prompt: their order there is drawn.
    clean[:, end] = keys[:, 0]
    key, other = ((body == keys[:, i : i + 1]).argmax(1) for i in (0, 1))
    corrupted = clean.copy()
    if corruption == "values":
        corrupted[rows, key + 1], corrupted[rows, other + 1] = values[:, 1], values[:, 0]
    else:
        corrupted[:, end] = keys[:, 1]
    return task_of(
        "retrieval", tokenizer(), clean, corrupted, values[:, 0], values[:, 1],
        {
            "KEY": key, "VALUE": key + 1, "OTHER_KEY": other, "OTHER_VALUE": other + 1,
            "QUERY": end - 1, "END": end,
        },
        seed=seed, corruption=corruption, pairs=pairs, distractors=distractors,
    )  # fmt: skip


def _keys(rng: np.random.Generator, n: int, pairs: int) -> np.ndarray:
    """Different keys [n pairs] for each prompt."""
    return rng.permuted(np.broadcast_to(KEYS, (n, len(KEYS))), axis=1)[:, :pairs]


def _bodies(
    rng: np.random.Generator,
    keys: np.ndarray,
    values: np.ndarray,
    count: np.ndarray,
    others: np.ndarray,
) -> np.ndarray:
    """Ids [n 48] of BOS and, in random order, the first ``count`` [n] of a prompt's pairs
    [n pairs] and ``others`` [n] distractors; -1 after them."""
    n, most = len(count), int((count + others).max())
    number = np.broadcast_to(np.arange(most), (n, most))
    held = number < (count + others)[:, None]
    order = np.where(held, rng.random((n, most)), 2).argsort(1)  # what is not held comes last
    pair = order < count[:, None]
    other = ~pair & held
    begin = 1 + np.cumsum(2 * pair + other, 1) - (2 * pair + other)
    ids = np.full((n, CONTEXT), -1, np.int32)
    ids[:, 0] = BOS
    row = np.nonzero(pair)[0]
    ids[row, begin[pair]] = keys[row, order[pair]]
    ids[row, begin[pair] + 1] = values[row, order[pair]]
    stray = np.where(rng.random((n, most)) < 0.5, rng.choice(VALUES, (n, most)),
                     rng.choice(SIGNS, (n, most)))  # fmt: skip
    ids[np.nonzero(other)[0], begin[other]] = stray[other]
    return ids
