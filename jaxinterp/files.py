"""Files are written whole or not at all, and nothing is deleted that was not written here.

A file is made under a temporary name beside its place, which tells process and host, and moved
there when it is whole. A folder of ours holds a marker, `MARK`: what it lists is ours to delete or
to replace, everything else in the folder stays. `locked` keeps a folder for one run at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import secrets
import shutil
import socket
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

if sys.platform != "win32":
    import fcntl

MARK = ".jaxinterp.json"  # lists what is ours in a folder
LOCK = ".jaxinterp.lock"  # is there while a run writes to a folder

_HOST = re.sub(r"\W", "_", socket.gethostname())
_LEFT = re.compile(r"\.(?P<name>.+)\.jaxinterp-(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]{8}(\..*)?")
_OLD = ".old"  # ends the temporary name of a folder whose place another one takes
_USED: set[str] = set()  # the temporary names that this process is using
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


class DiskFull(OSError):
    """There is no room for what is written."""


# Whole files and folders


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds.

    What stands at ``path`` stays as it is until then, and for good where the block fails.

    Raises ``OSError`` with the folder's name when it cannot be written to, `DiskFull` when there is
    no room, and ``IsADirectoryError`` where ``path`` is a folder.
    """
    path = Path(os.path.realpath(path))  # through a link, as `open` writes
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file.")
    with _folder_of(path), _temporary(path) as temporary, room(path):
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def whole_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, listed: Iterable[str] | None = None
) -> Iterator[Path]:
    """`whole` for a folder: an empty one beside ``path`` that takes its place.

    overwrite: whether it may take the place of one that was written here. listed: the files that a
    description in the folder says are ours (their names, relative to it), for folders that have
    such a description in place of `MARK`.

    Raises ``FileExistsError`` if there is something at ``path``, unless ``overwrite``, and for a
    folder with anything in it that was not written here; else as `whole`.
    """
    path = Path(os.path.realpath(path))
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists: give another path or overwrite=True.")
    check_replaceable(path, listed)
    with _folder_of(path), _temporary(path) as partial, room(path):
        partial.mkdir()
        yield partial
        if listed is None:
            mark(partial, content(partial))
        for name in content(partial):
            _to_disk(partial / name)
        if not path.exists():
            partial.rename(path)
            return
        with _temporary(path, _OLD) as aside:
            path.rename(aside)
            try:
                partial.rename(path)
            except BaseException:
                aside.rename(path)
                raise


def check_replaceable(path: Path, listed: Iterable[str] | None = None) -> None:
    """Raise ``FileExistsError`` where something at ``path`` was not written here.

    listed: as for `whole_folder`; by default what the folder's `MARK` lists.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file, expected a folder: choose another path.")
    held, found = content(path), marked(path)
    ours = listed if listed is not None else () if found is None else found["files"]
    strange = [name for name in held if not _matches(name, ours)]
    if strange:
        raise FileExistsError(
            f"{path} holds {strange[0]!r}, and nothing shows that jaxinterp wrote it: it is not "
            "replaced. Move it away, or choose another path."
        )


@contextlib.contextmanager
def _temporary(path: Path, ending: str = "") -> Iterator[Path]:
    """A name beside ``path`` that no other process, thread or host uses; nothing is left of it."""
    tag = f"jaxinterp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    name = f".{path.name}.{tag}{ending}" if ending else f".{path.stem}.{tag}{path.suffix}"
    temporary = path.with_name(name)
    _USED.add(name)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _USED.discard(name)


@contextlib.contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """The folder that a path lies in is there; made for the block, it goes again if it is empty."""
    missing = [each for each in path.parents if not each.exists()]
    writable_folder(path.parent)
    try:
        yield
    finally:
        for each in missing:
            _remove_if_empty(each)


def _to_disk(path: Path) -> None:
    """A machine that fails after the renaming must not leave an empty file under the name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add text to the end of a file. Raises `DiskFull` when there is no room."""
    with room(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)


@contextlib.contextmanager
def room(path: str | os.PathLike[str]) -> Iterator[None]:
    """Writing to ``path``: whatever a library raises of a full disk becomes `DiskFull`."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None:
            for code, text in _FULL.items():
                if getattr(chain, "errno", None) == code or text in str(chain):
                    raise DiskFull(
                        f"{path} could not be written ({text}): the disk, or your share of it, is "
                        "full. Make room, then run it again: what was finished is kept."
                    ) from error
            chain = chain.__cause__ or chain.__context__
        raise


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


# What is ours


def mark(folder: Path, files: Iterable[str], **about: Any) -> None:
    """Say in a folder which files in it are ours.

    files: names relative to the folder, or patterns of them (as `fnmatch` has them). about: what
    else is kept beside them, for JSON.

    Raises ``FileExistsError`` where another's file has the marker's name.
    """
    if marked(folder) is None and (folder / MARK).exists():
        raise FileExistsError(
            f"{folder / MARK} is not a marker that jaxinterp wrote: move it away, or choose "
            "another folder."
        )
    with whole(folder / MARK) as temporary:
        text = json.dumps({"by": "jaxinterp", "files": sorted(files), **about}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def marked(folder: Path) -> dict[str, Any] | None:
    """What a folder's `MARK` says: ``files`` and what else was kept; None where there is none."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    fits = isinstance(found, dict) and found.get("by") == "jaxinterp"
    files = found.get("files") if fits else None
    listed = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return found if listed else None


def discard(folder: Path, *, deep: bool = True) -> bool:
    """Delete the files that the markers in a folder list, and the folders that are empty then.

    Everything else stays, and so does the way to it. deep: also what the markers in folders inside
    list. Returns whether anything was deleted.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    found = marked(folder)
    gone = [] if found is None else [n for n in content(folder) if _matches(n, found["files"])]
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    emptied = {folder / parent for name in gone for parent in Path(name).parents} - {folder}
    for each in sorted(emptied, reverse=True):
        _remove_if_empty(each)
    inner = [discard(each) for each in folder.iterdir() if deep and each.is_dir()]
    if found is not None:
        (folder / MARK).unlink(missing_ok=True)
    if found is not None or any(inner):
        _remove_if_empty(folder)
        return True
    return False


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something of another's lies in it
        folder.rmdir()


def tidy(folder: Path) -> None:
    """Delete what processes of this host that are gone left half-written in a folder.

    A folder that such a process had moved aside comes back where none has taken its place.
    """
    for path in folder.iterdir():
        left = _LEFT.fullmatch(path.name)
        if left is None or left["host"] != _HOST or path.name in _USED or _runs(int(left["pid"])):
            continue
        place = folder / left["name"]
        if path.name.endswith(_OLD) and not place.exists():
            path.rename(place)
        else:
            _remove(path)


def _runs(pid: int) -> bool:
    """Whether another process of this host has the number."""
    if pid == os.getpid():
        return False
    if sys.platform == "win32":
        return True  # nobody can say without harm
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def content(folder: Path) -> list[str]:
    """The files below a folder, relative to it, but for our markers, locks and leftovers."""
    found = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        ours = inner.name in (MARK, LOCK) or any(_LEFT.fullmatch(part) for part in inner.parts)
        if not ours and (path.is_symlink() or not path.is_dir()):
            found.append(inner.as_posix())
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name == each or fnmatch.fnmatchcase(name, each) for each in patterns)


def checksums(arrays: Iterable[Any]) -> list[str]:
    """Of each array: its dtype, its shape, and a sum of its bytes that changes with them."""
    return [
        f"{each.dtype} {each.shape} {zlib.crc32(each.reshape(-1).view(np.uint8).data):08x}"
        for each in map(np.ascontiguousarray, arrays)
    ]


# One run at a time


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], name: str = LOCK) -> Iterator[Path]:
    """A folder, made if need be, for one run at a time.

    name: of the lock's file in it. The lock of a process that is gone counts for nothing; of one
    of another host nobody here can tell. A folder made here goes again if it is empty afterwards.

    Raises ``BlockingIOError`` while another run holds it; ``OSError`` as `writable_folder`.
    """
    file = Path(folder).absolute() / name
    with _folder_of(file):
        handle = _lock(file)
        try:
            yield file.parent
        finally:
            file.unlink(missing_ok=True)
            os.close(handle)


def _lock(file: Path) -> int:
    """The open file that is the lock. The system gives it back when the process ends."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            host, pid = _holder(file, handle)
            if _held(handle, pid) or host != _HOST:
                raise BlockingIOError(_taken(file, host, pid))
            if _is_at(handle, file):
                note = {"by": "jaxinterp", "host": _HOST, "pid": os.getpid()}
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, json.dumps(note).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the run before took the file away meanwhile


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _held(handle: int, pid: int | None) -> bool:
    """Whether another run of this host holds the lock, which it says is of process ``pid``."""
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
    return pid is not None and _runs(pid)


def _holder(file: Path, handle: int) -> tuple[str, int | None]:
    """The host and the process that a lock names; this host's for one that is empty."""
    text = os.read(handle, 4096)
    if not text:
        return _HOST, None
    try:
        found = json.loads(text)
        if found["by"] == "jaxinterp":
            return str(found["host"]), int(found["pid"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise FileExistsError(
        f"{file} is not a lock that jaxinterp wrote: move it away, or choose another folder."
    )


def _taken(file: Path, host: str, pid: int | None) -> str:
    who = f"process {pid} of {host}" if pid else "another process"
    if host == _HOST:
        return f"{file.parent} is written to by {who}: wait for its end, or choose another folder."
    return (
        f"{file.parent} is written to by {who}, another host. If it is gone, delete {file.name} "
        "there; else wait for its end, or choose another folder."
    )
