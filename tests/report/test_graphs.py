"""Pictures of circuits and of estimates: what is drawn is what is there."""

import numpy as np
import pytest
import xarray as xr
from small_models import CONFIGS

from jaxinterp.circuits import Circuit, Graph
from jaxinterp.report import draw_circuit, scatter

LLAMA = CONFIGS["llama"]
EDGES = ["input->a0.h0<k>", "a0.h1->a2.h3<q>", "input->m1", "a2.h3->logits", "m1->logits"]


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts if t.get_text()]


def test_every_node_is_named_once_and_layers_go_up(tmp_path):
    circuit = Circuit.of(LLAMA, EDGES)
    path = tmp_path / "circuit.png"
    figure = draw_circuit(circuit, path, roles={"a2.h3": "name mover"}, title="A circuit")
    assert path.read_bytes().startswith(b"\x89PNG")
    names = [t.split("\n")[0] for t in texts(figure)]
    assert sorted(names) == sorted(circuit.nodes)
    assert "a2.h3\nname mover" in texts(figure)
    heights = {t.get_text().split("\n")[0]: t.get_position()[1]
               for t in figure.axes[0].texts if t.get_text()}  # fmt: skip
    order = ["input", "a0.h1", "m1", "a2.h3", "logits"]
    assert [heights[n] for n in order] == sorted(heights[n] for n in order)
    assert "5 of" in figure.axes[0].get_title("left")


def arrows(figure):
    return [t.arrow_patch for t in figure.axes[0].texts if getattr(t, "arrow_patch", None)]


def test_edges_are_drawn_with_their_weights():
    circuit = Circuit.of(LLAMA, EDGES[1:])
    graph = Graph(LLAMA)
    weights = np.zeros(graph.n_edges)
    for edge, weight in zip(EDGES[1:], [1.0, -0.5, 2.0, 0.1], strict=True):
        weights[graph.edges.index(edge)] = weight
    drawn = arrows(draw_circuit(circuit, weights=weights))
    assert len(drawn) == 4
    widths = sorted(a.get_linewidth() for a in drawn)
    assert widths[-1] == pytest.approx(3.3)
    assert sum(a.get_linestyle() == "--" for a in drawn) == 1
    # A key of two heads, one of which is in the circuit (by its output), is drawn once.
    grouped = Circuit.of(LLAMA, ["input->a1.h0<k>", "a1.h1->logits"])
    assert len(arrows(draw_circuit(grouped))) == 2


def test_a_picture_of_too_many_edges_shows_the_heaviest():
    full = Circuit.full(CONFIGS["gpt2"].replace(n_layers=5))
    assert len(full) > 400
    figure = draw_circuit(full)
    assert len(arrows(figure)) == 400
    assert "400 heaviest" in figure.axes[0].get_title("left")


def result(values, direction="noise"):
    n = values.shape[1]
    coords = {"clean": ("prompt", np.zeros(n)), "corrupted": ("prompt", np.ones(n))}
    return xr.DataArray(values, coords, ("edge", "prompt"), "m", {"direction": direction})


def test_the_scatter_shows_effects_and_flipped_signs(tmp_path):
    rng = np.random.default_rng(0)
    exact, guess = rng.standard_normal((2, 30, 4))
    figure = scatter(result(exact), {"atp": result(guess), "ig": result(exact)}, tmp_path / "s.png")
    first, second = figure.axes
    assert first.get_title("left") == "atp"
    kept, flipped = first.collections
    means = np.stack([exact.mean(-1), guess.mean(-1)], -1)
    same = means.prod(-1) >= 0
    np.testing.assert_allclose(kept.get_offsets(), means[same])
    np.testing.assert_allclose(flipped.get_offsets(), means[~same])
    assert len(second.collections[1].get_offsets()) == 0
    denoised = scatter(result(exact, "denoise"), result(guess, "denoise"))
    points = np.concatenate([c.get_offsets() for c in denoised.axes[0].collections])
    np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(means[:, 0] - 1))


def test_bad_input():
    with pytest.raises(ValueError, match="no edges"):
        draw_circuit(Circuit.of(LLAMA, []))
    with pytest.raises(ValueError, match="3 weights"):
        draw_circuit(Circuit.of(LLAMA, EDGES), weights=[1, 2, 3])
    with pytest.raises(ValueError, match="30 cells, not 20"):
        scatter(result(np.ones((20, 2))), {"atp": result(np.ones((30, 2)))})
    with pytest.raises(ValueError, match="at least one"):
        scatter(result(np.ones((20, 2))), {})
