"""Files are written whole or not at all, and nothing is deleted that was not written here.

A file is made under a temporary name beside its place, which tells process and host, and moved
there when it is whole. A folder of ours holds a marker, `MARK`: what it lists is ours to delete or
to replace, everything else in the folder stays. `locked` keeps a folder for one run at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
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


def _space() -> str:
    """What tells apart machines and containers of one host name, and starts of a machine.

    In each, the same number is another process.
    """
    said = ""
    with contextlib.suppress(OSError, AttributeError):
        said += os.readlink("/proc/self/ns/pid")
    with contextlib.suppress(OSError):
        said += Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return hashlib.sha256(said.encode()).hexdigest()[:8]


_HOST = re.sub(r"\W", "_", socket.gethostname())
_SPACE = _space()
_TAG = f"{_HOST}_{_SPACE}-"  # and the process
_LEFT = re.compile(
    r"\.(?P<name>.+)\.jaxinterp(?P<aside>-aside)?-(?P<tag>\w+-)(?P<pid>\d+)-[0-9a-f]{8}(\..*)?"
)
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
        with _temporary(path, aside=True) as aside:
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
    if listed is not None:
        strange = sorted({*held} - {*listed})
    else:
        strange = [name for name in held if found is None or not _lists(found, name)]
    if strange:
        raise FileExistsError(
            f"{path} holds {strange[0]!r}, and nothing shows that jaxinterp wrote it: it is not "
            "replaced. Move it away, or choose another path."
        )


@contextlib.contextmanager
def _temporary(path: Path, *, aside: bool = False) -> Iterator[Path]:
    """A name beside ``path`` that no other process, thread or host uses; nothing is left of it.

    aside: for a folder that stood at ``path``, until another one has taken its place.
    """
    tag = f"{_TAG}{os.getpid()}-{secrets.token_hex(4)}"
    name = f".{path.stem}.jaxinterp-{tag}{path.suffix}"
    if aside:
        name = f".{path.name}.jaxinterp-aside-{tag}"
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


def mark(
    folder: Path, files: Iterable[str], patterns: Iterable[str] = (), **about: Any
) -> None:  # fmt: skip
    """Say in a folder which files in it are ours.

    files: their names, relative to the folder. patterns: of the names of others (as `fnmatch` has
    them). about: what else is kept beside them, for JSON.

    Raises ``FileExistsError`` where another's file has the marker's name.
    """
    if marked(folder) is None and (folder / MARK).exists():
        raise FileExistsError(
            f"{folder / MARK} is not a marker that jaxinterp wrote: move it away, or choose "
            "another folder."
        )
    with whole(folder / MARK) as temporary:
        names = {"files": sorted(files), "patterns": sorted(patterns)}
        text = json.dumps({"by": "jaxinterp", **names, **about}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def marked(folder: Path) -> dict[str, Any] | None:
    """What a folder's `MARK` says: ``files``, ``patterns`` and what else was kept.

    None where there is no marker that jaxinterp wrote.
    """
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("by") != "jaxinterp":
        return None
    names = [found.get("files"), found.setdefault("patterns", [])]
    fits = all(isinstance(n, list) and all(isinstance(each, str) for each in n) for n in names)
    return found if fits else None


def discard(folder: Path, *, deep: bool = True) -> bool:
    """Delete the files that the markers in a folder list, and the folders that are empty then.

    Everything else stays, and so does the way to it. deep: also what the markers in folders inside
    list. Returns whether anything was deleted.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    found = marked(folder)
    gone = [] if found is None else [n for n in content(folder) if _lists(found, n)]
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
    """Delete what processes of this machine that are gone left half-written in a folder.

    A folder that such a process had moved aside comes back where none has taken its place. What is
    left from before the machine's last start, or by another container, stays: its process's number
    says nothing here.
    """
    for path in folder.iterdir():
        left = _LEFT.fullmatch(path.name)
        if left is None or left["tag"] != _TAG or path.name in _USED or _runs(int(left["pid"])):
            continue
        place = folder / left["name"]
        if left["aside"] and not place.exists():
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
        ours = inner.name == MARK or (inner.name.startswith(".") and inner.name.endswith(LOCK))
        ours = ours or any(_LEFT.fullmatch(part) for part in inner.parts)
        if not ours and (path.is_symlink() or not path.is_dir()):
            found.append(inner.as_posix())
    return found


def _lists(found: dict[str, Any], name: str) -> bool:
    """Whether a marker says of a file that it is ours."""
    patterns = (fnmatch.fnmatchcase(name, each) for each in found["patterns"])
    return name in found["files"] or any(patterns)


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
            host, pid, space = _holder(file, handle)
            if _held(handle, pid, space) or host != _HOST:
                raise BlockingIOError(_taken(file, host, pid))
            if _is_at(handle, file):
                note = {"by": "jaxinterp", "host": _HOST, "pid": os.getpid(), "space": _SPACE}
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


def _held(handle: int, pid: int | None, space: str) -> bool:
    """Whether another run of this host holds the lock, which says whose it is.

    Where the file system has no locks, the number of a process counts, if it is one of here.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
    return pid is not None and (space != _SPACE or _runs(pid))


def _holder(file: Path, handle: int) -> tuple[str, int | None, str]:
    """The host, the process and its `_space` that a lock names; ours for one that is empty."""
    text = os.read(handle, 4096)
    if not text:
        return _HOST, None, _SPACE
    try:
        found = json.loads(text)
        if found["by"] == "jaxinterp":
            return str(found["host"]), int(found["pid"]), str(found.get("space", _SPACE))
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
