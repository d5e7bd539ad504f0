"""Each format that files of strangers have: a valid file, its public reader, and a judge.

A judge is asked about a value that loads from a damaged file and differs from the valid file's.
It says "as the file says" where an independent reading of the damaged file gives the same numbers
(the safetensors library, NumPy, the json module, the bytes themselves), and what is wrong where it
does not.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_valid as valid
import jax
import numpy as np

import jaxinterp as ji
from jaxinterp.circuits.circuit import Circuit
from jaxinterp.claims import Claim
from jaxinterp.directions import Direction
from jaxinterp.loading.torch_file import read_torch
from jaxinterp.model import shapes
from jaxinterp.sae.store import open_store

FITS = "as the file says"


@dataclasses.dataclass(frozen=True)
class Form:
    """files: those that are damaged (a name or pattern), each with the kind of damage.

    The kinds are those of `fuzz_mutations.KINDS`.
    """

    name: str
    make: Callable[[Path], None]
    load: Callable[[Path], Any]
    files: dict[str, str]
    judge: Callable[[Path, Any], str]


def plain(value: Any) -> Any:
    """A value as nested plain data in which equal means equal bit for bit."""
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        data = array.tolist() if array.dtype == object else array.tobytes()
        return ("array", str(array.dtype), array.shape, data)
    if isinstance(value, ji.Model):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value.params)]
        return plain([value.config.to_dict(), leaves])
    if isinstance(value, ji.Tokenizer):
        policy = [value.bos, value.eos, value.pad, value.prefix, value.suffix]
        return plain([policy, value.vocab_size, value.backend.to_str()])
    if isinstance(value, Circuit):
        return plain(value.edges)
    if isinstance(value, Claim):
        return plain(_of_claim(value))
    if hasattr(value, "to_dict") and hasattr(value, "coords"):  # xarray
        return plain(value.to_dict(data="array"))
    if dataclasses.is_dataclass(value):
        return plain([type(value).__name__, *vars(value).items()])
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return repr(value)


# Judges -------------------------------------------------------------------------------------------


def _numbers_of(*arrays: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(a, np.float32)) for a in (*arrays, np.zeros(0))])


def _only(found: list[Any], there: np.ndarray) -> str:
    """Every number that was loaded stands in the file."""
    got = _numbers_of(*found)
    strange = ~(np.isin(got, there) | np.isnan(got))
    return FITS if not strange.any() else f"{strange.sum()} numbers that are not in the file"


def judge_model(stored: Callable[[Path], np.ndarray]) -> Callable[[Path, Any], str]:
    """A model has its config's shapes, finite numbers, and only those that ``stored`` finds."""

    def judge(folder: Path, value: Any) -> str:
        model, tokenizer = value
        wanted = [leaf.shape for leaf in jax.tree.leaves(shapes(model.config))]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]
        if [leaf.shape for leaf in leaves] != wanted:
            return "shapes that are not the config's"
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            return "numbers that are not finite"
        if tokenizer is not None and (said := judge_tokenizer(folder, tokenizer)) != FITS:
            return said
        return _only(leaves, stored(folder))

    return judge


def judge_tokenizer(folder: Path, tokenizer: ji.Tokenizer) -> str:
    """Text becomes ids of its vocabulary, which the file names."""
    ids = tokenizer.encode("the w1 w2 an")
    known = set(tokenizer.backend.get_vocab().values())
    return FITS if known.issuperset(ids) and max(known) < 2**31 else f"ids {ids}"


def in_safetensors(folder: Path) -> np.ndarray:
    """All numbers of a folder's files, by the safetensors library."""
    from safetensors.numpy import load_file

    files = sorted(folder.glob("*.safetensors"))
    return _numbers_of(*(a for file in files for a in load_file(file).values()))


def in_storages(name: str) -> Callable[[Path], np.ndarray]:
    """All numbers of a PyTorch file, as the zip archive holds them."""

    def stored(folder: Path) -> np.ndarray:
        with zipfile.ZipFile(folder / name) as archive:
            parts = [archive.read(n) for n in archive.namelist() if re.search(r"data/[^/]+$", n)]
        kinds = (np.float32, np.float64, np.float16, np.int64, np.int32, np.int16, np.int8)
        with np.errstate(all="ignore"):
            views = [
                np.frombuffer(part[: len(part) // size * size], kind)
                for part in parts
                for kind, size in ((kind, np.dtype(kind).itemsize) for kind in kinds)
            ]
            halves = [v.astype(np.uint32) << 16 for v in views if v.dtype == np.int16]
            return _numbers_of(*views, *(h.view(np.float32) for h in halves))

    return stored


def in_bytes(name: str) -> Callable[[Path], np.ndarray]:
    """All float32 numbers of a file, wherever they begin."""

    def stored(folder: Path) -> np.ndarray:
        data = (folder / name).read_bytes()
        cut = [data[i : i + (len(data) - i) // 4 * 4] for i in range(4)]
        return _numbers_of(*(np.frombuffer(part, np.float32) for part in cut))

    return stored


def judge_torch(folder: Path, value: Any) -> str:
    return _only(list(value.values()), in_storages("t.pt")(folder))


def judge_lens(folder: Path, lens: Any) -> str:
    return _only([lens.W, lens.b], in_storages("params.pt")(folder))


def judge_dictionary(stored: Callable[[Path], np.ndarray]) -> Callable[[Path, Any], str]:
    def judge(folder: Path, d: Any) -> str:
        arrays = [np.asarray(a) for a in jax.tree.leaves(d.params)]
        if not all(np.isfinite(a).all() for a in arrays):
            return "numbers that are not finite"
        return _only(arrays, stored(folder))

    return judge


def in_npz(name: str) -> Callable[[Path], np.ndarray]:
    def stored(folder: Path) -> np.ndarray:
        with np.load(folder / name, allow_pickle=False) as held:
            return _numbers_of(*(held[n] for n in held.files if held[n].dtype.kind == "f"))

    return stored


def judge_direction(folder: Path, direction: Any) -> str:
    with np.load(folder / "d.npz", allow_pickle=False) as held:
        vector, about = held["vector"], json.loads(str(held["about"]))
    same = np.array_equal(direction.vector, np.asarray(vector), equal_nan=True)
    fits = same and [direction.site, direction.source] == about
    return FITS if fits else "not what NumPy reads"


def judge_circuit(folder: Path, circuit: Circuit) -> str:
    """The edges that the json module finds in the file, keys and values by their group."""
    given = json.loads((folder / "c.json").read_text())["edges"]
    inside = {n for n, e in given.items() if (e["in_graph"] if isinstance(e, dict) else e)} if (
        isinstance(given, dict) and "<" not in json.dumps(given)[:0]
    ) else set(given)  # fmt: skip
    names = {re.sub(r"h(\d+)(<[kv]>)$", _by_group, name) for name in inside}
    own = {re.sub(r"h(\d+)(<[kv]>)$", r"h\1\2", name) for name in inside}
    return FITS if set(circuit.names) in (names, own) else "edges that the file has not"


def _by_group(found: re.Match[str]) -> str:
    return f"h{int(found[1]) // 2}{found[2]}"


def _of_claim(claim: Claim) -> dict[str, Any]:
    """What a claim's JSON says in its own words and numbers."""
    said = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim)}
    said["model"] = dict(claim.model)
    said["experiments"] = [
        [e.name, e.role, e.grid, e.margin, e.note, e.texts, e.names, np.asarray(e.tokens.ids),
         e.found.without, e.found.values, e.found.level, e.found.resamples, e.found.seed]
        for e in claim.experiments
    ]  # fmt: skip
    return said


def judge_claim(folder: Path, claim: Claim) -> str:
    """Text and numbers are those of the JSON."""
    given = json.loads((folder / "claim.json").read_text(encoding="utf-8"))
    same = [getattr(claim, name) == given[name] for name in given if name in (
        "statement", "dataset", "source", "revision", "recipe", "level", "resamples", "seed",
        "absent",
    )]  # fmt: skip
    for experiment, plain_one in zip(claim.experiments, given["experiments"], strict=True):
        same += [experiment.name == plain_one["name"], experiment.role == plain_one["role"]]
        found = np.asarray(plain_one["found"]["values"], float)
        same.append(np.array_equal(found, experiment.found.values))
        same.append(bool(np.isfinite(experiment.found.values).all()))
    return FITS if all(same) else "not what the JSON says"


def judge_store(folder: Path, chunks: list[np.ndarray]) -> str:
    there = np.load(folder.parent / "store-values.npy")
    if not all(np.isfinite(c).all() for c in chunks):
        return "numbers that are not finite"
    return _only(chunks, there)


def judge_netcdf(folder: Path, result: Any) -> str:
    """Its numbers are in the file; HDF5 keeps no checksum of them unless it was asked to."""
    arrays = [result.values, *(c.values for c in result.coords.values())]
    found = [a for a in arrays if a.dtype.kind == "f" and a.dtype.itemsize == 4]
    zeros = [np.zeros_like(a) for a in found]  # what HDF5 gives for blocks that were not written
    return _only(found, _numbers_of(in_bytes("r.nc")(folder), *zeros))


def never(folder: Path, value: Any) -> str:
    """For formats with checksums of everything that counts."""
    return f"another {type(value).__name__} than was written"


# Readers ------------------------------------------------------------------------------------------


def _chunks(folder: Path) -> list[np.ndarray]:
    store = open_store(folder / "store")
    return [np.asarray(store.chunk(i)) for i in range(min(store.chunks, 50))]


FORMS = [
    Form("safetensors", valid.model, lambda f: ji.load(f),
         {"model.safetensors": "safetensors"}, judge_model(in_safetensors)),
    Form("index and shards", valid.sharded, lambda f: ji.load(f),
         {"model.safetensors.index.json": "json",
          "model-00002-of-00004.safetensors": "safetensors"}, judge_model(in_safetensors)),
    Form("GGUF", valid.gguf, lambda f: ji.load(f / "m.gguf"), {"m.gguf": "gguf"},
         judge_model(in_bytes("m.gguf"))),
    Form("PyTorch", valid.torch, lambda f: read_torch(f / "t.pt"), {"t.pt": "torch"}, judge_torch),
    Form("tuned lens", valid.tuned_lens, lambda f: ji.lens.load(f),
         {"params.pt": "torch", "config.json": "json"}, judge_lens),
    Form("own lens", valid.own_lens, lambda f: ji.lens.load(f / "lens"),
         {"lens/jaxinterp_lens.json": "json", "lens/arrays/**/*": "bytes"}, never),
    Form("npz", valid.direction, lambda f: Direction.load(f / "d.npz"), {"d.npz": "npz"},
         judge_direction),
    Form("npz of an SAE", valid.gemma_scope, lambda f: ji.sae.load(f), {"params.npz": "npz"},
         judge_dictionary(in_npz("params.npz"))),
    Form("SAE", valid.saelens, lambda f: ji.sae.load(f),
         {"cfg.json": "json", "sae_weights.safetensors": "safetensors"},
         judge_dictionary(in_safetensors)),
    Form("zarr", valid.store, _chunks, dict.fromkeys(valid.STORE, "bytes") | {
         "store/store.json": "json", "store/inputs/zarr.json": "json"}, judge_store),
    Form("netCDF", valid.result, lambda f: ji.results.load(f / "r.nc"), {"r.nc": "bytes"},
         judge_netcdf),
    Form("netCDF of others", valid.others_result, lambda f: ji.results.load(f / "r.nc"),
         {"r.nc": "bytes"}, judge_netcdf),
    Form("config", valid.model, lambda f: ji.load(f), {"config.json": "json"},
         judge_model(in_safetensors)),
    Form("tokenizer", valid.tokenizer, lambda f: ji.Tokenizer.from_folder(f),
         {"tokenizer.json": "json", "tokenizer_config.json": "json"}, judge_tokenizer),
    Form("tokenizer in two files", valid.two_files, lambda f: ji.Tokenizer.from_folder(f),
         {"vocab.json": "json", "merges.txt": "bytes", "tokenizer_config.json": "json"},
         judge_tokenizer),
    Form("claim", valid.claim, lambda f: Claim.load(f / "claim.json"), {"claim.json": "json"},
         judge_claim),
    Form("circuit", valid.circuit, lambda f: Circuit.load(f / "c.json", valid.CONFIG),
         {"c.json": "json"}, judge_circuit),
    Form("circuit of MIB", valid.mib, lambda f: Circuit.load(f / "c.json", valid.CONFIG),
         {"c.json": "json"}, judge_circuit),
    Form("checkpoint", valid.checkpoint, lambda f: ji.load(f / "m"),
         {"m/jaxinterp.json": "json", "m/params/**/*": "bytes"},
         judge_model(lambda f: valid.numbers_of_checkpoint())),
    Form("card", valid.shipped, lambda f: ji.load(f / "tiny"),
         {"tiny/card.json": "json", "tiny/model.safetensors": "safetensors"},
         judge_model(lambda f: in_safetensors(f / "tiny"))),
]  # fmt: skip
