"""Files that others made: their kind, size and depth are checked before they are used."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

JSON_BYTES = 256 << 20  # the largest JSON file that is read
JSON_DEPTH = 100  # how deep its objects and lists may be nested


class LoadError(ValueError):
    """A file that cannot be used: names the file, what was expected and what to do."""


def regular_file(path: str | os.PathLike[str], most: int | None = None) -> Path:
    """The path of a regular file of at most ``most`` bytes.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for a folder, a pipe, a
    device, or a file that is larger.
    """
    path = Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{path} is no regular file: expected a file with the data in it.")
    if most is not None and found.st_size > most:
        raise LoadError(f"{path} has {found.st_size} bytes, expected at most {most}.")
    return path


def inside(folder: Path, name: Any) -> Path:
    """The path of the file ``name`` that a file in ``folder`` refers to.

    Raises `LoadError` for a name that leads out of the folder.
    """
    parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
    absolute = PurePosixPath(str(name)).is_absolute() or PureWindowsPath(str(name)).drive
    if not isinstance(name, str) or not name or "\0" in name or absolute or ".." in parts:
        raise LoadError(f"{folder} names the file {name!r}, which is not inside it.")
    return folder / name


def parse_json(text: str | bytes, source: Any) -> Any:
    """What a JSON text holds; ``source`` says in errors where the text is from.

    Raises `LoadError` for text that is no JSON or nested deeper than `JSON_DEPTH`.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise LoadError(f"{source} nests more than {JSON_DEPTH} levels of JSON.") from None
    except ValueError as error:  # also bytes that are no text
        raise LoadError(f"{source} is not valid JSON ({error}).") from error
    level = [found]
    for _ in range(JSON_DEPTH):
        level = [x for each in level for x in _children(each)]
    if level:
        raise LoadError(f"{source} nests more than {JSON_DEPTH} levels of JSON.")
    return found


def _children(value: Any) -> Iterable[Any]:
    """What an object or a list of JSON holds."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def read_json(path: str | os.PathLike[str], most: int = JSON_BYTES) -> Any:
    """What a JSON file of at most ``most`` bytes holds.

    Raises ``FileNotFoundError`` where there is none, and `LoadError` for anything that is no
    regular file, too large, no JSON, or nested deeper than `JSON_DEPTH`.
    """
    return parse_json(regular_file(path, most).read_bytes(), path)


def read_json_object(path: str | os.PathLike[str], most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object of a file, as `read_json` reads it; `LoadError` if it holds another value."""
    found = read_json(path, most)
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds {type(found).__name__}, expected a JSON object.")
    return found
