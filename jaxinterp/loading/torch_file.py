"""PyTorch's files of tensors by name (``torch.save`` of a state dict), without PyTorch.

A zip archive: ``data.pkl`` says which tensor lies in which storage, the storages lie beside it.
Unpickling runs no code of the file's: only what rebuilds a tensor is known.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxinterp.files import whole
from jaxinterp.reading import LoadError

_DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_STORAGES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file, by name; nested mappings' names are joined by dots.

    Raises ``FileNotFoundError``, and `LoadError` for a file that is damaged, not PyTorch's zip
    format, or holds anything but tensors and plain values (which are left out).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = _Tensors(archive, pickled.removesuffix("data.pkl")).load()
    except LoadError:
        raise
    except Exception as error:  # damaged pickles raise many kinds
        raise LoadError(f"{path} is not a whole PyTorch file of tensors: {error!r}.") from error
    flat: dict[str, np.ndarray] = {}
    _flatten(found, "", flat)
    return flat


def write_torch(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> Path:
    """Write tensors by name so that ``torch.load`` reads a dict; whole or not at all."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in _STORAGES:
            raise ValueError(f"{name} is {array.dtype}: PyTorch files hold {list(_DTYPES)}.")
    with whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(arrays))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(arrays.values()):
            little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            archive.writestr(f"archive/data/{number}", little.tobytes())
        archive.writestr("archive/version", "3\n")
    return Path(path)


class _Tensors(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise LoadError(f"The file's bytes are in {order!r} order, expected b'little'.")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *ignored: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        raise LoadError(f"The file holds a {module}.{name}, expected tensors only.")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, size = pid
        if kind != "storage":
            raise LoadError(f"The file refers to a {kind!r}, expected storages only.")
        found = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype)
        if len(found) != size:
            raise LoadError(f"Storage {key} has {len(found)} values, expected {size}.")
        return found


def _rebuild(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
    *ignored: Any,
) -> np.ndarray:  # fmt: skip
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and not 0 <= offset <= last < len(storage):
        raise LoadError(f"A tensor {list(shape)} reaches beyond its storage of {len(storage)}.")
    step = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, step).copy()


def _flatten(node: Any, name: str, into: dict[str, np.ndarray]) -> None:
    if isinstance(node, np.ndarray):
        into[name] = node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            _flatten(value, f"{name}.{key}" if name else str(key), into)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What ``torch.save`` pickles for a dict of contiguous tensors, in protocol 2."""
    out = bytearray(b"\x80\x02}(")
    for number, (name, array) in enumerate(arrays.items()):
        strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides]
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += _text("storage") + f"ctorch\n{_STORAGES[array.dtype]}\n".encode()
        out += _text(str(number)) + _text("cpu") + _int(array.size) + b"tQ"
        out += _int(0) + b"(" + b"".join(map(_int, array.shape)) + b"t"
        out += b"(" + b"".join(map(_int, strides)) + b"t\x89ccollections\nOrderedDict\n)RtR"
    return bytes(out + b"u.")


def _text(value: str) -> bytes:
    coded = value.encode("utf-8")
    return b"X" + len(coded).to_bytes(4, "little") + coded


def _int(value: int) -> bytes:
    coded = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + coded  # LONG1
