"""Every attribution is exact where the metric is linear in the site."""

import jax
import numpy as np
import pytest
import slow_patching as slow
from small_models import CONFIGS, DIFF, perturbed

from jaxinterp.attribution import attribute
from jaxinterp.model import init
from jaxinterp.patching import patch

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED


LINEAR = CONFIGS["gpt2"].replace(
    family="linear", n_layers=1, norm="none", act="identity", norm_final=False
)


@pytest.fixture(scope="module")
def linear():
    """One layer without norms or activations: linear in all but queries, keys and scores."""
    return perturbed(init(LINEAR, jax.random.key(0)))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("method", "site", "over"),
    [
        ("atp", "v", ("layer", "position", "head")),
        ("atp", "mlp_post", ("layer", "neuron")),
        ("atp", "resid_post", ("position", "layer")),
        ("atp_qk", "resid_mid", ("layer", "position")),
        ("ig", "resid_mid", ("layer", "position")),
        ("relp", "resid_mid", ("layer", "position")),
        ("hvp", "resid_mid", ("layer", "position")),
    ],
)
def test_attribution_is_exact_where_the_metric_is_linear(linear, site, over, method, direction):
    options = {
        "clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, "site": site, "over": over,
        "direction": direction,
    }  # fmt: skip
    if "neuron" in over:
        options["neurons"] = 3
    exact = patch(linear, **options)
    found = attribute(linear, method=method, steps=2, **options)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    assert np.ptp(exact.values) > 1e-2
