"""Files that others made: their kind, size and depth are checked before they are used."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

JSON_BYTES = 48 << 20  # of a JSON file at most; its values may take thirty times as much memory
OWN_JSON_BYTES = 1 << 30  # of one that only jaxinterp writes, such as a long run's history
JSON_DEPTH = 100  # how deep its objects and lists may be nested
NPZ_HEADER = 10_000  # bytes that say what an array of an npz file is
UNPACKED = 50  # times its own size that a compressed archive may unpack to,
UNPACKED_LEAST = 64 << 20  # or so many bytes, if that is more
MESSAGE = 1200  # letters of an error
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ENOMEM)
_NAME = 128  # letters of a part of a file's name
_STEP = 16 << 20  # bytes that are unpacked at a time


class LoadError(ValueError):
    """A file that cannot be used: names the file, what was expected and what to do.

    A file may hold any text: of a message that quotes too much, the middle is left out.
    """

    def __init__(self, message: str):
        if len(message) > MESSAGE:
            message = f"{message[: MESSAGE // 2]} ... {message[-MESSAGE // 4 :]}"
        super().__init__(message)


def regular_file(path: str | os.PathLike[str], most: int | None = None) -> Path:
    """The path of a regular file of at most ``most`` bytes.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for a folder, a pipe, a
    device, or a file that is larger.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # loops of links, names that no file can have
        raise LoadError(f"{path} cannot be looked at ({error}).") from error
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{path} is no regular file: expected a file with the data in it.")
    if most is not None and found.st_size > most:
        raise LoadError(f"{path} has {found.st_size} bytes, expected at most {most}.")
    return path


def looked_up(name: str) -> tuple[Path, bool]:
    """The path of a name, with ``~`` in full, and whether there is anything.

    Raises `LoadError` for a name that no file can have, and for the home of nobody.
    """
    try:
        path = Path(name).expanduser()
        return path, path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise LoadError(
            f"{name!r:.200} cannot be looked at ({str(error)[-200:]}): expected a path, or a name."
        ) from error


def regular_folder(path: str | os.PathLike[str]) -> int:
    """The bytes of all files below a folder, at whatever depth.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for a folder that holds pipes,
    devices, or links to folders: a library that reads all of it would hang or leave it.
    """
    path, size = Path(path), 0
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    for folder, folders, files in os.walk(path):
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise LoadError(f"{Path(folder) / name} is a link: expected a folder.")
        size += sum(regular_file(Path(folder) / name).stat().st_size for name in files)
    return size


def inside(folder: Path, name: Any) -> Path:
    """The path of the file ``name`` that a file in ``folder`` refers to.

    Raises `LoadError` for a name that leads out of the folder.
    """
    parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
    absolute = PurePosixPath(str(name)).is_absolute() or PureWindowsPath(str(name)).drive
    plain = isinstance(name, str) and name and name.isprintable() and "\0" not in name
    if not plain or absolute or ".." in parts or max(map(len, parts), default=0) > _NAME:
        raise LoadError(f"{folder} names the file {name!r:.200}, which is not inside it.")
    return folder / name


@contextlib.contextmanager
def damage_refused(path: Any, what: str, remedy: str = "Fetch it again.") -> Iterator[None]:
    """Whatever a library raises over the damaged file ``path`` becomes a `LoadError`.

    what: the file is expected to be, as "a PyTorch file". `LoadError` and ``FileNotFoundError``
    pass, and so does what is no fault of the file: ``PermissionError``, and running out of memory,
    of open files, of space, or a disk that fails.
    """
    try:
        yield
    except (LoadError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # parsers raise many kinds; Rust's panics are no Exception
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise LoadError(f"{path} is not {what}, or it is damaged ({reason}). {remedy}") from error


def parse_json(text: str | bytes, source: Any) -> Any:
    """What a JSON text holds; ``source`` says in errors where the text is from.

    Raises `LoadError` for text that is no JSON, nested deeper than `JSON_DEPTH`, or with two
    different values under one name.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            _check_repeated(pairs, found, source)
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise LoadError(f"{source} nests more than {JSON_DEPTH} levels of JSON.") from None
    except LoadError:
        raise
    except ValueError as error:  # also bytes that are no text
        raise LoadError(f"{source} is not valid JSON ({error}). Download it again.") from error
    level = [found]
    for _ in range(JSON_DEPTH):
        level = [x for each in level for x in _children(each)]
    if level:
        raise LoadError(f"{source} nests more than {JSON_DEPTH} levels of JSON.")
    return found


def _check_repeated(pairs: list[tuple[str, Any]], last: dict[str, Any], source: Any) -> None:
    """Raises `LoadError` where a name comes again with another value than its last."""
    counts = collections.Counter(name for name, _ in pairs)
    for name, value in pairs:
        if counts[name] > 1 and _form(value) != _form(last[name]):
            raise LoadError(
                f"{source} gives {name[:80]!r} two values, {value!r:.80} and {last[name]!r:.80}: "
                "remove the wrong one."
            )


def _form(value: Any) -> str:
    """The text of a JSON value, the same for equal values alone (1 is not true)."""
    return json.dumps(value, sort_keys=True)


def _children(value: Any) -> Iterable[Any]:
    """What an object or a list of JSON holds."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_json(path: str | os.PathLike[str], most: int = JSON_BYTES) -> Any:
    """What a JSON file of at most ``most`` bytes holds.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for anything that is no
    regular file, too large, or refused by `parse_json`.
    """
    return parse_json(regular_file(path, most).read_bytes(), path)


def read_json_object(path: str | os.PathLike[str], most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object of a file, as `read_json` reads it; `LoadError` if it holds another value."""
    found = read_json(path, most)
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds {type(found).__name__}, expected a JSON object.")
    return found


@contextlib.contextmanager
def opened_archive(path: str | os.PathLike[str], what: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive of which no name comes twice and which does not swell when it is unpacked.

    what: it is expected to be, for errors. Raises ``FileNotFoundError`` where there is none, and
    `LoadError` for anything else, also for what the block raises (`damage_refused`).
    """
    size = regular_file(path).stat().st_size
    with damage_refused(path, what), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) != len(names):
            raise ValueError("two of its parts have one name")
        if sum(member.compress_size for member in members) > size:
            raise ValueError("its parts overlap")
        if sum(member.file_size for member in members) > max(UNPACKED * size, UNPACKED_LEAST):
            raise ValueError(f"it unpacks to more than {UNPACKED} times its size")
        yield archive


def read_npz(
    path: str | os.PathLike[str], what: str = "an .npz file of arrays"
) -> dict[str, np.ndarray]:
    """The arrays of a NumPy ``.npz`` file by name; ``what`` it is expected to be, for errors.

    What an array claims to be is compared with the bytes there are before memory is taken for it.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for a file that is damaged or
    holds anything but plain arrays of numbers and text.
    """
    with opened_archive(path, what) as archive:
        return {
            member.filename.removesuffix(".npy"): _member(archive, member)
            for member in archive.infolist()
        }


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an npz file. Raises ``ValueError`` where its header does not fit its size."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    name = member.filename
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"{name} is of version {version} of NumPy's format")
        shape, turned, dtype = readers[version](stream, max_header_size=NPZ_HEADER)
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise ValueError(f"{name} holds {dtype}, expected numbers or text")
        size = member.file_size - stream.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} has {size} bytes for {dtype}{list(shape)}")
        raw, at = np.empty(size, np.uint8), 0
        while chunk := stream.read(_STEP):
            raw[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
            at += len(chunk)
        if at != size:
            raise ValueError(f"{name} ends after {at} of {size} bytes")
        flat = raw.view(dtype) if size else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if turned else "C")
