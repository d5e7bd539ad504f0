"""Gemma 2 and Gemma 3: norms around each sublayer with gain 1 + w, alternating windows."""

from __future__ import annotations

from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.base import Family, Json, Rules, activation, head, norm, refuse
from jaxinterp.loading.families.llama import ATTENTION, BUFFERS, ENDS, GATED, LAYER, common
from jaxinterp.model import Config

# What config.json may leave out.
_DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
}


def _gemma(json: Json, family: str, layer_types: list[str], **changes: Any) -> Config:
    refuse(json, "use_bidirectional_attention", False, "attention that looks ahead")
    act = json.get("hidden_activation") or json.get("hidden_act") or "gelu_pytorch_tanh"
    return common(
        json,
        family,
        layer_types=layer_types,
        attn_scale=float(json["query_pre_attn_scalar"]) ** -0.5,
        attn_softcap=json.get("attn_logit_softcapping") or 0.0,
        logit_softcap=json.get("final_logit_softcapping") or 0.0,
        norm_output=True,
        act=activation(act),
        embed_scale=float(json["hidden_size"]) ** 0.5,
        head=head(json, default_tied=True),
        **changes,
    )


def _gemma2(json: Json) -> Config:
    json = {
        **_DEFAULTS,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **json,
    }
    return _gemma(json, "gemma2", list(json.get("layer_types") or _pattern(json, 2)))


def _gemma3(json: Json) -> Config:
    json = {**_DEFAULTS, "vocab_size": 262_208, "max_position_embeddings": 131_072, **json}
    json.update(json.pop("text_config", None) or {})
    if not json.get("rope_parameters"):  # transformers 4: flat, scaling for the global layers
        json["rope_parameters"] = {
            "full_attention": {
                "rope_theta": json.get("rope_theta", 1_000_000.0),
                **(json.get("rope_scaling") or {}),
            },
            "sliding_attention": {"rope_theta": json.get("rope_local_base_freq", 10_000.0)},
        }
    every = json.get("sliding_window_pattern") or json.get("_sliding_window_pattern") or 6
    layer_types = list(json.get("layer_types") or _pattern(json, every))
    return _gemma(json, "gemma3", layer_types, qk_norm="head")


def _pattern(json: Json, every: int) -> list[str]:
    """Every n-th layer sees everything."""
    layers = range(1, json["num_hidden_layers"] + 1)
    return ["sliding_attention" if i % every else "full_attention" for i in layers]


_RULES: Rules = {
    **ENDS,
    **ATTENTION,
    **GATED,
    **norm("ln_final", "model.norm", t.plus_one),
    **norm("blocks.ln1", f"{LAYER}input_layernorm", t.plus_one),
    **norm("blocks.ln1_post", f"{LAYER}post_attention_layernorm", t.plus_one),
    **norm("blocks.ln2", f"{LAYER}pre_feedforward_layernorm", t.plus_one),
    **norm("blocks.ln2_post", f"{LAYER}post_feedforward_layernorm", t.plus_one),
}

GEMMA2 = Family(("gemma2",), _gemma2, _RULES, ((r"^model\.", ""),), BUFFERS)
GEMMA3 = Family(
    model_types=("gemma3_text", "gemma3"),
    config=_gemma3,
    rules={
        **_RULES,
        "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.plus_one),
        "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.plus_one),
    },
    # Beside an image encoder the language model has a prefix, which moved once.
    renames=(
        (r"^model\.(?=layers|embed|norm)", "model.language_model."),
        (r"^model\.(language_model\.)?", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(?=layers|embed|norm)", ""),
    ),
    ignored=(*BUFFERS, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
)
