"""Run a sweep: every experiment of a grid, in a few compiled programs (`walk`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxinterp.checks import whole_number
from jaxinterp.interventions import is_shared, unshare
from jaxinterp.metrics import Metric, check_metric, evaluate, read_columns
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.taps import as_interventions
from jaxinterp.sweep.base import Base, observe
from jaxinterp.sweep.devices import checked, place_model, place_tokens, to_host, ways
from jaxinterp.sweep.grids import grid_axes, split_grid, take_experiments
from jaxinterp.sweep.groups import Group
from jaxinterp.sweep.ledger import Ledger
from jaxinterp.sweep.schedule import MEMORY, Plan, concrete, make_plan
from jaxinterp.sweep.walk import run_chunk


def run_group(
    model: Model, tokens: Tokens, base: Base, metric: Metric, grid: tuple[Any, ...],
    group: Group, mesh: Mesh | None, out: np.ndarray, on_chunk: Callable[[int], None],
) -> None:  # fmt: skip
    """One group of a plan, into ``out`` [E B]; smaller chunks where memory runs out."""
    done = 0
    while done < len(group):
        chunk = group.chunk(done)
        try:
            values = run_chunk(
                model, tokens, base, metric, take_experiments(grid, chunk.experiments),
                jnp.asarray(chunk.starts), jnp.asarray(chunk.first), jnp.int32(chunk.count),
                mesh=mesh, **group.shape,
            )  # fmt: skip
            chunk.put(to_host(values), out)
        except jax.errors.JaxRuntimeError as error:
            smaller = group.halved()
            if "RESOURCE_EXHAUSTED" not in str(error) or smaller is None:
                raise
            warnings.warn(
                f"Out of memory with {group.capacity} lanes at a time: going on with "
                f"{smaller.capacity}. Give memory= or batch= to start there.",
                stacklevel=2,
            )
            group = smaller
            continue
        done += len(chunk.members)
        on_chunk(chunk.n_experiments)


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
    interventions = as_interventions(model.config, grid, tokens, grid=True)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    check_budget(chunk, memory)
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
            run_group(model, tokens, base, metric, grid, group, mesh, out, on_chunk)
    return out


def check_budget(chunk: int | None, memory: int) -> None:
    """Refuse a chunk without experiments and a budget without bytes."""
    whole_number("chunk", chunk, 1, optional=True)
    whole_number("memory", memory, 1)


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
