"""Fitting lenses: the tuned lens against one translator at a time, the Jacobian lens against
whole Jacobians."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import OTHER, PROMPTS, small_model, with_long

import jaxinterp as ji
from jaxinterp import lens


def rest(model, prompt, layer, x):
    return ji.run_layers(model, x, prompt, start=layer)[0]


def test_training_all_translators_is_training_each_alone():
    model, steps = small_model("llama"), 3
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(0.1))
    batches = [PROMPTS, OTHER, PROMPTS + 1]
    found, losses = lens.train_tuned(model, iter(batches), steps, optimizer=optimizer)
    for layer in range(3):
        params = (jnp.zeros((8, 8)), jnp.zeros(8))
        state = optimizer.init(params)
        for step, ids in enumerate(batches):
            seen = ji.forward(model, ids, record=("resid_pre",))
            x, logits = seen.activations["resid_pre"][layer], seen.logits

            def loss(p, x=x, logits=logits):
                read = ji.unembed(model, x + x @ p[0] + p[1])[0]
                return optax.losses.kl_divergence_with_log_targets(
                    jax.nn.log_softmax(read), jax.nn.log_softmax(logits)
                ).mean()

            value, slopes = jax.value_and_grad(loss)(params)
            assert losses[step, layer] == pytest.approx(float(value), abs=1e-5)
            updates, state = optimizer.update(slopes, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(found.W[layer], params[0], atol=2e-4)
        np.testing.assert_allclose(found.b[layer], params[1], atol=2e-4)


def test_training_brings_the_lens_nearer_on_text_it_has_not_seen():
    model = small_model("gemma2")
    rng = np.random.default_rng(0)
    batches = (rng.integers(0, 17, (8, 10)) for _ in itertools.count())
    held_out = rng.integers(0, 17, (16, 10))
    before = lens.read(model, held_out).kl.mean(("prompt", "position"))
    tuned, losses = lens.train_tuned(model, batches, 150, optimizer=optax.adam(0.02), rows=40)
    after = lens.read(model, held_out, tuned).kl.mean(("prompt", "position"))
    assert losses.shape == (150, 3)
    assert (after[:-1] < 0.8 * before[:-1]).all(), (before.values, after.values)
    assert after[-1] == 0
    np.testing.assert_allclose(losses[0], before[:-1], rtol=0.5)


def test_padding_teaches_nothing():
    model = small_model("llama")
    positions = np.tile(np.arange(7), (2, 1))
    positions[1, 5:] = -1
    one = ji.Tokens(PROMPTS, positions)
    other = ji.Tokens(np.where(positions < 0, 11, PROMPTS), positions)
    for rows in (None, 12):
        (a, _), (b, _) = (lens.train_tuned(model, [t], 1, rows=rows) for t in (one, other))
        np.testing.assert_allclose(a.W, b.W, atol=1e-7)
    whole, _ = lens.train_tuned(model, [one], 1)
    np.testing.assert_allclose(a.W, whole.W, atol=1e-5)  # 12 rows are all there are


@pytest.mark.parametrize("name", with_long("gpt2", "olmo2"))
def test_the_jacobian_lens_is_the_mean_of_whole_jacobians(name):
    model = small_model(name)
    ids = np.concatenate([PROMPTS, OTHER])
    found = lens.fit_jacobian(model, [ids[:2], ids[2:]], chunk=3)
    expected = np.zeros((3, 8, 8))
    for prompt in ids:
        x = ji.forward(model, prompt, record=("resid_pre",)).activations["resid_pre"]
        for layer in range(3):
            last = functools.partial(rest, model, prompt, layer)
            whole = jax.jacobian(last)(x[layer])[0, :, :, 0]  # [P' E P D]
            expected[layer] += np.asarray(whole, np.float64).sum(0).mean(1) / len(ids)
    np.testing.assert_allclose(found.J, expected, atol=1e-4)


def test_the_jacobian_lens_leaves_padding_out():
    model = small_model("llama")
    positions = np.tile(np.arange(7), (2, 1))
    positions[1] = [-1, -1, 0, 1, 2, 3, 4]
    padded = lens.fit_jacobian(model, [ji.Tokens(PROMPTS, positions)])
    alone = [lens.fit_jacobian(model, [ids]).J for ids in (PROMPTS[:1], PROMPTS[1:, 2:])]
    np.testing.assert_allclose(padded.J, (7 * alone[0] + 5 * alone[1]) / 12, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: lens.train_tuned(small_model("llama"), [PROMPTS], 2), "has 1 batches, 2 steps"),
        (lambda: lens.train_tuned(small_model("llama"), [PROMPTS], 1, rows=15), "14 real tokens"),
        (lambda: lens.train_tuned(small_model("encoder"), [PROMPTS], 1), "unembedding"),
        (lambda: lens.fit_jacobian(small_model("llama"), []), "no prompts"),
        (lambda: lens.fit_jacobian(small_model("bert"), [PROMPTS]), "bidirectional"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()
