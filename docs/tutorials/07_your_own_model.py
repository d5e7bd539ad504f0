# %% [markdown]
# # A model of your own
#
# An architecture is a `Config` of orthogonal choices, parameters are one pytree, training is any
# optax loop; whatever you train, everything in this library works on it.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxinterp as ji
from jaxinterp.training import train

config = ji.Config(
    n_layers=2, d_model=32, n_heads=2, d_head=16, d_mlp=0, vocab_size=16, n_ctx=16,
    positions="learned", norm="none",
)  # fmt: skip
model = ji.init(config, jax.random.key(0)).replace(name="copier")
print(sum(leaf.size for leaf in jax.tree.leaves(model.params)), "parameters")

# %% [markdown]
# A batch is a function of the step (so that a run that was killed sees the same batches again); the
# loss is a function of model and batch. Here: eight random tokens, then the same eight again.


# %%
def batch(step):
    half = np.random.default_rng(step).integers(0, 16, (64, 8))
    return np.concatenate([half, half], 1)


def loss(model, ids):
    log_p = jax.nn.log_softmax(ji.forward(model, ids).logits[:, 8:-1])
    said = jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 9:, None], 2)
    return -said.mean(), {"right": (log_p.argmax(-1) == ids[:, 9:]).mean()}


folder = Path(tempfile.mkdtemp())
trained = train(
    model, batch, loss, optax.adam(1e-2), steps=300, folder=folder / "run", log_every=50
)
print(trained.history.to_dataframe().round(3))

# %% [markdown]
# Keep it, load it, study it: which head copies? Here none alone: what one lacks the others give.
# Zeroed together, nothing is left.

# %%
ji.save(folder / "copier", trained.model)
model, _ = ji.load(folder / "copier")
ids = batch(10_000)[:32]
answer = ji.log_prob(ids[:, -1], position=14)  # the last token, foretold by the one before
grid = ji.zero("z", **ji.product(layer=range(2), head=range(2)))
base = float(ji.evaluate(answer, model, ids).mean())
alone = np.asarray(ji.sweep(model, ids, grid, answer)).mean(1) - base
together = float(ji.evaluate(answer, model, ids, ji.zero("z")).mean()) - base
print("each alone:", *(f"{value:+.2f}" for value in alone), "all:", f"{together:+.2f}")
assert together < alone.min() - 0.5

# %% [markdown]
# Models from elsewhere: `ji.load("EleutherAI/pythia-70m")` (the hub), a local folder in the hub's
# layout, a `.gguf` file. As a module of Flax: `ji.nnx.Transformer(model)`.
