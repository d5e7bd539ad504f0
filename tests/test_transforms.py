"""Weight rewrites leave the log-probabilities unchanged, and do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.model import Config, Model, forward, init
from jaxinterp.model.transforms import (
    center_unembed,
    center_writing_weights,
    fold_norm,
    fold_value_biases,
    untie,
)

GPT2 = Config(
    n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=32, vocab_size=23, n_ctx=12, family="gpt2",
    positions="learned", norm="layer", act="gelu_tanh", gated=False, bias_qkv=True, bias_o=True,
    bias_mlp=True, head="tied",
)  # fmt: skip
NEOX = GPT2.replace(
    family="gpt_neox", positions="rotary", parallel=True, head="untied", bias_qkv=False
)
LLAMA = Config(
    n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=32, vocab_size=23, n_ctx=12,
    family="llama", bias_qkv=True,
)  # fmt: skip
GEMMA = LLAMA.replace(
    family="gemma2", norm_output=True, attn_softcap=5.0, logit_softcap=3.0, embed_scale=4.0,
    head="tied", bias_qkv=False,
)  # fmt: skip
BERT = GPT2.replace(
    family="bert", norm_input=False, norm_stream=True, norm_embed=True, norm_final=False,
    causal=False, head_transform=True, bias_head=True,
)  # fmt: skip
FAMILIES = {"gpt2": GPT2, "neox": NEOX, "llama": LLAMA, "gemma": GEMMA}


def noisy(config: Config) -> Model:
    """A random model whose gains, shifts and biases are not trivial."""
    model = init(config, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def log_probs(model: Model) -> jax.Array:
    return jax.nn.log_softmax(forward(model, TOKENS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewrite", [fold_norm, fold_value_biases, untie])
def test_unchanged(family, rewrite):
    model = noisy(FAMILIES[family])
    np.testing.assert_allclose(log_probs(rewrite(model)), log_probs(model), atol=5e-5)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_center_unembed_unchanged(family):
    model = noisy(FAMILIES[family])
    rewritten = center_unembed(model)
    np.testing.assert_allclose(log_probs(rewritten), log_probs(model), atol=5e-5)
    np.testing.assert_allclose(rewritten.W_U.mean(-1), 0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_center_writing_weights_unchanged(family):
    model = noisy(FAMILIES[family])
    rewritten = center_writing_weights(model)
    np.testing.assert_allclose(log_probs(rewritten), log_probs(model), atol=5e-5)
    stream = forward(rewritten, TOKENS, record="resid_post").activations["resid_post"]
    np.testing.assert_allclose(stream.mean(-1), 0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_fold_norm_leaves_unit_norms(family):
    rewritten = fold_norm(noisy(FAMILIES[family]))
    for norm in (rewritten.params.blocks.ln1, rewritten.params.blocks.ln2):
        np.testing.assert_array_equal(norm.w, 1)
        assert norm.b is None or not norm.b.any()
    np.testing.assert_array_equal(rewritten.params.ln_final.w, 1)


def test_value_biases_are_gone():
    rewritten = fold_value_biases(noisy(LLAMA))
    assert not rewritten.params.blocks.attn.b_V.any()
    assert rewritten.config.bias_o


def test_all_together():
    model = noisy(GPT2)
    rewritten = fold_value_biases(center_unembed(center_writing_weights(fold_norm(model))))
    np.testing.assert_allclose(log_probs(rewritten), log_probs(model), atol=5e-5)


@pytest.mark.parametrize(
    ("rewrite", "config", "match"),
    [
        (fold_norm, BERT, "norm_input"),
        (center_writing_weights, LLAMA, "norm='layer'"),
        (center_unembed, GEMMA, "logit_softcap"),
    ],
)
def test_refused_where_it_would_change_the_model(rewrite, config, match):
    with pytest.raises(ValueError, match=match):
        rewrite(init(config, jax.random.key(0)))


def test_jit():
    model = noisy(GPT2)
    np.testing.assert_allclose(
        jax.jit(fold_norm)(model).W_U, fold_norm(model).W_U, atol=jnp.finfo(jnp.float32).eps * 50
    )
