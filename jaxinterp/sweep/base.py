"""The base of a sweep: the run without any intervention, and what is recorded on the way."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.metrics import Metric, read_columns, read_out
from jaxinterp.model import (
    Frame,
    Model,
    Prefix,
    Tokens,
    block,
    embed,
    layers_of,
    make_context,
    unembed,
)  # fmt: skip
from jaxinterp.model.compiled import jit
from jaxinterp.model.taps import Tap


class Base(struct.PyTreeNode):
    """What experiments start from: the run without any intervention.

    resid_pre [L B P D]; keys (rotated) and values [L B P G K] of every layer; the metric [B].
    """

    resid_pre: jax.Array
    kv: Prefix
    metric: jax.Array


@functools.partial(jit, static=("record",))
def observe(
    model: Model, tokens: Tokens, metric: Metric, record: tuple[str, ...] = ()
) -> tuple[Base, dict[str, jax.Array]]:
    """Run the model once: the base of a sweep, and recorded activations as in `forward`."""
    context, frame = make_context(model, tokens), Frame(tokens.positions)
    x, first = embed(model, tokens, record=record)

    def run(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        tap = Tap(model.config, (), record, context.sources, layer.index)
        y, kv = block(model.config, layer, x, context, tap, frame)
        return y, (x, kv, tap.recorded)

    x, (resid_pre, kv, middle) = jax.lax.scan(run, x, layers_of(model))
    columns = read_columns(tokens, metric)
    read = jnp.take_along_axis(x, columns[:, :, None], axis=1)
    value = read_out(model, read, tokens, metric, frame.read(columns))
    last = unembed(model, x, frame, record=record)[1] if record else {}
    return Base(resid_pre, kv, value), {**first, **middle, **last}
