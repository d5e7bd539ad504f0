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

from jaxinterp.reading import LoadError, damage_refused, regular_file

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
_LENGTH = struct.Struct("<Q")
_STEP = 1 << 24  # bytes of header read at a time
HEADER = 64 << 20  # bytes of it at most: the values in it take about eight times as much memory
_NESTED = 4  # arrays within arrays
_RANK = 4  # axes of a tensor, as in ggml
_ALIGNMENT = 1 << 16  # the largest that tensors may have


class GgufFile:
    """One GGUF file. ``metadata`` holds its keys; `read` gives a tensor as floats."""

    def __init__(self, file: Path):
        self.label, self._file = str(file), regular_file(file)
        self._size = file.stat().st_size
        self.metadata: dict[str, Any] = {}
        self._at: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
        with file.open("rb") as stream:
            magic = stream.read(4)
            if magic != b"GGUF":
                raise LoadError(
                    f"{file} is no GGUF file: it starts with {magic!r}, expected b'GGUF'."
                )
            try:
                self._parse(_Header(stream, self._size))
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, once it is dequantised."""
        return self._at[name][1]

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised; its memory is released with the last reference."""
        from gguf import GGMLQuantizationType as Kind
        from gguf.quants import dequantize

        kind, shape, offset, size = self._at[name]
        with damage_refused(self.label, "a whole GGUF file"):  # it may have shrunk meanwhile
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
        header.needs(n_tensors * 24 + n_keys * 13)  # the least that so many take
        for _ in range(n_keys):
            key = header.string()
            if key in self.metadata:
                raise ValueError(f"it gives {key!r:.80} twice")
            self.metadata[key] = header.value(header.scalar("I"))
        found = {}
        for _ in range(n_tensors):
            name, rank = header.string(), header.scalar("I")
            if name in found or not 1 <= rank <= _RANK:
                raise ValueError(f"tensor {name!r:.80} comes twice, or has {rank} axes")
            shape = tuple(reversed(header.scalars("Q", rank)))
            found[name] = (shape, header.scalar("I"), header.scalar("Q"))
        start = -(-header.at // self._alignment) * self._alignment
        for name, (shape, kind, offset) in found.items():
            self._at[name] = (kind, shape, start + offset, self._bytes(name, kind, shape))
        self._check_places()

    @property
    def _alignment(self) -> int:
        """To how many bytes the tensors' places are rounded."""
        said = self.metadata.get("general.alignment", 32)
        if type(said) is not int or not 0 < said <= _ALIGNMENT:
            raise ValueError(f"an alignment of {said!r:.40}, expected 1 to {_ALIGNMENT}")
        return said

    def _check_places(self) -> None:
        """Tensors lie within the file, and no two in one place."""
        end, last = 0, ""
        for name, (_, _, offset, size) in sorted(self._at.items(), key=lambda at: at[1][2]):
            if offset < end and size:
                raise ValueError(f"tensors {last!r:.80} and {name!r:.80} overlap")
            end, last = max(end, offset + size), name
        if end > self._size:
            raise EOFError(f"{self._size} bytes, its header says {end}")

    def _bytes(self, name: str, kind: int, shape: tuple[int, ...]) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError as error:
            raise ValueError(f"tensor {name} is of unknown kind {kind}") from error
        if min(shape) < 1:
            raise ValueError(f"tensor {name} has the shape {list(shape)}")
        if shape[-1] % block:
            raise ValueError(f"rows of {name} are {shape[-1]} long, no multiple of {block}")
        return math.prod(shape) // block * size


class _Header:
    """A cursor over the file's first part, read in large steps."""

    def __init__(self, stream: Any, size: int):
        self._stream, self._base, self._read = stream, stream.tell(), b""
        self._next, self._size = 0, size

    @property
    def at(self) -> int:
        """Bytes from the file's start."""
        return self._base + self._next

    def needs(self, size: int) -> None:
        """Raises ``EOFError`` where fewer bytes are left, ``ValueError`` for too long a header."""
        if size > self._size - self.at:
            raise EOFError(f"it ends at byte {self._size}, within its header")
        if self.at + size > HEADER:
            raise ValueError(f"its header has more than {HEADER} bytes")

    def take(self, size: int) -> bytes:
        self.needs(size)
        if self._next + size > len(self._read):
            rest = self._read[self._next :]
            self._base, self._next = self.at, 0
            self._read = rest + self._stream.read(max(_STEP, size - len(rest)))
            if size > len(self._read):
                raise EOFError(f"it ends at byte {self._base + len(self._read)}, within its header")
        self._next += size
        return self._read[self._next - size : self._next]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        size = count * struct.calcsize(f"<{code}")
        self.needs(size)
        return struct.unpack(f"<{count}{code}", self.take(size))

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def string(self) -> str:
        (size,) = _LENGTH.unpack(self.take(8))
        return self.take(size).decode("utf-8")

    def value(self, kind: int, nested: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"a value of the unknown kind {kind}")
            return self.scalar(_SCALARS[kind])
        if nested >= _NESTED:
            raise ValueError(f"arrays are nested more than {_NESTED} deep")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            return list(self.scalars(_SCALARS[inner], count))
        self.needs(count * 8)
        return [self.value(inner, nested + 1) for _ in range(count)]
