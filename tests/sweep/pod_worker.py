"""A sweep of a 70B Llama on 64 devices, planned and compiled without its weights.

python pod_worker.py        prints one JSON object, run by `test_sweep_plan.py`
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji

LENGTH = 2048
CONFIG = ji.Config(
    family="llama", n_layers=80, d_model=8192, n_heads=64, n_kv_heads=8, d_head=128, d_mlp=28672,
    vocab_size=128256, n_ctx=131072, precision="default",
    rotary=(ji.Rotary(128, 5e5, scaling=("llama3", 8.0, 1.0, 4.0, 8192)),),
)  # fmt: skip


def main():
    model = ji.Model(ji.shapes(CONFIG, jnp.bfloat16), CONFIG)
    donor = jax.ShapeDtypeStruct((80, 1, LENGTH, 8192), jnp.bfloat16)
    cells = ji.product(layer=range(80), position=range(LENGTH))
    grid = ji.replace("resid_pre", ji.Shared(donor), **cells)
    mesh = jax.make_mesh((8, 8), ("grid", "model"))
    tokens = np.zeros((1, LENGTH), np.int32)
    plan = ji.plan(model, tokens, grid, ji.logit_diff([1], [2]), mesh=mesh, compile=True)
    return {
        "text": str(plan), "peak": plan.peak_memory, "bound": plan.bound,
        "operations": plan.cost.operations, "exchanged": plan.cost.exchanged,
        "traffic": plan.cost.traffic, "calls": plan.n_chunks,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main()))
