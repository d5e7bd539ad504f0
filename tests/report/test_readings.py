"""Pictures of readings: what is drawn is what is there."""

import io

import numpy as np
import PIL.Image
import pytest
import xarray as xr

from jaxinterp.report import lens_curves, lens_table, phase_map, probe_curves, steering_curves

RNG = np.random.default_rng(0)
PNG = b"\x89PNG"


def reading(n_layers=3, n_prompts=2, length=4):
    """As `jaxinterp.lens.read` returns it; the second prompt is a token shorter."""
    dims, shape = ("layer", "prompt", "position"), (n_layers, n_prompts, length)
    kl = RNG.random(shape)
    kl[:, 1, -1] = np.nan
    kl[-1] = np.where(np.isnan(kl[-1]), np.nan, 0)
    texts = np.array([[[[f"{a}{b}{c}"] for c in range(length)] for b in range(n_prompts)]
                      for a in range(n_layers)])  # fmt: skip
    return xr.Dataset(
        {
            "kl": (dims, kl), "entropy": (dims, RNG.random(shape)),
            "top_log_prob": ((*dims, "top"), np.log(RNG.uniform(0.1, 1, (*shape, 1)))),
            "top_text": ((*dims, "top"), texts),
        },
        {
            "layer": np.arange(n_layers), "prompt": np.arange(n_prompts),
            "token": (("prompt", "position"), np.full((n_prompts, length), "$x")),
        },
    )  # fmt: skip


@pytest.mark.parametrize("colour", ["probability", "kl", "entropy"])
def test_a_lens_table_shows_the_top_tokens_of_one_prompt(tmp_path, colour):
    path = tmp_path / "lens.png"
    figure = lens_table(reading(), path, prompt=1, colour=colour, title="$ lens")
    assert path.read_bytes().startswith(PNG)
    axes = figure.axes[0]
    shown = [t.get_text() for t in axes.texts]
    assert shown == [f"{layer}1{p}" for layer in range(3) for p in range(3)]  # no padding
    assert np.asarray(axes.collections[0].get_array()).shape == (3, 3)
    assert axes.get_title("left") == "$ lens"


def test_a_lens_table_goes_by_the_prompts_labels(tmp_path):
    some = reading().isel(prompt=[1])
    shown = [t.get_text() for t in lens_table(some, tmp_path / "a.png", prompt=1).axes[0].texts]
    assert shown == [f"{layer}1{p}" for layer in range(3) for p in range(3)]
    with pytest.raises(ValueError, match="prompt=0, expected one that the reading holds: 1"):
        lens_table(some, prompt=0)


def test_curves_of_lenses_leave_out_what_is_zero(tmp_path):
    one, other = reading(), reading()
    figure = lens_curves({"logit lens": one, "tuned lens": other}, tmp_path / "c.png")
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["logit lens", "tuned lens"]
    expected = one.kl.mean(("prompt", "position")).values
    np.testing.assert_allclose(lines[0].get_ydata()[:-1], expected[:-1])
    assert np.isnan(lines[0].get_ydata()[-1])


def test_probe_curves_have_their_baselines(tmp_path):
    dims = ("point", "split")
    found = xr.Dataset(
        {
            **{name: (dims, RNG.random((4, 3))) for name in ("accuracy", "control", "shuffled")},
            "majority": ("split", [0.5, 0.6, 0.7]),
            "baseline": (("feature", "split"), RNG.random((1, 3))),
        },
        {"point": range(4), "split": range(3), "feature": ["bag_of_words"]},
    )
    axes = probe_curves(found, tmp_path / "p.png").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"probe", "control task", "shuffled labels", "majority", "bag of words"}
    np.testing.assert_allclose(lines["probe"].get_ydata(), found.accuracy.mean("split"))
    assert lines["majority"].get_ydata()[0] == pytest.approx(0.6)


def test_steering_curves_have_placebos_and_the_clean_run(tmp_path):
    values = RNG.normal(size=(2, 3, 4, 5))
    result = xr.DataArray(
        values,
        {
            "layer": [3, 5], "coefficient": [-1.0, 0.5, 1.0],
            "direction": ["joy", "fear", "random 0", "random 1"], "prompt": range(5),
            "clean": ("prompt", np.arange(5.0)),
        },
        ("layer", "coefficient", "direction", "prompt"), "logit_diff",
    )  # fmt: skip
    figure = steering_curves(result, tmp_path / "s.png", title="Joy")
    assert [axes.get_title("left") for axes in figure.axes] == ["layer 3", "layer 5"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(lines["fear"], values[1, :, 1].mean(-1))
    assert any(np.allclose(y, 2.0) for y in lines.values())  # the clean run


def test_the_phase_map_colours_what_becomes_of_a_feature(tmp_path):
    cell = ("importance", "density")
    norm = np.ones((2, 2, 2))
    norm[0, 0, 1] = 0
    interference = np.zeros((2, 2, 2))
    interference[1, 1, 1] = 1
    found = xr.Dataset(
        {"norm": ((*cell, "feature"), norm), "interference": ((*cell, "feature"), interference)},
        {"importance": [0.1, 1.0], "density": [0.1, 1.0], "feature": [0, 1]},
    )
    figure = phase_map(found, tmp_path / "phase.png")
    colours = np.asarray(figure.axes[0].collections[0].get_array())
    np.testing.assert_allclose(colours[0, 0], 1)  # ignored: white
    assert colours[0, 1].argmax() == 0  # alone: red
    assert colours[1, 1].argmax() == 2  # superposed: blue


def test_bad_input():
    with pytest.raises(ValueError, match="expected one of probability"):
        lens_table(reading(), colour="rank")
    with pytest.raises(ValueError, match="read with tokenizer="):
        lens_table(reading().drop_vars("top_text"))


def test_a_notebook_shows_every_picture():
    """IPython asks an object for its PNG; a bare `Figure` has none without `pyplot`."""
    x = np.arange(3.0)
    joy = xr.DataArray(
        x[:, None, None, None] + np.zeros((3, 1, 1, 2)),
        dims=("coefficient", "direction", "layer", "prompt"),
        coords={
            "coefficient": x, "direction": ["joy"], "layer": [0], "clean": ("prompt", [0.0, 0.0]),
        },
        name="metric",
    )  # fmt: skip
    image = steering_curves(joy)._repr_png_()
    assert image.startswith(PNG)
    shown = PIL.Image.open(io.BytesIO(image))
    assert shown.width == 350
    assert np.ptp(np.asarray(shown.convert("L"))) > 100  # it is drawn
