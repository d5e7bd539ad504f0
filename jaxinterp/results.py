"""Results: labelled arrays that carry the record of what was done, on disk too."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.files import mark, marked, tidy, whole, writable_folder
from jaxinterp.hdf5 import check_hdf5, sealed
from jaxinterp.model import Model
from jaxinterp.numerics import wide
from jaxinterp.reading import LoadError, damage_refused
from jaxinterp.version import __version__

if TYPE_CHECKING:  # xarray brings pandas: too heavy for `import jaxinterp`
    import xarray as xr

__all__ = ["claim", "load", "save", "share"]


_MARK = "jaxinterp_result"  # an attribute of files that hold a Dataset


def claim(model: Model, **fields: Any) -> dict[str, Any]:
    """The record of a causal result: enough to run it again.

    Values are numbers, strings, or (nested ones) JSON, so that they survive any file format.
    """
    record = {
        "model": model.name,
        "revision": model.revision,
        "weights": weights_digest(model),
        "family": model.config.family,
        "config": model.config.to_dict(),
        "dtype": str(model.params.embed.W_E.dtype),
        "precision": model.config.precision,
        "jaxinterp": __version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        **fields,
    }
    return {name: _plain(value) for name, value in record.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return json.dumps(value, default=_encode)


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def share(result: xr.DataArray, prompts: str = "mean") -> xr.DataArray:
    """The share of the effect: 0 = as corrupted, 1 = as clean.

    ``prompts="mean"`` gives the ratio of means over prompts (what papers report);
    ``"each"`` gives every prompt its own ratio. NaN where clean and corrupted agree.

    Returns the result's dims, for the mean without ``prompt``. Raises ``ValueError`` for another
    word.
    """
    if prompts not in ("mean", "each"):
        raise ValueError(f"prompts is {prompts!r}, expected 'mean' or 'each'.")
    clean, corrupted, value = map(wide, (result.clean, result.corrupted, result))
    if prompts == "mean":
        clean, corrupted, value = clean.mean(), corrupted.mean(), value.mean("prompt")
    gap = clean - corrupted
    if not (gap != 0).any():
        warnings.warn(
            "The metric of clean and corrupted prompts is the same: there is no share, all is NaN. "
            "Are the prompts alike, or does the metric not tell them apart?",
            stacklevel=2,
        )
    out = (value - corrupted) / gap.where(gap != 0)
    return out.rename(f"{result.name}_share").assign_attrs(result.attrs)


def save(result: xr.DataArray | xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a result as NetCDF-4 (HDF5), coordinates, attributes and checksums included.

    Raises ``OSError`` as `jaxinterp.files.whole` does.
    """
    import xarray as xr

    if isinstance(result, xr.Dataset):
        dataset = result.assign_attrs({_MARK: "Dataset"})
    else:
        dataset = result.to_dataset(name=result.name or "value")
    summed = {
        name: {"fletcher32": True}
        for name, each in dataset.variables.items()
        if each.dtype.kind in "fiub" and each.size and each.ndim
    }
    # In memory: HDF5 shouts when a disk is full.
    made = dataset.to_netcdf(None, engine="h5netcdf", encoding=summed)
    with whole(path) as temporary:
        temporary.write_bytes(sealed(made))
    return Path(path)


def load(path: str | os.PathLike[str]) -> Any:
    """Read a result written by `save`, an ``xarray.DataArray`` or ``Dataset`` as it was.

    A file of another program is read as well, if it holds one array. Either is first looked at in
    a process of its own (`jaxinterp.hdf5`), which takes about half a second.

    Raises ``FileNotFoundError``, and `jaxinterp.loading.LoadError` when the file is not one, was
    changed, or is damaged.
    """
    import xarray as xr

    if not Path(path).exists():
        raise FileNotFoundError(f"There is no result file {path}.")
    what, remedy = "a complete result file", "Fetch it again, or run it again."
    with damage_refused(path, what, remedy):
        check_hdf5(path, what, remedy)
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
        if dataset.attrs.pop(_MARK, None):
            return dataset
        arrays = list(dataset.values())
        if len(arrays) != 1:
            raise LoadError(f"{path} holds {len(arrays)} arrays, a result file holds one.")
        return arrays[0]


def weights_digest(model: Model) -> str:
    """A hash of all parameters, bit for bit, computed where they lie: edited weights show."""
    leaves = jax.tree.leaves(model.params)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):  # NumPy arrays may change
        return fingerprint(np.asarray(_checksums(model.params)))
    key = tuple(map(id, leaves))
    known, digest = _DIGESTS.get(key, ((), ""))
    if not known or any(ref() is not leaf for ref, leaf in zip(known, leaves, strict=True)):
        digest = fingerprint(np.asarray(_checksums(model.params)))
        _DIGESTS[key] = tuple(map(weakref.ref, leaves)), digest
    return digest


_DIGESTS: dict[tuple[int, ...], tuple[tuple[Any, ...], str]] = {}


@jax.jit
def _checksums(params: Any) -> jax.Array:
    """A position-weighted sum of each leaf's bits, modulo 2^32: uint32 [leaf]."""

    def one(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        words = bits.reshape(-1).astype(jnp.uint32)  # of float64 the lower half, which varies
        weights = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
        return (words * weights).sum(dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in jax.tree.leaves(params)])


def fingerprint(*parts: Any) -> str:
    """A short hash of arrays and JSON-able values: tells one run from another."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        if isinstance(leaf, (np.ndarray, jax.Array)):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]


PIECES = "[0-9a-f]" * 16 + "-[0-9]*.npz"  # the names of `Parts`


class Parts:
    """Finished pieces of a long run, kept in a folder so that a killed run resumes.

    The folder is the caller's to `jaxinterp.files.discard` when the run is done. Pieces of another
    run (a different ``key``) or of another version in it are not taken for ours; nor is one whose
    checksum (a zip file has one) tells that it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str):
        self.folder, self.key = writable_folder(folder), fingerprint(key, __version__)
        tidy(self.folder)
        if marked(self.folder) is None:
            mark(self.folder, [], [PIECES])

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.key}-{index:05d}.npz"

    def get(self, index: int) -> np.ndarray | None:
        """A finished piece, or None."""
        try:
            with open(self._path(index), "rb") as file, np.load(file) as found:
                return np.asarray(found["piece"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def put(self, index: int, value: np.ndarray) -> None:
        """Keep a finished piece."""
        with whole(self._path(index)) as temporary:
            np.savez(temporary, piece=value)
