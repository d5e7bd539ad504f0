"""Gemma 2 and Gemma 3: norms around each sublayer with gain 1 + w, alternating windows."""

from __future__ import annotations

from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import keys as k
from jaxinterp.loading.families.base import Family, Rules, Values, activation, norm, windows
from jaxinterp.loading.families.llama import (
    ATTENTION,
    BUFFERS,
    COMMON,
    ENDS,
    GATED,
    IDLE,
    LAYER,
    RENAMES,
    TIES,
    common,
)
from jaxinterp.loading.families.rotary import layer_kinds
from jaxinterp.model import Config
from jaxinterp.reading import LoadError

_GEMMA: dict[str, k.Key] = {
    **COMMON,
    "num_attention_heads": k.size(8),
    "num_key_value_heads": k.size(4),
    "head_dim": k.size(256),
    "hidden_activation": k.text("gelu_pytorch_tanh"),
    "hidden_act": k.Key("a name", lambda value: isinstance(value, str), None, True),
    "query_pre_attn_scalar": k.positive(256),
    "sliding_window": k.size(4096, null=True),
    "layer_types": k.listed(),
    "attention_bias": k.flag(False),
    "tie_word_embeddings": k.flag(True),
}
_FIXED = {
    "use_bidirectional_attention": (False, "attention that looks ahead"),
    "mlp_bias": (False, "biases that the family does not have"),
}


def _gemma(json: Values, family: str, default: list[str], **changes: Any) -> Config:
    act, old = json["hidden_activation"], json["hidden_act"]
    if old is not None and activation(old) != activation(act):
        raise LoadError(
            f"config.json of this {family} model says hidden_activation={act!r} and "
            f"hidden_act={old!r}: remove the wrong one."
        )
    return common(
        {**json, "hidden_act": act},
        family,
        windows=windows(
            json["layer_types"] or default, json["num_hidden_layers"], json["sliding_window"]
        ),
        attn_scale=float(json["query_pre_attn_scalar"]) ** -0.5,
        attn_softcap=json["attn_logit_softcapping"] or 0.0,
        logit_softcap=json["final_logit_softcapping"] or 0.0,
        norm_output=True,
        embed_scale=float(json["hidden_size"]) ** 0.5,
        **changes,
    )


def _gemma2(json: Values, architectures: tuple[str, ...]) -> Config:
    return _gemma(json, "gemma2", _pattern(json, 2))


def _gemma3(json: Values, architectures: tuple[str, ...]) -> Config:
    default = _pattern(json, json["sliding_window_pattern"])
    layer_types = json["layer_types"] or default
    kinds = layer_kinds(
        json, "of this gemma3 model", json["head_dim"], _THETAS, global_type="full_attention"
    )
    used = tuple(dict.fromkeys(kinds[name] for name in sorted(set(layer_types) & set(kinds))))
    per_layer = tuple(used.index(kinds[name]) for name in layer_types if name in kinds)
    rotary_kind = per_layer if len(used) > 1 else ()
    return _gemma(json, "gemma3", default, qk_norm="head", rotary=used, rotary_kind=rotary_kind)


def _gemma3_with_images(json: Values, architectures: tuple[str, ...]) -> Config:
    text = json["text_config"]
    tied = json["tie_word_embeddings"]
    if text.get("tie_word_embeddings", tied) != tied:
        raise LoadError(
            "config.json of this gemma3 model and its text_config disagree on "
            f"tie_word_embeddings ({tied}): remove the wrong one."
        )
    if text.get("model_type", "gemma3_text") != "gemma3_text":
        raise LoadError(
            f"The text_config of this gemma3 model is of a {text['model_type']!r} model, expected "
            "'gemma3_text'."
        )
    text = {"model_type": "gemma3_text", **text, "tie_word_embeddings": tied}
    return GEMMA3_TEXT.config({**text, "architectures": None})


_THETAS = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


def _pattern(json: Values, every: int) -> list[str]:
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

GEMMA2 = Family(
    model_type="gemma2",
    keys=k.Keys(
        used={
            **_GEMMA,
            "max_position_embeddings": k.size(8192),
            "attn_logit_softcapping": k.positive(50.0, null=True),
            "final_logit_softcapping": k.positive(30.0, null=True),
        },
        fixed=_FIXED,
        idle=IDLE,
        aliases={"sliding_window_size": "sliding_window"},
    ),
    build=_gemma2,
    models=("Gemma2ForCausalLM",),
    bases=("Gemma2Model",),
    rules=_RULES,
    ties=TIES,
    renames=RENAMES,
    ignored=BUFFERS,
)
_GEMMA3: Rules = {
    **_RULES,
    "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.plus_one),
    "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.plus_one),
}
GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    keys=k.Keys(
        used={
            **_GEMMA,
            "hidden_size": k.size(2304),
            "intermediate_size": k.size(9216),
            "num_hidden_layers": k.size(26, most=k.MOST_LAYERS),
            "vocab_size": k.size(262_208),
            "max_position_embeddings": k.size(131_072),
            "attn_logit_softcapping": k.positive(None, null=True),
            "final_logit_softcapping": k.positive(None, null=True),
            "sliding_window_pattern": k.size(6),
            "rope_local_base_freq": k.positive(None, null=True),
        },
        fixed=_FIXED,
        idle=IDLE,
        aliases={"_sliding_window_pattern": "sliding_window_pattern"},
    ),
    build=_gemma3,
    models=("Gemma3ForCausalLM",),
    bases=("Gemma3TextModel",),
    rules=_GEMMA3,
    ties=TIES,
    renames=RENAMES,
    ignored=BUFFERS,
)
GEMMA3 = Family(
    model_type="gemma3",
    keys=k.Keys(
        used={"text_config": k.mapping(k.NEEDED, null=False), "tie_word_embeddings": k.flag(True)},
        idle=dict.fromkeys(
            ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
             "image_token_index", "boi_token_id", "eoi_token_id", "image_token_id"),
            "images are no inputs of the language model",
        ),
        inner={"text_config": GEMMA3_TEXT.keys},
    ),
    build=_gemma3_with_images,
    models=("Gemma3ForConditionalGeneration",),
    bases=("Gemma3Model",),
    rules=_GEMMA3,
    ties=TIES,
    # Beside an image encoder the language model has a prefix, which moved once.
    renames=(
        (r"^model\.(?=layers|embed|norm)", "model.language_model."),
        (r"^model\.(language_model\.)?", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(?=layers|embed|norm)", ""),
    ),
    ignored=(
        *BUFFERS,
        (r"(model\.)?(vision_tower|multi_modal_projector)\..*",
         "images are no inputs of the language model"),
    ),
)  # fmt: skip
