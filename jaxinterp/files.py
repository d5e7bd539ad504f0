"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds.

    Raises ``OSError`` with the folder's name when it cannot be written to.
    """
    path = Path(path)
    writable_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """`whole` for a folder: an empty one beside ``path`` that takes its place.

    Raises ``FileExistsError`` if there is something at ``path``, unless ``overwrite``.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another path or overwrite=True.")
    writable_folder(path.parent)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial
        partial.chmod(0o755)
        if path.exists():
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.rename(aside / path.name)
            partial.rename(path)
            shutil.rmtree(aside)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be; ``OSError`` when it is a file or cannot be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OSError(f"{path} is not a folder: choose another place for the output.") from None
    except OSError as error:
        reason = error.strerror
        raise OSError(f"The folder {path} cannot be made ({reason}): choose another.") from None
    if not os.access(path, os.W_OK):
        raise OSError(f"The folder {path} cannot be written to: choose another.")
    return path
