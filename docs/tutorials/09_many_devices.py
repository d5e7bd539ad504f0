# %% [markdown]
# # Many devices and many hosts
#
# The same calls run on a mesh: the axis `grid` splits the experiments, `prompt` the batch, `model`
# the parameters. Here eight devices are simulated on a CPU; on a TPU or several GPUs leave the
# first lines out.

# %%
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.algorithmic import repeats

print(jax.device_count(), "devices")
model, tokenizer = ji.load("induction-2l")
task = repeats.task(16, seed=0)
clean = ji.forward(model, task.clean, record="resid_pre").activations["resid_pre"]
cells = ji.product(layer=range(2), position=range(task.clean.shape[1]))
grid = ji.replace("resid_pre", ji.Shared(clean), **cells)

# %% [markdown]
# What will it cost? `plan` compiles nothing and runs nothing unless asked to. Experiments of one
# width are packed in lanes of so many columns (tokens); so many lanes go through a layer at once,
# and so many make a call. Operations stand beside the fewest that exact values need.

# %%
print(ji.plan(model, task.corrupted, grid, task.metric))

# %%
alone = ji.sweep(model, task.corrupted, grid, task.metric)
for axes, shape in ((("grid", "prompt"), (4, 2)), (("grid", "model"), (4, 2))):
    size = int(np.prod(shape))
    if jax.device_count() < size:
        print(dict(zip(axes, shape, strict=True)), f"needs {size} devices")
    else:
        mesh = jax.make_mesh(shape, axes, devices=jax.devices()[:size])
        together = ji.sweep(model, task.corrupted, grid, task.metric, mesh=mesh)
        np.testing.assert_allclose(together, alone, atol=1e-4)
        print(dict(zip(axes, shape, strict=True)), "agrees")

# %% [markdown]
# A model that does not fit on one device is planned from its shapes alone: here every head of one
# with the shapes of a 70B Llama, on the devices simulated here (XLA_FLAGS says how many).

# %%
config = ji.Config(
    n_layers=80, d_model=8192, n_heads=64, n_kv_heads=8, d_head=128, d_mlp=28672,
    vocab_size=128256, n_ctx=8192,
)  # fmt: skip
big = ji.Model(ji.shapes(config), config)
print(f"{sum(leaf.size for leaf in jax.tree.leaves(big.params)) / 1e9:.1f} billion parameters")
mesh = jax.make_mesh((1, jax.device_count()), ("grid", "model"))
grid = ji.zero("z", **ji.product(layer=range(80), head=range(64)))
metric = ji.logit_diff(np.zeros(8, int), np.ones(8, int))
print(ji.plan(big, np.zeros((8, 64), int), grid, metric, mesh=mesh))

# %% [markdown]
# Several hosts join by `jax.distributed.initialize()`; each runs the same script. `ji.patch` takes
# `parts="folder"`: finished pieces are kept, and a killed run (or another host) goes on from them.
# `scripts/pod_sweep.py` has the commands for a TPU pod slice and for Slurm.
