"""Inputs that are no tokens: one-hot vectors give what their ids give, everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, perturbed

import jaxinterp as ji

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 31, (3, 6))
TWINS = np.where(RNG.random((3, 6)) < 0.4, RNG.integers(0, 31, (3, 6)), IDS)


def model_of(name, **changes):
    config = CONFIGS[name].replace(vocab_size=31, **changes)
    return perturbed(ji.init(config, jax.random.key(1)))


def hot(ids):
    """The same prompts as vectors."""
    return ji.model.as_tokens(np.eye(31, dtype=np.float32)[ids])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert"])
def test_one_hot_values_are_tokens(name):
    model = model_of(name)
    want, got = (ji.forward(model, t, record=("embed", "resid_post", "z")) for t in (IDS, hot(IDS)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, got)


def test_twins_and_sweeps_of_values():
    model = model_of("gpt2", n_outputs=7, head="untied")
    answer = ji.logit_diff(RNG.integers(0, 7, 3), RNG.integers(0, 7, 3))
    options = {"metric": answer, "site": "resid_pre"}
    want = ji.patch(model, clean=IDS, corrupted=TWINS, **options)
    got = ji.patch(model, clean=hot(IDS), corrupted=hot(TWINS), **options)
    np.testing.assert_allclose(got, want, atol=1e-5)
    # By hand, one cell: the other run's stream at one layer and position.
    clean = ji.forward(model, hot(IDS), record="resid_pre").activations["resid_pre"]
    edit = ji.replace("resid_pre", clean, layer=1, position=3)
    np.testing.assert_allclose(
        got.isel(layer=1, position=3), ji.evaluate(answer, model, hot(TWINS), edit), atol=1e-5
    )
    guess = ji.attribute(model, clean=hot(IDS), corrupted=hot(TWINS), **options)
    other = ji.attribute(model, clean=IDS, corrupted=TWINS, **options)
    np.testing.assert_allclose(guess, other, atol=1e-5)


def test_logits_of_another_size_than_the_inputs():
    model = model_of("gpt2", n_outputs=7, head="untied", bias_head=True)
    out = ji.forward(model, hot(IDS))
    assert out.logits.shape == (3, 6, 7)
    x = np.asarray(out.logits[:, -1])
    few = ji.evaluate(ji.logit(np.array([0, 3, 6])), model, hot(IDS))
    np.testing.assert_allclose(few, x[np.arange(3), [0, 3, 6]], atol=1e-5)
    read = ji.lens.read(model, hot(IDS), targets=np.array([0, 3, 6]), top=7)
    assert set(np.unique(read.top_token)) <= set(range(7))


def test_what_differs():
    a, b = hot(IDS), hot(TWINS)
    np.testing.assert_array_equal(a.differ(b), IDS != TWINS)
    assert not np.asarray(a.differ(a)).any()


def test_gradients_with_respect_to_inputs():
    model = model_of("gpt2")
    x = jnp.asarray(RNG.normal(size=(2, 5, 31)), jnp.float32)

    def of(values):
        return ji.forward(model, values).logits[:, -1, 3].sum()

    slope, v = jax.grad(of)(x), jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
    step = (of(x + 1e-2 * v) - of(x - 1e-2 * v)) / 2e-2
    np.testing.assert_allclose((slope * v).sum(), step, rtol=2e-2)


def test_what_is_refused():
    model = model_of("gpt2")
    with pytest.raises(ValueError, match=r"\[2, 5, 30\], expected \[2, 5, 31\]"):
        ji.forward(model, np.zeros((2, 5, 30), np.float32))
    with pytest.raises(ValueError, match="expected integers"):
        ji.forward(model, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="n_outputs=7: a tied head"):
        CONFIGS["gpt2"].replace(head="tied", n_outputs=7)
    with pytest.raises(ValueError, match=r"Token id 9 .* outside the vocabulary of 7"):
        ji.evaluate(
            ji.logit(9), model_of("gpt2", n_outputs=7, head="untied"), np.zeros((1, 2, 31), "f4")
        )
    with pytest.raises(ValueError, match="writes tokens"):
        ji.generate(model, hot(IDS), 2)
