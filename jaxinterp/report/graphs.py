"""Pictures of circuits, and of estimates against the exact answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.report.plots import (
    BLUE,
    INK,
    ORANGE,
    RULE,
    SOFT,
    bare,
    plain,
    written,
)  # fmt: skip
from jaxinterp.stats import effects

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from jaxinterp.circuits import Circuit

MOST_EDGES = 400  # a picture with more shows the heaviest of them
KINDS = {"q": "#2166ac", "k": "#b35806", "v": "#1b7837"}  # of a head's inputs


def draw_circuit(
    circuit: Circuit,
    path: str | os.PathLike[str] | None = None,
    *,
    weights: Any = None,
    roles: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """The circuit as a graph: layers from the bottom up, an edge's colour the input it enters.

    weights: a number for each edge of the whole graph [E] (such as `importance`), shown as the
    edges' width, dashed where negative. roles: a word for some nodes, shown below their names.

    Raises ``ValueError`` for an empty circuit, and for weights of another graph.
    """
    from jaxinterp.report.picture import Picture

    graph, names = circuit.graph, circuit.names
    if not names:
        raise ValueError("The circuit has no edges: there is nothing to draw.")
    size = np.ones(graph.n_edges) if weights is None else np.asarray(weights, float).reshape(-1)
    if size.shape != (graph.n_edges,):
        raise ValueError(f"There are {size.size} weights for the graph's {graph.n_edges} edges.")
    weight = dict(zip(graph.edges, size.tolist(), strict=True))
    shown = sorted(names, key=lambda e: -abs(weight[e]))[:MOST_EDGES]
    places = _places(circuit)
    rows = sorted({y for _, y in places.values()})
    widest = max(sum(y == row for _, y in places.values()) for row in rows)
    figure = Picture((max(5.0, 0.95 * widest + 2), max(3.0, 0.46 * len(rows) + 1.4)))
    axes = figure.subplots()
    largest = max(abs(weight[e]) for e in shown) or 1.0
    for edge in reversed(shown):
        sender, receiver = edge.split("->")
        kind = receiver[-2] if receiver.endswith(">") else ""
        for node in _owners(circuit, receiver):
            draw_arrow(axes, places[sender], places[node], KINDS.get(kind, SOFT),
                       abs(weight[edge]) / largest, weight[edge] < 0)  # fmt: skip
    for node, (x, y) in places.items():
        role = (roles or {}).get(node, "")
        label = f"{node}\n{role}" if role else node
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": BLUE if role else INK, "lw": 1.0}
        plain(axes.text(x, y, label, ha="center", va="center", fontsize=8, color=INK, bbox=box,
                        zorder=3))  # fmt: skip
    axes.set_ylim(rows[0] - 0.6, rows[-1] + 0.6)
    axes.set_xlim(-0.6 * widest - 0.4, 0.6 * widest + 0.4)
    axes.set_xticks([])
    axes.set_yticks([])
    bare(axes)
    for kind, colour in KINDS.items():
        axes.plot([], [], color=colour, label=f"into {kind}")
    axes.plot([], [], color=SOFT, label="into MLPs and logits")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=7.5)
    left = len(names) - len(shown)
    note = f"{len(names)} of {graph.n_edges} edges, {len(circuit.nodes)} nodes"
    note += f"; the {len(shown)} heaviest are drawn" if left else ""
    heading = f"{title}\n{note}" if title else note
    plain(axes.set_title(heading, loc="left", fontsize=9.5, color=INK))
    return written(figure, path)


def _owners(circuit: Circuit, receiver: str) -> list[str]:
    """The circuit's nodes that a receiver belongs to: under grouped heads maybe several."""
    graph = circuit.graph
    if receiver == "logits":
        return ["logits"]
    column = graph.readers[:, graph.receiver_index(receiver)]
    return [graph.senders[i] for i in np.flatnonzero(column) if graph.senders[i] in circuit.nodes]


def _places(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """Each node's (x, y): a row for every sublayer that occurs, centred."""
    graph = circuit.graph
    rows: dict[float, list[str]] = {}
    for node in circuit.nodes:
        if node == "logits":
            height = 2.0 * graph.config.n_layers
        elif node == "input":
            height = -1.0
        else:
            height = 2.0 * graph.layer_of(graph.sender_index(node)) + node.startswith("m")
        rows.setdefault(height, []).append(node)
    places = {}
    for y, height in enumerate(sorted(rows)):
        for i, node in enumerate(rows[height]):
            places[node] = (1.2 * (i - (len(rows[height]) - 1) / 2), float(y))
    return places


def draw_arrow(
    axes: Any, begin: tuple[float, float], end: tuple[float, float], colour: str, share: float,
    negative: bool,
) -> None:  # fmt: skip
    """An edge from a lower to a higher node, as wide and dark as its share of the largest."""
    bend = 0.12 * np.sign(end[0] - begin[0] or 1) if end[1] - begin[1] > 1 else 0.0
    axes.annotate(
        "", end, begin, zorder=1,
        arrowprops={
            "arrowstyle": "-", "color": colour, "lw": 0.7 + 2.6 * share, "shrinkA": 8, "shrinkB": 8,
            "alpha": 0.35 + 0.6 * share, "linestyle": "--" if negative else "-",
            "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip


def scatter(
    exact: xr.DataArray,
    approximate: Mapping[str, xr.DataArray] | xr.DataArray,
    path: str | os.PathLike[str] | None = None,
    title: str = "",
) -> Figure:
    """Exact effects across, estimated ones up, a panel for each method: means over prompts.

    exact and approximate: labelled alike, as `patch` and `attribute`, or `patch_edges` and
    `attribute_edges`, return them. Cells whose signs disagree are orange.

    Raises ``ValueError`` where the two are not of the same cells.
    """
    from jaxinterp.report.picture import Picture

    given = approximate if isinstance(approximate, Mapping) else {"": approximate}
    if not given:
        raise ValueError("There is nothing to compare with: give at least one estimate.")
    true = mean_effects(exact)
    figure = Picture((3.0 * len(given) + 0.3, 3.7))
    panels = figure.subplots(1, len(given), squeeze=False)[0]
    for axes, (name, result) in zip(panels, given.items(), strict=True):
        guess = mean_effects(result)
        if guess.shape != true.shape:
            raise ValueError(f"{name or 'The estimate'} has {guess.size} cells, not {true.size}.")
        both = np.concatenate([true, guess])
        pad = 0.05 * (np.nanmax(both) - np.nanmin(both) or 1)
        ends = [np.nanmin(both) - pad, np.nanmax(both) + pad]
        flipped = true * guess < 0
        axes.plot(ends, ends, color=RULE, lw=1, zorder=1)
        axes.axhline(0, color=RULE, lw=0.6, zorder=1)
        axes.axvline(0, color=RULE, lw=0.6, zorder=1)
        for part, colour in ((~flipped, BLUE), (flipped, ORANGE)):
            axes.scatter(true[part], guess[part], s=9, color=colour, alpha=0.5, linewidths=0,
                         rasterized=true.size > 3000, zorder=2)  # fmt: skip
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_box_aspect(1)
        axes.set_xlabel("exact effect", fontsize=8, color=SOFT)
        axes.tick_params(labelsize=7, colors=SOFT)
        bare(axes)
        plain(axes.set_title(name, fontsize=9, color=INK, loc="left"))
    panels[0].set_ylabel("estimated effect", fontsize=8, color=SOFT)
    if title:
        plain(figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, color=INK))
    return written(figure, path)


def mean_effects(result: xr.DataArray) -> np.ndarray:
    """Each cell's mean change from the run that was patched, flat."""
    return np.asarray(effects(result).mean("prompt")).reshape(-1)
