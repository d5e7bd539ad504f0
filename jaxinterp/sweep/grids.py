"""Grids: interventions whose arrays have a leading experiment axis, but for what is `Shared`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxinterp.interventions import is_shared, unshare


def split_grid(grid: Any) -> tuple[list[Any], Callable[[list[Any]], Any], int]:
    """The leaves with an experiment axis, how to put them back, and the grid's length.

    Raises ``ValueError`` when leaves disagree on the number of experiments.
    """
    leaves, treedef = jax.tree.flatten(grid, is_leaf=is_shared)
    mapped = [i for i, leaf in enumerate(leaves) if not is_shared(leaf)]
    if mapped and not any(np.ndim(leaves[i]) for i in mapped):
        raise ValueError(
            "No part of the grid has a leading experiment axis: there is nothing to sweep. For "
            "one experiment use forward or evaluate; for a grid give arrays, layer=[0, 1, 2]."
        )
    lengths = {np.shape(leaves[i])[0] if np.ndim(leaves[i]) else -1 for i in mapped}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            f"The leaves of a grid share one leading experiment axis; found lengths "
            f"{sorted(lengths)} (-1: a number without axes). "
            "Wrap what all experiments share in Shared(...)."
        )

    def rebuild(values: list[Any]) -> Any:
        whole = list(leaves)
        for i, value in zip(mapped, values, strict=True):
            whole[i] = value
        return unshare(jax.tree.unflatten(treedef, whole))

    return [leaves[i] for i in mapped], rebuild, lengths.pop()


def grid_axes(grid: Any) -> Any:
    """``in_axes`` for `jax.vmap` over a grid."""
    return jax.tree.map(lambda n: None if is_shared(n) else 0, grid, is_leaf=is_shared)


def take_experiments(grid: Any, picked: np.ndarray) -> Any:
    """Some experiments of a grid."""
    return jax.tree.map(lambda n: n if is_shared(n) else n[picked], grid, is_leaf=is_shared)
