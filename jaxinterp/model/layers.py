"""What every layer is given: who may see whom, its parameters, and keys and values before it.

Axis letters: see `jaxinterp.model.params`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model.inputs import Tokens
from jaxinterp.model.params import Blocks, Model
from jaxinterp.model.parts import rotary_tables
from jaxinterp.numerics import wide_dtype


class Context(struct.PyTreeNode):
    """What every layer of one run shares: who may see whom, and the rotary tables.

    ``sources`` [B S] are the positions of the keys. A run that holds only a suffix of the
    columns reads the keys and values of the columns before it from `Prefix`. ``reach``
    [B P S] narrows what each of its columns may see, beside causality and padding.
    """

    sources: jax.Array
    rotary: tuple[jax.Array, jax.Array] | None
    reach: jax.Array | None = None


class Layer(struct.PyTreeNode):
    """One layer: its index (traced), its parameters, and its own reach and rotary kind."""

    index: jax.Array
    params: Blocks
    window: jax.Array | None
    rotary_kind: jax.Array | None


class Prefix(struct.PyTreeNode):
    """Keys (rotated) and values [B S' G K] of the columns before a suffix, for one layer."""

    k: jax.Array
    v: jax.Array


def make_context(model: Model, tokens: Tokens) -> Context:
    """The `Context` of a batch of prompts."""
    positions = tokens.positions
    if model.config.positions != "rotary":
        return Context(positions, None)
    dtype = wide_dtype(model.params.embed.W_E)
    return Context(positions, rotary_tables(model.config, positions, dtype))


def layers_of(model: Model) -> Layer:
    """All layers as one `Layer` whose leaves are stacked; index it or scan over it."""
    c = model.config
    return Layer(
        index=jnp.arange(c.n_layers),
        params=model.params.blocks,
        window=jnp.asarray(c.windows, jnp.int32) if any(c.windows) else None,
        rotary_kind=jnp.asarray(c.rotary_kind, jnp.int32) if c.rotary_kind else None,
    )


def layer_at(model: Model, index: int | jax.Array) -> Layer:
    """One layer, at a static or traced index."""
    return jax.tree.map(lambda leaf: leaf[index], layers_of(model))
