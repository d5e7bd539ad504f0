"""Trains on eight simulated devices and on one; prints the largest difference and the layout."""

import json
import os

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np
from jax.sharding import Mesh

from jaxinterp import sae

jax.config.update("jax_disable_most_optimizations", True)  # as conftest.py does


def main() -> None:
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(6, 32, 8)).astype(np.float32)
    config = sae.DictionaryConfig(8, 24, activation="batch_topk", prefixes=(8, 24))
    member = sae.Member(learning_rate=3e-3, k=4, seed=[0, 1])
    recipe = sae.Recipe(6, dead_after=64, k_revive=3)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "feature"))
    one = sae.train(config, batches, recipe, member)
    many = sae.train(config, batches, recipe, member, mesh=mesh)
    pairs = zip(
        jax.tree.leaves(one.dictionaries), jax.tree.leaves(many.dictionaries), strict=True
    )  # fmt: skip
    error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    W_dec = many.dictionaries[0].params.W_dec
    print(json.dumps({"error": error, "rows": W_dec.addressable_shards[0].data.shape[0]}))


if __name__ == "__main__":
    main()
