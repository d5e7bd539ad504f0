"""The loss of a TopK or BatchTopK through the few features that are active.

Of an update's five products with dense codes, four are mostly with zeros. Here an example has C
slots for its features, and a product is a loop over slots that gathers rows of the weights, or adds
to them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig
from jaxinterp.sae.losses import Firing, Parts, auxk, parts_of, rest_error
from jaxinterp.sae.selection import keep_largest, places, separator

TOPK = ("topk", "batch_topk")
SPARE = 8  # slots of a BatchTopK for each feature that examples use on average, and for 16 more
BLOCKS = 8  # of examples
SAMPLED = 8  # of so many examples one tells where a BatchTopK's threshold may lie
BELOW = 0.03  # how far below that is looked, as a share of it
DEAD = 3  # of so many features one may be dead in a sparse update
WORTH = 64  # features for each active one from which loops pay: from 72 on measured, on a CPU


def slots_for(config: DictionaryConfig, k: float) -> int:
    """How many slots pay, for at most k features per example; 0: dense products do."""
    sparse = config.activation in TOPK and not config.prefixes and not config.layered
    if not sparse or k * WORTH > config.n_features:
        return 0
    slots = math.ceil(k)
    if config.activation == "batch_topk":
        slots = SPARE * (slots + 16)  # examples' numbers differ widely
    return min(config.n_features, slots)


def room_for_dead(config: DictionaryConfig) -> int:
    """How many dead features a sparse update can revive; with more of them it is dense."""
    return -(-config.n_features // DEAD)


class Active(NamedTuple):
    """Values [m b C], 0 in slots that are empty, and whose they are.

    Examples lie in m blocks, by how many features they use: a block's loop ends with its longest.
    order [B]: the examples so arranged. short: whether some example needs more slots.
    """

    values: jax.Array
    features: jax.Array
    order: jax.Array
    short: jax.Array


def most_active(d: Dictionary, x: jax.Array, slots: int) -> Active:
    """The features that a TopK or BatchTopK keeps of examples x [B D]."""
    p, c, n = d.params, d.config, len(x)
    active = jax.nn.relu((x - p.b_dec if c.subtract_bias else x) @ p.W_enc + p.b_enc)
    if c.activation == "topk":
        values, index = lax.top_k(active, slots)
        values = jnp.where(jnp.arange(slots) < d.k, values, 0)
        short = jnp.asarray(d.k) > slots
    else:
        total = jnp.round(jnp.asarray(d.k) * n)
        near = _nearly(active, total, p.threshold)
        index, count = places((active > 0) & (active >= near), slots)
        inside = jnp.arange(slots) < count[:, None]
        values = jnp.where(inside, jnp.take_along_axis(active, index, 1), 0)
        values = keep_largest(values, total, (0, 1), near=near)
        short = (count > slots).any()
    order = jnp.argsort(_used(values), descending=True)
    m = max(i for i in range(1, BLOCKS + 1) if n % i == 0)
    values, index = (a[order].reshape(m, -1, slots) for a in (values, index))
    return Active(values, index, order, short)


def _nearly(active: jax.Array, total: jax.Array, guess: jax.Array) -> jax.Array:
    """A little less than the least of the ``total`` largest: what a few examples tell, if it is."""
    few = active[::SAMPLED]
    near = separator(few, jnp.round(total * len(few) / len(active)), (0, 1), near=guess)
    near = (1 - BELOW) * near
    reached = (active >= near).sum(1, dtype=jnp.int32).sum() >= total
    return lax.cond(reached, lambda: near, lambda: separator(active, total, (0, 1), near=near))


def sparse_loss(
    d: Dictionary, x: jax.Array, y: jax.Array, found: Active, coefficient: Any = 0.0,
    dead: jax.Array | None = None, *, k_aux: int = 0,
) -> tuple[jax.Array, tuple[Parts, Firing]]:  # fmt: skip
    """`jaxinterp.sae.losses.loss` of the features that `most_active` found, and AuxK's.

    coefficient: AuxK's; dead: as there, at most `room_for_dead` features.
    """
    p, c = d.params, d.config
    values, index = found.values, found.features
    x, y = x[found.order], y[found.order]
    # b_dec's slope then goes through this sum, not through every example.
    bias = p.b_enc - p.b_dec @ p.W_enc if c.subtract_bias else p.b_enc
    read = _read(x, p.W_enc, bias, values, index)
    rest = y - _write(read, p.W_dec, index) - p.b_dec
    if c.skip:
        rest = rest - x @ p.W_skip
    error = rest_error(rest)
    active = values > 0
    fired = jnp.zeros(c.n_features, bool).at[index].max(active)
    least = jnp.where(active, values, jnp.inf).min()
    aux = zero = jnp.zeros_like(error)
    parts = parts_of(y, rest, zero, zero, active.sum(-1).mean(dtype=error.dtype))
    if dead is not None and k_aux:
        room = room_for_dead(c)
        (few,) = jnp.nonzero(dead, size=room, fill_value=0)
        pre = x @ p.W_enc[:, few] + bias[few]
        there = jnp.arange(room) < dead.sum()
        aux = parts.variance * auxk(c, pre, p.W_dec[few], rest, there, min(k_aux, room))
    parts = jax.tree.map(lax.stop_gradient, parts.replace(auxk=aux))
    return error + coefficient * aux, (parts, Firing(fired, least))


# Loops over slots. W [F O] is gathered from by whole blocks, added to example by example.


def _used(values: jax.Array) -> jax.Array:
    """Up to where slots are not empty [...], of values [... C]."""
    return jnp.where(values > 0, jnp.arange(1, values.shape[-1] + 1), 0).max(-1)


def _gather_sum(amounts: jax.Array, used: Any, index: jax.Array, W: jax.Array) -> jax.Array:
    """The sum over an example's slots of amounts [m b C] times their rows of W: [B O]."""

    def block(one: Any) -> jax.Array:
        amount, number, rows = one

        def add(i: jax.Array, out: jax.Array) -> jax.Array:
            return out + amount[:, i, None] * W[rows[:, i]]

        start = jnp.zeros((len(amount), W.shape[1]), W.dtype)
        return lax.fori_loop(0, number.max(), add, start)

    return lax.map(block, (amounts, used, index)).reshape(-1, W.shape[1])


def _along(y: jax.Array, used: Any, index: jax.Array, W: jax.Array) -> jax.Array:
    """The products of examples y [B O] with the rows of their slots: [m b C]."""
    m, b, slots = index.shape
    ones = jnp.ones((W.shape[1], 1), W.dtype)

    def block(one: Any) -> jax.Array:
        y, number, rows = one

        def put(i: jax.Array, out: jax.Array) -> jax.Array:
            return out.at[i].set(((y * W[rows[:, i]]) @ ones)[:, 0])  # a sum, but vectorised

        return lax.fori_loop(0, number.max(), put, jnp.zeros((slots, b), W.dtype)).T

    return lax.map(block, (y.reshape(m, b, -1), used, index))


def _scatter_sum(
    amounts: jax.Array, used: Any, index: jax.Array, x: jax.Array, size: int
) -> jax.Array:
    """The sum over examples x [B O] of x times its slots' amounts, in the slots' rows: [F O]."""
    amounts, index = (a.reshape(-1, a.shape[-1]) for a in (amounts, index))
    used = used.reshape(-1)

    def example(b: jax.Array, out: jax.Array) -> jax.Array:
        def add(i: jax.Array, out: jax.Array) -> jax.Array:
            row = index[b, i], jnp.zeros((), index.dtype)
            old = lax.dynamic_slice(out, row, (1, out.shape[1]))
            return lax.dynamic_update_slice(out, old + amounts[b, i] * x[b], row)

        return lax.fori_loop(0, used[b], add, out)

    return lax.fori_loop(0, len(x), example, jnp.zeros((size, x.shape[1]), x.dtype))


@jax.custom_vjp
def _read(x: jax.Array, W: jax.Array, b: jax.Array, values: jax.Array, index: jax.Array) -> Any:
    """``values``, relu(x W + b) at ``index``, as a function of x [B D], W [D F] and b [F]."""
    return values


def _read_forward(x: Any, W: Any, b: Any, values: Any, index: Any) -> Any:
    return values, (x, W, values, index)


def _read_backward(saved: Any, slope: jax.Array) -> Any:
    x, W, values, index = saved
    used, slope = _used(values), jnp.where(values > 0, slope, 0)
    W_slope = _scatter_sum(slope, used, index, x, W.shape[1]).T
    b_slope = jnp.zeros(W.shape[1], x.dtype).at[index].add(slope)
    x_slope = _gather_sum(slope, used, index, W.T)  # left out of programs that do not ask
    return x_slope, W_slope, b_slope, jnp.zeros_like(values), None


_read.defvjp(_read_forward, _read_backward)


@jax.custom_vjp
def _write(values: jax.Array, W: jax.Array, index: jax.Array) -> jax.Array:
    """What values [m b C] say through the rows ``index`` of W [F O]: [B O]."""
    return _gather_sum(values, _used(values), index, W)


def _write_forward(values: Any, W: Any, index: Any) -> Any:
    return _write(values, W, index), (values, W, index)


def _write_backward(saved: Any, slope: jax.Array) -> Any:
    values, W, index = saved
    used = _used(values)
    W_slope = _scatter_sum(values, used, index, slope, len(W))
    return _along(slope, used, index, W), W_slope, None


_write.defvjp(_write_forward, _write_backward)
