"""What a sweep could cost at best: its fewest operations, and this machine's own rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.patching import first_difference
from jaxinterp.sweep.flops import edge_bound, full_forward, head_bound, hook_loop, residual_bound

__all__ = [
    "best_seconds", "edge_bound", "full_forward", "head_bound", "hook_loop", "matmul_rate", "rate",
    "residual_bound", "sweep_bound",
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


def rate() -> float:
    """This machine's operations per second in float32 matrix products, through JAX."""

    def prepare(a: np.ndarray, b: np.ndarray) -> Any:
        x, y = jax.device_put(a), jax.device_put(b)
        product = jax.jit(lambda x, y: jax.lax.dot(x, y, precision="highest"))
        return lambda: jax.block_until_ready(product(x, y))

    return matmul_rate(prepare)


def sweep_bound(
    model: ji.Model, clean: Any, corrupted: Any, metric: ji.Metric, site: str, over: tuple[str, ...]
) -> int:
    """The fewest operations for `jaxinterp.patch` of the same request, `jaxinterp.plan`'s.

    Prompts are planned one by one: each from its own first difference on.
    """
    sizes = {"layer": model.config.n_layers, "head": model.config.n_heads}
    sizes["head"] = model.config.n_kv_heads if ji.SITES[site].kv_heads else sizes["head"]
    known: dict[int, int] = {}

    def of_prompt(n: int, first: int) -> int:
        length = clean.shape[1]
        if first == length:
            return 0
        ranges = {a: range(first, length) if a == "position" else range(sizes[a]) for a in over}
        where: dict[str, Any] = ji.product(**ranges)
        if "position" not in over:
            where["position"] = ji.Shared(np.arange(length) >= first)
        grid = ji.replace(site, ji.Shared(np.float32(0)), **where)
        row = np.array([n])
        one = ji.metrics.of_prompts(metric, row)
        return int(ji.plan(model, corrupted[row], grid, one).bound or 0)

    total = 0
    for n, first in enumerate(first_difference(clean, corrupted).tolist()):
        if first not in known:
            known[first] = of_prompt(n, first)
        total += known[first]
    return total
