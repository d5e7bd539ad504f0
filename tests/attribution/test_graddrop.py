"""GradDrop against a loop over dropped layers."""

import jax
import numpy as np
import pytest
import slow_patching as slow
from small_models import DIFF, only_long, small_model

from jaxinterp.attribution import attribute


def changes(name, site, method, direction, over, **options):
    result = attribute(
        small_model(name), clean=slow.CLEAN, corrupted=slow.CORRUPTED, metric=DIFF, site=site,
        over=over, method=method, direction=direction, **options,
    )  # fmt: skip
    return result - result.coords["clean" if direction == "noise" else "corrupted"]


def dropped_slopes(name, site, cell, direction, prompt):
    """The slope with each layer's contribution held, [L]."""
    return [
        slow.slope(
            name, prompt, site, cell, direction, slow.held_layer(name, prompt, direction, dropped)
        )
        for dropped in range(3)
    ]


@pytest.mark.parametrize(
    ("name", "site", "cell", "inside"),
    [
        only_long("gpt2", "z", {"layer": 1, "head": 2}, True),
        ("llama", "mlp_out", {"layer": 1, "position": 4}, True),
        ("attention_only", "v", {"layer": 0, "head": 1}, True),
        ("neox", "mlp_post", {"layer": 0, "neuron": 5}, True),
        ("neox", "resid_pre", {"layer": 1, "position": 5}, False),
        ("gemma2", "resid_mid", {"layer": 0, "position": 4}, False),
        only_long("bert", "z", {"layer": 0, "head": 1}, True),
    ],
)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_graddrop_equals_a_loop_over_dropped_layers(name, site, cell, inside, direction):
    choices = {f"{axis}s": [at] for axis, at in cell.items()}
    found = changes(name, site, "atp_drop", direction, tuple(cell), **choices).sel(cell)
    for prompt in range(2):
        slopes = dropped_slopes(name, site, cell, direction, prompt)
        if inside:
            assert abs(slopes[cell["layer"]]) < 1e-9  # its own layer silences it
        expected = np.abs(slopes).sum() / (2 if inside else 3)
        sign = np.sign(slow.slope(name, prompt, site, cell, direction))
        np.testing.assert_allclose(found[prompt], sign * expected, rtol=2e-3, atol=3e-5)


def test_one_layer_has_nothing_to_drop():
    from small_models import CONFIGS, perturbed

    from jaxinterp.model import init

    model = perturbed(init(CONFIGS["gpt2"].replace(n_layers=1), jax.random.key(0)))
    with pytest.raises(ValueError, match="this model has 1"):
        attribute(
            model, clean=slow.CLEAN, corrupted=slow.CORRUPTED, metric=DIFF, site="z",
            over=("layer", "head"), method="atp*",
        )  # fmt: skip
