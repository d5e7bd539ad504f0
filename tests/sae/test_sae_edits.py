"""Features in sweeps against features changed by hand, one run at a time."""

import dataclasses

import numpy as np
import pytest
from small_models import DIFF, OTHER, PROMPTS, small_model
from test_sae_metrics import dictionary

import jaxinterp as ji
from jaxinterp import sae

MODEL = "llama"
LAYER = 1


def values(prompts):
    out = ji.forward(small_model(MODEL), prompts, record=("resid_post",))
    return np.asarray(out.activations["resid_post"][LAYER])


def by_hand(value):
    """The metric with values [B P D] in place of the site's."""
    edit = ji.replace("resid_post", value.astype(np.float32), layer=LAYER)
    return np.asarray(ji.evaluate(DIFF, small_model(MODEL), PROMPTS, edit))


@pytest.mark.parametrize("activation", ["relu", "gated", "jumprelu"])
def test_a_sweep_of_ablations_is_each_by_hand(activation):
    d, x = dictionary(activation=activation), values(PROMPTS)
    f = np.asarray(d.encode(x))
    some = [0, 3, 7, 19]
    found = ji.sweep(small_model(MODEL), PROMPTS, sae.scale_features(d, some), DIFF)
    W = np.asarray(d.params.W_dec)
    for row, i in zip(found, some, strict=True):
        np.testing.assert_allclose(row, by_hand(x - f[..., [i]] * W[i]), atol=1e-5)
    at_last = ji.sweep(small_model(MODEL), PROMPTS, sae.scale_features(d, some, position=5), DIFF)
    gone = x - f[..., [3]] * W[3] * (np.arange(x.shape[1]) == 5)[:, None]
    np.testing.assert_allclose(at_last[1], by_hand(gone), atol=1e-5)
    assert np.abs(found - by_hand(x)).max() > 1e-3


def test_steering_and_setting_equal_the_hand_made():
    d, x = dictionary(), values(PROMPTS)
    f, W = np.asarray(d.encode(x)), np.asarray(d.params.W_dec)
    model = small_model(MODEL)
    np.testing.assert_allclose(
        ji.evaluate(DIFF, model, PROMPTS, sae.add_to_features(d, 4, 2.5)),
        by_hand(x + 2.5 * W[4]), atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        ji.evaluate(DIFF, model, PROMPTS, sae.set_features(d, 4, 1.5)),
        by_hand(x + (1.5 - f[..., [4]]) * W[4]), atol=1e-5,
    )  # fmt: skip
    several = sae.scale_features(d, np.array([[1, 2], [5, 6]]), 3.0)
    found = ji.sweep(model, PROMPTS, several, DIFF)
    np.testing.assert_allclose(
        found[1], by_hand(x + 2 * (f[..., [5]] * W[5] + f[..., [6]] * W[6])), atol=1e-5
    )
    other = np.asarray(d.encode(values(OTHER)))
    np.testing.assert_allclose(
        ji.evaluate(DIFF, model, PROMPTS, sae.set_features(d, 4, other[..., 4])),
        by_hand(x + (other - f)[..., [4]] * W[4]), atol=1e-5,
    )  # fmt: skip


def test_patching_features_in_a_grid():
    d, x = dictionary(), values(PROMPTS)
    f, W = np.asarray(d.encode(x)), np.asarray(d.params.W_dec)
    other = np.asarray(d.encode(values(OTHER)))
    found = ji.sweep(small_model(MODEL), PROMPTS, sae.set_features(d, [4, 4], other[..., 4]), DIFF)
    np.testing.assert_allclose(found[1], by_hand(x + (other - f)[..., [4]] * W[4]), atol=1e-5)


def test_features_and_error_are_the_run():
    d, x = dictionary(), values(PROMPTS)
    f = d.encode(x)
    error = x - d.decode(f)
    model = small_model(MODEL)
    plain = ji.forward(model, PROMPTS).logits

    def logits(splice):
        return ji.forward(model, PROMPTS, ji.apply("resid_post", splice, layer=LAYER)).logits

    np.testing.assert_allclose(logits(sae.Splice(d, f, error)), plain, atol=1e-5)
    np.testing.assert_allclose(logits(sae.Splice(d)), plain, atol=1e-5)
    without = logits(sae.Splice(d, error=0.0))
    made = ji.replace("resid_post", np.asarray(d(x)), layer=LAYER)
    np.testing.assert_allclose(without, ji.forward(model, PROMPTS, made).logits, atol=1e-5)
    assert np.abs(without - plain).max() > 1e-2
    nothing = sae.scale_features(d, 3, 1.0)
    np.testing.assert_array_equal(ji.forward(model, PROMPTS, nothing).logits, plain)


def test_attribution_is_the_slope_of_ablation():
    """Against exact effects of small changes; completeness of the integral."""
    d, model = dictionary(), small_model(MODEL)
    some = [0, 3, 7]
    found = sae.attribute_features(model, d, PROMPTS, DIFF, features=some)
    assert found.dims == ("prompt", "position", "feature")
    plain = np.asarray(ji.evaluate(DIFF, model, PROMPTS))
    for column, i in enumerate(some):
        h = 1e-2
        ends = [
            np.asarray(ji.evaluate(DIFF, model, PROMPTS, sae.scale_features(d, i, 1 + sign * h)))
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(-found.values[..., column].sum(1), slope, atol=2e-3)
    every = sae.attribute_features(model, d, PROMPTS, DIFF, donor=OTHER, steps=64)
    x = values(PROMPTS)
    moved = x + np.asarray(d.decode(d.encode(values(OTHER))) - d.decode(d.encode(x)))
    total = by_hand(moved) - plain
    np.testing.assert_allclose(every.sum(("position", "feature")), total, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: sae.scale_features(d, 20), "expected integers from 0 to 19"),
        (lambda d: sae.scale_features(d, [-1, 3]), r"features=\[-1, 3\]"),
        (lambda d: sae.scale_features(d, 0.5), "features=0.5"),
        (lambda d: sae.set_features(d, [3, 7], [1.0, 2.0, 3.0]), r"shape \[3\] for features of"),
        (lambda d: sae.set_features(d, 3, [1.0, 2.0]), r"shape \[2\] for features of shape \[\]"),
        (
            lambda d: sae.attribute_features(small_model(MODEL), d, PROMPTS, DIFF, steps=0),
            "steps=0",
        ),
        (
            lambda d: sae.attribute_features(small_model(MODEL), d, PROMPTS, DIFF, features=[20]),
            "expected numbers from 0 to 19",
        ),
        (
            lambda d: sae.attribute_features(
                small_model(MODEL), d, PROMPTS, DIFF, donor=OTHER[:1]
            ), "The donor is",
        ),
        (
            lambda d: sae.scale_features(
                d.replace(config=dataclasses.replace(d.config, site="")), 0
            ), "no site",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(dictionary())


def test_a_dictionary_of_another_width():
    wide = dictionary(d_in=9)
    with pytest.raises(ValueError, match=r"reads width 9 \(resid_post\), the values have width 8"):
        ji.forward(small_model(MODEL), PROMPTS, sae.scale_features(wide, 0))
