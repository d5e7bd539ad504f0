"""Models in Hugging Face layout: a local folder, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp.loading.families import family_of
from jaxinterp.loading.fill import fill
from jaxinterp.loading.reading import read_json, read_tokenizer, sha256
from jaxinterp.loading.tensors import Safetensors
from jaxinterp.model import Model
from jaxinterp.reading import LoadError

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NEEDED = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", _WEIGHTS, _INDEX,
    "model-*-of-*.safetensors",
]  # fmt: skip


def load_folder(
    folder: Path, dtype: Any, mesh: Any, name: str, revision: str | None
) -> tuple[Model, Tokenizer | None]:
    """The model and tokenizer of a folder with config.json and safetensors."""
    json = read_json(folder / "config.json")
    quantised = json.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown")
        raise LoadError(
            f"{name} is quantised ({method}), which is not supported in safetensors: "
            "take the checkpoint it was made from, or a .gguf file."
        )
    family = family_of(json.get("model_type"))
    config = family.config(json)
    files = weight_files(folder)
    params = fill(family, config, Safetensors(files, str(folder)), dtype, mesh)
    model = Model(params, config, name=name, revision=revision or sha256(files))
    return model, read_tokenizer(folder, name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, one or as many as its index lists."""
    index = read_json(folder / _INDEX)
    names = sorted(set(index.get("weight_map", {}).values())) or [_WEIGHTS]
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        other = sorted(p.name for p in folder.glob("*.bin")) or sorted(
            p.name for p in folder.glob("*.safetensors")
        )
        has = f" It has {', '.join(other[:3])}: only safetensors are read." if other else ""
        raise LoadError(f"{folder} lacks the weight file {missing[0]}.{has} Download it again.")
    return files


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """The needed files of a hub repository, and the commit they are from."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise LoadError(f"{name!r} is no model name, no hub id and no existing path.")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_NEEDED))
    except (OSError, ValueError, RuntimeError, HFValidationError) as error:
        raise _unreachable(name, error) from error
    except Exception as error:
        # The hub's HTTP library brings its own base class, which we do not name here.
        if type(error).__module__.split(".")[0] not in ("httpx", "requests", "huggingface_hub"):
            raise
        raise _unreachable(name, error) from error
    return folder, folder.name


def _unreachable(name: str, error: Exception) -> LoadError:
    from jaxinterp.loading.registry import BUILT_IN
    from jaxinterp.loading.shipped import shipped

    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return LoadError(
        f"{name!r} is no built-in model ({', '.join((*BUILT_IN, *shipped()))}), no local path, "
        f"and could not be fetched from the Hugging Face hub: {reason}"
    )
