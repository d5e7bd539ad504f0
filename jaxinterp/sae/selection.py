"""The k largest of many numbers, with k a value: one program for a whole front of sparsities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def kth_largest(values: jax.Array, k: Any, axes: tuple[int, ...]) -> jax.Array:
    """The k-th largest of values >= 0 over some axes (kept, of length 1); 0 if k or more are 0.

    Exact: floats >= 0 are ordered as their bits are, so the answer is found bit by bit from the
    top, by counting. k may be traced, and differ under ``vmap``.
    """
    width = 8 * values.dtype.itemsize
    integer = np.dtype(f"int{width}")
    bits = lax.bitcast_convert_type(values, integer)

    def refine(i: jax.Array, found: jax.Array) -> jax.Array:
        trial = found | jnp.left_shift(jnp.ones((), integer), (width - 2 - i).astype(integer))
        enough = (bits >= trial).sum(axes, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, trial, found)

    start = jnp.zeros_like(bits.max(axes, keepdims=True))
    return lax.bitcast_convert_type(lax.fori_loop(0, width - 1, refine, start), values.dtype)


def keep_largest(values: jax.Array, k: Any, axes: tuple[int, ...]) -> jax.Array:
    """Values >= 0 with all but the k largest over some axes set to 0; equals of the k-th stay."""
    least = kth_largest(lax.stop_gradient(values), k, axes)
    return jnp.where((values >= least) & (values > 0), values, 0)
