"""Ways to damage a file, by accident or on purpose, each drawn with a seeded generator."""

from __future__ import annotations

import io
import json
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator
NUMBERS = [
    0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    10**9, 10**30, 0.5, -0.5, 1e300, 1e999, float("nan"), -0.0,
]  # fmt: skip
SWAPS: list[Any] = [
    None, True, False, "", "x", "../../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "é" * 50_000,
    [], {}, [[]], {"a": {}}, [0] * 2000, 3, -1, 1.5,
]  # fmt: skip


def pick(rng: Rng, options: list[Any]) -> Any:
    """One of some options."""
    return options[int(rng.integers(len(options)))]


# Bytes --------------------------------------------------------------------------------------------


def of_bytes(data: bytes, rng: Rng) -> bytes:
    """Bits turned, pieces lost, repeated or added, numbers of 4 or 8 bytes put in place."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(max(1, len(out))))
        kind = pick(rng, ["flip", "flip", "flip", "byte", "number", "cut", "end", "add", "zero"])
        if kind == "flip" and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == "byte" and out:
            out[at] = int(rng.integers(256))
        elif kind == "number":
            size = pick(rng, [4, 8])
            value = int(pick(rng, [n for n in NUMBERS if isinstance(n, int)])) % 2 ** (8 * size)
            out[at : at + size] = value.to_bytes(size, "little")
        elif kind == "cut":
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == "end":
            del out[at:]
        elif kind == "add":
            out[at:at] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == "zero":
            out[at : at + 16] = bytes(len(out[at : at + 16]))
    return bytes(out)


# JSON ---------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        if isinstance(node, (dict, list)):
            for key, child in pairs:
                found.append((node, key))
                if isinstance(child, (dict, list)):
                    waiting.append(child)
    return found


def of_value(value: Any, rng: Rng) -> Any:
    """Numbers put in place of others, kinds exchanged, keys taken out, lists made longer."""
    for _ in range(int(rng.integers(1, 3))):
        places = _places(value)
        if not places:
            return pick(rng, SWAPS)
        node, key = places[int(rng.integers(len(places)))]
        kind = pick(rng, ["number", "number", "swap", "swap", "drop", "near", "turn", "double"])
        old = node[key]
        if kind == "number":
            node[key] = pick(rng, NUMBERS)
        elif kind == "swap":
            node[key] = pick(rng, SWAPS)
        elif kind == "drop":
            del node[key]
        elif kind == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
            node[key] = old + pick(rng, [1, -1, 2, old, -old])
        elif kind == "turn" and isinstance(old, list):
            node[key] = old[::-1]
        elif kind == "double" and isinstance(old, (list, str)):
            node[key] = old + old
    return value


def of_json(data: bytes, rng: Rng) -> bytes:
    """JSON of other values; text that is none, has a name twice, or is nested too deep."""
    kind = int(rng.integers(10))
    if kind == 0:
        return of_bytes(data, rng)
    if kind == 1:
        deep = pick(rng, [150, 5_000, 200_000])
        return pick(rng, [b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep])
    if kind == 2 and data.lstrip().startswith(b"{"):
        names = list(json.loads(data)) or ["a"]
        twice = json.dumps({pick(rng, names): pick(rng, SWAPS)})[1:-1].encode()
        return data.rstrip()[:-1] + b", " + twice + b"}"
    return json.dumps(of_value(json.loads(data), rng)).encode()


# Formats of their own -----------------------------------------------------------------------------


def of_safetensors(data: bytes, rng: Rng) -> bytes:
    """Another header, of the length that it says; or bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = of_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def of_gguf(data: bytes, rng: Rng) -> bytes:
    """Numbers in the header, where most of what matters stands; or bytes."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    out, limit = bytearray(data), min(len(data) - 8, 6000)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(4, limit))
        size = pick(rng, [1, 4, 8])
        value = int(pick(rng, [n for n in NUMBERS if isinstance(n, int)])) % 2 ** (8 * size)
        out[at : at + size] = value.to_bytes(size, "little")
    return bytes(out)


def _zipped(members: dict[str, bytes], rng: Rng) -> bytes:
    """An archive of these parts, now and then compressed, or with one of them twice."""
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _of_pickle(program: bytes, rng: Rng) -> bytes:
    """Other numbers in a pickle, or other steps."""
    if rng.random() < 0.3:
        return of_bytes(program, rng)
    steps = list(pickletools.genops(program))
    ends = [at for _, _, at in steps[1:]] + [len(program)]
    numbers = [i for i, (step, value, _) in enumerate(steps) if type(value) is int and i]
    chosen = {pick(rng, numbers) for _ in range(int(rng.integers(1, 4)))}
    out = bytearray()
    for i, ((step, _, at), end) in enumerate(zip(steps, ends, strict=True)):
        if i in chosen and step.name in ("BININT", "BININT1", "BININT2", "LONG1"):
            new = int(pick(rng, [0, -1, 1, 2, 3, 5, 24, 2**20, 2**31, 2**40, 2**62, -24]))
            coded = new.to_bytes(16, "little", signed=True)
            out += b"\x8a" + bytes([len(coded)]) + coded
        elif rng.random() < 0.003:
            out += pick(rng, [b"b", b"R", b"0", b"2", b"}", b"]", b"t", b"(", b"s", b"Q"])
        else:
            out += program[at:end]
    return bytes(out)


def of_torch(data: bytes, rng: Rng) -> bytes:
    """Other sizes and strides in the pickle, storages of other lengths; or bytes."""
    if rng.random() < 0.25:
        return of_bytes(data, rng)
    members = _unzipped(data)
    name = next(n for n in members if n.endswith("data.pkl"))
    if rng.random() < 0.15:
        name = pick(rng, list(members))
        members[name] = of_bytes(members[name], rng)
    else:
        members[name] = _of_pickle(members[name], rng)
    return _zipped(members, rng)


def of_npz(data: bytes, rng: Rng) -> bytes:
    """Other shapes, dtypes and orders in an array's header; or bytes."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    members = _unzipped(data)
    name = pick(rng, list(members))
    array = members[name]
    length = struct.unpack("<H", array[8:10])[0]
    header = array[10 : 10 + length].decode("latin1")
    changes = [
        ("<f4", pick(rng, ["<f8", "|O", "<U4000000", "V1", "<i8", ">f4", "<f2", "(2,)f4"])),
        ("<f8", pick(rng, ["<f4", "|O", "<c16", "<M8[s]"])),
        ("(", pick(rng, ["(-1, ", "(1000000000, ", "(0, ", "(1, ", "(2, ", "("])),
        (")", pick(rng, [", 99999999999)", ", -2)", ", 1)", ")", ", 'a')"])),
        ("False", pick(rng, ["True", "None", "1"])), ("descr", "other"), ("}", "}}"),
    ]  # fmt: skip
    for old, new in [pick(rng, changes) for _ in range(int(rng.integers(1, 3)))]:
        header = header.replace(old, new, 1)
    coded = header.encode("latin1")
    members[name] = array[:8] + struct.pack("<H", len(coded)) + coded + array[10 + length :]
    return _zipped(members, rng)


KINDS: dict[str, Callable[[bytes, Rng], bytes]] = {
    "bytes": of_bytes, "json": of_json, "safetensors": of_safetensors, "gguf": of_gguf,
    "torch": of_torch, "npz": of_npz,
}  # fmt: skip


def of_file(path: Path, kind: str, rng: Rng) -> str:
    """Damage one file. Returns in a word what was done to it."""
    if rng.random() < 0.06:
        kind = pick(rng, ["removed", "emptied", "pipe", "folder", "endless"])
        path.unlink()
        if kind == "emptied":
            path.touch()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "endless":
            path.symlink_to("/dev/zero")
        return kind
    data = path.read_bytes()
    changed = KINDS[kind](data, rng)
    path.write_bytes(changed)
    return "unchanged" if changed == data else kind
