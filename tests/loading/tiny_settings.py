"""Changes of a golden model's file and of rotary settings, made alike by tests and goldens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

HEADS = ("gpt2", "gpt_neox", "gptj", "opt", "llama", "qwen2", "gemma2", "gemma3", "phi3", "bert")
CHANGES = ("own", "equal", "missing", "only")

_EMBEDDING = {
    "gpt2": "transformer.wte.weight", "gptj": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight", "opt": "model.decoder.embed_tokens.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
}  # fmt: skip
_HEAD = {"bert": "cls.predictions.decoder.weight", "gpt_neox": "embed_out.weight"}


def head_cases() -> Iterator[tuple[str, bool | None, str]]:
    """A golden folder, what tie_word_embeddings says, and how the file changes."""
    return itertools.product(HEADS, (None, False, True), CHANGES)


def label(name: str, tied: bool | None, change: str) -> str:
    """The name of a case."""
    return f"{name}, tie_word_embeddings {tied}, unembedding {change}"


def names(model_type: str) -> tuple[str, str]:
    """The names of the embedding and of the unembedding."""
    embedding = _EMBEDDING.get(model_type, "model.embed_tokens.weight")
    return embedding, _HEAD.get(model_type, "lm_head.weight")


def change_head(tensors: dict[str, Any], model_type: str, change: str) -> tuple[Any, Any]:
    """Change the unembedding of a file in place; the embedding and the unembedding it had.

    change: the file's own differs from the embedding, is equal to it, is missing, or is the only
    one of the two.
    """
    embedding, head = names(model_type)
    first = tensors[embedding]
    tensors.pop("lm_head.weight", None)
    tensors.pop(head, None)
    own = first[::-1] * 0.5 if hasattr(first, "base") else first.flip(0).contiguous() * 0.5
    if change in ("own", "only"):
        tensors[head] = own
    if change == "equal":
        tensors[head] = first.copy() if hasattr(first, "copy") else first.clone()
    if change == "only":
        del tensors[embedding]
    return first, tensors.get(head)


_SIZES = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "factor": 2.0}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def _flat() -> list[dict[str, Any]]:
    """Settings that the families with one rotary kind read, in both forms."""
    return [
        {},
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 500.0, "rope_scaling": _LINEAR},
        {"rope_parameters": {**_LINEAR, "rope_theta": 500.0}},
        {"rope_parameters": _LINEAR},
        {"rope_theta": 500.0, "rope_scaling": _LLAMA3},
        {"rope_parameters": {**_LLAMA3, "rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": _YARN},
        {"rope_parameters": {**_YARN, "rope_theta": 500.0, "beta_fast": 4.0, "beta_slow": 0.5}},
        {"rope_parameters": {**_YARN, "rope_theta": 500.0, "truncate": False}},
        {"rope_parameters": {**_YARN, "rope_theta": 500.0, "attention_factor": 1.5}},
        {"rope_parameters": {**_YARN, "rope_theta": 500.0, "mscale": 2.0, "mscale_all_dim": 1.0}},
        {"rope_theta": 500.0, "rope_scaling": None},
        {"rope_scaling": _LINEAR, "rope_parameters": {**_LINEAR, "rope_theta": 10_000.0},
         "rope_theta": 10_000.0},
    ]  # fmt: skip


def rotary_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """A model_type and its config.json, all of which the reference computes with."""
    for name in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2"):
        for settings in _flat():
            yield name, {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, **settings}
    for settings in ({}, {"rope_theta": 500.0}, {"partial_rotary_factor": 0.5},
                     {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                          "partial_rotary_factor": 0.5}}):  # fmt: skip
        yield "phi3", {**_SIZES, "original_max_position_embeddings": 64, **settings}
    part = {**_LINEAR, "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    for settings in ({}, {"rotary_pct": 0.5}, {"rotary_pct": 1.0, "rotary_emb_base": 500},
                     {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
                     {"rope_parameters": part},
                     {"rope_scaling": _LINEAR, "rotary_pct": 0.5}):  # fmt: skip
        yield "gpt_neox", {**_SIZES, "hidden_size": 32, **settings}
    both = {"full_attention": {**_LINEAR, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}  # fmt: skip
    for settings in ({}, {"rope_theta": 500.0, "rope_local_base_freq": 50.0},
                     {"rope_scaling": _LINEAR}, {"rope_parameters": both},
                     {"rope_parameters": {"full_attention": both["full_attention"]}},
                     {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                      "rope_local_base_freq": 50.0, "sliding_window_pattern": 2}):  # fmt: skip
        shape = {**_SIZES, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 8}
        yield "gemma3_text", {**shape, **settings}
