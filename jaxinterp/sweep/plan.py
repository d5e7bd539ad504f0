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

ROWS = 128  # rows (lanes x prompts x positions) that pass a layer at a time
MEMORY = 2 << 30  # default budget for the lanes' residual streams and working memory, bytes
BUCKETS = 4  # suffix lengths in one sweep, at most
COARSE, FINE = 4, 16  # suffix lengths that prompts of one shape choose from


@dataclasses.dataclass(frozen=True)
class Group:
    """Experiments of one suffix length, sorted by the layer they start from.

    experiments [N]: their numbers in the grid. starts [N]: their first layers. suffix: how
    many columns they hold. lanes: how many go through a layer at a time, on each of the
    ``ways`` that the grid is split. capacity: how many fit a chunk (a multiple of both).
    """

    experiments: np.ndarray
    starts: np.ndarray
    suffix: int
    lanes: int
    capacity: int
    ways: int = 1

    def chunks(self) -> list[Chunk]:
        """The parts of the group that run as one program call each."""
        return [
            Chunk.of(self, slice(begin, begin + self.capacity))
            for begin in range(0, len(self.experiments), self.capacity)
        ]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One program call: shapes are the group's, so that all its chunks share a program.

    experiments [C]: their numbers, device by device, padded by repetition. starts [C / ways]:
    the layers at which they set off, the same on every device, so that all take the same
    steps. count: how many of each device's are real. rows [N]: where the real ones' results
    stand. members [N]: their numbers.
    """

    experiments: np.ndarray
    starts: np.ndarray
    count: int
    rows: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, group: Group, part: slice) -> Chunk:
        members = group.experiments[part]
        padding = (0, group.capacity - len(members))
        dealt = np.pad(members, padding, mode="edge").reshape(-1, group.ways)
        starts = np.pad(group.starts[part], padding, mode="edge").reshape(-1, group.ways)
        order = np.arange(group.capacity).reshape(group.ways, -1).T.reshape(-1)
        return cls(
            experiments=dealt.T.reshape(-1),
            starts=starts.min(-1).astype(np.int32),
            count=-(-len(members) // group.ways),
            rows=order[: len(members)],
            members=members,
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a sweep, and the numbers of the base run it starts from."""

    groups: tuple[Group, ...]
    n_experiments: int

    @property
    def n_chunks(self) -> int:
        return sum(len(group.chunks()) for group in self.groups)


def concrete(*trees: Any) -> bool:
    """True when no leaf is being traced (by the caller's own jit, grad or vmap)."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def suffix_buckets(length: int, longest: int, rows: int) -> np.ndarray:
    """The suffix lengths [k] that a grid's programs are made for; the last holds ``longest``.

    length: the prompts' columns. rows: those of the whole grid at its longest suffix. With k
    even parts, and experiments spread evenly over layers and positions, a layer passes
    rows (k + 1) / 4k of them, and k half empty steps of ROWS: least at k = sqrt(rows / 2 ROWS).
    Lengths are taken from a ladder, so that other prompts of the same shape find programs
    made: a coarse one where compiling would outweigh what a closer fit saves.
    """
    k = int(np.clip(np.rint(np.sqrt(rows / (2 * ROWS))), 1, BUCKETS))
    rungs = COARSE if k == 1 else FINE
    ladder = np.unique(-(-length * np.arange(1, rungs + 1) // rungs))
    top = np.searchsorted(ladder, longest) + 1
    return ladder[np.unique(-(-top * np.arange(1, k + 1) // k)) - 1]


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
    chunk: int | None = None,
    memory: int = MEMORY,
    ways: int = 1,
) -> Plan:
    """Group the experiments of a grid.

    ``read`` [B R] are the columns whose logits the metric needs. ``chunk`` is the most
    experiments in one program call (default: what fits ``memory`` bytes on a device);
    ``ways``: over how many devices they are split.
    """
    batch, length = tokens.shape
    layer, column = first_touched(config, tokens, interventions, n_experiments)
    if not config.causal:
        column = np.zeros_like(column)
    needed = length - np.minimum(column, read.min())
    longest = int(needed.max(initial=0))
    buckets = suffix_buckets(length, longest, n_experiments * batch * longest)
    bucket = buckets[np.searchsorted(buckets, needed)]
    groups = []
    for suffix in np.unique(bucket):
        members = np.flatnonzero(bucket == suffix)
        members = members[np.argsort(layer[members], kind="stable")]
        rows = batch * int(suffix)
        lanes = max(1, min(-(-ROWS // rows), -(-n_experiments // ways)))
        lane_bytes = 4 * rows * config.d_model
        fits = max(1, memory // lane_bytes) * ways
        limit = min(fits, chunk or n_experiments, n_experiments)
        capacity = -(-limit // (lanes * ways)) * lanes * ways
        groups.append(Group(members, layer[members], int(suffix), lanes, capacity, ways))
    return Plan(tuple(groups), n_experiments)
