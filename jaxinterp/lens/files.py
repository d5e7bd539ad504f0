"""Lenses on disk: our own form (orbax), and the tuned-lens library's folder."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.files import whole_folder
from jaxinterp.lens.kinds import JacobianLens, TunedLens
from jaxinterp.loading.reading import read_json
from jaxinterp.loading.torch_file import read_torch, write_torch
from jaxinterp.reading import UNPACKED, UNPACKED_LEAST, LoadError, regular_folder

DESCRIPTION = "jaxinterp_lens.json"
KINDS: dict[str, Any] = {"TunedLens": TunedLens, "JacobianLens": JacobianLens}


def save(
    path: str | os.PathLike[str],
    lens: TunedLens | JacobianLens,
    *,
    form: Literal["orbax", "tuned-lens"] = "orbax",
    model_name: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a lens as a folder that `load` reads back; it appears whole or not at all.

    form: ``"tuned-lens"`` is that library's (config.json and params.pt), for a `TunedLens`.
    model_name: written down beside it. Raises ``FileExistsError`` if there is something at
    ``path`` already, unless ``overwrite``; ``ValueError`` for a form the lens does not have.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if form not in ("orbax", "tuned-lens") or (form != "orbax" and not isinstance(lens, TunedLens)):
        raise ValueError(
            f"form={form!r} for a {type(lens).__name__}: 'orbax' holds every lens that was "
            "fitted, 'tuned-lens' a TunedLens."
        )
    with whole_folder(path, overwrite=overwrite) as folder:
        if isinstance(lens, TunedLens) and form == "tuned-lens":
            _write_common(folder, lens, model_name)
            return path
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "arrays", dict(vars(lens)))
        described = {"kind": type(lens).__name__, "model": model_name}
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=2))
    return path


def load(path: str | os.PathLike[str]) -> TunedLens | JacobianLens:
    """Read a lens that `save` wrote, or a folder of the tuned-lens library.

    Raises ``FileNotFoundError``, and `LoadError` for a folder that is neither or is damaged.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    if (path / DESCRIPTION).is_file():
        return _load_own(path)
    if (path / "config.json").is_file() and (path / "params.pt").is_file():
        return _load_common(path)
    raise LoadError(f"{path} has neither {DESCRIPTION} nor config.json and params.pt: no lens.")


def _load_own(path: Path) -> TunedLens | JacobianLens:
    import orbax.checkpoint as ocp

    described = read_json(path / DESCRIPTION)
    kind = KINDS.get(str(described.get("kind")))
    if kind is None:
        raise LoadError(f"{path} holds a {described.get('kind')!r:.80}, expected {list(KINDS)}.")
    try:
        there = regular_folder(path / "arrays")
        with ocp.StandardCheckpointer() as checkpointer:
            held = checkpointer.metadata(path / "arrays").item_metadata.tree
            claimed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in held.values())
            if claimed > max(UNPACKED * there, UNPACKED_LEAST):
                raise ValueError(f"its arrays claim {claimed} bytes, its files have {there}")
            target = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in held.items()
            }
            arrays = checkpointer.restore(path / "arrays", target)
        return kind(**{name: jnp.asarray(np.asarray(a)) for name, a in arrays.items()})
    except Exception as error:  # orbax raises many kinds
        reason = str(error).split("\n")[0][:300]
        raise LoadError(f"The lens in {path} cannot be read: {reason}") from error


def _write_common(folder: Path, lens: TunedLens, model_name: str) -> None:
    """Its translators are torch's ``Linear``, of which the weight is [out, in]."""
    n_layers, width = lens.b.shape
    config = {
        "base_model_name_or_path": model_name, "d_model": width, "num_hidden_layers": n_layers,
        "bias": True, "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors: dict[str, np.ndarray] = {}
    for layer, (W, b) in enumerate(zip(np.asarray(lens.W), np.asarray(lens.b), strict=True)):
        tensors |= {f"{layer}.weight": W.T, f"{layer}.bias": b}
    write_torch(folder / "params.pt", tensors)


def _load_common(path: Path) -> TunedLens:
    config, tensors = read_json(path / "config.json"), read_torch(path / "params.pt")
    kind, n_layers = config.get("lens_type"), config.get("num_hidden_layers")
    width = config.get("d_model")
    if kind not in ("linear_tuned_lens", None) or not type(n_layers) is type(width) is int:
        raise LoadError(
            f"{path} is a {kind!r:.80} of {n_layers!r:.80} layers and width {width!r:.80}, "
            "expected a 'linear_tuned_lens'."
        )
    if not 0 < n_layers <= len(tensors) <= 2 * n_layers:
        raise LoadError(
            f"{path / 'params.pt'} has {len(tensors)} tensors, expected a weight and a bias for "
            f"each of {n_layers} layers."
        )
    names = [f"{layer}.{what}" for layer in range(n_layers) for what in ("weight", "bias")]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise LoadError(f"{path / 'params.pt'} lacks {missing[0]} (and {len(missing) - 1} more).")
    shapes = {tensors[name].shape for name in names[::2]}, {tensors[n].shape for n in names[1::2]}
    if shapes != ({(width, width)}, {(width,)}):
        raise LoadError(f"{path / 'params.pt'} has tensors of {shapes}, expected d_model={width}.")
    W = np.stack([tensors[name].T for name in names[::2]]).astype(np.float32)
    b = np.stack([tensors[name] for name in names[1::2]]).astype(np.float32)
    if not np.isfinite(W).all() or not np.isfinite(b).all():
        raise LoadError(f"{path / 'params.pt'} has values that are not finite.")
    return TunedLens(jnp.asarray(W), jnp.asarray(b))
