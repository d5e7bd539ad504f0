"""Models in Hugging Face layout: a local folder, or a repository of the hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp.loading.families import Family, family_of
from jaxinterp.loading.fill import fill, untie
from jaxinterp.loading.names import Names
from jaxinterp.loading.reading import read_json, read_tokenizer, sha256
from jaxinterp.loading.tensors import Tensors
from jaxinterp.loading.weights import (
    ADAPTERS,
    SAFE_PATTERNS,
    TORCH_PATTERNS,
    has_weights,
    open_weights,
    refuse_adapters,
)
from jaxinterp.model import Model
from jaxinterp.reading import LoadError

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

_NEEDED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model",
    ADAPTERS[0],
)  # fmt: skip


def load_folder(
    folder: Path,
    dtype: Any,
    mesh: Any,
    name: str,
    revision: str | None,
    ignore_keys: Collection[str] = (),
) -> tuple[Model, Tokenizer | None]:
    """The model and tokenizer of a folder with config.json and weights.

    Everything that is read counts: each key of config.json and each tensor is used, is without
    effect by a stated rule of its family, or is refused; so is an adapter.
    """
    refuse_adapters(folder)
    json = read_json(folder / "config.json")
    quantised = json.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise LoadError(
            f"{name} is quantised ({method or 'unknown'}), which is not supported in safetensors: "
            "take the checkpoint it was made from, or a .gguf file."
        )
    family = family_of(json.get("model_type"))
    config = family.config(json, ignore_keys)
    tensors, files = open_weights(folder)
    config, stand_ins = untie(family, config, tensors)
    if family.only_base(json) and config.head == "untied" and not has_head(family, tensors):
        config = config.replace(head="none", bias_head=False)
    params = fill(family, config, tensors, dtype, mesh, stand_ins=stand_ins)
    model = Model(params, config, name=name, revision=revision or sha256(files))
    return model, read_tokenizer(folder, name)


def has_head(family: Family, tensors: Tensors) -> bool:
    """Whether the files hold an unembedding."""
    names = Names(family, tensors.names(), tensors.label)
    return names.find(family.rules["head.W_U"][0]) is not None


def download(name: str, revision: str | None) -> tuple[Path, str]:
    """The needed files of a hub repository, and the commit they are from.

    PyTorch's files are fetched only where there are no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise LoadError(f"{name!r} is no model name, no hub id and no existing path.")
    try:
        patterns = [*_NEEDED, *SAFE_PATTERNS]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not has_weights(folder):  # of the same commit
            patterns = [*_NEEDED, *TORCH_PATTERNS]
            folder = Path(snapshot_download(name, revision=folder.name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError, HFValidationError) as error:
        raise _unreachable(name, error) from error
    except Exception as error:
        # The hub's HTTP library brings its own base class, which we do not name here.
        if type(error).__module__.split(".")[0] not in ("httpx", "requests", "huggingface_hub"):
            raise
        raise _unreachable(name, error) from error
    return folder, folder.name


def is_in_cache(name: str, commit: str) -> bool:
    """Whether config.json and all weights of a commit lie in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=commit)
        if not isinstance(config, str):
            return False
        open_weights(Path(config).parent)
    except (LoadError, FileNotFoundError, HFValidationError):
        return False
    return True


def _unreachable(name: str, error: Exception) -> LoadError:
    from jaxinterp.loading.registry import BUILT_IN
    from jaxinterp.loading.shipped import shipped

    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return LoadError(
        f"{name!r} is no built-in model ({', '.join((*BUILT_IN, *shipped()))}), no local path, "
        f"and could not be fetched from the Hugging Face hub: {reason}"
    )
