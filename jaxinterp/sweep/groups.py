"""Groups: experiments that share a program, and the chunks that run as one call of it."""

from __future__ import annotations

import dataclasses

import numpy as np


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

    def chunk(self, begin: int) -> Chunk:
        """The part from experiment ``begin`` on that runs as one program call."""
        return Chunk.of(self, slice(begin, begin + self.capacity))

    def chunks(self) -> list[Chunk]:
        """All parts, if nothing comes between."""
        return [self.chunk(begin) for begin in range(0, len(self.experiments), self.capacity)]

    def halved(self) -> Group | None:
        """The group in chunks half as large, or None where they hold one lane already."""
        lanes = self.lanes if self.capacity > self.lanes * self.ways else self.lanes // 2
        if not lanes:
            return None
        half = max(self.capacity // 2 // (lanes * self.ways), 1) * lanes * self.ways
        return dataclasses.replace(self, lanes=lanes, capacity=half)


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
