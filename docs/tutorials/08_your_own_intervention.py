# %% [markdown]
# # An intervention of your own
#
# An intervention is a value: any pytree with `sites` and a call. The same one works in a plain
# forward pass, in a sweep of thousands, and under your own `jit`, `vmap` and `grad`.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

import jaxinterp as ji
from jaxinterp.algorithmic import repeats

model, tokenizer = ji.load("induction-2l")
task = repeats.task(16, seed=0)

# %% [markdown]
# The built-in ones are small: replace, zero, add, scale, project_out, apply. Indices say where;
# a leading axis makes a grid; what all experiments share is wrapped in `ji.Shared`. Here the output
# of each head is replaced by its mean over the prompts.

# %%
clean = ji.forward(model, task.clean, record="z").activations["z"]
cells = ji.product(layer=range(2), head=range(4))
mean = ji.Shared(clean.mean(1, keepdims=True))  # [layer, 1, position, head, width]
without = ji.sweep(model, task.clean, ji.replace("z", mean, **cells), task.metric)
print(f"all heads: {np.mean(ji.evaluate(task.metric, model, task.clean)):+.2f} logits")
for layer, row in enumerate(np.asarray(without).mean(1).reshape(2, 4)):
    print("  ".join(f"without {layer}.{head} {value:+.2f}" for head, value in enumerate(row)))

# %% [markdown]
# Your own: sharper or flatter attention, by a factor on its scores (an inverse temperature). It is
# called at its site with the layer's value and where it is (`at.layer` is traced: one program for
# all layers).


# %%
class Sharpen(struct.PyTreeNode):
    """Multiplies the attention scores of one layer."""

    layer: jax.Array
    factor: jax.Array
    sites = ("attn_scores",)

    def __call__(self, value, at):
        return jnp.where(at.layer == self.layer, value * self.factor, value)


same = ji.forward(model, task.clean, Sharpen(1, 1.0)).logits
np.testing.assert_allclose(same, ji.forward(model, task.clean).logits, atol=1e-5)

# %% [markdown]
# A grid of it, unchanged:

# %%
factors = jnp.asarray([0.0, 0.25, 0.5, 1.0, 2.0])
grid = Sharpen(jnp.ones(5, int), factors)
for factor, metric in zip(factors, ji.sweep(model, task.clean, grid, task.metric), strict=True):
    print(f"layer 1, factor {factor:4.2f}: logit difference {float(metric.mean()):+.2f}")

# %% [markdown]
# And its gradient, because it is only a function: how does the metric change as attention sharpens?
# Under `vmap` the same function takes many factors at once.


# %%
@jax.jit
def by_factor(factor):
    return ji.evaluate(task.metric, model, task.clean, Sharpen(1, factor)).mean()


slope = jax.grad(by_factor)(1.0)
wiggle = (by_factor(1.01) - by_factor(0.99)) / 0.02
print(f"slope {slope:+.3f}, by differences {wiggle:+.3f}")
np.testing.assert_allclose(slope, wiggle, rtol=0.05, atol=0.02)
print(jax.vmap(by_factor)(factors).round(2))
