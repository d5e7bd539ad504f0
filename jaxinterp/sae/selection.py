"""The k largest of many numbers, with k a value: one program for a whole front of sparsities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MOST = 200  # steps of a search: some ten are usual
NEAR = 0.03  # how far from a guess the search looks first
WORD = 32  # bits


def keep_largest(
    values: jax.Array, k: Any, axes: tuple[int, ...], near: jax.Array | None = None
) -> jax.Array:
    """Values >= 0 with all but the k largest over some axes set to 0; equals of the k-th stay.

    near: where the k-th may be; a good guess saves time.
    """
    least = separator(lax.stop_gradient(values), k, axes, near)
    return jnp.where((values >= least) & (values > 0), values, 0)


def separator(
    values: jax.Array, k: Any, axes: tuple[int, ...], near: jax.Array | None = None
) -> jax.Array:
    """A number that the k largest of values >= 0 reach, and no others but equals of the k-th.

    Over some axes (kept, of length 1); 0 where fewer than k values are above 0. Exact: values are
    counted, not sorted. k may be traced, and differ under ``vmap``. The search is regula falsi on
    the logarithm of the count (Illinois rule: Dowell and Jarratt 1971), with a bisection of the
    floats' bits now and then, which bounds it.
    """
    dtype = values.dtype
    integer = np.dtype(f"int{8 * dtype.itemsize}")
    k = jnp.asarray(k)

    def bits(x: jax.Array) -> jax.Array:  # floats >= 0 are ordered as their bits are
        return lax.bitcast_convert_type(x, integer)

    def floats(n: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(n, dtype)

    def count(least: jax.Array) -> jax.Array:
        rows = (values >= least).sum(-1, keepdims=True, dtype=jnp.int32)
        if len(axes) > 1:
            rows = lax.optimization_barrier(rows)  # one sum over all would run on one thread
        return rows.sum(axes, keepdims=True, dtype=jnp.int32)

    def over(counted: jax.Array) -> jax.Array:
        return jnp.log((counted + 0.5) / k).astype(dtype)

    def unsettled(low: jax.Array, high: jax.Array, counted: jax.Array) -> jax.Array:
        return (counted > k) & (bits(high) - bits(low) > 1)

    def step(state: Any) -> Any:
        low, high, _, f_low, f_high, _, n = state
        trial = low + (high - low) * (f_low / (f_low - f_high))
        middle = floats(bits(low) + (bits(high) - bits(low)) // 2)
        return tried(state, jnp.where(n % 8 == 7, middle, trial))

    def tried(state: Any, trial: jax.Array) -> Any:
        low, high, counted, f_low, f_high, side, n = state
        going = unsettled(low, high, counted)
        trial = jnp.clip(trial, floats(bits(low) + 1), floats(bits(high) - 1))
        found = count(trial)
        up, down = going & (found >= k), going & (found < k)
        # An end that stays twice counts half.
        f_low = jnp.where(up, over(found), jnp.where(down & (side < 0), f_low / 2, f_low))
        f_high = jnp.where(down, over(found), jnp.where(up & (side > 0), f_high / 2, f_high))
        return (
            jnp.where(up, trial, low), jnp.where(down, trial, high), jnp.where(up, found, counted),
            f_low, f_high, jnp.where(up, 1, jnp.where(down, -1, side)), n + 1,
        )  # fmt: skip

    low = jnp.full_like(values.max(axes, keepdims=True), jnp.finfo(dtype).tiny)
    high = floats(bits(jnp.maximum(values.max(axes, keepdims=True), low)) + 1)
    counted = count(low)
    state: Any = low, high, counted, over(counted), over(jnp.zeros_like(counted)), counted * 0, 0
    if near is not None:
        for factor in (1 - NEAR, 1 + NEAR):
            state = tried(state, jnp.broadcast_to(near * factor, low.shape).astype(dtype))
    found = lax.while_loop(lambda s: unsettled(*s[:3]).any() & (s[-1] < MOST), step, state)
    return jnp.where(counted < k, 0, found[0])


def places(mask: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Where rows of a mask [B F] are true: in each the first ``slots`` [B slots]; how many [B].

    What lies past the count of a row means nothing. A row becomes words of 32 bits, of which a slot
    finds its own by a running maximum, and in it its bit by halving: a fifth of ``top_k``'s time.
    """
    n, size = mask.shape
    width = -(-size // WORD)
    bits = jnp.pad(mask, ((0, 0), (0, WORD * width - size))).reshape(n, WORD, width)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]
    words = (bits.astype(jnp.uint32) << shifts).sum(1, dtype=jnp.uint32)
    counts = lax.population_count(words).astype(jnp.int32)
    ends = counts.cumsum(1)
    begins, slot = ends - counts, jnp.arange(slots, dtype=jnp.int32)
    own = jnp.zeros((n, slots), jnp.int32).at[jnp.arange(n)[:, None], begins]
    at = lax.cummax(own.max(jnp.arange(width, dtype=jnp.int32), mode="drop"), axis=1)
    rank = slot - jnp.take_along_axis(begins, at, 1)
    word, bit = jnp.take_along_axis(words, at, 1), jnp.zeros_like(at)
    for half in (16, 8, 4, 2, 1):
        low = word & jnp.uint32((1 << half) - 1)
        below = lax.population_count(low).astype(jnp.int32)
        above = rank >= below
        bit, rank = bit + jnp.where(above, half, 0), rank - jnp.where(above, below, 0)
        word = jnp.where(above, word >> half, low)
    return jnp.minimum(bit * width + at, size - 1), ends[:, -1]
