"""Pictures: written whole, with the right panels, ticks and scale."""

import matplotlib as mpl
import numpy as np
import pytest

from jaxinterp.report import heatmap, spread

LAYOUTS = [
    (("layer",), False, 1),
    (("layer", "position"), False, 1),
    (("layer", "position"), True, 1),
    (("layer", "head"), False, 1),
    (("layer", "neuron"), False, 1),
    (("layer", "head", "position"), True, 4),
    (("layer", "head", "position"), False, 6),
    (("layer", "head", "position", "source"), False, 6),
]


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


@pytest.mark.parametrize(("dims", "roles", "count"), LAYOUTS)
def test_every_layout_has_its_panels(sweep, tmp_path, dims, roles, count):
    path = tmp_path / "new" / "map.png"
    figure = heatmap(sweep(dims, n=3, roles=roles, n_layers=6), path, title="A title")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 4000
    assert [p.name for p in path.parent.iterdir()] == ["map.png"]
    assert len(panels(figure)) == count
    mesh = panels(figure)[0].collections[0]
    assert mesh.norm.vmin == -mesh.norm.vmax


def test_cells_are_the_shares_and_layer_0_is_at_the_bottom(sweep):
    result = sweep(n=4)
    (axes,) = panels(heatmap(result))
    base = result.corrupted.values.astype(float).mean()
    share = (result.values.astype(float).mean(-1) - base) / (result.clean.values.mean() - base)
    np.testing.assert_allclose(axes.collections[0].get_array(), share, atol=1e-5)
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert [t.get_text() for t in axes.get_xticklabels()][1:4] == ["When", "Mary…", "and"]


def test_noising_is_centred_on_the_clean_run(sweep):
    (axes,) = panels(heatmap(sweep(n=4, direction="noise")))
    norm = axes.collections[0].norm
    assert norm.vmin + norm.vmax == pytest.approx(2)


def test_roles_and_caption(sweep):
    figure = heatmap(sweep(n=4, roles=True))
    (axes,) = panels(figure)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["IO", "S1", "S2", "END"]
    caption = figure.get_supxlabel().replace("\n", " ")
    for fact in ("smollm2-135m-instruct", "ioi", "resid_pre", "denoise", "4 prompts"):
        assert fact in caption


@pytest.mark.parametrize("draw", [heatmap, spread])
@pytest.mark.parametrize("case", ["nan", "empty", "single", "flat", "hostile"])
def test_odd_results_are_drawn(sweep, tmp_path, draw, case):
    result = sweep(n=1 if case == "single" else 3)
    if case == "nan":
        result[3, 4] = np.nan
        result[5, 6, 1] = np.nan
    if case == "empty":
        result = result * np.nan
    if case == "flat":
        result = result.assign_coords(clean=result.corrupted)
    if case == "hostile":
        odd = ["$x$", "$", "\\frac", "名", "\x1b[0m", "\n", "", " "]
        tokens = [*odd, *result.position_token.values[len(odd) :]]
        result = result.assign_coords(position_token=("position", tokens))
    draw(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 4000


def test_spread_shows_every_prompt_of_every_cell(sweep):
    result = sweep(("layer", "head"), n=5)
    (axes,) = spread(result, k=3).axes
    assert len(axes.collections) == 5
    assert all(len(dots.get_offsets()) == 5 for dots in axes.collections)
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names[:3] == ["clean", "corrupted", "layer 18, head 3"]


def test_other_formats_and_global_state(sweep, tmp_path):
    before = dict(mpl.rcParams)
    heatmap(sweep(n=2), tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert dict(mpl.rcParams) == before


def test_a_place_that_cannot_be_written_is_an_error(sweep, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="not a folder"):
        heatmap(sweep(n=2), tmp_path / "file" / "a.png")
