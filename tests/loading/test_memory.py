"""Loading streams: one tensor at a time beside the parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

LOAD = """
import sys, jax, jax.numpy as jnp
import jaxinterp.loading, jaxinterp.loading.checkpoint, orbax.checkpoint, tokenizers
jax.block_until_ready(jax.device_put(jnp.zeros(1)))
if len(sys.argv) > 1:
    model, _ = jaxinterp.loading.load(sys.argv[1], dtype=jnp.dtype(sys.argv[2]))
    assert model.params.blocks.mlp.W_in.ndim == 3
status = open("/proc/self/status").read()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak(*arguments):
    """Peak resident bytes of a process that loads a model, or only imports."""
    # One arena: what is measured is the loader, not the allocator's leftovers per thread.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout) * 1024


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A GPT-2 of 200 MB in float32: every tensor is split, transposed or converted."""
    folder = tmp_path_factory.mktemp("big")
    D, L, V = 512, 14, 12_000
    config = {"model_type": "gpt2", "n_embd": D, "n_head": 8, "n_layer": L, "vocab_size": V}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (V, D), "wpe.weight": (1024, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(L):
        for name, shape in {
            "ln_1": (D,), "ln_2": (D,), "attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D),
            "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D),
        }.items():  # fmt: skip
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[-1:]
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder, sum(x.nbytes for x in tensors.values()), max(x.nbytes for x in tensors.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_parameters_and_little_more(big, dtype):
    folder, size, largest = big
    assert size > 190e6
    final = size if dtype == "float32" else size / 2
    used = peak(folder, dtype) - peak()
    assert final < used * 1.05, "the measurement itself is off"
    assert used < 1.3 * final + largest, f"{used / 1e6:.0f} MB for {final / 1e6:.0f} MB"
