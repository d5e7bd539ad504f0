"""Effects of features and errors, against gradients taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import DIFF, OTHER, PROMPTS, ragged, small_model
from test_sae_circuits import MODEL, dictionaries, parts, values
from test_sae_metrics import dictionary

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.sae.gradients import responses
from jaxinterp.sae.nodes import feature_nodes, select_nodes


def by_gradient(model, d, tokens, donor, share=0.0, error_moves=True):
    """Effects of all features [B P F] and of the error [B P], at a share of the way."""
    site, layer = d.config.place
    f, e = parts(d, values(model, tokens, d.config.place))
    new = (0 * f, 0 * e) if donor is None else parts(d, values(model, donor, d.config.place))

    def measured(f, e):
        edit = ji.replace(site, d.decode(f) + e, layer=layer)
        return ji.evaluate(DIFF, model, tokens, edit).sum()

    at = f + share * (new[0] - f), e + share * (new[1] - e) * error_moves
    slopes = jax.grad(measured, (0, 1))(*at)
    return slopes[0] * (new[0] - f), (slopes[1] * (new[1] - e)).sum(-1)


def stacked(effects):
    """[F + 1, P, B], as the nodes of one dictionary are."""
    features, error = (np.asarray(each) for each in effects)
    return np.concatenate([features, error[..., None]], -1).transpose(2, 1, 0)


@pytest.mark.parametrize("donor", [None, OTHER])
def test_effects_are_gradients_times_changes(donor):
    model, some = small_model(MODEL), dictionaries()
    found = feature_nodes(model, some, PROMPTS, DIFF, donor=donor, aggregate="none")
    true = np.concatenate([stacked(by_gradient(model, d, PROMPTS, donor)) for d in some])
    assert found.dims == ("node", "position", "prompt")
    np.testing.assert_allclose(found, true, atol=1e-5)
    assert np.abs(true).max() > 0.1
    assert found.node.values[[0, 6, 7]].tolist() == [
        "resid_post.0.f0", "resid_post.0.error", "attn_out.1.f0",
    ]  # fmt: skip
    assert found.sel(node="mlp_out.1.error").feature == -1
    summed = feature_nodes(model, some, PROMPTS, DIFF, donor=donor)
    np.testing.assert_allclose(summed, true.sum(1), atol=1e-5)
    few = feature_nodes(model, some, PROMPTS, DIFF, donor=donor, steps=3)
    true = [
        stacked(sum(np.asarray(one) for one in each) / 3 for each in zip(
            *[by_gradient(model, d, PROMPTS, donor, i / 3) for i in range(3)], strict=True
        )).sum(1) for d in some
    ]  # fmt: skip
    np.testing.assert_allclose(few, np.concatenate(true), atol=1e-5)


def test_integrated_effects_add_up_to_the_exchange():
    """Of all nodes of one dictionary: to first order in the step, and (by trapezoids) second."""
    model, some, steps = small_model(MODEL), dictionaries(), 128
    found = feature_nodes(model, some, PROMPTS, DIFF, donor=OTHER, steps=steps)
    plain = np.asarray(ji.evaluate(DIFF, model, PROMPTS))
    for d in some:
        site, layer = d.config.place
        edit = ji.replace(site, values(model, OTHER, (site, layer)), layer=layer)
        total = np.asarray(ji.evaluate(DIFF, model, PROMPTS, edit)) - plain
        first, last = (
            stacked(by_gradient(model, d, PROMPTS, OTHER, share)).sum((0, 1)) for share in (0, 1)
        )
        own = found[(found.site.values == site) & (found.layer.values == layer)].sum("node")
        np.testing.assert_allclose(own + (last - first) / (2 * steps), total, rtol=3e-4, atol=1e-4)
        assert (np.abs(own - total) <= np.abs(last - first) / steps + 1e-4).all()
        assert np.abs(own).max() > 0.05


@pytest.mark.parametrize("steps", [1, 3])
def test_features_of_one_dictionary_are_attributed_alike(steps):
    model, d = small_model(MODEL), dictionaries()[1]
    found = sae.attribute_features(model, d, PROMPTS, DIFF, donor=OTHER, steps=steps)
    shares = [i / steps for i in range(steps)]
    true = [by_gradient(model, d, PROMPTS, OTHER, share, error_moves=False)[0] for share in shares]
    np.testing.assert_allclose(found, np.mean(true, 0), atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gated", "jumprelu", "topk", "batch_topk"])
def test_responses_are_the_encoders_slopes(activation):
    d = dictionary(activation=activation, subtract_bias=True).replace(k=4)
    x = jnp.asarray(np.random.default_rng(2).normal(size=8), jnp.float32)
    f = d.encode(x)
    assert 0 < (f > 0).sum() < 20
    found = np.asarray(responses(d, f)) * np.asarray(d.params.W_enc)
    np.testing.assert_allclose(found.T, jax.jacobian(d.encode)(x), atol=1e-6)


def test_what_is_refused():
    model, some = small_model(MODEL), dictionaries()

    def nodes(*given, tokens=PROMPTS, **options):
        return feature_nodes(model, given, tokens, DIFF, **options)

    for call, message in (
        (lambda: nodes(), "There are no dictionaries"),
        (lambda: nodes(some[1], some[0]), "resid_post.0 comes after that at attn_out.1"),
        (lambda: nodes(some[2], some[1]), "attn_out.1 comes after that at mlp_out.1"),
        (lambda: nodes(some[0], some[0]), "Two dictionaries are at resid_post.0"),
        (lambda: nodes(dictionary(layers=(3,))), r"layers of resid_post=3, expected"),
        (lambda: nodes(dictionary(site="ln2_normalized")), "expected one of resid_pre, attn_out"),
        (lambda: nodes(dictionary(kind="transcoder")), "is needed; this is a transcoder"),
        (lambda: nodes(dictionary(site="")), "no site"),
        (lambda: nodes(dictionary(d_in=9)), "reads width 9"),
        (lambda: nodes(some[0], donor=OTHER[:1]), "There are 2 given and 1 donor prompts"),
        (lambda: nodes(some[0], donor=OTHER[:, :-1]), "7 tokens given and 6 donor"),
        (lambda: nodes(some[0], steps=0), "steps=0"),
        (lambda: nodes(some[0], aggregate="mean"), "aggregate='mean'"),
        (
            lambda: nodes(some[0], tokens=ragged([[1, 2], [3, 4, 5]], "left", 3), aggregate="none"),
            "equal length",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    found = nodes(*some)
    largest = np.abs(found.mean("prompt").values).max()
    name = found.node.values[np.abs(found.mean("prompt").values).argmax()]
    with pytest.raises(ValueError, match=f"the largest is {largest:.4g}, of {name}"):
        select_nodes(found, 1e3)
