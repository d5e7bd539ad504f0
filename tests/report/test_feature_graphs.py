"""The picture of a feature circuit: every node and edge of it, in order, with their signs."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Annotation

from jaxinterp.report import draw_feature_circuit
from jaxinterp.report.plots import BLUE, ORANGE

NODES = {"mlp_out.1.f3": 2.0, "mlp_out.1.error": -0.5, "resid_post.2.f12": 1.0}
EDGES = {
    ("mlp_out.1.f3", "resid_post.2.f12"): 0.8, ("mlp_out.1.error", "resid_post.2.f12"): -0.2,
    ("resid_post.2.f12", "metric"): 1.0,
}  # fmt: skip


def circuit(nodes=NODES, edges=EDGES):
    def effects(values):
        return np.asarray(list(values))[:, None] + np.array([[-0.1, 0.1]])

    ends = np.array(list(edges)).reshape(-1, 2).T
    return xr.Dataset(
        {
            "node_effect": (("node", "prompt"), effects(nodes.values())),
            "edge_effect": (("edge", "prompt"), effects(edges.values())),
        },
        {"node": list(nodes), "upstream": ("edge", ends[0]), "downstream": ("edge", ends[1])},
    )


def test_nodes_and_edges_with_their_effects(tmp_path):
    path = tmp_path / "circuit.png"
    figure = draw_feature_circuit(circuit(), path, texts={"mlp_out.1.f3": "names"}, title="Who")
    assert path.stat().st_size > 5000
    (axes,) = figure.axes
    boxes = {t.get_text(): t for t in axes.texts if t.get_bbox_patch() is not None and t.get_text()}
    assert set(boxes) == {"f3\n+2\nnames", "error\n-0.5", "f12\n+1", "metric"}
    height = {text: t.get_position()[1] for text, t in boxes.items()}
    assert height["f3\n+2\nnames"] == height["error\n-0.5"] < height["f12\n+1"] < height["metric"]
    arrows = [t for t in axes.texts if isinstance(t, Annotation)]
    assert len(arrows) == 3
    colours = [t.arrowprops["color"] for t in arrows]
    assert colours == [ORANGE, BLUE, BLUE]  # the weakest first, below the others
    widths = [t.arrowprops["lw"] for t in arrows]
    assert widths == sorted(widths)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mlp_out.1", "resid_post.2", "metric"]
    assert "3 nodes, 3 edges" in axes.get_title(loc="left")


def test_a_large_one_shows_the_strongest():
    nodes = {f"resid_post.2.f{i}": float(i) for i in range(100)}
    figure = draw_feature_circuit(circuit(nodes, {("resid_post.2.f99", "metric"): 1.0}))
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert any(text.startswith("f99\n") for text in texts)
    assert not any(text.startswith("f5\n") for text in texts)
    assert "strongest" in figure.axes[0].get_title(loc="left")


def test_an_empty_one_is_refused():
    with pytest.raises(ValueError, match="no nodes"):
        draw_feature_circuit(circuit({}, {}).isel(edge=slice(0)))
