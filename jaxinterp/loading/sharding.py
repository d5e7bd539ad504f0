"""How parameters lie over a mesh: heads, neurons and the vocabulary along axis "model"."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# The axis of each leaf (by the end of its path) that is split; every other leaf is replicated.
_AXIS = {
    "attn.W_Q": 1, "attn.W_K": 1, "attn.W_V": 1, "attn.W_O": 1,
    "attn.b_Q": 1, "attn.b_K": 1, "attn.b_V": 1,
    "mlp.W_in": 2, "mlp.W_gate": 2, "mlp.b_in": 1, "mlp.b_gate": 1, "mlp.W_out": 1,
    "embed.W_E": 0, "head.W_U": 1, "head.b_U": 0,
}  # fmt: skip


def auto(mesh: Mesh) -> Mesh:
    """The mesh with all axes left to the compiler, as the forward pass expects."""
    return Mesh(mesh.devices, mesh.axis_names)


def shardings(tree: Any, mesh: Mesh | None) -> Any:
    """A sharding for each leaf of a parameter tree (arrays or shapes).

    An axis is split over the mesh's "model" axis where its length divides, else the leaf
    is replicated. Without a mesh, everything lies on the default device.
    """
    mesh = None if mesh is None else auto(mesh)
    ways = dict(mesh.shape).get("model", 1) if mesh is not None else 1

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        if mesh is None:
            return jax.sharding.SingleDeviceSharding(_default_device())
        axis = _AXIS.get(".".join(key.name for key in path[-2:]))
        if axis is None or leaf.shape[axis] % ways or "model" not in mesh.shape:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))

    return jax.tree_util.tree_map_with_path(place, tree)


def _default_device() -> Any:
    device = jax.config.values["jax_default_device"]
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]
