"""embed, run_layers and unembed compose to forward; layers run in any ranges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_near
from small_models import CONFIGS, PROMPTS, small_model

from jaxinterp.interventions import scale
from jaxinterp.model import as_tokens, embed, forward, init, run_layers, unembed
from jaxinterp.numerics import wide, wide_dtype


@pytest.mark.parametrize("name", CONFIGS)
def test_stages_compose_to_forward_exactly(name):
    model = small_model(name)
    with jax.disable_jit():
        x, _ = embed(model, PROMPTS)
        x, _ = run_layers(model, x, PROMPTS)
        logits, _ = unembed(model, x)
        expected = forward(model, PROMPTS).logits
    if expected is None:
        assert logits is None
    else:
        np.testing.assert_array_equal(logits, expected)


@functools.partial(jax.jit, static_argnames=("start", "stop", "record"))
def layers(model, x, start=0, stop=None, record=()):
    return run_layers(model, x, PROMPTS, start, stop, record=record)


def test_two_pieces_equal_one():
    model = small_model("gemma3")  # its layers differ: windows and rotary kinds
    x, _ = embed(model, PROMPTS)
    whole, records = layers(model, x, record=("z",))
    half, first = layers(model, x, stop=2, record=("z",))
    end, second = layers(model, half, start=2, record=("z",))
    assert first["z"].shape[0] == 2
    assert second["z"].shape[0] == 1
    assert_near(end, whole, 1e-6)
    assert_near(np.concatenate([first["z"], second["z"]]), records["z"], 1e-6)


def test_traced_bounds_equal_static_ones_and_compile_once():
    model = small_model("gemma3")
    x, _ = embed(model, PROMPTS)

    @jax.jit
    @chex.assert_max_traces(1)
    def traced(x, start, stop):
        return run_layers(model, x, PROMPTS, start, stop, record=("attn_out",))

    for start, stop in [(0, 3), (1, 2), (2, 3), (2, 2)]:
        with jax.disable_jit(False):
            got, records = traced(x, np.int32(start), np.int32(stop))
        expected, static = layers(model, x, start, stop, record=("attn_out",))
        assert_near(got, expected, 1e-6, f"layers {start} to {stop}")
        if stop > start:
            assert_near(records["attn_out"][start:stop], static["attn_out"], 1e-6)
        outside = [l for l in range(3) if not start <= l < stop]
        assert not np.asarray(records["attn_out"])[outside].any()


def test_an_intervention_meets_its_own_layer_in_a_later_piece():
    model = small_model("gpt2")
    edit = (scale("mlp_out", 3.0, layer=2),)
    with jax.disable_jit():
        expected = forward(model, PROMPTS, edit, record=["resid_post"]).activations["resid_post"]
        x, _ = embed(model, PROMPTS)
        x, _ = run_layers(model, x, PROMPTS, 0, 2, edit)
        x, _ = run_layers(model, x, PROMPTS, 2, None, edit)
    np.testing.assert_array_equal(x, expected[-1])


def test_no_layers_is_the_identity():
    model = small_model("gpt2")
    x, _ = embed(model, PROMPTS)
    np.testing.assert_array_equal(layers(model, x, 1, 1)[0], x)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (2, 1)])
def test_a_range_outside_the_model_is_an_error(start, stop):
    model = small_model("gpt2")
    x, _ = embed(model, PROMPTS)
    with pytest.raises(ValueError, match="not a range within 3"):
        run_layers(model, x, PROMPTS, start, stop)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "bert", "gemma2"])  # tied and not, with biases
def test_unembedding_a_few_tokens_equals_all_of_them(name):
    model = small_model(name)
    x, _ = embed(model, PROMPTS)
    chosen = np.array([[3, 0, 16], [7, 7, 1]])
    logits, _ = unembed(model, x)
    few, _ = unembed(model, x, vocabulary=chosen)
    assert_near(few, np.take_along_axis(np.asarray(logits), chosen[:, None], -1), 1e-5)


def test_columns_of_positions_with_padding():
    tokens = as_tokens(PROMPTS).replace(positions=np.array([[-1, -1, 0, 1, 2, 3, 4]] * 2))
    assert tokens.columns(np.array([0, 4])).tolist() == [2, 6]
    assert tokens.columns(np.array([[0, 1], [2, 3]])).tolist() == [[2, 3], [4, 5]]


def test_a_transformer_without_layers_is_its_ends():
    config = CONFIGS["gpt2"].replace(n_layers=0)
    model = init(config, jax.random.key(0))
    x, _ = embed(model, PROMPTS)
    np.testing.assert_allclose(forward(model, PROMPTS).logits, unembed(model, x)[0], atol=1e-6)


def test_norms_follow_the_users_strict_promotion():
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), small_model("llama"))
    with jax.numpy_dtype_promotion("strict"):
        assert wide(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
        assert wide_dtype(model.params.embed.W_E) == jnp.float32
