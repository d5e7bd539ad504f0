"""Attribution patching: slopes equal finite differences of a slow transformer."""

import itertools

import jax
import numpy as np
import pytest
import slow_patching as slow
from small_models import DIFF, only_long, small_model

from jaxinterp.attribution import attribute

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED


def attributed(name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return attribute(small_model(name), **options)


def change(result):
    """The attribution alone."""
    base = "clean" if result.attrs["direction"] == "noise" else "corrupted"
    return result - result.coords[base]


CASES = [
    only_long("gpt2", "resid_pre", {"layer": [0, 2], "position": [2, 4]}, "denoise"),
    only_long("gpt2", "mlp_post", {"layer": [1], "neuron": [0, 7]}, "noise"),
    only_long("gpt2", "k_input", {"layer": [1], "head": [0, 3]}, "noise"),
    ("llama", "k", {"layer": [0, 1], "position": [3, 4], "head": [0, 1]}, "noise"),
    ("llama", "pattern", {"layer": [1], "head": [2], "position": [4], "source": [1, 2]}, "denoise"),
    ("neox", "mlp_in", {"layer": [0, 1]}, "denoise"),
    ("neox", "result", {"layer": [0], "position": [3], "head": [0, 2]}, "noise"),
    ("gemma2", "attn_out", {"layer": [0, 1], "position": [2, 5]}, "noise"),
    ("gemma2", "ln2_post_scale", {"layer": [0, 1], "position": [3, 4]}, "denoise"),
    only_long("bert", "resid_mid", {"layer": [0, 1], "position": [0, 4]}, "noise"),
]


@pytest.mark.parametrize(
    ("name", "site", "axes", "direction"),
    CASES,
)
def test_slopes_equal_finite_differences(name, site, axes, direction):
    choices = {f"{axis}s": v for axis, v in axes.items() if axis != "source"}
    result = change(attributed(name, site=site, over=tuple(axes), direction=direction, **choices))
    found = result.sel(source=axes["source"]) if "source" in axes else result
    for cell in itertools.product(*axes.values()):
        chosen = dict(zip(axes, cell, strict=True))
        expected = [slow.slope(name, b, site, chosen, direction) for b in range(2)]
        np.testing.assert_allclose(found.sel(chosen), expected, rtol=2e-3, atol=3e-5)
    assert np.ptp(found.values) > 1e-4


@pytest.mark.parametrize(
    ("name", "site", "cell", "method"),
    [
        ("llama", "z", {"layer": 0, "head": 1}, "atp"),
        ("gemma2", "resid_pre", {"layer": 1, "position": 4}, "atp"),
        only_long("gpt2", "attn_out", {"layer": 0, "position": 4}, "ig"),
    ],
)
def test_in_float64_slopes_equal_finite_differences_to_many_digits(name, site, cell, method):
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small_model(name))
        chosen = {f"{axis}s": [at] for axis, at in cell.items()}
        result = attribute(
            model, clean=CLEAN, corrupted=CORRUPTED, metric=DIFF, site=site, over=tuple(cell),
            method=method, steps=3, **chosen,
        )  # fmt: skip
    assert result.dtype == np.float64
    found = change(result).sel(cell)
    points, weights = np.polynomial.legendre.leggauss(3 if method == "ig" else 1)
    points = (points + 1) / 2 if method == "ig" else np.zeros(1)
    for prompt in range(2):
        expected = 0.0
        for point, weight in zip(points, weights / 2, strict=True):
            up, down = (
                slow.moved(name, prompt, site, [{"layer": cell["layer"]}, cell], [point, step])[0]
                for step in (slow.STEP, -slow.STEP)
            )
            expected += weight * (up - down) / (2 * slow.STEP)
        np.testing.assert_allclose(found[prompt], expected, rtol=1e-6, atol=1e-9)
