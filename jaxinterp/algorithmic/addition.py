"""Addition mod 113: the world of grokking (Power et al. 2022, arXiv:2201.02177).

Prompts are "a b =", three tokens, and the answer (a + b) mod 113 is the next one (Nanda et al.
2023, arXiv:2301.05217). Token ids 0 to 112 are the numbers, 113 is "=". There are 12,769 prompts in
all; number a * 113 + b of `every` is that of a and b.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from jaxinterp.algorithmic.prompts import generator, task_of, tokenizer_of
from jaxinterp.checks import real_number, whole_number
from jaxinterp.tasks import Task
from jaxinterp.tasks.twins import check_request
from jaxinterp.tokens import Tokenizer

P = 113
EQUALS = P
TOKENS = (*map(str, range(P)), "=")
FREQUENCIES = P // 2  # 1 to 56: with their sines and cosines, and the constant, P functions


@functools.cache
def tokenizer() -> Tokenizer:
    """Of texts like ``"17 100 ="``; nothing is put before a prompt."""
    return tokenizer_of("addition-113", TOKENS)


def prompts(a: Any, b: Any) -> np.ndarray:
    """Ids int32 [n 3] of "a b =" for numbers [n] from 0 to 112.

    Raises ``ValueError`` for others.
    """
    a, b = np.broadcast_arrays(np.atleast_1d(a), np.atleast_1d(b))
    for number in (a, b):
        if number.dtype.kind not in "iu" or number.min() < 0 or number.max() >= P:
            raise ValueError(f"{number} are not whole numbers from 0 to {P - 1}.")
    return np.stack([a, b, np.full(a.shape, EQUALS)], 1).astype(np.int32)


def every() -> np.ndarray:
    """All prompts [12769 3], those of a = 0 first."""
    return prompts(*np.divmod(np.arange(P * P), P))


def sums(ids: np.ndarray) -> np.ndarray:
    """The answers [n] of prompts [n 3]."""
    return (ids[:, 0] + ids[:, 1]) % P


def split(seed: Any = 0, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in `every` of the prompts to train on, a random share of them, and of the others.

    [n] and [12769 - n], each ascending.

    Raises ``ValueError`` for a share that leaves either side empty.
    """
    n = round(real_number("share", share, above=0, below=1) * P * P)
    if not 0 < n < P * P:
        raise ValueError(f"share={share}, expected between 0 and 1: both sides need prompts.")
    order = generator(seed).permutation(P * P)
    return np.sort(order[:n]), np.sort(order[n:])


def task(n: int = 64, seed: int = 0, *, corruption: Literal["a", "b"] = "a") -> Task:
    """n different prompts; in the twins the first (or the second) number is another.

    The metric is the difference of the logits of the clean and the corrupted prompt's sum. Roles:
    a, b, END ("=").

    Raises ``ValueError`` for another corruption, n < 1 and n above 12,769.
    """
    check_request(tokenizer(), n, seed, None, corruption=(corruption, "a", "b"))
    whole_number("n", n, 1, P * P)
    rng = np.random.default_rng(seed)
    clean = every()[rng.choice(P * P, n, replace=False)]
    corrupted, column = clean.copy(), "ab".index(corruption)
    corrupted[:, column] = (clean[:, column] + rng.integers(1, P, n)) % P
    return task_of(
        "addition", tokenizer(), clean, corrupted, sums(clean), sums(corrupted),
        {"a": 0, "b": 1, "END": 2}, seed=seed, corruption=corruption,
        about={"a": clean[:, 0], "b": clean[:, 1]}, modulus=P,
    )  # fmt: skip


def fourier_basis() -> np.ndarray:
    """Orthonormal functions on 0 to 112, [113 113] (function, number).

    The constant, then cos and sin of 2 pi k x / 113 for k = 1 to 56: rows 2k - 1 and 2k.
    """
    angle = 2 * np.pi * np.outer(np.arange(1, FREQUENCIES + 1), np.arange(P)) / P
    waves = np.stack([np.cos(angle), np.sin(angle)], 1).reshape(P - 1, P)
    return np.concatenate([np.full((1, P), P**-0.5), waves * (2 / P) ** 0.5])


def power(table: Any) -> np.ndarray:
    """How much of a table [113 ...] (by number) each frequency holds: [57], from the constant on.

    Squares, summed over cos, sin and the other axes; together those of the table. Of the
    embedding: ``power(model.params.embed.W_E[:113])``.

    Raises ``ValueError`` for a table of other than 113 rows.
    """
    table = np.asarray(table, np.float64)
    if table.shape[:1] != (P,):
        raise ValueError(f"The table has shape {list(table.shape)}, expected {P} rows, by number.")
    squares = np.square(fourier_basis() @ table.reshape(P, -1)).sum(1)
    return np.concatenate([squares[:1], squares[1:].reshape(-1, 2).sum(1)])
