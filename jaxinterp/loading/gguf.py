"""Models in llama.cpp's GGUF files, read as if they were in Hugging Face layout.

Metadata become the config.json of the family, tensor names are translated by the gguf
package's own table, and the two things llama.cpp's converter changes (the order of
Llama's rotary rows, Gemma's norm gains) are undone in the family's rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import Rules, family_of
from jaxinterp.loading.fill import fill
from jaxinterp.loading.gguf_file import GgufFile
from jaxinterp.loading.gguf_tokenizer import tokenizer_of
from jaxinterp.loading.reading import config_of, sha256
from jaxinterp.model import Config, Model
from jaxinterp.reading import LoadError, damage_refused

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

# llama.cpp's architecture name, and ours.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}

# Metadata (without the architecture's prefix) and the entry of config.json that it is.
_METADATA = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}


def load_gguf(
    file: Path, dtype: Any, mesh: Any, name: str, revision: str | None
) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer of one ``.gguf`` file."""
    tensors = GgufFile(file)
    json = config_json(tensors)
    family = family_of(json["model_type"])
    config = config_of(family, json, name)
    if config.n_layers > len(list(tensors.names())):
        raise LoadError(
            f"{file} says that it has {config.n_layers} layers, but has fewer tensors: download "
            "it again."
        )
    tokenizer = tokenizer_of(tensors.metadata, name)
    rules = _rules(family.rules, json["model_type"], config)
    params = fill(family, config, tensors, dtype, mesh, rules)
    return Model(params, config, name=name, revision=revision or sha256([file])), tokenizer


def config_json(tensors: GgufFile) -> dict[str, Any]:
    """The config.json that the model would have in Hugging Face layout.

    Raises `LoadError` for architectures that are not supported, and metadata that no model has.
    """
    with damage_refused(tensors.label, "a GGUF file with a model's metadata"):
        return _config_json(tensors)


def _config_json(tensors: GgufFile) -> dict[str, Any]:
    metadata = tensors.metadata
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise LoadError(
            f"GGUF architecture {arch!r} of {tensors.label} is not supported: expected one of "
            f"{', '.join(ARCHITECTURES)}. Load the model's safetensors instead."
        )
    get = {key.removeprefix(f"{arch}."): value for key, value in metadata.items()}
    json: dict[str, Any] = {ours: get[key] for key, ours in _METADATA.items() if key in get}
    json["model_type"] = ARCHITECTURES[arch]
    json["vocab_size"] = get.get("vocab_size") or len(get.get("tokenizer.ggml.tokens", ()))
    json["tie_word_embeddings"] = not tensors.has("output.weight")
    json["attention_bias"] = tensors.has("blk.0.attn_q.bias")
    json["mlp_bias"] = tensors.has("blk.0.ffn_up.bias")
    if "rope.dimension_count" in get:
        head_dim = json.get("head_dim") or json["hidden_size"] // json["num_attention_heads"]
        json["partial_rotary_factor"] = get["rope.dimension_count"] / head_dim
    if arch in ("qwen2", "qwen3"):
        json.pop("sliding_window", None)
    if arch.startswith("gemma"):
        json["query_pre_attn_scalar"] = _gemma_scalar(arch, json)
    json["rope_scaling"] = _rope_scaling(get, tensors)
    return json


def _gemma_scalar(arch: str, json: dict[str, Any]) -> float:
    """GGUF lacks it: the head's size, but the stream's share in the 27B models."""
    if (arch, json["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62)):
        return json["hidden_size"] / json["num_attention_heads"]
    return json["head_dim"]


def _rope_scaling(get: dict[str, Any], tensors: GgufFile) -> dict[str, Any] | None:
    """Linear scaling from metadata, Llama 3's recognised in the stored factors."""
    kind = get.get("rope.scaling.type", "none")
    if tensors.has("rope_factors_long.weight") or kind not in ("none", "linear"):
        kind = "longrope" if tensors.has("rope_factors_long.weight") else kind
        raise LoadError(
            f"Rotary scaling {kind!r} of {tensors.label} is not supported in GGUF files: "
            "load the model's safetensors instead."
        )
    if tensors.has("rope_freqs.weight"):
        return _llama3(get, tensors)
    return (
        {"rope_type": "linear", "factor": get["rope.scaling.factor"]} if kind == "linear" else None
    )


def _llama3(get: dict[str, Any], tensors: GgufFile) -> dict[str, Any]:
    """Llama 3.1's scaling, from the number that each frequency is divided by.

    The file holds only the result; the published models share all but the largest factor.
    """
    stored = tensors.read("rope_freqs.weight")
    low, high, context, factor = 1.0, 4.0, 8192, float(stored.max())
    pairs = np.arange(stored.size, dtype=np.float64) / stored.size
    turns = context * float(get.get("rope.freq_base", 10_000.0)) ** -pairs / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise LoadError(
            f"rope_freqs.weight of {tensors.label} is not Llama 3.1's rotary scaling: load the "
            "model's safetensors instead."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


def _rules(rules: Rules, model_type: str, config: Config) -> Rules:
    """The family's rules, under GGUF's names and without what its converter did already."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    arch = next(ours for ours, hf in ARCHITECTURES.items() if hf == model_type)
    names = get_tensor_name_map(MODEL_ARCH[arch.upper()], config.n_layers)

    def rename(source: str) -> str:
        stem, suffix = source.rsplit(".", 1)
        found = names.get_name(stem.format(0)) or f"{stem} (unknown to GGUF)"
        return f"{found.replace('blk.0.', 'blk.{}.')}.{suffix}"

    def adapt(leaf: str, transform: t.Transform) -> t.Transform:
        if transform is t.plus_one:
            return t.same
        if model_type == "llama" and leaf.split(".")[-1] in ("W_Q", "W_K", "b_Q", "b_K"):
            return t.chain(t.unpermute, transform)
        return transform

    return {leaf: (rename(source), adapt(leaf, op)) for leaf, (source, op) in rules.items()}
