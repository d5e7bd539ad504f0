"""How training lies over a mesh: examples along axis "data", features along axis "feature"."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "feature")
FEATURES = {  # from the end, the axis of features of an array of that name
    "W_enc": 1, "b_enc": 1, "W_dec": 2, "threshold": 1, "r_mag": 1, "b_mag": 1, "silent": 1,
}  # fmt: skip


def place_states(states: Any, mesh: Mesh, n_features: int) -> Any:
    """Members' states with their features split over the mesh.

    Raises ``ValueError`` for axes of other names and features that do not divide.
    """
    unknown = [axis for axis in mesh.axis_names if axis not in AXES]
    if unknown:
        raise ValueError(f"The mesh has an axis {unknown[0]!r}, expected some of {AXES}.")
    ways = dict(mesh.shape).get("feature", 1)
    if n_features % ways:
        raise ValueError(
            f"{n_features} features do not divide over the {ways} devices of the mesh's axis "
            "'feature': choose a number that does."
        )

    def place(path: Any, leaf: Any) -> Any:
        axis = FEATURES.get(getattr(path[-1], "name", ""), 0)
        split = axis and np.ndim(leaf) > axis and "feature" in mesh.shape
        spec: list[str | None] = [None] * np.ndim(leaf)
        if split:
            spec[-axis] = "feature"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree_util.tree_map_with_path(place, states)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, its examples split over the mesh. Raises ``ValueError`` if they do not divide."""
    ways = dict(mesh.shape).get("data", 1)
    n = len(jax.tree.leaves(batch)[0])
    if n % ways:
        raise ValueError(
            f"A batch of {n} does not divide over the {ways} devices of the mesh's axis 'data'."
        )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data" if ways > 1 else None)))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """The same on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
