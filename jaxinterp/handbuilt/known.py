"""What a hand-built model comes with: its weights, its task, and the truth about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.metrics import Metric, logit_diff, metric
from jaxinterp.model import Model, Tokens
from jaxinterp.numerics import wide


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Symbols of one character each; a symbol's token id is its index."""

    symbols: str

    def __len__(self) -> int:
        return len(self.symbols)

    def id(self, symbol: str) -> int:
        """The token id of a symbol. Raises ``ValueError`` for one that is not in it."""
        found = self.symbols.find(symbol)
        if len(symbol) != 1 or found < 0:
            raise ValueError(f"{symbol!r} is not one of the symbols {self.symbols!r}.")
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids, one per character."""
        return [self.id(symbol) for symbol in text]

    def decode(self, ids: Any) -> str:
        """The text of token ids [P]."""
        return "".join(self.symbols[int(i)] for i in ids)


class Pairs(NamedTuple):
    """Clean and corrupted prompts, [n length] each, and what is right and wrong for the clean.

    answers, wrong: token ids [n] for the last position, or [n R] for the positions from 0,
    where -1 fills up the shorter rows.
    """

    clean: Tokens
    corrupted: Tokens
    answers: np.ndarray
    wrong: np.ndarray


class Drawn(NamedTuple):
    """One prompt of `Pairs` in symbols; several answers are for the positions from 0."""

    clean: str
    corrupted: str
    answer: str
    wrong: str


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A model written by hand, and the ground truth about it.

    alphabet: symbol to token id. layout: the coordinates of the residual stream that hold each
    variable. lengths: the prompt lengths it is right for. draw: (rng, length, number) to one
    clean and corrupted prompt.

    edges: the true edges by ablation, "resample" (the value from the corrupted run) and "zero".
    An edge is true when the sender's contribution replaced at that receiver alone, with
    everything downstream computed again, changes the metric of some prompt. No other edge
    changes it at all. Names are those of the MIB benchmark (Mueller et al. 2025,
    arXiv:2504.13151) and EAP-IG: senders ``input``, ``a0.h1``, ``m0``; receivers ``a1.h0<q>``,
    ``<k>`` and ``<v>`` (by key/value head), ``m1`` and ``logits``; ``"a0.h1->a1.h0<k>"``.

    primary, backup: heads that do the same work, the second only where the first does not.
    backup_edges: by ablation, the edges that are true while every edge out of the primary
    heads is ablated (those edges themselves left out).
    """

    name: str
    model: Model
    alphabet: Alphabet
    layout: Mapping[str, slice]
    lengths: range
    draw: Callable[[np.random.Generator, int, int], Drawn]
    edges: Mapping[str, frozenset[str]]
    primary: tuple[str, ...] = ()
    backup: tuple[str, ...] = ()
    backup_edges: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def make(self, n: int, length: int, seed: int = 0) -> Pairs:
        """n clean prompts of ``length`` symbols, each with a corrupted twin.

        Raises ``ValueError`` for a length the model is not made for, n < 1 or a negative seed.
        """
        if length not in self.lengths:
            raise ValueError(
                f"length={length}: {self.name} takes prompts of {self.lengths[0]} to "
                f"{self.lengths[-1]} symbols."
            )
        whole_number("n", n, 1, MANY)
        rng = np.random.default_rng(random_seed(seed))
        drawn = [self.draw(rng, length, number) for number in range(n)]
        columns = (self._table([row[field] for row in drawn]) for field in range(4))
        clean, corrupted, answers, wrong = columns
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), clean.shape)
        if answers.shape[1] == 1:
            answers, wrong = answers[:, 0], wrong[:, 0]
        return Pairs(Tokens(clean, positions), Tokens(corrupted, positions), answers, wrong)

    def metric(self, answers: Any, wrong: Any) -> Metric:
        """Logit of the answer minus logit of the wrong symbol, in logits.

        At the last position for ids [n]; for ids [n R] the mean over the positions from 0.
        """
        answers, wrong = np.asarray(answers), np.asarray(wrong)
        if answers.ndim == 1:
            return logit_diff(answers, wrong)
        position = np.where(answers < 0, -1, np.arange(answers.shape[1]))
        return metric(mean_logit_diff, position, data=(answers, wrong))

    def _table(self, rows: list[str]) -> np.ndarray:
        """Token ids [n R] of texts; -1 fills up the shorter ones."""
        ids = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = self.alphabet.encode(row)
        return ids


def mean_logit_diff(logits: jax.Array, answers: jax.Array, wrong: jax.Array) -> jax.Array:
    """Logits [B R V] to [B]: answer minus wrong [B R], the mean over positions with an answer."""
    held = jnp.asarray(answers) >= 0

    def at(ids: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, ids.clip(0)[..., None], -1)[..., 0]

    gap = jnp.where(held, wide(at(answers)) - wide(at(wrong)), 0)
    return gap.sum(-1) / held.sum(-1).astype(gap.dtype)
