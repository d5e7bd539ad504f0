"""Second order: second differences, and exact on a quadratic metric."""

import itertools

import jax
import numpy as np
import pytest
import slow_patching as slow
from small_models import CONFIGS, DIFF, only_long, perturbed, small_model

from jaxinterp.attribution import attribute, interactions
from jaxinterp.interventions import replace
from jaxinterp.metrics import evaluate, metric
from jaxinterp.model import forward, init
from jaxinterp.patching import patch

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED
TWINS = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF}


def change(result):
    noising = result.attrs["direction"] == "noise"
    return result - result.coords["clean" if noising else "corrupted"]


@pytest.mark.parametrize(
    ("name", "site", "cell", "direction"),
    [
        only_long("gpt2", "z", {"layer": 1, "head": 2}, "denoise"),
        ("llama", "k", {"layer": 0, "head": 1}, "noise"),
        ("neox", "resid_pre", {"layer": 1, "position": 4}, "denoise"),
    ],
)
def test_curvature_is_the_second_difference_along_the_patch(name, site, cell, direction):
    choices = {f"{axis}s": [at] for axis, at in cell.items()}
    options = {"site": site, "over": tuple(cell), "direction": direction, **choices, **TWINS}
    found = change(attribute(small_model(name), method="hvp", **options)).sel(cell)
    for prompt in range(2):
        up, middle, down = (
            slow.moved(name, prompt, site, [cell], [step], direction)[0]
            for step in (1e-3, 0.0, -1e-3)
        )
        curvature = (up - 2 * middle + down) / 1e-6 / 2
        first = slow.slope(name, prompt, site, cell, direction)
        np.testing.assert_allclose(found[prompt] - first, curvature, rtol=5e-3, atol=1e-4)
        assert abs(curvature) > 1e-3


@pytest.mark.parametrize(("name", "site"), [("llama", "z"), ("gemma2", "q")])
def test_interactions_are_mixed_second_differences(name, site):
    found = interactions(
        small_model(name), site=site, over=("layer", "head"), layers=[0, 2], heads=[1, 2], **TWINS
    )
    cells = [{"layer": l, "head": h} for l, h in itertools.product([0, 2], [1, 2])]
    step = 1e-3
    for one, other in itertools.combinations_with_replacement(cells, 2):
        corners = [
            sign_a * sign_b * slow.moved(
                name, 0, site, [one, other], [sign_a * step, sign_b * step]
            )[0]
            for sign_a, sign_b in itertools.product((1, -1), repeat=2)
        ]  # fmt: skip
        if one == other:  # moving it twice is moving it by the sum: f(2h) - 2 f(0) + f(-2h)
            continue
        expected = sum(corners) / (4 * step**2)
        entry = found.sel(one).sel({f"other_{axis}": at for axis, at in other.items()})
        np.testing.assert_allclose(entry.isel(prompt=0), expected, rtol=5e-3, atol=1e-4)
    diagonal = found.sel(layer=0, head=1, other_layer=0, other_head=1).isel(prompt=0)
    up, middle, down = (
        slow.moved(name, 0, site, [cells[0]], [s], "denoise")[0] for s in (step, 0, -step)
    )
    expected = (up - 2 * middle + down) / step**2
    np.testing.assert_allclose(diagonal, expected, rtol=5e-3, atol=1e-4)


def squared_difference(logits):
    return (logits[:, 0, 4] - logits[:, 0, 8]) ** 2


QUADRATIC = CONFIGS["gpt2"].replace(
    family="quadratic", n_layers=1, norm="none", act="identity", norm_final=False
)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_second_order_is_exact_on_a_quadratic_metric(direction):
    model = perturbed(init(QUADRATIC, jax.random.key(0)))
    square = metric(squared_difference)
    options = {
        "clean": CLEAN, "corrupted": CORRUPTED, "metric": square, "site": "z",
        "over": ("layer", "position", "head"), "positions": [3, 6], "direction": direction,
    }  # fmt: skip
    exact = change(patch(model, **options))
    second = change(attribute(model, method="hvp", **options))
    first = change(attribute(model, **options))
    np.testing.assert_allclose(second, exact, rtol=1e-3, atol=1e-3)
    assert np.abs(first - exact).max() > 0.1


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_interactions_are_exact_on_a_quadratic_metric(direction):
    model = perturbed(init(QUADRATIC, jax.random.key(0)))
    square = metric(squared_difference)
    twins = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": square, "direction": direction}
    found = interactions(model, site="z", **twins)
    base, donor = (CORRUPTED, CLEAN) if direction == "denoise" else (CLEAN, CORRUPTED)
    values = forward(model, donor, record="z").activations["z"]

    def measured(*heads):
        edits = tuple(replace("z", values, layer=0, head=head) for head in heads)
        return np.asarray(evaluate(square, model, base, edits))

    for a, b in itertools.combinations(range(4), 2):
        expected = measured(a, b) - measured(a) - measured(b) + measured()
        entry = found.sel(layer=0, head=a, other_layer=0, other_head=b)
        np.testing.assert_allclose(entry, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(found).max() > 0.1
