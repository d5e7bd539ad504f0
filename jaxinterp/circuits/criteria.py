"""Criteria of a circuit claim beyond faithfulness (Wang et al. 2022, arXiv:2211.00593, section 4).

F(X) is the mean metric with every edge outside of X exchanged, M the whole model, C the circuit; K
is a set of nodes, and C \\ K has none of their edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.circuits.circuit import Circuit
from jaxinterp.circuits.measures import ablated, evaluate_circuits, masked_values
from jaxinterp.circuits.runs import prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.model import Model
from jaxinterp.numerics import wide

if TYPE_CHECKING:
    import xarray as xr


def without(circuit: Circuit, nodes: Sequence[str]) -> Circuit:
    """The circuit less all edges that the nodes write or read.

    A key/value head's edges go when all of its query heads do.
    """
    graph = circuit.graph
    gone = np.zeros(graph.n_senders, bool)
    gone[[graph.sender_index(node) for node in nodes]] = True
    left = np.asarray(graph.readers[~gone].any(0))
    left[-1] = True
    keep = ~gone & left[:, None]
    edges = circuit.edges & (keep if circuit.edges.ndim == 2 else keep[..., None])
    return Circuit(graph, edges)


def _inner(circuit: Circuit) -> list[str]:
    """The heads and MLPs of a circuit."""
    nodes = [n for n in circuit.nodes if n not in ("input", "logits")]
    if not nodes:
        raise ValueError("The circuit has no heads or MLPs: there is nothing to leave out.")
    return nodes


def incompleteness(
    model: Model, circuit: Circuit, *, samples: int = 64, seed: int = 0,
    sets: Mapping[str, Sequence[str]] | None = None,
    on_done: Callable[[int], None] = ignore, **runs: Any,
) -> xr.DataArray:  # fmt: skip
    """|F(C \\ K) - F(M \\ K)| for sets K of the circuit's nodes: dims ("set", "prompt") of both.

    A complete circuit behaves as the model does whatever part of it is knocked out; the maximum
    over sets is the incompleteness. Returns per-prompt F with a leading axis ``of`` ("circuit",
    "model"); `worst_incompleteness` takes the maximum.

    sets: named sets (such as the roles of heads); default: ``samples`` random ones, each node
    with probability 1/2. ``runs``: the arguments of `evaluate_circuits`.

    Raises ``ValueError`` for no sets, nodes that are not the model's, and a circuit without heads
    or MLPs.
    """
    import xarray as xr

    nodes = _inner(circuit)
    samples, seed = whole_number("samples", samples, 1, MANY), random_seed(seed)
    if sets is None:
        rng = np.random.default_rng(seed)
        drawn = rng.random((samples, len(nodes))) < 0.5
        sets = {
            str(i): [node for node, out in zip(nodes, row, strict=True) if out]
            for i, row in enumerate(drawn)
        }
    if not sets:
        raise ValueError("No sets are given: name at least one, or let samples be drawn.")
    full = Circuit.full(circuit.graph)
    circuits = [without(c, k) for c in (circuit, full) for k in sets.values()]
    found = evaluate_circuits(model, circuits, on_done=on_done, **runs)
    values = found.values.reshape(2, len(sets), -1)
    coords = {
        "of": ["circuit", "model"],
        "set": list(sets),
        "nodes": ("set", [", ".join(k) for k in sets.values()]),
        **{name: found.coords[name] for name in ("prompt", "clean", "corrupted")},
    }
    return xr.DataArray(values, coords, ("of", "set", "prompt"), found.name, found.attrs)


def worst_incompleteness(result: xr.DataArray) -> tuple[float, str]:
    """The largest |F(C \\ K) - F(M \\ K)|, and the set K that has it (by its nodes)."""
    mean = wide(result).mean("prompt")
    gap = np.abs(mean.sel(of="circuit") - mean.sel(of="model"))
    worst = int(np.asarray(gap).argmax())
    return float(gap[worst]), str(result["nodes"].values[worst])


def minimality(
    model: Model, circuit: Circuit, *, samples: int = 16, seed: int = 0,
    on_done: Callable[[int], None] = ignore, **runs: Any,
) -> xr.DataArray:  # fmt: skip
    """How much each node of a circuit matters, given the best of some contexts: dim ("node",).

    The maximum over sets K of |F(C \\ (K + v)) - F(C \\ K)|, as a share of F(M) - F(0): K is
    empty, or one of ``samples`` random sets of the other nodes (each with probability 1/2, the
    same for all v but for v itself). A node with less than 0.01 is not needed (Wang et al.).
    Coordinates: ``set``, the nodes of the K that shows it.
    """
    import xarray as xr

    nodes = _inner(circuit)
    samples, seed = whole_number("samples", samples, 0, MANY), random_seed(seed)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [np.zeros((1, len(nodes)), bool), rng.random((samples, len(nodes))) < 0.5]
    )
    circuits: dict[frozenset[str], Circuit] = {}

    def less(k: list[str]) -> frozenset[str]:
        key = frozenset(k)
        if key not in circuits:
            circuits[key] = without(circuit, k)
        return key

    pairs = []
    for v in nodes:
        for row in drawn:
            k = [n for n, out in zip(nodes, row, strict=True) if out and n != v]
            pairs.append((v, less(k), less([*k, v])))
    checked = prepare(
        model, runs["clean"], runs.get("corrupted"), runs["metric"],
        runs.get("direction", "noise"), runs.get("alternative", "run"), runs.get("batch"),
    )  # fmt: skip
    values, ends = masked_values(checked, ablated(checked, list(circuits.values())))
    mean = dict(zip(circuits, values.mean(-1), strict=True))
    unit = abs(float(ends[0].mean() - ends[1].mean()))
    effects = np.array([abs(mean[b] - mean[a]) for _, a, b in pairs]).reshape(len(nodes), -1)
    best = effects.argmax(-1)
    shown = [", ".join(sorted(pairs[i * drawn.shape[0] + b][1])) for i, b in enumerate(best)]
    return xr.DataArray(
        effects.max(-1) / unit if unit else np.full(len(nodes), np.nan),
        {"node": nodes, "set": ("node", shown)}, ("node",), "minimality",
        checked.claim(intervention="circuit", samples=samples, seed=seed),
    )  # fmt: skip


def specificity(
    model: Model, circuit: Circuit, tasks: Mapping[str, Any], *, alternative: Any = "run",
    batch: int | None = None,
) -> dict[str, xr.DataArray]:  # fmt: skip
    """The circuit on several behaviours: by task, what `evaluate_circuits` returns.

    Each has dims (circuit, prompt), of length 1 and the number of the task's prompts.

    tasks: `jaxinterp.Task` by name, the circuit's own among them: a claim is specific where the
    faithfulness of its own behaviour is high and that of the others is not.
    """
    return {
        name: evaluate_circuits(
            model, [circuit], clean=task.clean, corrupted=task.corrupted, metric=task.metric,
            alternative=alternative, batch=batch, record={"task": task.record()},
        )
        for name, task in tasks.items()
    }  # fmt: skip
