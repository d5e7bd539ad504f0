"""A zarr store that grows batch by batch, and a manifest that says how far it is true.

A batch is finished when its values lie in the store and the manifest says so, in this order. What
is found there again is compared with the hashes that the manifest keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.files import content, tidy, whole
from jaxinterp.reading import OWN_JSON_BYTES, read_json, regular_file
from jaxinterp.results import fingerprint

if TYPE_CHECKING:
    import xarray as xr

MANIFEST = "manifest.json"
# How zarr names the files of an array, and those that it has not finished.
_ZARR = re.compile(r"(\d+(\.\d+)*|\.zarray|\.zattrs)(?P<partial>\.[0-9a-f]{32}\.partial)?")


class GrowingStore:
    """The zarr store, and the manifest that says how far it is true."""

    def __init__(self, out: str | os.PathLike[str], run: dict[str, Any]):
        self.path, self.run = Path(out), run
        self.manifest: dict[str, Any] = {"run": run, "batches": [], "sessions": []}
        self.arrays: dict[str, Any] = {}
        self.ran: list[tuple[int, float]] = []  # experiments x prompts and seconds, of each batch
        self._open()
        tidy(self.path)
        for name in self.manifest.get("labels", {}):  # what zarr left in a process that was killed
            for left in (self.path / name).glob("*.partial"):
                if _ZARR.fullmatch(left.name):
                    left.unlink(missing_ok=True)
        self.earlier = len(self.manifest["sessions"])

    def _open(self) -> None:
        file = self.path / MANIFEST
        held = content(self.path)
        if not held:
            return
        if MANIFEST not in held:
            raise ValueError(
                f"{self.path} holds {held[0]!r} and no {MANIFEST}: choose the store of an earlier "
                "call, or an empty folder."
            )
        regular_file(file, OWN_JSON_BYTES)  # one that is too long is not damaged
        manifest = _read_json(file, run=dict, batches=list, sessions=list)
        fields = {"prompts", "key", "values"}
        batches = manifest.get("batches", [])
        whole_batches = all(isinstance(b, dict) and fields <= b.keys() for b in batches)
        if not manifest or not whole_batches:
            if _read_json(self.path / ".zattrs").get("run") != fingerprint(json.dumps(self.run)):
                raise ValueError(
                    f"{file} is damaged, and nothing shows that the store is of this run: delete "
                    f"{self.path}, or choose another folder."
                )
            warnings.warn(f"{file} is damaged: the run starts over.", stacklevel=4)
            return
        runs = manifest["run"], self.run
        said = {k: [repr(r.get(k)) for r in runs] for k in {**runs[0], **runs[1]}}
        differs = [(len(a + b), k, a, b) for k, (a, b) in said.items() if a != b]
        if differs:  # the shortest is the one to read
            _, name, there, here = min(differs)
            raise ValueError(
                f"{self.path} is the store of another run: its {name} is {there:.99}, here it is "
                f"{here:.99}. Choose another folder, or delete it."
            )
        self.manifest = manifest
        if not manifest["batches"]:  # the arrays may be in the making
            return
        try:
            self.arrays = self._load()
            intact = self._labels() == manifest.get("labels")
        except (OSError, KeyError, ValueError, RuntimeError):
            intact = False
        if not intact:
            text = f"{self.path} lacks its arrays, or some are damaged: the run starts over."
            warnings.warn(text, stacklevel=5)
            self.arrays, self.manifest["batches"] = {}, []

    def _load(self) -> dict[str, Any]:
        import zarr

        group: Any = zarr.open_group(self.path, mode="r+", zarr_format=2, use_consolidated=False)
        self.name = str(group.attrs["array"])
        about = group[self.name].attrs
        names = (self.name, *about["_ARRAY_DIMENSIONS"], *about["coordinates"].split())
        return {name: group[name] for name in names}

    @property
    def n_prompts(self) -> int:
        return sum(batch["prompts"] for batch in self.manifest["batches"])

    def _labels(self) -> dict[str, str | None]:
        """A hash of each array that is written once; None of those that grow or are told anew."""
        growing = self._growing()
        once = {name for name in self.arrays if name not in growing and not name.endswith("_token")}
        return {
            name: fingerprint(np.asarray(array[...])) if name in once else None
            for name, array in self.arrays.items()
        }

    def _values(self, rows: slice) -> str:
        """A hash of what the store holds of some prompts."""
        names = (self.name, "clean", "corrupted")
        return fingerprint([np.asarray(self.arrays[name][..., rows]) for name in names])

    def finished(self, number: int, key: str, rows: slice) -> bool:
        """Whether a batch is in the store. Refuses one that is not the store's."""
        if number >= len(self.manifest["batches"]):
            return False
        entry = self.manifest["batches"][number]
        if entry["key"] != key:
            raise ValueError(
                f"Batch {number} is not the one that {self.path} holds: its prompts, roles or "
                "metric differ. Give the stream that the store was made from, or another folder."
            )
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a damaged chunk
            return self._values(rows) == entry["values"]
        return False

    def put(self, number: int, key: str, rows: slice, result: xr.DataArray, began: float) -> None:
        """Write a batch, then say so."""
        if not self.arrays:
            self._create(result)
        end = max(rows.stop, self.n_prompts)
        result = result.assign_coords(prompt=np.arange(rows.start, rows.stop))
        for name, array in self._growing().items():
            file = ".".join(["0"] * (array.ndim - 1) + [str(number)])
            (self.path / name / file).unlink(missing_ok=True)  # half written, it cannot be read
            array.resize((*array.shape[:-1], end))
            array[..., rows] = result.values if name == self.name else result.coords[name].values
        self.arrays[self.name].attrs["n_prompts"] = end
        entry = {"prompts": rows.stop - rows.start, "key": key, "values": self._values(rows)}
        self.manifest["batches"][number : number + 1] = [entry]
        self.ran.append((result.size, time.perf_counter() - began))
        # The rate is the median batch's: compiling, in the first, does not count.
        rate = statistics.median(experiments / seconds for experiments, seconds in self.ran)
        experiments, seconds = map(sum, zip(*self.ran, strict=True))
        said = {"batches": len(self.ran), "experiments": experiments, "seconds": seconds}
        self.manifest["sessions"][self.earlier :] = [{**said, "rate": rate}]
        self._commit()

    def _growing(self) -> dict[str, Any]:
        dims = {name: array.attrs["_ARRAY_DIMENSIONS"] for name, array in self.arrays.items()}
        return {name: self.arrays[name] for name in dims if dims[name][-1] == "prompt"}

    def _create(self, result: xr.DataArray) -> None:
        """Empty arrays like the first batch's; the manifest comes first: the folder is ours."""
        self._write(MANIFEST, self.manifest)
        dataset = result.to_dataset(name=result.name or "value")
        for name in (".zgroup", ".zattrs", ".zmetadata"):  # of a run that starts over
            (self.path / name).unlink(missing_ok=True)
        for name in map(str, dataset.variables):
            for file in (self.path / name).glob("*"):
                if _ZARR.fullmatch(file.name):
                    file.unlink()
        for name in map(str, dataset.variables):
            if dataset[name].dtype.kind == "U":  # of any length: later texts may be longer
                dataset[name] = dataset[name].astype(object)
        dataset.attrs = {"run": fingerprint(json.dumps(self.run)), "array": result.name or "value"}
        # Format 2: the one whose consolidated metadata and strings are settled.
        chunks = {name: {"chunks": dataset[name].shape} for name in dataset.variables}
        with warnings.catch_warnings(action="ignore"):  # of the manifest: it is not zarr's
            dataset.to_zarr(self.path, mode="a", zarr_format=2, consolidated=False, encoding=chunks)
        self.arrays = self._load()
        self.manifest["labels"] = self._labels()

    def _write(self, file: str, what: dict[str, Any]) -> None:
        with whole(self.path / file) as temporary:
            temporary.write_text(json.dumps(what, indent=1, sort_keys=True) + "\n")

    def _commit(self) -> None:
        """Readers see all arrays grow at once, and only then does the manifest count them."""
        files = [".zgroup", ".zattrs"]
        files += [f"{name}/{file}" for name in self.arrays for file in (".zarray", ".zattrs")]
        metadata = {file: json.loads((self.path / file).read_text()) for file in files}
        self._write(".zmetadata", {"metadata": metadata, "zarr_consolidated_format": 1})
        self._write(MANIFEST, self.manifest)

    def finish(
        self, n_prompts: int, metric: Mapping[str, Any],
        texts: Callable[[str, list[int]], list[str]],
    ) -> None:  # fmt: skip
        """Make labels and claim those of all prompts.

        metric: of all of them. texts: the tokens at some places of an axis, as labels.
        """
        if self.n_prompts != n_prompts:
            raise ValueError(
                f"{self.path} holds {self.n_prompts} prompts, the stream ended after "
                f"{n_prompts}: give the stream that it was made from, or another folder."
            )
        for array in self._growing().values():  # a killed process may have begun one more
            array.resize((*array.shape[:-1], self.n_prompts))
        for axis in ("position", "source"):
            if f"{axis}_token" in self.arrays:
                said = texts(axis, self.arrays[axis][:].tolist())
                self.arrays[f"{axis}_token"][:] = np.array(said, object)
        self.arrays[self.name].attrs["metric"] = json.dumps(metric)
        self._commit()


def _read_json(file: Path, **kinds: type) -> dict[str, Any]:
    """A file's JSON object, or an empty one when it is none or lacks these fields."""
    try:
        found = read_json(file, OWN_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    fits = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items())
    return found if fits else {}
