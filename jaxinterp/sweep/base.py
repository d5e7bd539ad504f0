"""The base of a sweep: the run without any intervention, and what is recorded on the way."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.metrics import Metric, check_metric, read_columns, read_out
from jaxinterp.model import (
    Frame,
    Model,
    Prefix,
    Tokens,
    as_tokens,
    block,
    embed,
    layers_of,
    make_context,
    unembed,
)  # fmt: skip
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.record import as_record, scan_layers
from jaxinterp.model.taps import Tap


class Base(struct.PyTreeNode):
    """What experiments start from: the run without any intervention.

    resid_pre [L B P D]; keys (rotated) and values [L B P G K] of every layer; the metric [B].
    """

    resid_pre: jax.Array
    kv: Prefix
    metric: jax.Array


def observe(
    model: Model, tokens: Any, metric: Metric, record: tuple[str, ...] = ()
) -> tuple[Base, dict[str, jax.Array]]:
    """Run the model once: the base of a sweep, and recorded activations as in `forward`.

    tokens: as `forward` takes them. Raises ``ValueError`` as it does, and for a metric whose tokens
    or positions do not exist.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    return observed(model, tokens, metric, record=record)


@functools.partial(jit, static=("record",))
def observed(
    model: Model, tokens: Tokens, metric: Metric, record: tuple[str, ...] = ()
) -> tuple[Base, dict[str, jax.Array]]:
    """`observe` of what has been checked, compiled."""
    return _observe(model, tokens, metric, record, slice(None), slice(None))


@functools.partial(jit, static=("record",))
def observe_twins(
    model: Model, tokens: Tokens, donors: Tokens, metric: Metric, record: tuple[str, ...]
) -> tuple[Base, jax.Array, dict[str, jax.Array]]:
    """`observe` for two batches of equal shape, each layer's weights read once for both.

    Returns the base of ``tokens``, and of ``donors`` the metric [B] and the records.
    """

    def alternate(a: jax.Array, b: jax.Array) -> jax.Array:  # keeps how prompts are sharded
        return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

    def twice(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.shape[0] == 1 else jnp.repeat(leaf, 2, axis=0)

    both = jax.tree.map(alternate, tokens, donors)
    first, second = slice(0, None, 2), slice(1, None, 2)
    base, records = _observe(model, both, jax.tree.map(twice, metric), record, first, second)
    return base.replace(metric=base.metric[first]), base.metric[second], records


def _observe(
    model: Model, tokens: Tokens, metric: Metric, record: tuple[str, ...], base: slice, rows: slice
) -> tuple[Base, dict[str, jax.Array]]:
    """One pass. ``base`` and ``rows``: the rows whose streams, and whose records, are returned."""
    context, frame = make_context(model, tokens), Frame(tokens.positions)
    kept = as_record(model.config, record)
    x, first = embed(model, tokens, record=kept)

    def run(x: jax.Array, layer: Any) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        tap = Tap(model.config, (), kept.sites, context.sources, layer.index)
        y, kv = block(model.config, layer, x, context, tap, frame)
        return y, jax.tree.map(lambda a: a[base], (x, kv)), taken(tap.recorded)

    def taken(records: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {site: value[rows] for site, value in records.items()}

    x, ((resid_pre, kv), middle) = scan_layers(run, x, layers_of(model), kept)
    columns = read_columns(tokens, metric)
    read = jnp.take_along_axis(x, columns[:, :, None], axis=1)
    value = read_out(model, read, tokens, metric, frame.read(columns))
    last = unembed(model, x, frame, record=kept)[1] if record else {}
    return Base(resid_pre, kv, value), {**taken(first), **middle, **taken(last)}
