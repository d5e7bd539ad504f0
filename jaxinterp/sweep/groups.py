"""Groups: lanes that share a program, and the chunks that run as one call of it."""

from __future__ import annotations

import dataclasses

import numpy as np

NONE = -1  # a lane's place that no experiment takes


@dataclasses.dataclass(frozen=True)
class Group:
    """Lanes of one width, sorted by the layer they set off at.

    members [N S]: the experiments of each lane, by their numbers in the grid (`NONE`: a free
    place). first [N S]: the columns they begin at (``length``, if none). starts [N]: layers.
    width: slots of a lane. prefix: columns of the base run that lanes may attend to. lanes: how
    many go through a layer at a time, on each of the ``ways`` that the grid is split. capacity:
    how many fit a chunk (a multiple of both).
    """

    members: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    width: int
    prefix: int
    lanes: int
    capacity: int
    ways: int = 1

    def __len__(self) -> int:
        return len(self.members)

    @property
    def n_experiments(self) -> int:
        return int((self.members != NONE).sum())

    @property
    def shape(self) -> dict[str, int]:
        """What a program is compiled for, beside the shapes of its arrays."""
        return {"width": self.width, "prefix": self.prefix, "lanes": self.lanes}

    def chunk(self, begin: int) -> Chunk:
        """The part from lane ``begin`` on that runs as one program call."""
        return Chunk.of(self, slice(begin, begin + self.capacity))

    def chunks(self) -> list[Chunk]:
        """All parts, if nothing comes between."""
        return [self.chunk(begin) for begin in range(0, len(self), self.capacity)]

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

    experiments [C*S]: their numbers, device by device and lane by lane, padded by repetition.
    first [C S]: the columns they begin at. starts [C / ways]: the layers at which lanes set
    off, the same on every device, so that all take the same steps. count: how many of each
    device's are real. rows [N]: where the real ones stand. members [N S]: what they hold.
    """

    experiments: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    count: int
    rows: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, group: Group, part: slice) -> Chunk:
        members = group.members[part]
        padding = (0, group.capacity - len(members))

        def deal(values: np.ndarray) -> np.ndarray:
            padded = np.pad(values, [padding] + [(0, 0)] * (values.ndim - 1), mode="edge")
            by_device = padded.reshape(-1, group.ways, *values.shape[1:]).swapaxes(0, 1)
            return by_device.reshape(padded.shape)

        starts = np.pad(group.starts[part], padding, mode="edge").reshape(-1, group.ways)
        filled = np.where(members == NONE, members[:, :1], members)
        order = np.arange(group.capacity).reshape(group.ways, -1).T.reshape(-1)
        return cls(
            experiments=deal(filled).reshape(-1),
            first=deal(group.first[part]).astype(np.int32),
            starts=starts.min(-1).astype(np.int32),
            count=-(-len(members) // group.ways),
            rows=order[: len(members)],
            members=members,
        )

    @property
    def n_experiments(self) -> int:
        return int((self.members != NONE).sum())

    def put(self, values: np.ndarray, out: np.ndarray) -> None:
        """The program's values [C S B] to their experiments' rows of ``out`` [E B]."""
        real = self.members != NONE
        out[self.members[real]] = values[self.rows][real]
