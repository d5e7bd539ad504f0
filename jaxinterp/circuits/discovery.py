"""Finding circuits: the best-scored edges, and ACDC's exact pruning."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import numbers, whole_number
from jaxinterp.circuits.circuit import Circuit, graph_of, placed_scores
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import masked_metric
from jaxinterp.circuits.runs import Direction, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.metrics import Metric
from jaxinterp.model import Model, Tokens
from jaxinterp.model.compiled import jit
from jaxinterp.numerics import wide

if TYPE_CHECKING:
    import xarray as xr


def importance(result: xr.DataArray) -> xr.DataArray:
    """How much of the metric each edge carries [edge], from `patch_edges` or `attribute_edges`.

    Noising: what the clean run loses without it; denoising: what the corrupted run gains by it.
    Positive is helpful. Means over prompts.
    """
    if result.attrs["direction"] == "noise":
        out = (wide(result["clean"]) - wide(result)).mean("prompt")
    else:
        out = (wide(result) - wide(result["corrupted"])).mean("prompt")
    return out.rename("importance").assign_attrs(result.attrs)


def top_edges(
    model: Model | Graph, scores: Any, n: int, *, signed: bool = False, pruned: bool = True
) -> Circuit:
    """The n edges of the largest scores (by magnitude, unless ``signed``).

    scores: `importance` [E], which the circuit keeps. pruned: without those that are then on no
    path from input to logits. Ties are broken by the graph's order.

    Raises ``ValueError`` for n outside 1 to E, and scores of another shape or NaN.
    """
    graph = graph_of(model)
    n = whole_number("n", n, 1, graph.n_edges)
    placed = placed_scores(graph, scores, -np.inf)
    place = placed[graph.exists]
    order = np.argsort(-(place if signed else np.abs(place)), kind="stable")[:n]
    kept = np.zeros(graph.n_edges, bool)
    kept[order] = True
    edges = np.zeros(graph.exists.shape, bool)
    edges[graph.exists] = kept
    circuit = Circuit(graph, edges, placed)
    return circuit.pruned() if pruned else circuit


def greedy_edges(
    model: Model | Graph, scores: Any, n: int, *, signed: bool = False, pruned: bool = True
) -> Circuit:
    """n edges grown backwards from the logits: each the best that ends at a node already in.

    As Hanna et al. 2024 (arXiv:2403.17806) select: every edge taken leads to the logits.

    Raises ``ValueError`` as `top_edges` does.
    """
    graph = graph_of(model)
    n = whole_number("n", n, 1, graph.n_edges)
    place = placed_scores(graph, scores, -np.inf)
    worth = np.where(graph.exists, place if signed else np.abs(place), -np.inf)
    edges = np.zeros(graph.exists.shape, bool)
    open_, reached = {graph.n_receivers - 1}, set[int]()
    heap: list[tuple[float, int, int]] = []

    def spread(receiver: int) -> None:
        for sender in np.flatnonzero(graph.exists[receiver]).tolist():
            heapq.heappush(heap, (-worth[receiver, sender], receiver, sender))

    spread(graph.n_receivers - 1)
    for _ in range(n):
        if not heap:
            break
        _, receiver, sender = heapq.heappop(heap)
        edges[receiver, sender] = True
        if sender not in reached:
            reached.add(sender)
            for new in np.flatnonzero(graph.readers[sender]).tolist():
                if new not in open_:
                    open_.add(new)
                    spread(new)
    circuit = Circuit(graph, edges, place)
    return circuit.pruned() if pruned else circuit


def acdc(
    model: Model,
    *,
    clean: Any,
    corrupted: Any = None,
    metric: Metric,
    threshold: float | Sequence[float],
    start: Circuit | None = None,
    direction: Direction = "noise",
    alternative: Any = "run",
    block: int = 256,
    on_done: Callable[[int], None] = ignore,
) -> Circuit | list[Circuit]:
    """Automatic circuit discovery (Conmy et al. 2023, arXiv:2304.14997), exact.

    From the logits backwards, each edge is exchanged for good when that raises the deviation
    from the whole model, the mean over prompts of |m(C) - m(M)|, by less than ``threshold`` (in
    the metric's unit; for a divergence from the clean run the deviation is the divergence).

    threshold: several give a circuit each, found side by side. start: the edges to begin with
    (default: all); those outside stay exchanged. block: edges per program call. One masked pass
    per edge and threshold: give ``start`` (from `attribute_edges`) for large models. All prompts
    go into one batch. on_done: called with the number of edges decided. Dangling edges are
    removed from the result.
    """
    listed = threshold if np.ndim(threshold) else [threshold]
    levels = numbers("threshold", listed, above=0).astype(np.float32)
    block = whole_number("block", block, 1)
    runs = prepare(model, clean, corrupted, metric, direction, alternative, None)
    graph = runs.graph
    begin = graph.exists if start is None else start.edges & graph.exists
    if not begin.any():
        raise ValueError("The circuit to start from is empty.")
    order = backwards(graph, begin)
    part = runs.part(np.arange(len(runs)))
    mask = jnp.broadcast_to(graph.exists & ~begin, (len(levels), *graph.exists.shape))
    whole = jnp.asarray(part.baselines[0])
    arguments = (part.model, part.tokens, part.metric, part.other, whole)
    state = (mask.astype(np.float32), _deviations(*arguments, mask))
    for first in range(0, len(order), block):
        some = order[first : first + block]
        padded = np.pad(some, [(0, block - len(some)), (0, 0)], mode="edge")
        real = jnp.arange(block) < len(some)
        state = _decide(*arguments, state, jnp.asarray(levels), jnp.asarray(padded), real)
        on_done(len(some))
    found = [Circuit(graph, graph.exists & (m == 0)).pruned() for m in np.asarray(state[0])]
    return found if np.ndim(threshold) else found[0]


def backwards(graph: Graph, edges: np.ndarray) -> np.ndarray:
    """Edges (receiver, sender) [n 2] from the logits to the embedding, late senders first."""
    return np.argwhere(edges)[::-1].copy()


@jit
def _deviations(
    model: Model, tokens: Tokens, metric: Metric, other: jax.Array, whole: jax.Array,
    masks: jax.Array,
) -> jax.Array:  # fmt: skip
    return jax.vmap(functools.partial(_deviation, model, tokens, metric, other, whole))(masks)


def _deviation(
    model: Model, tokens: Tokens, metric: Metric, other: jax.Array, whole: jax.Array,
    mask: jax.Array,
) -> jax.Array:  # fmt: skip
    return jnp.abs(masked_metric(model, tokens, metric, mask, other) - whole).mean()


@jit
def _decide(
    model: Model, tokens: Tokens, metric: Metric, other: jax.Array, whole: jax.Array,
    state: tuple[jax.Array, jax.Array], levels: jax.Array, places: jax.Array, real: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Decide edges one after the other, for every threshold: masks [N R S] and deviations [N]."""
    deviation = functools.partial(_deviation, model, tokens, metric, other, whole)

    def one(mask: jax.Array, now: jax.Array, level: jax.Array, place: jax.Array) -> Any:
        without = mask.at[place[0], place[1]].set(1.0)
        then = deviation(without)
        gone = then - now < level
        return jnp.where(gone, without, mask), jnp.where(gone, then, now)

    def step(state: Any, each: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        place, is_real = each
        mask, now = state
        new = jax.vmap(one, in_axes=(0, 0, 0, None))(mask, now, levels, place)
        return jax.tree.map(lambda n, old: jnp.where(is_real, n, old), new, state), None

    return jax.lax.scan(step, state, (places, real))[0]


def stability(circuits: Sequence[Circuit]) -> float:
    """The mean Jaccard index of all pairs: of circuits found on bootstraps of the prompts.

    Raises ``ValueError`` for fewer than two.
    """
    pairs = [a.jaccard(b) for i, a in enumerate(circuits) for b in circuits[i + 1 :]]
    if not pairs:
        raise ValueError("Stability compares at least two circuits.")
    return float(np.mean(pairs))
