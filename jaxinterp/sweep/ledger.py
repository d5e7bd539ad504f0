"""The ledger: what a sweep costs, before it runs and after."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxinterp.interventions import Edit, unshare
from jaxinterp.model import SITES, Config, Tokens
from jaxinterp.model.sites import axis_size
from jaxinterp.sweep.flops import block_cost, cell_bound
from jaxinterp.sweep.groups import Chunk, Group
from jaxinterp.sweep.steps import steps_of


@dataclasses.dataclass(frozen=True)
class Cost:
    """What programs do, on all devices together.

    operations: multiplications and additions of matrix products. traffic: bytes of weights
    and residual streams that pass between memory and the processor. exchanged: bytes that
    devices send each other (parameters split over ``model``).
    """

    operations: int = 0
    traffic: int = 0
    exchanged: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(_numbers(self), _numbers(other), strict=True)))


def _numbers(cost: Cost) -> tuple[int, int, int]:
    return cost.operations, cost.traffic, cost.exchanged


@dataclasses.dataclass(frozen=True)
class Request:
    """The shapes that costs depend on.

    reads: positions whose logits the metric reads; columns: how many logits at each.
    model_ways: over how many devices the parameters are split. width: bytes per number.
    """

    config: Config
    batch: int
    length: int
    reads: int
    columns: int
    model_ways: int = 1
    width: int = 4


def chunk_cost(request: Request, group: Group, chunk: Chunk) -> Cost:
    """One program call: every step that it takes, full or not."""
    r, c, cost = request, request.config, block_cost(request.config)
    last = c.n_layers - 1
    started = np.searchsorted(chunk.starts[: chunk.count], np.arange(c.n_layers), side="right")
    full, half = steps_of(started, group.lanes)
    lanes = (full * group.lanes + half * (group.lanes // 2))[:last].sum() * group.ways
    steps = int((full + half)[:last].sum()) * group.ways
    ends = -(-chunk.count // group.lanes) * group.ways
    rows = r.batch * group.width  # of one lane
    # A query meets every key of its lane, also those that it may not see.
    pairs = (group.prefix + group.width) * cost.pair
    middle = rows * (cost.position + pairs)
    readout = 2 * c.d_model * r.columns
    reads = r.batch * r.reads * group.members.shape[1]
    close = rows * cost.kv + reads * (cost.position - cost.kv + pairs + readout)
    passed = int(lanes) + ends * group.lanes
    weights = cost.position // 2 * r.width
    stream = 2 * rows * c.d_model * r.width
    # An all-reduce sends (ways - 1) / ways of the stream twice, after attention and after the MLP.
    summed = 2 * 2 * rows * c.d_model * r.width * (r.model_ways - 1)
    return Cost(
        operations=int(lanes) * middle + ends * group.lanes * close,
        traffic=(steps + ends) * weights + passed * stream,
        exchanged=passed * summed,
    )


def request_bound(
    request: Request, tokens: Tokens, interventions: Sequence[Any],
    layer: np.ndarray, column: np.ndarray,
) -> int | None:  # fmt: skip
    """The fewest operations for exact values of a grid.

    None for bidirectional models, and for interventions other than `Edit`, which do not say
    how much of a site they change. layer, column [E]: the first that each experiment can
    change. Of several interventions at once, the dearest counts: the fewest for all of them
    are at least that.
    """
    c = request.config
    if not c.causal or not all(isinstance(each, Edit) for each in interventions):
        return None
    return max(_bound_of(request, tokens, each, layer, column) for each in interventions)


def _bound_of(
    request: Request, tokens: Tokens, intervention: Edit, layer: np.ndarray, column: np.ndarray
) -> int:
    r, c = request, request.config
    lengths, offset = np.asarray(tokens.lengths), np.asarray(tokens.mask).argmax(-1)
    site, where, part = intervention.site, intervention.where, 1.0
    position = None if where.position is None else np.asarray(unshare(where.position))
    whole = position is None or position.dtype == bool
    for axis in ("head", "neuron"):
        index = getattr(where, axis)
        if index is not None:
            index, size = np.asarray(unshare(index)), axis_size(c, SITES[site], axis) or 1
            part *= float(index.mean()) if index.dtype == bool else 1 / size
    total = 0
    cells = np.stack([np.broadcast_to(layer, column.shape), column])
    for n, first in zip(lengths.tolist(), offset.tolist(), strict=True):
        own = np.stack([cells[0], (cells[1] - first).clip(0)])
        kinds, counts = np.unique(own, axis=1, return_counts=True)
        for (l, p), count in zip(kinds.T.tolist(), counts.tolist(), strict=True):
            if p < n:
                total += count * _cell(c, site, n, l, p, whole, part, r.columns)
    return total


@functools.cache
def _cell(
    config: Config, site: str, length: int, layer: int, position: int, whole: bool, part: float,
    columns: int,
) -> int:  # fmt: skip
    return cell_bound(
        config, site, length, layer, position, whole=whole, part=part, columns=columns
    )


@dataclasses.dataclass
class Ledger:
    """What sweeps did. Pass one to `sweep` or `patch`; it adds up over calls.

    experiments: times prompts. calls: of compiled programs. cost: see `Cost`; the base runs that
    sweeps start from are not in it. bound: the fewest operations for the same values (None:
    no bound is known). seconds: in all, of which compile_seconds tracing and compiling.
    """

    experiments: int = 0
    calls: int = 0
    cost: Cost = dataclasses.field(default_factory=Cost)
    bound: int | None = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Experiments (times prompts) per second, without compiling."""
        return self.experiments / max(self.seconds - self.compile_seconds, 1e-9)

    @contextlib.contextmanager
    def measure(
        self, experiments: int, calls: int, cost: Cost, bound: int | None
    ) -> Iterator[None]:
        """Enter what a block does, and the time that it takes."""
        began, compiled = time.perf_counter(), _Compiling.seconds
        yield
        self.seconds += time.perf_counter() - began
        self.compile_seconds += _Compiling.seconds - compiled
        self.experiments += experiments
        self.calls += calls
        self.cost += cost
        self.bound = None if self.bound is None or bound is None else self.bound + bound

    def __str__(self) -> str:
        return (
            f"{self.experiments} experiments x prompts in {self.calls} calls, {self.seconds:.2f} s "
            f"({self.compile_seconds:.2f} s compiling): {self.rate:.0f} per second; "
            f"{operations_text(self.cost.operations, self.bound)}"
        )


def operations_text(operations: int, bound: int | None) -> str:
    """Operations, and how many times the fewest that is."""
    text = f"{operations / 1e12:.3g} TFLOP"
    return text if not bound else f"{text}, {operations / bound:.2f} times the fewest"


class _Compiling:
    """Seconds this process has spent tracing, lowering and compiling."""

    seconds = 0.0

    @classmethod
    def add(cls, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            cls.seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_Compiling.add)
