"""The rest of a run, differentiably: what training needs of the passes that a sweep makes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp.metrics import Metric, read_columns, read_out
from jaxinterp.model import (
    SITES,
    Frame,
    Intervention,
    Model,
    Tokens,
    block,
    embed,
    layers_of,
    make_context,
)
from jaxinterp.model.taps import Tap


def measure_from(
    model: Model, x: jax.Array, start: jax.Array, tokens: Tokens, metric: Metric,
    edits: tuple[Intervention, ...],
) -> jax.Array:  # fmt: skip
    """The metric [B] under edits of one site, from the stream x [B P D] before layer ``start``.

    An edit before the layers (of the embedding) begins anew. The layer is traced: one program
    serves all of them.
    """
    c, context, frame = model.config, make_context(model, tokens), Frame(tokens.positions)
    site = SITES[edits[0].sites[0]]
    if not site.layered and not site.name.startswith("ln_final"):
        x, _ = embed(model, tokens, edits)

    def pass_layer(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        def run(x: jax.Array) -> jax.Array:
            tap = Tap(c, edits, (), context.sources, layer.index)
            return block(c, layer, x, context, tap, frame)[0]

        # Run again on the way back, so that only the stream before each layer is kept.
        return jax.lax.cond(layer.index >= start, jax.checkpoint(run), lambda x: x, x), None

    x, _ = jax.lax.scan(pass_layer, x, layers_of(model))
    columns = read_columns(tokens, metric)
    read = jnp.take_along_axis(x, columns[:, :, None], axis=1)
    return read_out(model, read, tokens, metric, frame.read(columns), edits)
