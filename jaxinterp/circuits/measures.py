"""How good a circuit is: what the model does with it alone, and without it.

All edges outside of the circuit carry the alternative (the corrupted run, zero, a mean). m(C) is
the metric then, m(M) that of the whole model, m(0) that with no edge left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import numbers
from jaxinterp.circuits.circuit import Circuit
from jaxinterp.circuits.discovery import greedy_edges, top_edges
from jaxinterp.circuits.masked import masked_metric
from jaxinterp.circuits.runs import Direction, Part, Runs, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.metrics import Metric
from jaxinterp.model import Model, Tokens
from jaxinterp.model.compiled import jit
from jaxinterp.numerics import wide
from jaxinterp.results import share
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr

# The edge fractions of the MIB benchmark (arXiv:2504.13151).
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def evaluate_circuits(
    model: Model,
    circuits: Mapping[str, Circuit] | Sequence[Circuit] | Circuit,
    *,
    clean: Any,
    corrupted: Any = None,
    metric: Metric,
    direction: Direction = "noise",
    alternative: Any = "run",
    record: dict[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """m(C) of many circuits, each in one pass, many at a time: dims ("circuit", "prompt").

    Coordinates: ``edges`` (how many), ``share`` (of the graph's), the baselines ``clean`` and
    ``corrupted`` (m(M) and m(0), or the reverse for direction="denoise"). `faithfulness` reads
    the result.

    alternative: as in `patch_edges`. on_done: called with circuits x prompts done.
    """
    import xarray as xr

    if isinstance(circuits, Circuit):
        circuits = [circuits]
    names = list(circuits) if isinstance(circuits, Mapping) else list(range(len(circuits)))
    listed = list(circuits.values() if isinstance(circuits, Mapping) else circuits)
    runs = prepare(
        model, clean, corrupted, metric, direction, alternative, batch, memory=memory,
        on_done=on_done,
    )  # fmt: skip
    values, ends = masked_values(runs, ablated(runs, listed))
    coords = {
        "circuit": names,
        "edges": ("circuit", [len(c) for c in listed]),
        "share": ("circuit", [c.share for c in listed]),
        "prompt": np.arange(len(runs)),
        "clean": ("prompt", ends[0]),
        "corrupted": ("prompt", ends[1]),
    }
    attrs = runs.claim(intervention="circuit", **(record or {}))
    return xr.DataArray(values, coords, ("circuit", "prompt"), metric.name, attrs)


def ablated(runs: Runs, circuits: Sequence[Circuit]) -> np.ndarray:
    """The edges outside of each circuit, bool [N R S] or [N R S P]."""
    if not circuits:
        raise ValueError("No circuits are given: evaluate at least one.")
    exists, length = runs.graph.exists, runs.tokens.shape[1]
    masks = []
    for circuit in circuits:
        edges = circuit.edges
        if edges.shape[:2] != exists.shape:
            raise ValueError("A circuit belongs to a model of another shape.")
        if edges.ndim == 3 and edges.shape[2] != length:
            raise ValueError(
                f"A circuit is for {edges.shape[2]} positions, the prompts have {length}."
            )
        masks.append((exists if edges.ndim == 2 else exists[..., None]) & ~edges)
    if len({m.ndim for m in masks}) > 1:
        masks = [np.broadcast_to(m if m.ndim == 3 else m[..., None], (*exists.shape, length))
                 for m in masks]  # fmt: skip
    return np.stack(masks)


def masked_values(runs: Runs, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The metric [N B] under each mask [N R S ...], and the baselines [2 B] (clean, corrupted)."""
    c, driver = runs.model.config, runs.driver
    of_one = 16 * runs.graph.n_senders * driver.size * runs.tokens.shape[1] * c.d_model
    n = int(min(len(masks), max(1, driver.memory // of_one)))

    def run(part: Part) -> np.ndarray:
        rows = []
        for begin in range(0, len(masks), n):
            some = masks[np.arange(begin, begin + n).clip(max=len(masks) - 1)]
            rows.append(to_host(_many(part.model, part.tokens, part.metric, some, part.other)))
        return np.concatenate(rows)[: len(masks)]

    return runs.batches(run, len(masks))


@jit
def _many(
    model: Model, tokens: Tokens, metric: Metric, masks: jax.Array, other: jax.Array
) -> jax.Array:
    """The metric [N B] under each mask."""
    return jax.vmap(lambda mask: masked_metric(model, tokens, metric, mask, other))(
        jnp.asarray(masks)
    )


def faithfulness(result: xr.DataArray) -> xr.DataArray:
    """f(C) [circuit] of `evaluate_circuits`' result, from means over prompts.

    1: as the whole model; 0: as with no edge left (Mueller et al. 2025, eq. 1).
    """
    out = share(result)  # of the way from corrupted to clean
    out = out if result.attrs["direction"] == "noise" else 1 - out
    return out.rename("faithfulness").assign_attrs(result.attrs)


def area(shares: Any, values: Any) -> float:
    """The area under a curve over fractions of edges, by trapezoids in linear k."""
    return float(np.trapezoid(wide(np.asarray(values)), wide(np.asarray(shares))))


def cpr(faithful: xr.DataArray) -> float:
    """Circuit performance ratio: the area under f(C_k) over the fraction k of edges.

    Take circuits of the highest *signed* scores (`top_edges(..., signed=True)`).
    """
    return area(faithful["fraction"], faithful)


def cmd(faithful: xr.DataArray) -> float:
    """Circuit-model distance: the area under ``|1 - f(C_k)|``. Take circuits by magnitude."""
    return area(faithful["fraction"], np.abs(1 - wide(faithful)))


def faithfulness_curve(
    model: Model, scores: Any, *, fractions: Sequence[float] = FRACTIONS, signed: bool = False,
    select: str = "top", **runs: Any,
) -> xr.DataArray:  # fmt: skip
    """f(C_k) for circuits of the best-scored fraction k of edges: dim ("circuit",).

    scores: [E] in the graph's order or [R S]; select: "top" or "greedy" (`discovery`). ``runs``:
    the arguments of `evaluate_circuits`. Coordinate ``fraction`` holds k. Keep edges whose
    removal lowers the metric: scores of an exchange are negated first.

    Raises ``ValueError`` for another ``select``, fractions above 1, and scores as `top_edges` does.
    """
    choose = {"top": top_edges, "greedy": greedy_edges}
    if select not in choose:
        raise ValueError(f"select={select!r}, expected 'top' or 'greedy'.")
    graph = Circuit.full(model).graph
    fractions = numbers("fractions", fractions, above=0, most=1).tolist()
    circuits = [
        choose[select](model, scores, max(1, round(k * graph.n_edges)), signed=signed)
        for k in fractions
    ]
    out = faithfulness(evaluate_circuits(model, circuits, **runs))
    return out.assign_coords(fraction=("circuit", list(fractions)))


def roc(scores: Any, truth: Circuit) -> dict[str, Any]:
    """How well edge scores [E] (by magnitude) tell a known circuit's edges from the others.

    Returns fpr and tpr, ``auc`` (ties count half), and ``pessimistic_auc``: the area under the
    steps of the Pareto-optimal points, sum (1 - x_i) dy_i (Conmy et al. 2023).

    Raises ``ValueError`` for another number of scores, NaN, and a circuit of all edges or none.
    """
    flat = truth.edges if truth.edges.ndim == 2 else np.asarray(truth.edges.any(-1))
    is_true = flat[truth.graph.exists]
    size = np.abs(np.asarray(scores, np.float64).reshape(-1))
    if size.shape != is_true.shape:
        raise ValueError(f"There are {size.size} scores for {is_true.size} edges.")
    if is_true.all() or not is_true.any():
        raise ValueError("A ROC needs edges inside of the known circuit, and outside of it.")
    if np.isnan(size).any():
        raise ValueError("Some scores are NaN.")
    levels = np.unique(size)[::-1]
    tpr = np.array([0.0, *[(size[is_true] >= t).mean() for t in levels]])
    fpr = np.array([0.0, *[(size[~is_true] >= t).mean() for t in levels]])
    best = np.maximum.accumulate(tpr)
    return {
        "fpr": fpr, "tpr": tpr, "auc": float(np.trapezoid(tpr, fpr)),
        "pessimistic_auc": float(((1 - fpr) * np.diff(best, prepend=0)).sum()),
    }  # fmt: skip
