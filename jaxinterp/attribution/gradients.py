"""What all attributions are made of: slopes along the line from one run's values to another's.

Every entry of a site (a position, a head, a neuron) has an *amount*: 0 leaves the base run's
value, 1 puts the donor's there, as a patch does. The metric is a function of the amounts;
attributions are its derivatives. The derivative at 0 is (donor - base) . gradient, summed over
the width of the entry, so that no gradient of the width itself is ever kept.

Axis letters: see `jaxinterp.model.params`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.metrics import Metric, evaluate
from jaxinterp.model import SITES, At, Model, Tokens
from jaxinterp.numerics import wide, wide_dtype

WIDTHS = ("d_model", "d_head", "one")


class Toward(struct.PyTreeNode):
    """Moves a site's values by ``amount`` of the way to the donor's.

    donor: as recorded, [L B P ...]. amount: the same with a width of 1. base: where the way
    begins; None means wherever the value is.
    """

    site: str = struct.field(pytree_node=False)
    amount: Any
    donor: Any
    base: Any = None

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        start = value if self.base is None else at.donor(self.base)
        way = wide(at.donor(self.donor)) - wide(start)
        return (wide(value) + at.donor(self.amount) * way).astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One batch of prompts, what is patched in it, and onto which cells it is added up.

    values: the donor's, at the site. over, axes: the grid's axes in order, and the index of
    each: int [n], roles int [n B], or masks bool [n M].
    """

    model: Model
    base: Tokens
    donor: Tokens
    metric: Metric
    site: str
    over: tuple[str, ...]
    axes: dict[str, jax.Array]
    values: jax.Array

    @property
    def amounts(self) -> jax.Array:
        """Nothing patched: zeros, shaped as the site's values with a width of 1."""
        has_width = SITES[self.site].axes[-1] in WIDTHS
        shape = (*self.values.shape[:-1], 1) if has_width else self.values.shape
        return jnp.zeros(shape, wide_dtype(self.values))

    def measure(self, amounts: jax.Array, before: tuple = (), after: tuple = ()) -> jax.Array:
        """The metric [B] with that much of the donor's values; other edits before or after."""
        edit = Toward(self.site, amounts, self.values)
        return evaluate(self.metric, self.model, self.base, (*before, edit, *after))

    def slopes(self, before: tuple = (), after: tuple = ()) -> tuple[jax.Array, jax.Array]:
        """The base run's metric [B], and the slope of each entry there."""
        metric, slopes = slopes_of(lambda a: self.measure(a, before, after), self.amounts)
        return metric, slopes

    @property
    def felt(self) -> jax.Array:
        """bool [B P]: where the runs can differ, as far as the tokens tell."""
        differ = self.base.differ(self.donor) & (self.base.positions >= 0)
        if self.model.config.causal:
            return jnp.cumsum(differ, axis=-1) > 0
        return jnp.broadcast_to(differ.any(-1, keepdims=True), differ.shape)

    def cells(self, slopes: jax.Array) -> jax.Array:
        """Entries [L B P ...] added up to cells [*over, B]; linear. 0 where no patch is felt.

        Axes that the grid does not name are patched whole, so they are summed. A position axis
        of length 1 stands for all positions.
        """
        spec, felt = SITES[self.site], self.felt
        names = [*(["layer"] if spec.layered else []), "batch", *spec.axes]
        place, shape = names.index("position"), [1] * slopes.ndim
        felt = felt if slopes.shape[place] == felt.shape[1] else felt.any(1, keepdims=True)
        shape[names.index("batch")], shape[place] = felt.shape
        out = jnp.where(felt.reshape(shape), slopes, 0)
        for axis in [name for name in names if name != "batch"]:
            at = names.index(axis)
            if axis in self.over:
                out = self._choose(out, self.axes[axis], at, names.index("batch"))
            else:
                out = out.sum(at)
                del names[at]
        return out.transpose([names.index(name) for name in (*self.over, "batch")])

    def _choose(self, out: jax.Array, index: jax.Array, at: int, batch: int) -> jax.Array:
        if index.dtype == bool:  # blocks of neurons
            blocks = index.astype(out.dtype)
            summed = jnp.tensordot(blocks, out, (1, at), precision="highest")
            return jnp.moveaxis(summed, 0, at)
        if index.ndim == 1:
            return jnp.take(out, index, axis=at)
        columns = self.base.columns(index.T)  # roles: B n
        moved = jnp.moveaxis(out, (batch, at), (0, 1))
        columns = columns.reshape(*columns.shape, *[1] * (moved.ndim - 2))
        return jnp.moveaxis(jnp.take_along_axis(moved, columns, 1), (0, 1), (batch, at))


def slopes_of(measure: Any, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A function's values [B] at a point, and each prompt's gradient there.

    Prompts do not meet, so the gradient of their sum holds each one's own.
    """

    def total(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = measure(point)
        return values.sum(), values

    slopes, values = jax.grad(total, has_aux=True)(at)
    return values, slopes
