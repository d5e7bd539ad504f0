"""Loading and saving models: the hub, safetensors, GGUF, our own checkpoints, shipped ones."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxinterp.loading.checkpoint import DESCRIPTION, load_checkpoint, save
from jaxinterp.loading.folder import download, load_folder
from jaxinterp.loading.registry import BUILT_IN, fetch
from jaxinterp.loading.registry import models as built_in
from jaxinterp.loading.sharding import auto, shardings
from jaxinterp.loading.shipped import (
    Card,
    attach,
    attached,
    card,
    find,
    load_shipped,
    ship,
    weights_folder,
)
from jaxinterp.loading.shipped import shipped as shipped_names
from jaxinterp.loading.weights import refuse_adapters
from jaxinterp.model import Model
from jaxinterp.reading import LoadError, looked_up, regular_file

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

__all__ = [
    "Card", "LoadError", "attach", "attached", "auto", "card", "fetch", "load", "models", "save",
    "shardings", "ship", "weights_folder",
]  # fmt: skip


def models() -> dict[str, str]:
    """The built-in and the shipped names, each with what it is, its size and its licence."""
    found = built_in()
    for name in shipped_names():
        its, files = card(name), (weights_folder() / name).iterdir()
        size = sum(file.stat().st_size for file in files)
        found[name] = f"{its.description}; {size / 1e6:.1f} MB; {its.licence}"
    return found


def load(
    name: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
    ignore_keys: Collection[str] = (),
) -> tuple[Model, Tokenizer | None]:
    """A model and its tokenizer (None where the files hold none).

    name: a built-in or shipped name (see `models`), a folder in Hugging Face layout, a ``.gguf``
    file, a folder written by `save` or `ship`, or a hub id such as ``"EleutherAI/pythia-70m"``.
    dtype: of the parameters. mesh: where they are laid out, split over its axis "model".
    revision: a branch, tag or commit of the hub; ``"step-<n>"`` of a shipped model, as it was
    after n steps of training (`card` lists which are kept). ignore_keys: unknown keys of
    config.json to pass over, which are refused otherwise, since they may change the computation;
    a key that is known, or that the file does not hold, is refused here.

    ``model.revision`` is the hub's commit, or the SHA-256 of the weight files. Raises
    `LoadError` for anything unknown, missing, corrupted or unsupported.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise LoadError(f"dtype={dtype!r} is no floating-point type: expected e.g. jnp.float32.")
    ignore_keys = (ignore_keys,) if isinstance(ignore_keys, str) else tuple(ignore_keys)
    if (folder := find(name)) is not None:
        _no_keys(ignore_keys, folder)
        return load_shipped(folder, dtype, mesh, revision)
    path, label, commit = _locate(os.fspath(name), revision)
    if path.is_file() or (path / DESCRIPTION).exists():
        _no_keys(ignore_keys, path)
    if path.is_file():
        from jaxinterp.loading.gguf import load_gguf

        return load_gguf(path, dtype, mesh, label, commit)
    if (path / DESCRIPTION).exists():
        return load_checkpoint(path, dtype, mesh)
    return load_folder(path, dtype, mesh, label, commit, ignore_keys)


def _no_keys(ignore_keys: Collection[str], path: Path) -> None:
    if ignore_keys:
        raise LoadError(
            f"ignore_keys={tuple(ignore_keys)!r} applies to folders with config.json; {path} is "
            "read without one."
        )


def _locate(name: str, revision: str | None) -> tuple[Path, str, str | None]:
    """Where the files are, what the model is called, and its revision if it is known."""
    path, there = looked_up(name)
    local = there or name.startswith((".", "/", "~")) or name.endswith(".gguf")
    if revision is not None and (local or name in BUILT_IN):
        raise LoadError(f"revision={revision!r} applies to hub ids only; {name!r} is not one.")
    if name in BUILT_IN:
        return fetch(name), name, BUILT_IN[name].files[0].sha256  # the first holds the weights
    if not local:
        folder, commit = download(name, revision)
        return folder, name, commit
    if not there:
        raise LoadError(f"{path} does not exist: expected a model folder or a .gguf file.")
    if not path.is_dir():
        regular_file(path)
    if path.is_file() and path.suffix != ".gguf":
        raise LoadError(
            f"{path} is a {path.suffix or 'nameless'} file: give a .gguf file, or the folder "
            "that holds config.json and the weights."
        )
    if path.is_dir() and not (path / DESCRIPTION).exists():
        refuse_adapters(path)  # also one that lies there alone
    if path.is_dir() and not any((path / f).exists() for f in (DESCRIPTION, "config.json")):
        raise LoadError(f"{path} holds neither config.json nor {DESCRIPTION}: it is no model.")
    return path, path.absolute().stem if path.is_file() else path.absolute().name, None
