"""Ahead of time: what a sweep will take, before a number is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxinterp.metrics import Metric, check_metric
from jaxinterp.model import Model, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.taps import as_interventions
from jaxinterp.sweep.base import observed
from jaxinterp.sweep.devices import checked, model_on, place_tokens
from jaxinterp.sweep.grids import take_experiments
from jaxinterp.sweep.run import check_budget, plan_of
from jaxinterp.sweep.schedule import MEMORY, Plan
from jaxinterp.sweep.walk import run_chunk


def plan(
    model: Model,
    tokens: Any,
    grid: Any,
    metric: Metric,
    *,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    compile: bool = False,
) -> Plan:
    """What `sweep` would do with the same arguments: print it, or read its fields.

    Parameters and `Shared` values may be ``jax.ShapeDtypeStruct`` (``Model(shapes(config),
    config)``): nothing is computed, so a model that fits no machine at hand can be planned.
    compile: compile the sweep's programs, for this process's devices, to know ``peak_memory``.

    Raises ``ValueError`` as `sweep` does.
    """
    tokens = as_tokens(tokens)
    interventions = as_interventions(model.config, grid, tokens, grid=True)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    check_budget(chunk, memory)
    mesh = None if mesh is None else checked(mesh)
    made = plan_of(model, tokens, interventions, metric, chunk=chunk, memory=memory, mesh=mesh)
    if not compile:
        return made
    if mesh is not None:
        model, tokens = model_on(mesh, model), place_tokens(mesh, tokens)
    base_run = observed.lower(model, tokens, metric).compile()  # type: ignore[attr-defined]
    base, _ = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(observed, model, tokens, metric), base_run.output_shardings,
    )  # fmt: skip
    peak = _peak(base_run)
    for group in made.groups:
        first = group.chunks()[0]
        part = take_experiments(interventions, first.experiments)
        program = run_chunk.lower(  # type: ignore[attr-defined]
            model, tokens, base, metric, part, jnp.asarray(first.starts),
            jnp.asarray(first.first), jnp.int32(first.count), mesh=mesh, **group.shape,
        )  # fmt: skip
        peak = max(peak, _peak(program.compile()))
    return dataclasses.replace(made, peak_memory=peak)


def _peak(program: Any) -> int:
    """Bytes that a device holds while a program runs: what it is given, makes and returns."""
    m = program.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return int(held - m.alias_size_in_bytes)
