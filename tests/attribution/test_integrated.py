"""Integrated gradients: complete, and slopes averaged along the path."""

import numpy as np
import pytest
import slow_patching as slow
from small_models import DIFF, only_long, small_model, with_types

from jaxinterp.attribution import attribute
from jaxinterp.patching import patch

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED
TWINS = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF}


def change(result):
    noising = result.attrs["direction"] == "noise"
    return result - result.coords["clean" if noising else "corrupted"]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("name", "site", "over"),
    [
        only_long("gpt2", "resid_pre", ("layer", "position")),
        ("llama", "k_input", ("layer", "position")),
        ("neox", "mlp_post", ("layer", "neuron")),
        ("gemma2", "attn_out", ("layer", "position")),
        only_long("bert", "q", ("layer", "position", "head")),
    ],
)
def test_integrated_gradients_of_a_layer_add_up_to_its_patch(name, site, over, direction):
    model, options = small_model(name), {**TWINS, "site": site, "direction": direction}
    if "neuron" in over:
        options["neurons"] = 5
    found = change(attribute(model, over=over, method="ig", steps=20, **options))
    options.pop("neurons", None)
    exact = change(patch(model, over=("layer",), **options))
    total = found.sum([axis for axis in over if axis != "layer"])
    np.testing.assert_allclose(total, exact, rtol=2e-3, atol=1e-4)
    assert np.abs(exact).max() > 1e-2


@pytest.mark.parametrize(("name", "site"), [("gpt2", "resid_pre"), ("gemma2", "attn_out")])
def test_integrated_gradients_are_slopes_along_the_layers_own_line(name, site):
    found = change(attribute(small_model(name), site=site, method="ig", steps=20, **TWINS))
    points, weights = np.polynomial.legendre.leggauss(20)
    layer, position = 1, 4
    cells = [{"layer": layer}, {"layer": layer, "position": position}]
    total = 0.0
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        up, down = (
            slow.moved(name, 0, site, cells, [point, step])[0] for step in (slow.STEP, -slow.STEP)
        )
        total += weight * (up - down) / (2 * slow.STEP)
    np.testing.assert_allclose(
        found.sel(layer=layer, position=position).isel(prompt=0), total, rtol=2e-3, atol=3e-5
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("name", "site"), [("gpt2", "embed"), ("llama", "resid_pre"), ("gemma2", "embed")]
)
def test_integrals_over_the_inputs_are_complete_there(name, site, direction):
    options = {"site": site, "direction": direction, "method": "ig_inputs", **TWINS}
    over = ("position",) if site == "embed" else ("layer", "position")
    result = attribute(small_model(name), over=over, steps=96, **options)
    found = change(result) if site == "embed" else change(result).sel(layer=0)
    gap = result.coords["clean"] - result.coords["corrupted"]
    expected = gap if direction == "denoise" else -gap
    np.testing.assert_allclose(found.sum("position"), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "site", "layer"), [("gpt2", "mlp_out", 1), ("llama", "resid_pre", 1)]
)
def test_integrals_over_the_inputs_average_the_slopes_of_moved_inputs(name, site, layer):
    found = change(attribute(small_model(name), site=site, method="ig_inputs", steps=96, **TWINS))
    base, donor = slow.ends(name, 0, "denoise")
    points, weights = np.polynomial.legendre.leggauss(96)
    position, total = 4, 0.0
    way = (donor[site] - base[site])[layer, position]

    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):

        def at(step, point=point):
            def edit(name, l, value):
                if name == "embed":
                    return value + point * (donor["embed"] - value)
                if name == site and l == layer:
                    value = value.copy()
                    value[position] += step * way
                return value

            logits, _ = slow.oracle.forward(small_model(name), CORRUPTED[0], edit=edit)
            return slow.metric_of(logits, 0)

        total += weight * (at(slow.STEP) - at(-slow.STEP)) / (2 * slow.STEP)
    np.testing.assert_allclose(
        found.sel(layer=layer, position=position).isel(prompt=0), total, rtol=2e-3, atol=3e-5
    )


def test_token_types_that_differ_are_refused_for_inputs():
    clean = with_types("bert", CLEAN)
    other = with_types("bert", CORRUPTED).replace(types=1 - clean.types)
    options = {**TWINS, "clean": clean, "corrupted": other}
    with pytest.raises(ValueError, match="token types of clean and corrupted differ"):
        attribute(small_model("bert"), method="ig_inputs", **options)
