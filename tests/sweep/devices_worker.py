"""Sweeps on many simulated devices, run by `test_sweep_devices.py` in processes of their own.

    python devices_worker.py meshes                        8 devices in this process
    python devices_worker.py process PORT NUMBER           one of two processes with 4 each

Prints one JSON object: by case, the largest difference from one device.
"""

import json
import os
import sys
from pathlib import Path

COUNT = 8 if sys.argv[1] == "meshes" else 4
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={COUNT}"
)
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)
if sys.argv[1] == "process":
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))

from small_models import CORRECT, DIFF, OTHER, PROMPTS, WRONG, donor, small_model  # noqa: E402

import jaxinterp as ji  # noqa: E402
from jaxinterp.loading import shardings  # noqa: E402

MESHES = {
    "data": {"grid": 8},
    "prompts": {"prompt": 2},
    "parameters": {"model": 2},
    "grid and prompts": {"grid": 4, "prompt": 2},
    "all three": {"grid": 2, "prompt": 2, "model": 2},
}
ALL = MESHES["all three"]
SITES = {
    "llama": ("resid_pre", ("layer", "position")),
    "gemma2": ("z", ("layer", "head", "position")),
    "neox": ("pattern", ("layer", "head")),
    "bert": ("mlp_out", ("layer", "position")),
}


def mesh_of(axes):
    n = int(np.prod(list(axes.values())))
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:n])


def difference(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def patched(name, **options):
    site, over = SITES[name]
    return ji.patch(
        small_model(name), clean=OTHER, corrupted=PROMPTS, metric=DIFF, site=site, over=over,
        **options,
    )  # fmt: skip


def meshes():
    """Every mesh against one device, by `patch` on four models."""
    found = {}
    for name in SITES:
        alone = patched(name)
        for kind, axes in MESHES.items() if name == "llama" else [("all three", ALL)]:
            found[f"{name}, {kind}"] = difference(patched(name, mesh=mesh_of(axes)), alone)
    # Few experiments, which do not divide, from an intervention per experiment.
    model, mesh = small_model("llama"), mesh_of(ALL)
    steer = ji.add("resid_pre", np.ones((3, 8), np.float32), layer=np.array([2, 0, 1]))
    metric = ji.logit_diff(CORRECT, WRONG)
    alone = ji.sweep(model, PROMPTS, steer, metric)
    found["three experiments"] = difference(
        ji.sweep(model, PROMPTS, steer, metric, mesh=mesh), alone
    )
    found["chunks"] = difference(ji.sweep(model, PROMPTS, steer, metric, mesh=mesh, chunk=1), alone)
    params = jax.device_put(model.params, shardings(model.params, mesh))
    found["neurons per device"] = params.blocks.mlp.W_in.addressable_shards[0].data.shape[-1]
    found["heads per device"] = params.blocks.attn.W_Q.addressable_shards[0].data.shape[1]
    return found


def process():
    """This process's view of sweeps that both run."""
    assert jax.device_count() == 8
    assert len(jax.local_devices()) == 4
    values = donor("llama")["resid_pre"]  # of this process's own devices
    cells = ji.product(layer=range(3), position=range(7))
    grid = ji.replace("resid_pre", ji.Shared(values), **cells)
    model, found = small_model("llama"), {}
    alone = ji.sweep(model, PROMPTS, grid, DIFF)
    for kind in ("data", "grid and prompts"):
        mesh = mesh_of(MESHES[kind])
        found[kind] = difference(ji.sweep(model, PROMPTS, grid, DIFF, mesh=mesh), alone)
    found["patch"] = difference(patched("llama", mesh=mesh_of(ALL)), patched("llama"))
    return found


if __name__ == "__main__":
    print(json.dumps(meshes() if sys.argv[1] == "meshes" else process()))
