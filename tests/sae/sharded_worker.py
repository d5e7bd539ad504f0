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


KINDS = {  # config's fields, and what makes them sparse
    "matryoshka": ({"activation": "batch_topk", "prefixes": (8, 24)}, {"k": 4}),
    "jumprelu": ({"activation": "jumprelu"}, {"sparsity": 0.5, "target_l0": 4.0}),
    "gated": ({"activation": "gated"}, {"sparsity": 0.1}),
    "crosscoder": ({"kind": "crosscoder", "n_layers": 2}, {"sparsity": 0.1}),
    "cross_layer": (
        {"kind": "cross_layer", "n_layers": 2, "activation": "jumprelu"}, {"sparsity": 0.1}
    ),
}  # fmt: skip


def main() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "feature"))
    training = sae.TrainingConfig(6, dead_after=64, k_aux=3)
    found = {}
    for name, (fields, sparse) in KINDS.items():
        config = sae.DictionaryConfig(8, 24, **fields)
        layers = (config.n_layers,) if config.layered else ()
        batches = np.random.default_rng(0).normal(size=(6, 32, *layers, 8)).astype(np.float32)
        member = sae.Hyperparameters(learning_rate=3e-3, seed=[0, 1], **sparse)
        one = sae.train(config, batches, training, member)
        many = sae.train(config, batches, training, member, mesh=mesh)
        pairs = zip(
            jax.tree.leaves(one.dictionaries), jax.tree.leaves(many.dictionaries), strict=True
        )
        error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
        W_dec = many.dictionaries[0].params.W_dec
        found[name] = {"error": error, "rows": W_dec.addressable_shards[0].data.shape[-2]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
