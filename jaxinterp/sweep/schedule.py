"""Plan: which experiments run together, from which layer and over which positions.

Nothing here changes a number: an experiment starts at the first layer it touches and holds
only the positions from the first one it touches (for a causal model the ones before keep
the base run's values). Which of them share lanes and programs is chosen by what it costs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxinterp.model import SITES, Config, Tokens
from jaxinterp.sweep.flops import block_cost, hook_loop
from jaxinterp.sweep.groups import NONE, Group
from jaxinterp.sweep.ledger import Cost, Request, chunk_cost, operations_text, request_bound
from jaxinterp.sweep.steps import BUCKETS, GAIN, LADDER, best_lanes, pack, widths

PLACES = 2  # experiments in a lane, at most
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
        """Program calls, the base run not counted."""
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
            "experiments  lanes  columns  at once  per call  calls",
        ]
        for g in self.groups:
            lines.append(
                f"{g.n_experiments:11}  {len(g):5}  {g.width:7}  {g.lanes * g.ways:7}  "
                f"{g.capacity:8}  {len(g.chunks()):5}"
            )
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
    # A lane of two experiments has more keys than the prompt: sites with a source axis show it.
    shows = any("source" in SITES[site].axes for i in interventions for site in i.sites)
    bytes_of_column = width * batch * config.d_model
    groups = _cheapest(
        config, length, layer, first, places=1 if shows or not config.causal else PLACES,
        chunk=chunk, room=max(1, memory // bytes_of_column), batch=batch, ways=ways,
    )  # fmt: skip
    columns = config.n_logits if columns is None else columns
    request = Request(config, batch, length, read.shape[1], columns, model_ways, width)
    bound = request_bound(request, tokens, interventions, layer, column)
    return Plan(groups, n_experiments, request, bound)


def _cheapest(
    config: Config, length: int, layer: np.ndarray, first: np.ndarray, *, places: int,
    **limits: Any,
) -> tuple[Group, ...]:  # fmt: skip
    """The groups that take the least time; more programs and fuller lanes must earn their keep."""
    best, least = None, np.inf
    for k in range(1, BUCKETS + 1):
        for n in range(1, places + 1):
            made = [
                _group(config, length, layer, first, members, width, n, **limits)
                for width, members in _by_width(length, length - first, k)
            ]
            cost = sum(cost for _, cost in made)
            if cost < GAIN * least:
                best, least = tuple(group for group, _ in made), cost
    assert best is not None
    return best


def _by_width(length: int, held: np.ndarray, k: int) -> list[tuple[int, np.ndarray]]:
    """At most k widths, and the experiments that go into lanes of each."""
    found = widths(length, int(held.max(initial=1)), k, len(held))
    widest = found[np.searchsorted(found, held)]
    return [(int(w), np.flatnonzero(widest == w)) for w in np.unique(widest)]


def _group(
    config: Config, length: int, layer: np.ndarray, first: np.ndarray, experiments: np.ndarray,
    width: int, places: int, *, batch: int, chunk: int | None, room: int, ways: int,
) -> tuple[Group, float]:  # fmt: skip
    """Experiments in lanes of one width, and what they cost in rows.

    room: how many columns (of all prompts) fit the memory of a device.
    """
    held = length - first[experiments]
    lanes_of = pack(held, layer[experiments], width, places)
    members = np.where(lanes_of < 0, NONE, experiments[lanes_of])
    begins = np.where(members == NONE, length, first[members])
    starts = layer[members[:, 0]]
    if places == 1:  # alone, an experiment fills its lane
        begins = np.full_like(begins, length - width)
    prefix = length - 1 if places > 1 else length - width
    active = np.searchsorted(starts, np.arange(config.n_layers), side="right")
    lanes, cost = best_lanes(active, batch * width, ways)
    block = block_cost(config)
    pairs = (prefix + width) * block.pair / block.position
    most = LADDER[np.searchsorted(LADDER, len(members))]
    asked = most if chunk is None else max(1, chunk // places)
    limit = min(max(1, room // width) * ways, asked, most)
    capacity = -(-limit // (lanes * ways)) * lanes * ways
    group = Group(members, begins, starts, width, prefix, lanes, int(capacity), ways)
    return group, cost * (1 + pairs)
