"""Llama and its siblings Mistral, Qwen 2, Qwen 3, OLMo 2, Phi-3: RMSNorm, rotary, gated MLP."""

from __future__ import annotations

from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.base import (
    Family,
    Json,
    Rules,
    activation,
    attention,
    head,
    linear,
    need,
    norm,
    rotary_layers,
    windows,
)  # fmt: skip
from jaxinterp.model import Config

LAYER = "model.layers.{}."
BUFFERS = (r".*rotary_emb\.inv_freq",)


def common(json: Json, family: str, **changes: Any) -> Config:
    """The Llama config, with a sibling's choices on top."""
    D, H, L = (need(json, k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    d_head = json.get("head_dim") or D // H
    layer_types = changes.pop("layer_types", None) or ["full_attention"] * L
    bias = bool(json.get("attention_bias", False))
    fields = {
        "n_layers": L,
        "d_model": D,
        "n_heads": H,
        "n_kv_heads": json.get("num_key_value_heads") or H,
        "d_head": d_head,
        "d_mlp": need(json, "intermediate_size"),
        "vocab_size": need(json, "vocab_size"),
        "n_ctx": json.get("max_position_embeddings") or 2048,
        "windows": windows(layer_types, json.get("sliding_window")),
        "bias_qkv": bias,
        "bias_o": bias,
        **rotary_layers(json, d_head, layer_types),
        "norm_eps": json.get("rms_norm_eps", 1e-6),
        "act": activation(json.get("hidden_act", "silu")),
        "head": head(json, default_tied=False),
    }
    return Config(family=family, **{**fields, **changes})


def _llama(json: Json) -> Config:
    return common(json, "llama", bias_mlp=bool(json.get("mlp_bias", False)))


def _mistral(json: Json) -> Config:
    return common(json, "mistral", layer_types=_all_sliding(json, 4096))


def _phi3(json: Json) -> Config:
    json = {"rms_norm_eps": 1e-5, **json}
    return common(json, "phi3", layer_types=_all_sliding(json, None), bias_qkv=False, bias_o=False)


def _olmo2(json: Json) -> Config:
    json = {"rms_norm_eps": 1e-5, **json}
    return common(json, "olmo2", norm_input=False, norm_output=True, qk_norm="joint")


def _qwen2(json: Json) -> Config:
    return common(json, "qwen2", layer_types=_qwen_layers(json), bias_qkv=True, bias_o=False)


def _qwen3(json: Json) -> Config:
    json = {"head_dim": 128, **json}
    return common(json, "qwen3", layer_types=_qwen_layers(json), qk_norm="head")


def _all_sliding(json: Json, default: int | None) -> list[str]:
    """Every layer slides, if the model has a window at all."""
    kind = "sliding_attention" if json.get("sliding_window", default) else "full_attention"
    return [kind] * need(json, "num_hidden_layers")


def _qwen_layers(json: Json) -> list[str]:
    """Given, or: the first ``max_window_layers`` see everything, the others slide."""
    L = need(json, "num_hidden_layers")
    if not json.get("use_sliding_window", False) or not json.get("sliding_window"):
        return ["full_attention"] * L
    full = json.get("max_window_layers", 28)
    default = ["full_attention" if i < full else "sliding_attention" for i in range(L)]
    return list(json.get("layer_types") or default)


ENDS: Rules = {
    "embed.W_E": ("model.embed_tokens.weight", t.same),
    **norm("ln_final", "model.norm"),
    "head.W_U": ("lm_head.weight", t.transpose),
}
ATTENTION = attention(f"{LAYER}self_attn.", "q_proj", "k_proj", "v_proj", "o_proj")
GATED: Rules = {
    **linear("blocks.mlp.W_gate", "blocks.mlp.b_gate", f"{LAYER}mlp.gate_proj"),
    **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{LAYER}mlp.up_proj"),
    **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{LAYER}mlp.down_proj"),
}
_NORMS: Rules = {
    **norm("blocks.ln1", f"{LAYER}input_layernorm"),
    **norm("blocks.ln2", f"{LAYER}post_attention_layernorm"),
}
_LLAMA: Rules = {**ENDS, **ATTENTION, **GATED, **_NORMS}

LLAMA = Family(("llama",), _llama, _LLAMA, ((r"^model\.", ""),), BUFFERS)
MISTRAL = Family(("mistral",), _mistral, _LLAMA, ((r"^model\.", ""),), BUFFERS)
QWEN2 = Family(("qwen2",), _qwen2, _LLAMA, ((r"^model\.", ""),), BUFFERS)
QWEN3 = Family(
    model_types=("qwen3",),
    config=_qwen3,
    rules={
        **_LLAMA,
        "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.same),
        "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.same),
    },
    renames=((r"^model\.", ""),),
    ignored=BUFFERS,
)
OLMO2 = Family(
    model_types=("olmo2",),
    config=_olmo2,
    rules={
        **ENDS,
        **ATTENTION,
        **GATED,
        "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.heads_bias),
        "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.heads_bias),
        **norm("blocks.ln1_post", f"{LAYER}post_attention_layernorm"),
        **norm("blocks.ln2_post", f"{LAYER}post_feedforward_layernorm"),
    },
    renames=((r"^model\.", ""),),
    ignored=BUFFERS,
)
PHI3 = Family(
    model_types=("phi3",),
    config=_phi3,
    rules={
        **ENDS,
        **_NORMS,
        **{
            f"blocks.attn.W_{letter}": (
                f"{LAYER}self_attn.qkv_proj.weight",
                t.chain(t.qkv_rows(i), t.heads),
            )
            for i, letter in enumerate("QKV")
        },
        "blocks.attn.W_O": (f"{LAYER}self_attn.o_proj.weight", t.heads_out),
        "blocks.mlp.W_gate": (f"{LAYER}mlp.gate_up_proj.weight", t.chain(t.half(0), t.transpose)),
        "blocks.mlp.W_in": (f"{LAYER}mlp.gate_up_proj.weight", t.chain(t.half(1), t.transpose)),
        "blocks.mlp.W_out": (f"{LAYER}mlp.down_proj.weight", t.transpose),
    },
    renames=((r"^model\.", ""),),
    ignored=BUFFERS,
)
