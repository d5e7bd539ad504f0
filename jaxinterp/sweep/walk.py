"""Walk: a chunk of a sweep as one compiled program.

The schedule is a wavefront. Lanes are sorted by the layer they set off at; the layers are
walked once, and at each of them all lanes that have set off pass through together, a fixed
number at a time. Counts, layers and columns are traced values, so one program serves every
grid of the same shape.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxinterp.interventions import is_shared
from jaxinterp.metrics import Metric, read_columns, read_out
from jaxinterp.model import Frame, Model, Tokens, block, embed, layer_at, make_context
from jaxinterp.model.compiled import jit
from jaxinterp.model.sites import SITES
from jaxinterp.model.taps import Tap
from jaxinterp.sweep.base import Base
from jaxinterp.sweep.devices import ways
from jaxinterp.sweep.grids import split_grid
from jaxinterp.sweep.lanes import interventions_of, lay_out
from jaxinterp.sweep.steps import steps_of


@functools.partial(jit, static=("width", "prefix", "lanes", "mesh"))
def run_chunk(
    model: Model, tokens: Tokens, base: Base, metric: Metric, grid: tuple[Any, ...],
    starts: jax.Array, first: jax.Array, count: jax.Array,
    *, width: int, prefix: int, lanes: int, mesh: Mesh | None = None,
) -> jax.Array:  # fmt: skip
    """`walk` for each device's part of a chunk."""
    body = functools.partial(walk, width=width, prefix=prefix, lanes=lanes)
    if ways(mesh, "grid") == 1:
        return body(model, tokens, base, metric, grid, starts, first, count)
    whole, split = PartitionSpec(), PartitionSpec("grid")
    of_grid = jax.tree.map(lambda n: whole if is_shared(n) else split, grid, is_leaf=is_shared)
    specs = (whole, whole, whole, whole, of_grid, whole, split, whole)
    return jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=split, axis_names={"grid"}, check_vma=False
    )(model, tokens, base, metric, grid, starts, first, count)


def walk(
    model: Model,
    tokens: Tokens,
    base: Base,
    metric: Metric,
    grid: tuple[Any, ...],
    starts: jax.Array,
    first: jax.Array,
    count: jax.Array,
    *,
    width: int,
    prefix: int,
    lanes: int,
) -> jax.Array:
    """The metric [C S B] of C lanes of S experiments, by the layer ``starts`` [C] they set off at.

    first [C S]: the column from which each experiment holds the rest (`lay_out`). The grid's
    leaves are [C*S ...]; the first ``count`` lanes are real.
    """
    c = model.config
    last = c.n_layers - 1
    context = make_context(model, tokens)
    read = read_columns(tokens, metric)
    starts = jnp.where(jnp.arange(starts.shape[0]) < count, starts, c.n_layers)
    leaves, rebuild, _ = split_grid(grid)
    capacity, together = first.shape
    leaves = [leaf.reshape(capacity, together, *leaf.shape[1:]) for leaf in leaves]
    sites = {site for i in grid for site in i.sites}
    at_embed = any(not SITES[s].layered and not s.startswith("ln_final") for s in sites)

    def run_lanes(layer: Any, streams: jax.Array, at: Any, n: int, finish: bool) -> jax.Array:
        """Lanes ``at`` to ``at + n`` through a layer."""
        index = layer.index
        before = jax.tree.map(lambda a: a[index, :, :prefix], base.kv) if prefix else None

        def one(x: jax.Array, start: jax.Array, first: jax.Array, mapped: list[Any]) -> jax.Array:
            lane = lay_out(tokens, context, first, width, prefix)
            frame = lane.frame
            members = [rebuild([leaf[i] for leaf in mapped]) for i in range(together)]
            interventions = interventions_of(members)
            x = jnp.where(start < index, x, frame.take(base.resid_pre[index], 1))
            if at_embed:
                x = jnp.where(index == 0, embedded(interventions, frame), x)
            tap = Tap(c, interventions, (), lane.context.sources, index)
            if not finish:
                return block(c, layer, x, lane.context, tap, frame, before)[0]
            slots = lane.slots(read)
            x, _ = block(c, layer, x, lane.context, tap, frame, before, slots)
            parts = zip(
                jnp.split(x, together, axis=1), jnp.split(slots, together, axis=1), members,
                strict=True,
            )  # fmt: skip
            return jnp.stack([
                read_out(model, part, tokens, metric, frame.read(at), member)
                for part, at, member in parts
            ])  # fmt: skip

        taken = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, at, n), (streams, starts, first, leaves)
        )
        return jax.vmap(one)(*taken)

    def embedded(interventions: tuple[Any, ...], frame: Frame) -> jax.Array:
        held = jax.tree.map(lambda leaf: frame.take(leaf, 1), tokens)
        return embed(model, held, interventions, frame=frame)[0]

    def loop(first: Any, layer: Any, count: Any, n: int, source: Any, out: jax.Array) -> jax.Array:
        """``count`` steps of n lanes from ``first`` on, from the streams into ``out``."""

        def step(j: jax.Array, out: jax.Array) -> jax.Array:
            at = first + j * n
            streams = out if source is None else source
            new = run_lanes(layer, streams, at, n, finish=source is not None)
            return jax.lax.dynamic_update_slice_in_dim(out, new, at, 0)

        return jax.lax.fori_loop(0, count, step, out)

    def pass_layer(index: jax.Array, streams: jax.Array) -> jax.Array:
        layer, active = layer_at(model, index), (starts <= index).sum()
        full, half = steps_of(active, lanes)
        streams = loop(0, layer, full, lanes, None, streams)
        if lanes > 1:
            streams = loop(full * lanes, layer, half, lanes // 2, None, streams)
        return streams

    streams = jnp.zeros((capacity, tokens.shape[0], width, c.d_model), base.resid_pre.dtype)
    streams = jax.lax.fori_loop(jnp.minimum(starts[0], last), last, pass_layer, streams)
    out = jnp.zeros((capacity, together, tokens.shape[0]), base.metric.dtype)
    return loop(0, layer_at(model, last), -(-count // lanes), lanes, streams, out)
