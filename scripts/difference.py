"""What tells two kinds of prompts apart at one place, erased there and moved: for three studies."""

from __future__ import annotations

import dataclasses
from typing import Any

import mechanism
import numpy as np

import jaxinterp as ji
from jaxinterp import erasure


@dataclasses.dataclass(frozen=True)
class Difference:
    """What each block leaves [L n D] at one place of prompts of one kind and of the other.

    ``at`` is the place in the prompts that are edited: a position, or one each [B].
    """

    one: np.ndarray
    other: np.ndarray

    @classmethod
    def of(
        cls, model: ji.Model, one: Any, other: Any, at_one: Any = -1, at_other: Any = -1
    ) -> Difference:
        """At a position, or one of each prompt; by default the last."""
        return cls(*(ji.collect(model, t, at)[1:] for t, at in ((one, at_one), (other, at_other))))

    @property
    def step(self) -> np.ndarray:
        """From the mean of the other kind to that of the one [L D]."""
        return (self.one.mean(1) - self.other.mean(1)).astype(np.float32)

    def eraser(self, layer: int) -> erasure.Eraser:
        """LEACE (Belrose et al. 2023, arXiv:2306.03819): the kind is linearly gone after it."""
        X = np.concatenate([self.one[layer], self.other[layer]])
        return erasure.leace(X, np.arange(len(X)) < self.one.shape[1])

    def erased(self, at: Any, layer: int) -> ji.Edit:
        return ji.apply("resid_post", self.eraser(layer), layer=layer, position=at)

    def erased_after_each(self, at: Any) -> ji.Edit:
        """A grid: one experiment for each layer."""
        layers = np.arange(len(self.one))
        every = mechanism.stacked([self.eraser(layer) for layer in layers])
        return ji.apply("resid_post", every, layer=layers, position=ji.Shared(at))

    def moved(self, at: Any, layer: int, sign: Any = 1) -> ji.Edit:
        """As far as the means lie apart; sign: 1 towards the one kind, -1 to the other, or [B]."""
        value = np.reshape(sign, (-1, 1, 1)) * self.step[layer]
        return ji.add("resid_post", value.astype(np.float32), layer=layer, position=at)

    def moved_after_each(self, at: Any, sign: int = 1) -> ji.Edit:
        """A grid: one experiment for each layer."""
        value, layers = (sign * self.step)[:, None, None], np.arange(len(self.one))
        return ji.add("resid_post", value, layer=layers, position=ji.Shared(at))

    def random_erasures(self, at: Any, layer: int, draws: int, seed: int) -> ji.Edit:
        """A grid of erasures of the same rank about the same mean."""
        like = self.eraser(layer)
        drawn = [
            erasure.random_eraser(like.removed.shape[0], like.rank, seed + i, like.centre)
            for i in range(draws)
        ]
        return ji.apply("resid_post", mechanism.stacked(drawn), layer=np.full(draws, layer),
                        position=ji.Shared(at))  # fmt: skip

    def random_moves(self, at: Any, layer: int, draws: int, seed: int) -> ji.Edit:
        """A grid of moves as far, along random directions."""
        drawn = np.random.default_rng(seed).normal(size=(draws, self.step.shape[1]))
        drawn *= np.linalg.norm(self.step[layer]) / np.linalg.norm(drawn, axis=1, keepdims=True)
        return ji.add("resid_post", drawn.astype(np.float32), layer=np.full(draws, layer),
                      position=ji.Shared(at))  # fmt: skip


def way_of(
    model: ji.Model, tokens: Any, grid: ji.Edit, metric: ji.Metric, start: Any, aim: Any
) -> np.ndarray:
    """By experiment, how far the mean of the metric goes from ``start`` to ``aim``: [E]."""
    found = np.asarray(ji.sweep(model, tokens, grid, metric)).mean(1)
    return (found - np.mean(start)) / (np.mean(aim) - np.mean(start))


def likeliest(model: ji.Model, tokens: ji.Tokens) -> ji.Metric:
    """The log-probability of what the model, as it is, finds likeliest next."""
    last = np.asarray(tokens.lengths) - 1
    logits = np.asarray(ji.forward(model, tokens).logits)
    return ji.log_prob(logits[np.arange(len(last)), last].argmax(-1)[:, None])
