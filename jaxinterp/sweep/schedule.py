"""Plan: which experiments run together, from which layer and over which positions.

Nothing here changes a number: an experiment starts at the first layer it touches, holds
only the positions from the first one it touches (for a causal model the ones before keep
the base run's values), and shares its programs with the others of its position bucket.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxinterp.model import Config, Tokens
from jaxinterp.sweep.flops import hook_loop
from jaxinterp.sweep.groups import Group
from jaxinterp.sweep.ledger import Cost, Request, chunk_cost, operations_text, request_bound
from jaxinterp.sweep.steps import shape_of_steps, suffix_buckets

MEMORY = 2 << 30  # default budget for the lanes' residual streams and working memory, bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a sweep, and what they cost.

    bound: the fewest operations for the same values (None: no bound is known). peak_memory:
    bytes that a device holds at most, the parameters and the base run included (None until
    the programs are compiled).
    """

    groups: tuple[Group, ...]
    n_experiments: int
    request: Request
    bound: int | None
    peak_memory: int | None = None

    @property
    def n_chunks(self) -> int:
        return sum(len(group.chunks()) for group in self.groups)

    @property
    def cost(self) -> Cost:
        """Of all calls, without the base run."""
        costs = (chunk_cost(self.request, g, chunk) for g in self.groups for chunk in g.chunks())
        return sum(costs, Cost())

    def __str__(self) -> str:
        r, cost = self.request, self.cost
        lines = [
            f"{self.n_experiments} experiments x {r.batch} prompts of {r.length} tokens",
            "suffix  experiments  at once  per call  calls",
        ]
        for g in self.groups:
            n, calls = len(g.experiments), len(g.chunks())
            lines.append(f"{g.suffix:6}  {n:11}  {g.lanes * g.ways:7}  {g.capacity:8}  {calls:5}")
        loop = hook_loop(r.config, r.length, self.n_experiments * r.batch)
        lines += [
            operations_text(cost.operations, self.bound),
            f"(one whole forward per experiment: {loop / 1e12:.3g} TFLOP)",
            f"{cost.traffic / 1e9:.3g} GB through memory, {cost.exchanged / 1e9:.3g} GB between "
            "devices",
        ]
        if self.peak_memory is not None:
            lines.append(f"{self.peak_memory / 1e9:.3g} GB at most on a device")
        return "\n".join(lines)


def concrete(*trees: Any) -> bool:
    """True when no leaf is being traced (by the caller's own jit, grad or vmap)."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def first_touched(
    config: Config, tokens: Tokens, interventions: tuple[Any, ...], n_experiments: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first layer [E] and the first column [E] that each experiment can change."""
    layer = np.full(n_experiments, config.n_layers - 1)
    column = np.full(n_experiments, tokens.shape[1] - 1)
    offset = np.asarray(tokens.mask).argmax(-1)
    for intervention in interventions:
        begins = getattr(intervention, "begins", None)
        layers, positions = (None, None) if begins is None else begins(config)
        layer = np.minimum(layer, 0 if layers is None else layers)
        if positions is None:
            column = np.minimum(column, 0)
        else:
            per_prompt = np.asarray(positions).reshape(-1, *np.shape(positions)[1:] or (1,))
            column = np.minimum(column, (per_prompt + offset).min(-1))
    return layer, column


def make_plan(
    config: Config,
    tokens: Tokens,
    interventions: tuple[Any, ...],
    n_experiments: int,
    read: np.ndarray,
    *,
    columns: int | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    ways: int = 1,
    model_ways: int = 1,
    width: int = 4,
) -> Plan:
    """Group the experiments of a grid.

    ``read`` [B R] are the columns whose logits the metric needs, ``columns`` how many logits of
    each (default: the vocabulary). ``chunk`` is the most
    experiments in one program call (default: what fits ``memory`` bytes on a device);
    ``ways``: over how many devices they are split, ``model_ways`` the parameters. ``width``:
    bytes per number.
    """
    batch, length = tokens.shape
    layer, column = first_touched(config, tokens, interventions, n_experiments)
    first = np.minimum(column, read.min()) if config.causal else np.zeros_like(column)
    needed = length - first
    longest = int(needed.max(initial=0))
    k, step = shape_of_steps(n_experiments * batch * longest // ways)
    buckets = suffix_buckets(length, longest, k)
    bucket = buckets[np.searchsorted(buckets, needed)]
    groups = []
    for suffix in np.unique(bucket):
        members = np.flatnonzero(bucket == suffix)
        members = members[np.argsort(layer[members], kind="stable")]
        rows = batch * int(suffix)
        lanes = max(1, min(-(-step // rows), -(-n_experiments // ways)))
        lane_bytes = width * rows * config.d_model
        fits = max(1, memory // lane_bytes) * ways
        limit = min(fits, chunk or n_experiments, n_experiments)
        capacity = -(-limit // (lanes * ways)) * lanes * ways
        groups.append(Group(members, layer[members], int(suffix), lanes, capacity, ways))
    columns = config.vocab_size if columns is None else columns
    request = Request(config, batch, length, read.shape[1], columns, model_ways, width)
    bound = request_bound(request, tokens, interventions, layer, column)
    return Plan(tuple(groups), n_experiments, request, bound)
