"""Run a sweep: every experiment of a grid, in a few compiled programs.

The schedule is a wavefront. Experiments of a chunk are sorted by the layer they start from;
the layers are walked once, and at each of them all experiments that have started pass
through together, a fixed number of lanes at a time. Counts, layers and positions are traced
values, so one program serves every grid of the same shape.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from jaxinterp.interventions import is_shared, unshare
from jaxinterp.metrics import Metric, check_metric, evaluate, read_columns, read_out
from jaxinterp.model import (
    Frame,
    Model,
    Prefix,
    Tokens,
    as_tokens,
    block,
    embed,
    layer_at,
    layers_of,
    make_context,
    unembed,
)  # fmt: skip
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import SITES
from jaxinterp.model.taps import Tap, as_interventions
from jaxinterp.sweep.devices import checked, place_model, place_tokens, to_host, ways
from jaxinterp.sweep.groups import Group
from jaxinterp.sweep.ledger import Ledger
from jaxinterp.sweep.schedule import MEMORY, Plan, concrete, make_plan
from jaxinterp.sweep.steps import steps_of


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


def split_grid(grid: Any) -> tuple[list[Any], Callable[[list[Any]], Any], int]:
    """The leaves with an experiment axis, how to put them back, and the grid's length.

    Raises ``ValueError`` when leaves disagree on the number of experiments.
    """
    leaves, treedef = jax.tree.flatten(grid, is_leaf=is_shared)
    mapped = [i for i, leaf in enumerate(leaves) if not is_shared(leaf)]
    lengths = {np.shape(leaves[i])[0] if np.ndim(leaves[i]) else -1 for i in mapped}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            f"The leaves of a grid share one leading experiment axis; found lengths "
            f"{sorted(lengths)} (-1: a number without axes). "
            "Wrap what all experiments share in Shared(...)."
        )

    def rebuild(values: list[Any]) -> Any:
        whole = list(leaves)
        for i, value in zip(mapped, values, strict=True):
            whole[i] = value
        return unshare(jax.tree.unflatten(treedef, whole))

    return [leaves[i] for i in mapped], rebuild, lengths.pop()


def grid_axes(grid: Any) -> Any:
    """``in_axes`` for `jax.vmap` over a grid."""
    return jax.tree.map(lambda n: None if is_shared(n) else 0, grid, is_leaf=is_shared)


def take_experiments(grid: Any, picked: np.ndarray) -> Any:
    """Some experiments of a grid."""
    return jax.tree.map(lambda n: n if is_shared(n) else n[picked], grid, is_leaf=is_shared)


@functools.partial(jit, static=("suffix", "lanes", "mesh"))
def run_chunk(
    model: Model, tokens: Tokens, base: Base, metric: Metric, grid: tuple[Any, ...],
    starts: jax.Array, count: jax.Array, *, suffix: int, lanes: int, mesh: Mesh | None = None,
) -> jax.Array:  # fmt: skip
    """`walk` for each device's part of a chunk."""
    body = functools.partial(walk, suffix=suffix, lanes=lanes)
    if ways(mesh, "grid") == 1:
        return body(model, tokens, base, metric, grid, starts, count)
    whole, split = PartitionSpec(), PartitionSpec("grid")
    of_grid = jax.tree.map(lambda n: whole if is_shared(n) else split, grid, is_leaf=is_shared)
    specs = (whole, whole, whole, whole, of_grid, whole, whole)
    return jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=split, axis_names={"grid"}, check_vma=False
    )(model, tokens, base, metric, grid, starts, count)


def walk(
    model: Model,
    tokens: Tokens,
    base: Base,
    metric: Metric,
    grid: tuple[Any, ...],
    starts: jax.Array,
    count: jax.Array,
    *,
    suffix: int,
    lanes: int,
) -> jax.Array:
    """The metric [C B] of C experiments sorted by ``starts`` [C]; the first ``count`` are real.

    Columns before the last ``suffix`` keep the base run's keys and values.
    """
    c = model.config
    length, last = tokens.shape[1], c.n_layers - 1
    begin = length - suffix
    context = make_context(model, tokens)
    frame = Frame(tokens.positions[:, begin:], slice(begin, length))
    read = read_columns(tokens, metric) - begin
    starts = jnp.where(jnp.arange(starts.shape[0]) < count, starts, c.n_layers)
    leaves, rebuild, capacity = split_grid(grid)
    sites = {site for i in grid for site in i.sites}
    at_embed = any(not SITES[s].layered and not s.startswith("ln_final") for s in sites)

    def run_lanes(layer: Any, streams: jax.Array, at: Any, n: int, finish: bool) -> jax.Array:
        """Experiments ``at`` to ``at + n`` through a layer."""
        index = layer.index
        prefix = None
        if begin:
            prefix = jax.tree.map(lambda a: a[index, :, :begin], base.kv)
        fresh = base.resid_pre[index, :, begin:]

        def one(x: jax.Array, start: jax.Array, mapped: list[Any]) -> jax.Array:
            interventions = rebuild(mapped)
            x = jnp.where(start < index, x, fresh)
            if at_embed:
                x = jnp.where(index == 0, embed(model, tokens, interventions)[0][:, begin:], x)
            tap = Tap(c, interventions, (), context.sources, index)
            if not finish:
                return block(c, layer, x, context, tap, frame, prefix)[0]
            x, _ = block(c, layer, x, context, tap, frame, prefix, read)
            return read_out(model, x, tokens, metric, frame.read(read), interventions)

        taken = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, at, n), (streams, starts, leaves)
        )
        return jax.vmap(one)(*taken)

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

    streams = jnp.zeros((capacity, tokens.shape[0], suffix, c.d_model), base.resid_pre.dtype)
    streams = jax.lax.fori_loop(jnp.minimum(starts[0], last), last, pass_layer, streams)
    out = jnp.zeros((capacity, tokens.shape[0]), base.metric.dtype)
    return loop(0, layer_at(model, last), -(-count // lanes), lanes, streams, out)


def run_group(
    model: Model, tokens: Tokens, base: Base, metric: Metric, grid: tuple[Any, ...],
    group: Group, mesh: Mesh | None, on_chunk: Callable[[int], None],
) -> np.ndarray:  # fmt: skip
    """The metric [N B] of one group of a plan; smaller chunks where memory runs out."""
    results, done = [], 0
    while done < len(group.experiments):
        chunk = group.chunk(done)
        try:
            values = run_chunk(
                model, tokens, base, metric, take_experiments(grid, chunk.experiments),
                jnp.asarray(chunk.starts), jnp.int32(chunk.count),
                suffix=group.suffix, lanes=group.lanes, mesh=mesh,
            )  # fmt: skip
            results.append(to_host(values)[chunk.rows])
        except jax.errors.JaxRuntimeError as error:
            smaller = group.halved()
            if "RESOURCE_EXHAUSTED" not in str(error) or smaller is None:
                raise
            warnings.warn(
                f"Out of memory with {group.capacity} experiments at a time: going on with "
                f"{smaller.capacity}. Give memory= or batch= to start there.",
                stacklevel=2,
            )
            group = smaller
            continue
        done += len(chunk.members)
        on_chunk(len(chunk.members))
    return np.concatenate(results)


def sweep(
    model: Model,
    tokens: Any,
    grid: Any,
    metric: Metric,
    *,
    base: Base | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    ledger: Ledger | None = None,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Any:
    """The metric under every experiment of a grid: float [E B], per prompt.

    grid: an intervention (or a tuple of them) whose arrays have a leading experiment axis,
    except what is wrapped in `Shared`. The result equals ``jax.vmap`` of the plain
    forward over the grid; the engine only leaves out work whose outcome is known.
    Under the caller's own jit, grad or vmap it *is* that vmap.

    base: from `observe` on the same model, tokens and metric, if it is at hand. chunk: the
    most experiments per program call; memory: the budget in bytes that sets it otherwise.
    mesh: devices to split the work over, by the axes ``grid`` (experiments), ``prompt`` and
    ``model`` (parameters); see `jaxinterp.sweep.devices`. ledger: takes down
    what was done. on_chunk: called with the number of experiments done after each call.
    """
    tokens = as_tokens(tokens)
    interventions = as_interventions(model.config, grid, tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    _, _, n_experiments = split_grid(interventions)
    if not concrete(model, tokens, interventions, metric):
        return sweep_plain(model, tokens, interventions, metric)
    if mesh is not None:
        mesh = checked(mesh)
        model, tokens = place_model(mesh, model), place_tokens(mesh, tokens)
    if base is None:
        base, _ = observe(model, tokens, metric)
    grid = jax.tree.map(
        lambda n: n if is_shared(n) else np.asarray(n), interventions, is_leaf=is_shared
    )
    plan = plan_of(model, tokens, grid, metric, chunk=chunk, memory=memory, mesh=mesh)
    out = np.empty((n_experiments, len(tokens)), base.metric.dtype)
    done = (n_experiments * len(tokens), plan.n_chunks, plan.cost, plan.bound)
    with (ledger or Ledger()).measure(*done):
        for group in plan.groups:
            out[group.experiments] = run_group(
                model, tokens, base, metric, grid, group, mesh, on_chunk
            )
    return out


def plan_of(
    model: Model, tokens: Tokens, grid: tuple[Any, ...], metric: Metric,
    *, chunk: int | None, memory: int, mesh: Mesh | None,
) -> Plan:  # fmt: skip
    """`make_plan` for this model, metric and mesh."""
    vocabulary = metric.vocabulary
    return make_plan(
        model.config, tokens, grid, split_grid(grid)[2],
        np.asarray(read_columns(tokens, metric)),
        columns=None if vocabulary is None else vocabulary.shape[1],
        chunk=chunk, memory=memory, ways=ways(mesh, "grid"), model_ways=ways(mesh, "model"),
        width=model.params.embed.W_E.dtype.itemsize,
    )  # fmt: skip


def sweep_plain(model: Model, tokens: Any, grid: Any, metric: Metric) -> jax.Array:
    """`sweep` as it is defined: ``jax.vmap`` of the plain forward over the grid, [E B]."""
    tokens = as_tokens(tokens)

    def one(interventions: Any) -> jax.Array:
        return evaluate(metric, model, tokens, unshare(interventions))

    return jax.vmap(one, in_axes=(grid_axes(grid),))(grid)
