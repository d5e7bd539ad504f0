"""PyTorch's files of tensors by name (``torch.save`` of a state dict), without PyTorch.

A zip archive: ``data.pkl`` says which tensor lies in which storage (`torch_pickle`), the storages
lie beside it, uncompressed.
"""

from __future__ import annotations

import collections
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxinterp.files import whole
from jaxinterp.loading.torch_pickle import MOST_BYTES, Storage, Tensor, described
from jaxinterp.reading import LoadError, opened_archive, regular_file

_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_STORAGES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_KIND = "a whole PyTorch file of tensors"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before 1.6
_REPEATED = 1 << 20  # elements that a tensor may have beyond its storage, by strides of 0
_DEEP, _MANY = 32, 200_000  # levels of names, and values under them
_LONGEST = 1000  # characters of a name


class TorchFile:
    """The tensors of one file: where they lie, and one storage at a time.

    Raises ``FileNotFoundError``, and `LoadError` for a file that is damaged, not PyTorch's zip
    format, holds anything but tensors and plain values (which are left out), or a tensor that
    reaches beyond its storage.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = regular_file(path)
        self.label = str(path)
        with self.path.open("rb") as stream:
            if stream.read(len(_OLD)) == _OLD:
                raise LoadError(
                    f"{path} has the form that PyTorch wrote before version 1.6, which is not read "
                    "here: load it in PyTorch and save it again with torch.save."
                )
        with opened_archive(path, _KIND) as archive:
            members = {member.filename: member for member in archive.infolist()}
            (pickled,) = (name for name in members if name.endswith("/data.pkl"))
            self._folder = pickled.removesuffix("data.pkl")
            if members[pickled].file_size > MOST_BYTES:
                raise ValueError(f"{pickled} has more than {MOST_BYTES} bytes")
            if (order := self._folder + "byteorder") in members:
                _check_order(archive, members[order])
            self._at: dict[str, Tensor] = {}
            _flatten(described(archive.read(pickled)), "", self._at, [0])
            for name, tensor in self._at.items():
                _check(name, tensor, members.get(self._member(tensor.storage)))
        uses = collections.Counter(self._member(tensor.storage) for tensor in self._at.values())
        self._shared = {member for member, number in uses.items() if number > 1}
        self._held: dict[str, bytes] = {}  # the shared storage that was read last

    def names(self) -> Iterable[str]:
        """Of the tensors, nested mappings' names joined by dots."""
        return self._at.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return self._at[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor, read-only. Raises `LoadError` where its bytes are damaged.

        A storage that several tensors share is kept until another one is read.
        """
        tensor = self._at[name]
        member = self._member(tensor.storage)
        if member in self._held:
            return _view(tensor, self._held[member])
        self._held = {}
        with opened_archive(self.path, _KIND) as archive:
            data = archive.read(member)
        if member in self._shared:
            self._held = {member: data}
        return _view(tensor, data)

    def read_all(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Some or all tensors by name; tensors of one storage share its memory, read-only."""
        held: dict[str, bytes] = {}
        out = {}
        with opened_archive(self.path, _KIND) as archive:
            for name in self.names() if names is None else names:
                tensor = self._at[name]
                member = self._member(tensor.storage)
                if member not in held:
                    held[member] = archive.read(member)
                out[name] = _view(tensor, held[member])
        return out

    def _member(self, storage: Storage) -> str:
        return f"{self._folder}data/{storage.key}"


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file, by name, read-only; nested mappings' names are joined by dots.

    Raises ``FileNotFoundError`` and `LoadError` as `TorchFile` does.
    """
    return TorchFile(path).read_all()


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


def _check_order(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as stream:
        order = stream.read(16)
    if order != b"little":
        raise ValueError(f"its bytes are in {order!r} order, expected b'little'")


def _check(name: str, tensor: Tensor, member: zipfile.ZipInfo | None) -> None:
    """Raises ``ValueError`` for a tensor that is not within the bytes of its storage."""
    storage, offset, shape, strides = tensor
    if storage.kind not in _DTYPES:
        raise ValueError(f"{name} is a torch.{storage.kind}, expected one of {', '.join(_DTYPES)}")
    if member is None:
        raise ValueError(f"it lacks the storage {storage.key} of {name}")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"storage {storage.key} is compressed, which torch.save never does")
    held, rest = divmod(member.file_size, np.dtype(_DTYPES[storage.kind]).itemsize)
    if held != storage.size or rest:
        raise ValueError(f"storage {storage.key} has {held} values, expected {storage.size}")
    if len(shape) != len(strides) or len(shape) > 32:
        raise ValueError(f"{name} has {len(shape)} sizes and {len(strides)} strides")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size and last >= storage.size:
        raise ValueError(f"{name} {list(shape)} reaches beyond its storage of {storage.size}")
    if max(size, math.prod(n for n in shape if n)) > max(storage.size, _REPEATED):
        raise ValueError(f"{name} {list(shape)} repeats the {storage.size} values of its storage")


def _view(tensor: Tensor, data: bytes) -> np.ndarray:
    """The tensor as a view of its storage's bytes, which `_check` has compared with it."""
    dtype = np.dtype(_DTYPES[tensor.storage.kind])
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    flat = np.frombuffer(data, dtype)[tensor.offset :]
    step = [
        s * dtype.itemsize if n > 1 else 0
        for n, s in zip(tensor.shape, tensor.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, step, writeable=False)


def _flatten(node: Any, name: str, into: dict[str, Tensor], seen: list[int], deep: int = 0) -> None:
    """The tensors under a value by their names. seen: how many values there were so far."""
    seen[0] += 1
    if deep > _DEEP or seen[0] > _MANY or len(name) > _LONGEST:
        raise ValueError(
            f"it has more than {_DEEP} levels of names, {_MANY} values, or {_LONGEST} letters in "
            "a name"
        )
    if isinstance(node, Tensor):
        if name in into:
            raise ValueError(f"it holds two tensors {name!r:.80}")
        into[name] = node
    elif isinstance(node, dict):
        for key, value in node.items():
            _flatten(value, f"{name}.{key}" if name else str(key), into, seen, deep + 1)


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
