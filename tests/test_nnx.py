"""A Flax/optax loop trains our model through the NNX adaptor and hands it back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxinterp.nnx as ji_nnx
from jaxinterp.model import Config, forward, init

CONFIG = Config(
    n_layers=1, d_model=32, n_heads=2, d_head=16, d_mlp=64, vocab_size=11, n_ctx=8, head="tied"
)


def loss_of(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def test_state_is_exactly_the_parameters():
    model = init(CONFIG, jax.random.key(0))
    module = ji_nnx.Transformer(model)
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert len(leaves) == len(jax.tree.leaves(model.params))
    back = module.model()
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


def test_training_a_small_model_and_handing_it_back():
    tokens = (jnp.arange(8)[None] * jnp.arange(1, 6)[:, None]) % 11
    model = init(CONFIG, jax.random.key(0), scale=0.3)
    module = ji_nnx.Transformer(model)
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: loss_of(m(tokens).logits, tokens))(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(150)]
    assert losses[0] == pytest.approx(float(loss_of(forward(model, tokens).logits, tokens)), 1e-4)
    trained = module.model()
    final = float(loss_of(forward(trained, tokens).logits, tokens))
    assert final < 0.5 < losses[0]
    assert float(loss_of(forward(model, tokens).logits, tokens)) == pytest.approx(losses[0], 1e-4)
