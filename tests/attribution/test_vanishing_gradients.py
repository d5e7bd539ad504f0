"""A metric without a gradient where the method takes it is an error that says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_patching as slow
from small_models import DIFF, small_model

from jaxinterp.attribution import attribute
from jaxinterp.metrics import accuracy, kl, metric
from jaxinterp.model import forward
from jaxinterp.patching import patch

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED


def attributed(name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return attribute(small_model(name), **options)


def patched(name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return patch(small_model(name), **options)


def change(result):
    """The attribution alone."""
    base = "clean" if result.attrs["direction"] == "noise" else "corrupted"
    return result - result.coords[base]


def reference(ids):
    return forward(small_model("llama"), ids).logits[:, -1]


def squared_distance(logits, reference):
    return ((logits - reference) ** 2).sum((-1, -2))


DISTANCES = {
    "kl": lambda: kl(np.asarray(reference(CLEAN))),
    "mse": lambda: metric(squared_distance, data=(np.asarray(reference(CLEAN))[:, None],)),
    "accuracy": lambda: accuracy(np.asarray(reference(CLEAN)).argmax(-1)),
}


@pytest.mark.parametrize(
    ("distance", "method"), [("kl", "atp"), ("mse", "relp"), ("accuracy", "atp*")]
)
def test_a_metric_without_a_gradient_at_the_clean_run_is_an_error(distance, method):
    with pytest.raises(ValueError, match=r"zero at the clean run.*logit_diff"):
        attributed(metric=DISTANCES[distance](), direction="noise", method=method)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_it_is_one_in_half_precision_too(dtype):
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), small_model("llama"))
    divergence = kl(np.asarray(forward(model, CLEAN).logits[:, -1]))
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": divergence}
    with pytest.raises(ValueError, match=r"zero at the clean run.*logit_diff"):
        attribute(model, direction="noise", **options)
    assert np.abs(change(attribute(model, **options))).max() > 1e-3


def test_other_methods_and_runs_have_a_gradient_where_a_divergence_has_none():
    divergence = kl(np.asarray(reference(CLEAN)))
    away = attributed(metric=divergence)  # at the corrupted run
    assert np.abs(change(away)).max() > 1e-3
    options = {"metric": divergence, "direction": "noise", "over": ("layer",), "layers": [1]}
    whole = attributed(method="ig", steps=16, **options)
    np.testing.assert_allclose(whole, patched(**options), rtol=1e-3, atol=1e-4)
