"""Reading GGUF files: metadata as plain values, tensors mapped one at a time.

The gguf package dequantises. Its reader keeps several arrays for every string, which
takes it 20 s for a vocabulary of 262,144 tokens where this takes a fraction of one.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.reading import LoadError

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_STEP = 1 << 24  # bytes of header read at a time


class GgufFile:
    """One GGUF file. ``metadata`` holds its keys; `read` gives a tensor as floats."""

    def __init__(self, file: Path):
        self.label, self._file = str(file), file
        self.metadata: dict[str, Any] = {}
        self._at: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
        with file.open("rb") as stream:
            magic = stream.read(4)
            if magic != b"GGUF":
                raise LoadError(
                    f"{file} is no GGUF file: it starts with {magic!r}, expected b'GGUF'."
                )
            try:
                self._parse(_Header(stream))
            except (EOFError, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
                raise LoadError(
                    f"{file} is truncated or corrupted ({error}). Download it again."
                ) from error

    def names(self) -> Iterable[str]:
        """The tensors that hold parameters (rotary factors belong to the config)."""
        return [name for name in self._at if not name.startswith("rope_")]

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor of that name."""
        return name in self._at

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised; its memory is released with the last reference."""
        from gguf import GGMLQuantizationType as Kind
        from gguf.quants import dequantize

        kind, shape, offset, size = self._at[name]
        raw = np.memmap(self._file, np.uint8, "r", offset, (size,)).view(np.ndarray)
        if kind == Kind.F32:
            return raw.view(np.float32).reshape(shape)
        try:
            return dequantize(raw.reshape(*shape[:-1], -1), Kind(kind)).reshape(shape)
        except (NotImplementedError, ValueError) as error:
            raise LoadError(
                f"Tensor {name!r} of {self.label} is stored as {Kind(kind).name}, which cannot "
                f"be dequantised ({error}): take a file of kind Q4_K_M, Q8_0 or F16."
            ) from error

    def _parse(self, header: _Header) -> None:
        version = header.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        n_tensors, n_keys = header.scalar("Q"), header.scalar("Q")
        for _ in range(n_keys):
            key = header.string()
            self.metadata[key] = header.value(header.scalar("I"))
        found = []
        for _ in range(n_tensors):
            name, rank = header.string(), header.scalar("I")
            shape = tuple(reversed(header.scalars("Q", rank)))
            found.append((name, shape, header.scalar("I"), header.scalar("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-header.at // alignment) * alignment
        for name, shape, kind, offset in found:
            self._at[name] = (kind, shape, start + offset, self._bytes(name, kind, shape))
        end = max((offset + size for _, _, offset, size in self._at.values()), default=0)
        if end > self._file.stat().st_size:
            raise EOFError(f"{self._file.stat().st_size} bytes, its header says {end}")

    def _bytes(self, name: str, kind: int, shape: tuple[int, ...]) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError as error:
            raise ValueError(f"tensor {name} is of unknown kind {kind}") from error
        if shape[-1] % block:
            raise ValueError(f"rows of {name} are {shape[-1]} long, no multiple of {block}")
        return math.prod(shape) // block * size


class _Header:
    """A cursor over the file's first part, read in large steps."""

    def __init__(self, stream: Any):
        self._stream, self._base, self._read = stream, stream.tell(), b""
        self._next = 0

    @property
    def at(self) -> int:
        """Bytes from the file's start."""
        return self._base + self._next

    def take(self, size: int) -> bytes:
        if self._next + size > len(self._read):
            rest = self._read[self._next :]
            self._base, self._next = self.at, 0
            self._read = rest + self._stream.read(max(_STEP, size - len(rest)))
            if size > len(self._read):
                raise EOFError(f"it ends at byte {self._base + len(self._read)}, within its header")
        self._next += size
        return self._read[self._next - size : self._next]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            return list(self.scalars(_SCALARS[inner], count))
        return [self.value(inner) for _ in range(count)]
