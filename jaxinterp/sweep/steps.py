"""Steps: how many experiments pass a layer at a time, and the suffix lengths they come in."""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS = (64, 512)  # rows (lanes x prompts x positions) that pass a layer at a time: from, to
STEP = 40  # what a step costs by itself, in rows: measured on CPUs
BUCKETS = 4  # suffix lengths in one sweep, at most
COARSE, FINE = 4, 16  # suffix lengths that prompts of one shape choose from


def steps_of(active: Any, lanes: int) -> tuple[Any, Any]:
    """How many steps of all lanes, and (0 or 1) of half of them, ``active`` experiments take."""
    rest = active % lanes
    full = active // lanes + (rest > lanes // 2)
    return full, ((rest > 0) & (rest <= lanes // 2)) * 1


def shape_of_steps(rows: int) -> tuple[int, int]:
    """(how many suffix lengths, rows that pass a layer at a time) for the least time.

    ``rows``: those of the whole grid at its longest suffix. With k even lengths, and
    experiments spread evenly over layers and positions, a layer passes n = rows (k + 1) / 4k^2
    rows of each, in steps of s; a quarter of a step is empty, and a step takes as long as STEP
    rows more than its own: k (n + STEP n / s + s / 4 + STEP / 2), least at s = 2 sqrt(STEP n).
    """

    def cost(k: int) -> tuple[float, float]:
        n = rows * (k + 1) / (4 * k * k)
        s = 2 * np.sqrt(STEP * n)
        return k * (n + s / 2 + STEP / 2), s

    k = min(range(1, BUCKETS + 1), key=cost)
    return k, int(np.clip(cost(k)[1], *ROWS))


def suffix_buckets(length: int, longest: int, k: int) -> np.ndarray:
    """The suffix lengths of a grid's programs, at most k; the last holds ``longest``.

    length: the prompts' columns. Lengths are taken from a ladder, so that other prompts of
    the same shape find programs made: a coarse one for small sweeps (k = 1), where compiling
    outweighs what a closer fit saves.
    """
    rungs = COARSE if k == 1 else FINE
    ladder = np.unique(-(-length * np.arange(1, rungs + 1) // rungs))
    top = np.searchsorted(ladder, longest) + 1
    return ladder[np.unique(-(-top * np.arange(1, k + 1) // k)) - 1]
