"""What features say of themselves, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_model
from test_sae_metrics import dictionary

import jaxinterp as ji
from jaxinterp import sae

MODEL = "llama"


def blocks(n=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 17, (4, 9)) for _ in range(n)]


def features_of(given, d):
    """[n prompts, position, feature]"""
    x = [
        ji.forward(small_model(MODEL), b, record=("resid_post",)).activations["resid_post"][1]
        for b in given
    ]
    return np.asarray(d.encode(jnp.concatenate(x)))


def test_top_examples_are_the_largest():
    d, given = dictionary(), blocks()
    found = sae.top_examples(
        small_model(MODEL), d, given, k=5, window=(2, 1), edges=[0.0, 0.5], first=True
    )
    f, ids = features_of(given, d), np.concatenate(given)
    for feature in range(f.shape[2]):
        column = f[:, :, feature]
        best = np.sort(column.ravel())[::-1][:5]
        one, n = found.sel(feature=feature), (best > 0).sum()
        np.testing.assert_allclose(one.value[:n], best[:n], atol=1e-5)
        assert (one.value[n:] == -np.inf).all()
        assert (one.context[n:] == -1).all()
        for rank in range(n):
            prompt, position = int(one.prompt[rank]), int(one.position[rank])
            np.testing.assert_allclose(column[prompt, position], one.value[rank], atol=1e-5)
            assert int(one.context.sel(rank=rank, offset=0)) == ids[prompt, position]
    np.testing.assert_array_equal(found["count"].sum("bin"), f[:, :, 0].size)
    np.testing.assert_array_equal(found["count"].sel(bin=2), (f >= 0.5).sum((0, 1)))


def test_random_examples_are_active_and_spread():
    d, given = dictionary(), blocks(6)
    found = sae.top_examples(small_model(MODEL), d, given, k=8, order="random", features=[3, 0, 7])
    f = features_of(given, d)
    assert found.feature.values.tolist() == [3, 0, 7]
    for feature in (3, 0, 7):
        one, active = found.sel(feature=feature), f[:, :, feature][f[:, :, feature] > 0]
        values = one.value.values[one.value.values > -np.inf]
        assert len(values) == min(8, len(active))
        assert all(np.abs(active - v).min() < 1e-5 for v in values)
        places = {(int(p), int(q)) for p, q in zip(one.prompt, one.position, strict=True)}
        assert len(places) >= len(values)
    other = sae.top_examples(
        small_model(MODEL), d, given, k=8, order="random", features=[3], seed=1
    )  # fmt: skip
    assert not np.array_equal(other.value[0], found.value[0])


def test_first_tokens_do_not_count():
    d, given = dictionary(), blocks()
    found = sae.top_examples(small_model(MODEL), d, given, k=5)
    assert (found.position.values[found.value.values > -np.inf] > 0).all()
    best = features_of(given, d)[:, 1:].max((0, 1))
    np.testing.assert_allclose(found.value.sel(rank=0).clip(min=0), best, atol=1e-5)


def test_written_tokens_are_those_of_the_rows():
    model, d = small_model(MODEL), dictionary()
    found = sae.written_tokens(model, d, [2, 5], k=3)
    p = model.params
    W_U = p.embed.W_E.T if model.config.head == "tied" else p.head.W_U
    logits = np.asarray(d.params.W_dec)[[2, 5]] * np.asarray(p.ln_final.w) @ np.asarray(W_U)
    for row, feature in enumerate((2, 5)):
        order = np.argsort(-logits[row])
        assert found.token.sel(feature=feature, end="raised").values.tolist() == order[:3].tolist()
        assert (
            found.token.sel(feature=feature, end="lowered").values.tolist()
            == order[::-1][:3].tolist()
        )
        np.testing.assert_allclose(
            found.change.sel(feature=feature, end="raised"), logits[row][order[:3]], atol=1e-5
        )


@pytest.mark.parametrize("first", [False, True])
def test_effects_of_features_are_those_of_each_edit(first):
    d, model = dictionary(), small_model(MODEL)
    tokens = np.concatenate(blocks(2))
    found = sae.feature_effects(model, d, tokens, [7, 0], factors=(0.0, 3.0), first=first, batch=5)
    assert found.dims == ("feature", "factor", "prompt")
    f = features_of([tokens], d)

    def loss(edit=()):
        logp = jax.nn.log_softmax(ji.forward(model, tokens, edit).logits)[:, :-1]
        return -np.take_along_axis(np.asarray(logp), tokens[:, 1:, None], 2)[..., 0].sum(1)

    counts = np.arange(tokens.shape[1]) > (-1 if first else 0)
    for feature in (7, 0):
        one = found.sel(feature=feature)
        np.testing.assert_array_equal(one.active, ((f[:, :, feature] > 0) & counts).sum(1))
        for factor in (0.0, 3.0):
            edit = sae.scale_features(d, feature, factor, position=counts)
            np.testing.assert_allclose(one.sel(factor=factor), loss(edit) - loss(), atol=2e-5)
    answers, wrong = np.arange(8) + 2, np.arange(8) + 3
    metric = ji.logit_diff(answers, wrong)
    found = sae.feature_effects(model, d, tokens, [3], metric=metric, first=first)
    edit = sae.scale_features(d, 3, 2.0, position=counts)
    np.testing.assert_allclose(
        found.sel(feature=3, factor=2.0),
        ji.evaluate(metric, model, tokens, edit) - ji.evaluate(metric, model, tokens), atol=1e-5,
    )  # fmt: skip


def test_nearest_features():
    d = dictionary()
    W = np.asarray(d.params.W_dec, float)
    found = sae.nearest(d, [4], k=2)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    cosines = unit @ unit[4]
    cosines[4] = -2
    assert found.other.values[0].tolist() == np.argsort(-cosines)[:2].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, d: sae.top_examples(m, d, blocks(), features=[20]), "from 0 to 19"),
        (lambda m, d: sae.top_examples(m, d, blocks(), order="worst"), "order='worst'"),
        (lambda m, d: sae.top_examples(m, d, []), "There are no prompts"),
        (lambda m, d: sae.written_tokens(m, d, [0.5]), "expected numbers from 0 to 19"),
        (lambda m, d: sae.nearest(d, k=20), "k=20"),
        (lambda m, d: sae.top_examples(m, dictionary(site=""), blocks()), "at no site"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(small_model(MODEL), dictionary())
