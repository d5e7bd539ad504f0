"""What training tells on the way, as scalars for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tensorboard(folder: str | os.PathLike[str], names: Sequence[str] = ()) -> Scalars:
    """An ``on_step`` for `train` that writes what it tells for TensorBoard.

    Each member is a run of its own, a folder in ``folder`` (``names`` of them, by default member0,
    member1, ...), so that curves of one quantity lie in one chart: ``explained``, ``l0``, ``dead``,
    ... by step. A resumed run writes on beside what is there. Close it when training is done.

    Raises ``ImportError`` where tensorboardX is not installed (it needs neither torch nor
    TensorFlow), and ``ValueError`` for another number of names than members, when called.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "Logs for TensorBoard need tensorboardX: pip install 'jaxinterp[tensorboard]'."
        ) from error
    return Scalars(Path(folder), tuple(names), SummaryWriter)


class Scalars:
    """Writers, one per member, made at the first call."""

    def __init__(self, folder: Path, names: tuple[str, ...], writer: Any):
        self.folder, self.names, self.writer = folder, names, writer
        self.writers: list[Any] = []

    def __call__(self, step: int, seen: dict[str, Any]) -> None:
        values = {name: value for name, value in seen.items() if name != "step"}
        n = len(next(iter(values.values())))
        if not self.writers:
            names = self.names or tuple(f"member{i}" for i in range(n))
            if len(names) != n:
                raise ValueError(f"{len(names)} names for {n} members: give one for each.")
            # What a killed run wrote from here on is hidden; each start has a file of its own.
            self.writers = [
                self.writer(
                    str(self.folder / name), purge_step=step, filename_suffix=f".{step}",
                    flush_secs=10,
                )
                for name in names
            ]  # fmt: skip
        for i, writer in enumerate(self.writers):
            for name, value in values.items():
                writer.add_scalar(name, float(value[i]), step)

    def close(self) -> None:
        """Write what is waiting; calls afterwards begin new files."""
        for writer in self.writers:
            writer.close()
        self.writers = []
