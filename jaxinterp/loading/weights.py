"""The weights of a folder in Hugging Face layout: which files they are, and who reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxinterp.loading import torch_file
from jaxinterp.loading.tensors import Safetensors, Tensors
from jaxinterp.reading import LoadError, inside, read_json_object

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
ADAPTERS = ("adapter_config.json", "adapter_model.*")  # what PEFT writes
SAFE_PATTERNS = (SAFE, f"{SAFE}.index.json", "model-*-of-*.safetensors")
TORCH_PATTERNS = (TORCH, f"{TORCH}.index.json", "pytorch_model-*-of-*.bin")

_FLOATS = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors that `open_weights` would take."""
    return (folder / SAFE).exists() or (folder / f"{SAFE}.index.json").exists()


def refuse_adapters(folder: Path) -> None:
    """Raises `LoadError` for a folder that holds an adapter, which would change the weights."""
    found = sorted(path.name for pattern in ADAPTERS for path in folder.glob(pattern))
    if found:
        raise LoadError(
            f"{folder} holds a PEFT adapter ({', '.join(found)}), which is not supported: merge it "
            "into its base with peft (merge_and_unload, then save_pretrained) and load that "
            "folder, or move these files away to load the base without it."
        )


def open_weights(folder: Path) -> tuple[Tensors, list[Path]]:
    """The tensors of a folder, and the files that they are read from.

    As the reference does, this takes the first there is of model.safetensors, its shards,
    pytorch_model.bin, its shards. Raises `LoadError` where there is none, a shard is missing, the
    index and the files disagree, or one file and complete shards lie beside each other.
    """
    for single in (SAFE, TORCH):
        index = folder / f"{single}.index.json"
        where = _weight_map(index)
        if (folder / single).exists():
            others = sorted(set(where.values()) - {single})
            if others and all((folder / name).exists() for name in others):
                raise LoadError(
                    f"{folder} holds its weights twice, in {single} and in the shards of "
                    f"{index.name}: remove the ones that are not meant."
                )
            files = [folder / single]
            return _open(files, {}, folder), files
        if where:
            files = [inside(folder, name) for name in sorted(set(where.values()))]
            if missing := [file.name for file in files if not file.exists()]:
                raise LoadError(f"{folder} lacks the weight file {missing[0]}. Download it again.")
            return _open(files, where, folder), files
    other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".safetensors", ".pt"))
    has = f" It has {', '.join(other[:3])}, which no index lists." if other else ""
    raise LoadError(
        f"{folder} lacks the weight file {SAFE} (or {TORCH}, or an index of shards).{has} Download "
        "it again."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor that an index lists, {} where there is no index."""
    if not index.exists():
        return {}
    found = read_json_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or {type(n) for n in found.values()} != {str}:
        raise LoadError(f"{index} has no weight_map of files by tensor. Download it again.")
    return found


def _open(files: list[Path], where: Mapping[str, str], folder: Path) -> Tensors:
    parts: dict[str, Tensors] = {}
    for file in files:
        torch = file.suffix == ".bin"
        parts[file.name] = TorchFloats(file) if torch else Safetensors([file], str(folder))
    return Shards(parts, where, str(folder))


class TorchFloats:
    """The floats of one file that ``torch.save`` wrote, one tensor at a time in memory."""

    def __init__(self, file: Path):
        self.label = str(file)
        self._file = torch_file.TorchFile(file)

    def names(self) -> Iterable[str]:
        return self._file.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(name)

    def read(self, name: str) -> np.ndarray:
        found = self._file.read(name)
        if found.dtype not in _FLOATS:
            raise LoadError(
                f"Tensor {name!r} of {self.label} is stored as {found.dtype}, expected one of "
                f"{', '.join(map(str, _FLOATS))}: use the checkpoint that is not quantised."
            )
        return found


class Shards:
    """The tensors of several files of one folder.

    where: the file of each tensor as the index says, {} without one. Raises `LoadError` for a
    tensor that two files hold, or that is not in the file that the index says.
    """

    def __init__(self, parts: Mapping[str, Tensors], where: Mapping[str, str], label: str):
        self.label = label
        self._part: dict[str, Tensors] = {}
        files: dict[str, str] = {}
        for file, part in parts.items():
            for name in part.names():
                if name in files:
                    raise LoadError(
                        f"{label} holds {name!r} in {files[name]} and in {file}: remove the wrong "
                        "file."
                    )
                files[name], self._part[name] = file, part
        for name, file in where.items():
            if files.get(name) != file:
                raise LoadError(
                    f"The index of {label} says that {name!r} is in {file}, which does not hold "
                    "it. Download the files again."
                )

    def names(self) -> Iterable[str]:
        return self._part.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._part[name].shape(name)

    def read(self, name: str) -> np.ndarray:
        return self._part[name].read(name)
