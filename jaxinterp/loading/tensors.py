"""Tensors of safetensors files, each mapped into memory only while it is read."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from jaxinterp.reading import JSON_BYTES, LoadError, damage_refused, parse_json, regular_file

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
_AGAIN = "Download it again."


class Tensors(Protocol):
    """A checkpoint's tensors by name."""

    label: str

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, as the file says before it is read."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, as floats; its memory is released with the last reference."""


class Safetensors:
    """The tensors of one or several ``.safetensors`` files.

    The safetensors library maps a whole file, whose pages then count twice beside the
    parameters; here each tensor is a mapping of its own that ends when it was copied.
    """

    def __init__(self, files: Iterable[Path], label: str):
        self.label = label
        self._at: dict[str, tuple[Path, str, list[int], int]] = {}
        for file in files:
            for name, entry in _header(file).items():
                if name in self._at:
                    raise LoadError(f"{file} and {self._at[name][0]} both hold {name!r}. {_AGAIN}")
                self._at[name] = entry

    def names(self) -> Iterable[str]:
        return self._at.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return tuple(self._at[name][2])

    def read(self, name: str) -> np.ndarray:
        file, dtype, shape, offset = self._at[name]
        if dtype not in _DTYPES:
            raise LoadError(
                f"Tensor {name!r} of {self.label} is stored as {dtype}, expected one of "
                f"{', '.join(_DTYPES)}: use the checkpoint that is not quantised."
            )
        if 0 in shape:
            return np.empty(shape, _DTYPES[dtype])
        with damage_refused(file, "a whole safetensors file", _AGAIN):  # it may have shrunk
            return np.memmap(file, _DTYPES[dtype], "r", offset, tuple(shape)).view(np.ndarray)


def _header(file: Path) -> dict[str, tuple[Path, str, list[int], int]]:
    """Where each tensor of one file lies: (file, dtype, shape, offset).

    Raises `LoadError` for whatever the safetensors library refuses.
    """
    size = regular_file(file).stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, JSON_BYTES):
            raise LoadError(f"{file} ({size} bytes) is truncated or no safetensors file. {_AGAIN}")
        entries = parse_json(stream.read(length), f"The header of {file} is corrupted: it")
    try:
        entries.pop("__metadata__", None)
        found, end = {}, 8 + length
        for name, entry in entries.items():
            dtype, shape = entry["dtype"], entry["shape"]
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = (file, dtype, shape, start)
            end = max(end, stop)
            known = np.dtype(_DTYPES[dtype]).itemsize if dtype in _DTYPES else None
            if known and stop - start != known * math.prod(shape):
                raise ValueError(f"{name} has {stop - start} bytes for {dtype}{shape}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"The header of {file} is corrupted ({error}). {_AGAIN}") from error
    if end != size:
        raise LoadError(f"{file} has {size} bytes where its header says {end}. {_AGAIN}")
    _check_by_library(file)
    return found


def _check_by_library(file: Path) -> None:
    """The library's own reader finds gaps, overlaps, and numbers that are no sizes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(f"The header of {file} is corrupted ({error}). {_AGAIN}") from error
