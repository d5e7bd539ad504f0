"""HDF5 files that others made: the library that reads them may hang or crash over a damaged one.

A file that is written here ends in a checksum of all that stands before it, which other programs
pass over. Whatever is read is first walked through in a process of its own, with limits of time and
memory, so that no file takes this one down.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from jaxinterp.reading import UNPACKED, UNPACKED_LEAST, LoadError, regular_file

SECONDS = 60  # that the walk may take, and as many again for every GB
MEMORY = 2 << 30  # bytes of addresses that it may take, and `UNPACKED` times the file's
_MARK = b"jaxinterp-sha256"
_STEP = 1 << 20

# Everything of a file is looked at as xarray will: sizes first, then values.
_WALK = """
import sys
path, most, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import h5py
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
def attributes(x):
    for name in x.attrs:
        x.attrs.get_id(name)
        value = x.attrs[name]
def walk(group):
    global most
    attributes(group)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            sys.exit(f"{name} lies in another place")
        x = group[name]
        if isinstance(x, h5py.Group):
            sys.exit(f"{name} is a group of arrays")
        if not isinstance(x, h5py.Dataset):
            continue
        if x.external or x.is_virtual:
            sys.exit(f"{name} lies in another file")
        most -= x.size * x.dtype.itemsize if x.size else 0
        if most < 0:
            sys.exit("its arrays claim many times its size")
        attributes(x)
        x.is_scale
        for d in x.dims:
            d.label, list(d.keys()), [s.name for s in d.values()]
        if x.shape is not None:
            x[()]
with h5py.File(path, "r") as file:
    walk(file)
"""


def sealed(data: bytes | memoryview) -> bytes:
    """The bytes of a file with the checksum at their end."""
    return bytes(data) + _MARK + hashlib.sha256(data).digest()


def check_hdf5(path: str | os.PathLike[str], what: str, remedy: str) -> None:
    """Refuse a file that was changed, or that HDF5 cannot read to its end.

    what: the file is expected to be, as "a complete result file"; remedy: what to do, both for
    errors. Raises ``FileNotFoundError`` where there is none, and `LoadError`.
    """
    path = regular_file(path)
    size = path.stat().st_size - len(_MARK) - hashlib.sha256().digest_size
    if size > 0:
        with path.open("rb") as stream:
            stream.seek(size)
            end = stream.read()
            if end.startswith(_MARK) and end[len(_MARK) :] != _digest(stream, size):
                raise LoadError(
                    f"{path} is not {what} (it was changed or damaged after it was written: its "
                    f"checksum is another). {remedy}"
                )
    if said := _walk(path):
        raise LoadError(f"{path} is not {what} ({said}). {remedy}")


def _digest(stream: BinaryIO, size: int) -> bytes:
    """SHA-256 of a file's first bytes."""
    digest, left = hashlib.sha256(), size
    stream.seek(0)
    while left and (chunk := stream.read(min(left, _STEP))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.digest()


def _walk(path: Path) -> str:
    """Look at everything in the file, in another process. Returns what is wrong, "" if nothing."""
    size = path.stat().st_size
    most, seconds = max(UNPACKED * size, UNPACKED_LEAST), SECONDS * (1 + size / 1e9)
    # -P: nothing that lies beside the file is imported.
    given = [str(path.absolute()), str(most), str(MEMORY + UNPACKED * size)]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _WALK, *given], capture_output=True, text=True,
            check=False, errors="replace", timeout=seconds,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"HDF5 is busy with it for more than {seconds:.0f} seconds"
    if done.returncode:
        return done.stderr.strip().split("\n")[-1][:200] or f"HDF5 ends with {done.returncode}"
    return ""
