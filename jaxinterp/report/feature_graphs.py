"""The picture of a sparse feature circuit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.report.graphs import draw_arrow
from jaxinterp.report.plots import BLUE, INK, ORANGE, SOFT, bare, plain, written

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

METRIC = "metric"
MOST_NODES, MOST_EDGES = 60, 300


def draw_feature_circuit(
    found: xr.Dataset,
    path: str | os.PathLike[str] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """A circuit of features as a graph: dictionaries from the bottom up, the metric on top.

    found: what `jaxinterp.sae.feature_circuit` returns. A node's frame and an edge's line are blue
    where their mean effect on the metric is above 0, orange below; lines are as wide as effects are
    large. Errors are drawn as squares. texts: what some nodes stand for, shown below their names.

    Raises ``ValueError`` for a circuit without nodes.
    """
    from jaxinterp.report.picture import Picture

    nodes = _means(found.node_effect, "node", MOST_NODES)
    if not nodes:
        raise ValueError("The circuit has no nodes: there is nothing to draw.")
    places = _places(nodes, found)
    edges = _edges(found.edge_effect, set(places))
    rows = sorted({y for _, y in places.values()})
    widest = max(sum(y == row for _, y in places.values()) for row in rows)
    figure = Picture((max(5.0, 1.25 * widest + 1.5), max(2.6, 0.95 * len(rows) + 1.0)))
    axes = figure.subplots()
    largest = max((abs(effect) for *_, effect in edges), default=1.0) or 1.0
    for upstream, downstream, effect in edges:
        colour = BLUE if effect > 0 else ORANGE
        draw_arrow(axes, places[upstream], places[downstream], colour, abs(effect) / largest, False)
    for node, (x, y) in places.items():
        effect = nodes.get(node, 0.0)
        label = _label(node, effect)
        if texts and node in texts:
            label = f"{label}\n{texts[node]}"
        colour = SOFT if node == METRIC else BLUE if effect > 0 else ORANGE
        style = "square" if ".error" in node else "round"
        box = {"boxstyle": f"{style},pad=0.3", "fc": "white", "ec": colour, "lw": 1.2}
        plain(axes.text(x, y, label, ha="center", va="center", fontsize=7.5, color=INK, bbox=box,
                        zorder=3))  # fmt: skip
    axes.set_ylim(rows[0] - 0.6, rows[-1] + 0.6)
    axes.set_xlim(-0.6 * widest - 0.5, 0.6 * widest + 0.5)
    axes.set_xticks([])
    named = {y: _place(node) for node, (_, y) in places.items()}
    axes.set_yticks(list(named), list(named.values()), fontsize=7.5, color=SOFT)
    axes.tick_params(length=0)
    bare(axes)
    n, m = found.sizes["node"], found.sizes["edge"]
    note = f"{n} nodes, {m} edges" + ("; the strongest are drawn" if n > len(nodes) else "")
    plain(axes.set_title(f"{title}\n{note}" if title else note, loc="left", fontsize=9.5,
                         color=INK))  # fmt: skip
    return written(figure, path)


def _means(effects: xr.DataArray, dim: str, most: int) -> dict[str, float]:
    """The strongest mean effects by name."""
    mean = effects.mean("prompt").values
    order = np.argsort(-abs(mean))[:most]
    return {str(effects[dim].values[i]): float(mean[i]) for i in sorted(order)}


def _edges(effects: xr.DataArray, shown: set[str]) -> list[tuple[str, str, float]]:
    """Edges between nodes that are shown, the strongest last, to lie on top."""
    mean = effects.mean("prompt").values
    ends = zip(effects.upstream.values.tolist(), effects.downstream.values.tolist(), strict=True)
    held = [(a, b, float(x)) for (a, b), x in zip(ends, mean, strict=True) if {a, b} <= shown]
    return sorted(held, key=lambda edge: abs(edge[2]))[-MOST_EDGES:]


def _places(nodes: dict[str, float], found: xr.Dataset) -> dict[str, tuple[float, float]]:
    """Each node's (x, y): a row for every dictionary, in the order of the forward pass."""
    rows: dict[str, list[str]] = {}
    for node in map(str, found.node.values):
        if node in nodes:
            rows.setdefault(_place(node), []).append(node)
    rows[METRIC] = [METRIC]
    return {
        node: (1.2 * (i - (len(row) - 1) / 2), float(y))
        for y, row in enumerate(rows.values())
        for i, node in enumerate(row)
    }


def _place(node: str) -> str:
    """The dictionary's place in a node's name: "resid_post.5" of "resid_post.5.f12@3"."""
    return node.rsplit(".", 1)[0]


def _label(node: str, effect: Any) -> str:
    return node if node == METRIC else f"{node.rsplit('.', 1)[1]}\n{effect:+.2g}"
