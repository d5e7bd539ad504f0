"""Devices: how a sweep lies over a mesh.

A mesh names up to three axes: ``grid`` splits the experiments, ``prompt`` the batch, and
``model`` the parameters (heads, neurons, vocabulary). The engine maps over ``grid`` itself,
so that each device walks the layers for its own experiments; the other two are the
compiler's, which follows where the inputs lie.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinterp.loading import auto, shardings
from jaxinterp.model import Model, Tokens

AXES = ("grid", "prompt", "model")


def ways(mesh: Mesh | None, axis: str) -> int:
    """Over how many devices an axis is split."""
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def checked(mesh: Mesh) -> Mesh:
    """The mesh as the engine uses it. Raises ``ValueError`` for axes of other names."""
    unknown = [axis for axis in mesh.axis_names if axis not in AXES]
    if unknown:
        raise ValueError(f"The mesh has an axis {unknown[0]!r}, expected some of {AXES}.")
    return auto(mesh)


def place_model(mesh: Mesh, model: Model) -> Model:
    """The parameters split over ``model`` (what lies there already stays)."""
    return model.replace(params=jax.device_put(model.params, shardings(model.params, mesh)))


def model_on(mesh: Mesh, model: Model) -> Model:
    """The shapes of what `place_model` would give."""

    def shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(shape, model.params, shardings(model.params, mesh))
    return model.replace(params=params)


def place_tokens(mesh: Mesh, tokens: Tokens) -> Tokens:
    """The prompts split over ``prompt``. Raises ``ValueError`` when they do not divide."""
    if len(tokens) % ways(mesh, "prompt"):
        raise ValueError(
            f"{len(tokens)} prompts do not divide over the {ways(mesh, 'prompt')} devices of "
            "the mesh's axis 'prompt': choose a batch that does."
        )
    batch = PartitionSpec("prompt" if "prompt" in mesh.shape else None)
    return jax.device_put(tokens, NamedSharding(mesh, batch))


def to_host(array: jax.Array) -> np.ndarray:
    """An array's values, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
