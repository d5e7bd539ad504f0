"""Small files read with errors that say which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp.reading import LoadError

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds no JSON object. Download it again.")
    return found


def read_tokenizer(folder: Path, name: str = "") -> Tokenizer | None:
    """The tokenizer of a folder, None where it holds none."""
    from jaxinterp.tokens import Tokenizer

    try:
        return Tokenizer.from_folder(folder, name=name)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LoadError(f"The tokenizer in {folder} cannot be read: {error}") from error


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
