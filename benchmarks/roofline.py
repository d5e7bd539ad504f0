"""What a sweep could cost at best: its operation counts, and this machine's own rate."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from jaxinterp.sweep.flops import edge_bound, full_forward, head_bound, hook_loop, residual_bound

__all__ = [
    "best_seconds", "edge_bound", "full_forward", "head_bound", "hook_loop", "matmul_rate",
    "residual_bound",
]  # fmt: skip


def best_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several timed calls, after one that is not timed."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matmul_rate(
    prepare: Callable[[np.ndarray, np.ndarray], Callable[[], object]],
    size: int = 2048,
    repeats: int = 7,
) -> float:
    """Operations per second of a float32 product of two [size, size] matrices, at best.

    prepare: takes the two matrices (puts them on a device, compiles) and returns a function
    of no arguments that computes their product and waits for it.
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, size, size), dtype=np.float32)
    return 2 * size**3 / best_seconds(prepare(a, b), repeats)
