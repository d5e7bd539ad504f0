"""Second order: the curvature along each patch, and how two patches act on each other.

With amounts t (see `gradients`) the metric is m(t), and m(1 at a cell) its exact patch. The
Hessian of m at t = 0 gives the next terms of its expansion: half the diagonal corrects a cell's
attribution, an off-diagonal entry is the interaction of two cells,
m(i and j) - m(i) - m(j) + m(neither). One Hessian-vector product (the derivative of the
gradient along a cell) gives a whole row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxinterp.attribution.gradients import Pair, slopes_of

TOGETHER = 4  # cells per program


def attribution(pair: Pair) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B], and slope + half the curvature of each cell [*over, B].

    Exact where the metric is quadratic along the patch. It costs a few forward passes per cell,
    more than the exact patch: it shows why an attribution fails, it does not replace a sweep.
    """
    metric, slopes = pair.slopes()
    first = pair.cells(slopes)
    n_cells = first.size // first.shape[-1]
    row = rows(pair)

    def own(cell: jax.Array) -> jax.Array:
        return row(cell).reshape(n_cells, -1)[cell]

    curvature = jax.lax.map(own, jnp.arange(n_cells), batch_size=min(TOGETHER, n_cells))
    return metric, first + curvature.reshape(first.shape) / 2


def interactions(pair: Pair) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B], and the second derivative of each two cells [E *over B]."""
    metric, slopes = pair.slopes()
    cells = pair.cells(slopes)
    n_cells = cells.size // cells.shape[-1]
    found = jax.lax.map(rows(pair), jnp.arange(n_cells), batch_size=min(TOGETHER, n_cells))
    return metric, found


def rows(pair: Pair) -> Callable[[jax.Array], jax.Array]:
    """The function from a (flat) cell to its row of second derivatives [*over, B]."""
    amounts = pair.amounts
    cells, entries_of = jax.vjp(pair.cells, amounts)

    def gradient(point: jax.Array) -> jax.Array:
        return slopes_of(pair.measure, point)[1]

    def row(cell: jax.Array) -> jax.Array:
        n_prompts = cells.shape[-1]
        chosen = jnp.zeros((cells.size // n_prompts, n_prompts), cells.dtype).at[cell].set(1)
        (entries,) = entries_of(chosen.reshape(cells.shape))
        return pair.cells(jax.jvp(gradient, (amounts,), (entries,))[1])

    return row
