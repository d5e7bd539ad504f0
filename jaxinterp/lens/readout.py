"""What residual streams say of the next token, one block of the vocabulary at a time.

Logits of layers x positions x vocabulary never exist. One walk over the vocabulary keeps of every
row what its readings need: the softmax's running maximum and sums (Milakov & Gimelshein 2018,
arXiv:1805.02867), and the best tokens so far. Logits are the model's own; all that is made of them
is in float32 or wider.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model import Model, unembed
from jaxinterp.model.compiled import jit
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.written import BLOCK, best_of


class Reading(struct.PyTreeNode):
    """Readings [S N] of N rows at S points; top and top_log_prob [S N K], the best first.

    kl: KL(final || reading) in nats, as entropy is. log_prob and rank: of the target; the rank
    counts the tokens with a strictly higher logit.
    """

    top: jax.Array
    top_log_prob: jax.Array
    entropy: jax.Array
    kl: jax.Array
    log_prob: jax.Array
    rank: jax.Array


class _Row(struct.PyTreeNode):
    """What is kept of every row [N] on the way; best and best_ids [N K]."""

    highest: jax.Array
    mass: jax.Array  # sum of exp(z - highest)
    weighted: jax.Array  # the same of exp(z - highest) z
    apart: jax.Array  # sum of exp(final - final's highest) (final - z)
    above: jax.Array  # how many logits are above the target's
    best: jax.Array
    best_ids: jax.Array


_Carry = tuple[jax.Array, jax.Array, _Row]  # the final stream's highest and mass, every point's


@functools.partial(jit, static=("k", "block"))
def read_rows(
    model: Model, x: jax.Array, final: jax.Array, targets: jax.Array, *, k: int, block: int = BLOCK
) -> Reading:
    """Readings of the streams x [S N D], beside those of the last one, final [N D].

    targets [N]: the token whose probability and rank are read.
    """
    size = model.config.n_logits
    blocks = jnp.arange(-(-size // block) * block).reshape(-1, block)
    wanted = jax.lax.map(lambda rows: _logits(model, rows[:, None], targets[:, None])[:, 0, 0], x)

    def step(carry: _Carry, ids: jax.Array) -> tuple[_Carry, None]:
        high, mass, kept = carry
        real, ids = ids < size, ids.clip(max=size - 1)

        def logits(rows: jax.Array) -> jax.Array:
            return _logits(model, rows[None], ids[None])[0]

        last = logits(final)
        higher = jnp.maximum(high, jnp.where(real, last, -jnp.inf).max(-1))
        decay, weight = jnp.exp(high - higher), _weights(last, higher, real)

        def one(at: tuple[jax.Array, jax.Array, _Row]) -> _Row:
            rows, target, row = at
            z = logits(rows)
            highest = jnp.maximum(row.highest, jnp.where(real, z, -jnp.inf).max(-1))
            fading, mine = jnp.exp(row.highest - highest), _weights(z, highest, real)
            hit = real & (z > target[:, None]) & (ids[None] != targets[:, None])
            best, best_ids = best_of(row.best, row.best_ids, jnp.where(real, z, -jnp.inf), ids)
            return _Row(
                highest=highest,
                mass=row.mass * fading + mine.sum(-1),
                weighted=row.weighted * fading + (mine * z).sum(-1),
                apart=row.apart * decay + (weight * (last - z)).sum(-1),
                above=row.above + hit.sum(-1, dtype=row.above.dtype),
                best=best,
                best_ids=best_ids,
            )

        return (higher, mass * decay + weight.sum(-1), jax.lax.map(one, (x, wanted, kept))), None

    shape, dtype = x.shape[:2], wide_dtype(wanted)
    none = jnp.zeros(shape, dtype)
    start = _Row(
        highest=jnp.full(shape, -jnp.inf, dtype), mass=none, weighted=none, apart=none,
        above=jnp.zeros(shape, jnp.int32), best=jnp.full((*shape, k), -jnp.inf, dtype),
        best_ids=jnp.zeros((*shape, k), blocks.dtype),
    )  # fmt: skip
    (high, mass, row), _ = jax.lax.scan(step, (start.highest[0], none[0], start), blocks)
    log_z, log_final = row.highest + jnp.log(row.mass), high + jnp.log(mass)
    return Reading(
        top=row.best_ids,
        top_log_prob=row.best - log_z[..., None],
        entropy=log_z - row.weighted / row.mass,
        kl=row.apart / mass - log_final + log_z,
        log_prob=wanted - log_z,
        rank=row.above,
    )


def _logits(model: Model, x: jax.Array, vocabulary: jax.Array) -> jax.Array:
    """x [B P D], vocabulary [B C] -> [B P C], through the model's own final norm and head."""
    logits, _ = unembed(model, x, vocabulary=vocabulary)
    assert logits is not None
    return wide(logits)


def _weights(z: jax.Array, highest: jax.Array, real: jax.Array) -> jax.Array:
    return jnp.where(real, jnp.exp(z - highest[:, None]), 0)
