"""Steps: how many lanes pass a layer at a time, how wide they are, and what that costs."""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS = 512  # rows (lanes x prompts x slots) that pass a layer at a time, at most
STEP = 40  # what a step costs by itself, in rows: measured on CPUs
LAYER = 30  # what it costs to fetch a layer's parameters, in rows: likewise
BUCKETS = 4  # widths in one sweep, at most
GAIN = 0.9  # one more program must save a tenth
SMALL = 32  # experiments: compiling outweighs what a closer fit saves
COARSE, FINE = 4, 16  # widths that prompts of one shape choose from
LADDER = np.unique(np.round(np.outer(2 ** np.arange(24), [1, 1.25, 1.5, 1.75]))).astype(int)


def steps_of(active: Any, lanes: int) -> tuple[Any, Any]:
    """How many steps of all lanes, and (0 or 1) of half of them, ``active`` lanes take."""
    rest = active % lanes
    full = active // lanes + (rest > lanes // 2)
    return full, ((rest > 0) & (rest <= lanes // 2)) * 1


def best_lanes(active: np.ndarray, rows: int, ways: int = 1) -> tuple[int, float]:
    """(lanes at a time, cost in rows) that take the least time.

    active [L]: the lanes that pass each layer. rows: of one lane. Lanes are taken from a
    ladder, so that grids of about the same size share programs.
    """
    passed = np.flatnonzero(active)
    each = -(-active[passed] // ways)

    def cost(lanes: int) -> float:
        full, half = steps_of(each, lanes)
        ran = (full * lanes + half * (lanes // 2)).sum() * rows
        return float(ran + STEP * (full + half).sum() + LAYER * len(passed))

    most = max(1, min(int(each.max(initial=1)), ROWS // rows))
    choices = LADDER[: np.searchsorted(LADDER, most, side="right")]
    lanes = min(choices.tolist(), key=lambda n: (cost(n), -n))
    return lanes, cost(lanes)


def widths(length: int, longest: int, k: int, n_experiments: int) -> np.ndarray:
    """The widths of a grid's lanes, at most k; the last holds ``longest``.

    length: the prompts' columns. Widths are taken from a ladder, so that other prompts of
    the same shape find programs made: a coarse one for small sweeps.
    """
    rungs = FINE if n_experiments > SMALL else COARSE
    ladder = np.unique(-(-length * np.arange(1, rungs + 1) // rungs))
    top = np.searchsorted(ladder, longest) + 1
    return ladder[np.unique(-(-top * np.arange(1, k + 1) // k)) - 1]


def pack(held: np.ndarray, starts: np.ndarray, width: int, places: int) -> np.ndarray:
    """Lanes [N places] of experiments (-1: none), in order of their starts.

    held [E]: how many columns each holds; starts [E]: their first layers. With two places, the
    longest and the shortest of one layer go together where they fit.
    """
    order = np.lexsort((held, starts))
    if places == 1 or not len(held):
        return order[:, None]
    known: dict[bytes, np.ndarray] = {}
    lanes = []
    for part in np.split(order, np.flatnonzero(np.diff(starts[order])) + 1):
        lengths = held[part]
        key = lengths.tobytes()
        if key not in known:
            known[key] = _pairs(lengths, width)
        pairs = known[key]
        lanes.append(np.where(pairs < 0, -1, part[pairs]))
    return np.concatenate(lanes)


def _pairs(lengths: np.ndarray, width: int) -> np.ndarray:
    """Pairs [N 2] of ascending lengths that fit a width together; -1 where one is alone."""
    found, low, high = [], 0, len(lengths) - 1
    while low <= high:
        fits = low < high and lengths[low] + lengths[high] <= width
        found.append((high, low if fits else -1))
        low, high = low + fits, high - 1
    return np.array(found)
