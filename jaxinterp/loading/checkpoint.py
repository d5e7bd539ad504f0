"""Our own checkpoints: a folder of orbax arrays, ``jaxinterp.json`` and the tokenizer."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp.files import checksums, whole_folder
from jaxinterp.loading.reading import own_config, read_json, read_tokenizer
from jaxinterp.loading.sharding import shardings
from jaxinterp.model import Model, shapes
from jaxinterp.model.params import check_model
from jaxinterp.reading import UNPACKED, UNPACKED_LEAST, LoadError, regular_folder

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

DESCRIPTION = "jaxinterp.json"
_FORMAT = 1
_DTYPES = "float64|float32|float16|bfloat16"


def save(
    path: str | os.PathLike[str],
    model: Model,
    tokenizer: Tokenizer | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder that `load` reads back bit for bit.

    The folder appears whole or not at all. Checksums of the arrays are written with them, except
    for a model that is split over several hosts, of which none has all.

    Raises ``FileExistsError`` if there is something at ``path``, unless ``overwrite``.
    """
    import orbax.checkpoint as ocp

    check_model(model)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "name": model.name,
        "revision": model.revision,
        "config": model.config.to_dict(),
        "shapes": _shapes(model.params),
        "sums": _sums(model.params),
    }
    with whole_folder(path, overwrite=overwrite) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "params", model.params)
        if tokenizer is not None:
            tokenizer.save(folder)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
    return Path(path).absolute()


def load_checkpoint(path: Path, dtype: Any, mesh: Any) -> tuple[Model, Tokenizer | None]:
    """Read a folder written by `save`, over ``mesh`` if one is given.

    The arrays are compared with their checksums, unless they are read in another dtype, over
    several hosts, or were written by several hosts or by a version that wrote no checksums.
    """
    import orbax.checkpoint as ocp

    path = path.absolute()
    description = read_json(path / DESCRIPTION)
    if description.get("format") != _FORMAT:
        raise LoadError(
            f"{path} has checkpoint format {description.get('format')!r}, expected {_FORMAT}: "
            "save it again with this version."
        )
    config = own_config(description.get("config"), path / DESCRIPTION)
    tree = shapes(config, dtype)
    wanted, stored = _shapes(tree), description.get("shapes")
    name, revision = description.get("name"), description.get("revision")
    if not (isinstance(stored, dict) and isinstance(name, str) and isinstance(revision, str)):
        raise LoadError(f"{path / DESCRIPTION} lacks shapes, a name or a revision: save it again.")
    for leaf in sorted(wanted | stored):
        if wanted.get(leaf) != stored.get(leaf):
            raise LoadError(
                f"{path} holds {leaf} of shape {stored.get(leaf)}, its config says "
                f"{wanted.get(leaf)}: the checkpoint was changed; save it again."
            )
    target = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        tree,
        shardings(tree, mesh),
    )
    claimed = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    try:
        if claimed > max(UNPACKED * regular_folder(path / "params"), UNPACKED_LEAST):
            raise ValueError(f"its files are too small for {claimed} numbers")
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(path / "params", target)
    except Exception as error:  # orbax raises many kinds
        reason = str(error).split("\n")[0][:300]
        raise LoadError(f"The arrays in {path / 'params'} cannot be read: {reason}") from error
    if mesh is None:  # orbax binds arrays to a device; free ones follow others to theirs
        params = jax.tree.map(np.asarray, params)
    if (kept := description.get("sums")) is not None:
        _check_sums(path, kept, params)
    if mesh is None:
        params = jax.tree.map(jax.device_put, params)
    model = Model(params, config, name=name, revision=revision)
    return model, read_tokenizer(path)


def _sums(params: Any) -> list[str] | None:
    """The checksums of all arrays, None where this host has a part of them only."""
    leaves = jax.tree.leaves(params)
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    return checksums(map(np.asarray, leaves))  # one at a time


def _check_sums(path: Path, kept: Any, params: Any) -> None:
    """Raise `LoadError` where arrays are others than those that were saved.

    kept: their checksums; of arrays that are read in another dtype they say nothing.
    """
    n = len(jax.tree.leaves(params))
    if not isinstance(kept, list) or len(kept) != n or not all(isinstance(s, str) for s in kept):
        raise LoadError(
            f"{path / DESCRIPTION} has sums that are not the checksums of {n} arrays: save the "
            "checkpoint again."
        )
    found = _sums(params)
    for one, other in zip(kept, kept if found is None else found, strict=True):
        dtype, _, rest = other.partition(" ")
        shape = re.escape(rest.rpartition(" ")[0])
        stored = re.fullmatch(rf"({_DTYPES}) {shape} [0-9a-f]{{8}}", one)
        if not stored or (stored[1] == dtype and one != other):
            raise LoadError(
                f"The arrays in {path / 'params'} are not those that were saved: their checksums "
                "differ. Save it again."
            )


def _shapes(tree: Any) -> dict[str, list[int]]:
    """The shape of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(key.name for key in path): list(leaf.shape) for path, leaf in leaves}
