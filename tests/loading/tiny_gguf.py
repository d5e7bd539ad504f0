"""Writing a small GGUF file as llama.cpp's converter would: for tests and for the goldens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

VOCAB = 64
ARCHITECTURES = {"gemma3_text": "gemma3"}


def write(
    file: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    quantise: bool = False,
    rope_freqs: np.ndarray | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A model in Hugging Face layout (config.json and tensors) as one GGUF file.

    quantise: matrices in 8 bits (rows a multiple of 32). rope_freqs: Llama 3's factors.
    metadata: further float or int keys.
    """
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(file, arch)
    writer.add_name("tiny")
    _add_sizes(writer, arch, config)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](key, value)
    _add_vocabulary(writer, sentencepiece=arch in ("gemma2", "gemma3", "phi3"))
    kind = getattr(gguf.MODEL_ARCH, arch.upper())
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    head_dim = _head_dim(config)
    for name, x in tensors.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            parts = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
            x = parts.swapaxes(1, 2).reshape(x.shape)
        if arch.startswith("gemma") and "norm" in name:
            x = x + np.float32(1)
        stem, suffix = name.rsplit(".", 1)
        name = f"{names.get_name(stem)}.{suffix}"
        if quantise and x.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(x, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _head_dim(c: Mapping[str, Any]) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def _add_sizes(writer: Any, arch: str, c: Mapping[str, Any]) -> None:
    rope = c.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_vocab_size(VOCAB)
    if arch in ("llama", "phi3"):
        fraction = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(_head_dim(c) * fraction))
    if arch != "phi3":
        writer.add_key_length(_head_dim(c))
        writer.add_value_length(_head_dim(c))
    if arch in ("gemma2", "gemma3", "phi3") and c.get("sliding_window"):
        writer.add_sliding_window(c["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(c["attn_logit_softcapping"])
    if c.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(c["final_logit_softcapping"])


def _add_vocabulary(writer: Any, sentencepiece: bool) -> None:
    """A vocabulary of 64 tokens of either kind."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [chr(ord("a") + i) for i in range(26)]
    if sentencepiece:
        words = ["▁", "▁a", "▁b", "th", "the", "▁the", "he", "an", "▁an", "and", "▁and", "in"]
        bytes_ = [f"<0x{i:02X}>" for i in (0x0A, *range(0xE0, 0xE0 + 21))]
        tokens = special + bytes_ + words + letters
        kinds = [3] * 4 + [6] * 22 + [1] * (12 + 26)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * 26 + [-float(i) for i in range(12 + 26)])
    else:
        words = ["Ġ", "Ġa", "th", "the", "Ġthe", "in", "an", "and"]
        tokens = special + letters + words + [chr(ord("0") + i) for i in range(10)]
        kinds = [3] * 4 + [1] * (26 + 8 + 10) + [4] * (VOCAB - len(tokens))
        tokens += [f"<extra{i}>" for i in range(VOCAB - len(tokens))]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["Ġ a", "t h", "th e", "Ġ the", "i n", "a n", "an d"])
    writer.add_unk_token_id(3)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(sentencepiece)
