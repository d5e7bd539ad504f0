"""Llama and its siblings Mistral, Qwen 2, Qwen 3, OLMo 2, Phi-3: RMSNorm, rotary, gated MLP."""

from __future__ import annotations

from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import keys as k
from jaxinterp.loading.families.base import (
    Family,
    Rules,
    Values,
    activation,
    attention,
    head,
    linear,
    norm,
    split,
    windows,
)  # fmt: skip
from jaxinterp.loading.families.rotary import ROTARY, rotary
from jaxinterp.model import Config

LAYER = "model.layers.{}."
RENAMES = ((r"^model\.", ""),)
TIES = (("lm_head.weight", "model.embed_tokens.weight"),)
BUFFERS = ((r"(.*\.)?rotary_emb\.inv_freq", "it follows from the rotary settings"),)
IDLE = {"is_decoder": "the model is causal without it"}

# The keys that Llama and its siblings share; what one adds or has another default for comes on top.
COMMON: dict[str, k.Key] = {
    "hidden_size": k.size(),
    "num_attention_heads": k.size(),
    "num_hidden_layers": k.size(most=k.MOST_LAYERS),
    "num_key_value_heads": k.size(None, null=True),
    "head_dim": k.size(None, null=True),
    "intermediate_size": k.size(),
    "vocab_size": k.size(),
    "max_position_embeddings": k.size(2048),
    "rms_norm_eps": k.positive(1e-6),
    "hidden_act": k.text("silu"),
    "tie_word_embeddings": k.flag(False),
    **ROTARY,
}
_QWEN: dict[str, k.Key] = {
    **COMMON,
    "num_key_value_heads": k.size(32, null=True),
    "max_position_embeddings": k.size(32_768),
    "use_sliding_window": k.flag(False),
    "sliding_window": k.size(4096, null=True),
    "max_window_layers": k.Key("a whole number", lambda n: type(n) is int, 28),
    "layer_types": k.listed(),
}
_ORIGINAL = "original_max_position_embeddings"
_NO_WINDOW = (None, "a window that the family does not have")
_NO_BIAS = (False, "biases that the family does not have")


def common(json: Values, family: str, **changes: Any) -> Config:
    """The Llama config, with a sibling's choices on top."""
    D, H, L = (json[n] for n in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    d_head = json["head_dim"] or split(D, H, family)
    bias = json.get("attention_bias", False)
    fields = {
        "n_layers": L,
        "d_model": D,
        "n_heads": H,
        "n_kv_heads": json["num_key_value_heads"] or H,
        "d_head": d_head,
        "d_mlp": json["intermediate_size"],
        "vocab_size": json["vocab_size"],
        "n_ctx": json["max_position_embeddings"],
        "bias_qkv": bias,
        "bias_o": bias,
        "norm_eps": json["rms_norm_eps"],
        "act": activation(json["hidden_act"]),
        "head": head(json["tie_word_embeddings"]),
    }
    if "rotary" not in changes:
        fields["rotary"] = (rotary(json, family, d_head),)
    return Config(family=family, **{**fields, **changes})


def _llama(json: Values, architectures: tuple[str, ...]) -> Config:
    return common(json, "llama", bias_mlp=json["mlp_bias"])


def _mistral(json: Values, architectures: tuple[str, ...]) -> Config:
    return common(json, "mistral", windows=_all_sliding(json))


def _phi3(json: Values, architectures: tuple[str, ...]) -> Config:
    d_head = json["head_dim"] or split(json["hidden_size"], json["num_attention_heads"], "phi3")
    turned = rotary(json, "phi3", d_head, partial=True, kinds=("default",))
    return common(json, "phi3", windows=_all_sliding(json), rotary=(turned,))


def _olmo2(json: Values, architectures: tuple[str, ...]) -> Config:
    return common(json, "olmo2", norm_input=False, norm_output=True, qk_norm="joint")


def _qwen2(json: Values, architectures: tuple[str, ...]) -> Config:
    return common(json, "qwen2", windows=_qwen_windows(json), bias_qkv=True, bias_o=False)


def _qwen3(json: Values, architectures: tuple[str, ...]) -> Config:
    return common(json, "qwen3", windows=_qwen_windows(json), qk_norm="head")


def _all_sliding(json: Values) -> tuple[int, ...]:
    """Every layer slides, if the model has a window at all."""
    return (json["sliding_window"],) * json["num_hidden_layers"] if json["sliding_window"] else ()


def _qwen_windows(json: Values) -> tuple[int, ...]:
    """By layer_types, or: the first ``max_window_layers`` see everything, the others slide."""
    L, full = json["num_hidden_layers"], json["max_window_layers"]
    window = json["sliding_window"] if json["use_sliding_window"] else None
    default = ["sliding_attention" if window and i >= full else "full_attention" for i in range(L)]
    return windows(json["layer_types"] or default, L, window)


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


def _sibling(name: str, keys: k.Keys, build: Any, rules: Rules, prefix: str) -> Family:
    """A row of the table of architectures that names its tensors as Llama does."""
    return Family(
        model_type=name,
        keys=keys,
        build=build,
        models=(f"{prefix}ForCausalLM",),
        bases=(f"{prefix}Model",),
        rules=rules,
        ties=TIES,
        renames=RENAMES,
        ignored=BUFFERS,
    )


LLAMA = _sibling(
    "llama",
    k.Keys(
        used={**COMMON, "attention_bias": k.flag(False), "mlp_bias": k.flag(False)},
        fixed={
            "rope_interleaved": (False, "rotary positions that pair neighbours"),
            "sliding_window": _NO_WINDOW,
        },
        idle={**IDLE, "max_sequence_length": "max_position_embeddings says it"},
    ),
    _llama,
    _LLAMA,
    "Llama",
)
MISTRAL = _sibling(
    "mistral",
    k.Keys(
        used={
            **COMMON,
            "num_key_value_heads": k.size(8, null=True),
            "max_position_embeddings": k.size(131_072),
            "sliding_window": k.size(4096, null=True),
        },
        fixed={
            "attention_bias": _NO_BIAS,
            "mlp_bias": _NO_BIAS,
            "layer_types": (None, "windows that differ by layer"),
        },
        idle=IDLE,
    ),
    _mistral,
    _LLAMA,
    "Mistral",
)
QWEN2 = _sibling(
    "qwen2",
    k.Keys(
        used=_QWEN,
        fixed={
            "attention_bias": (True, "no biases of queries, keys and values"),
            "mlp_bias": _NO_BIAS,
            "use_mrope": (False, "rotary positions of several axes"),
        },
        idle=IDLE,
    ),
    _qwen2,
    _LLAMA,
    "Qwen2",
)
QWEN3 = _sibling(
    "qwen3",
    k.Keys(
        used={**_QWEN, "head_dim": k.size(128), "attention_bias": k.flag(False)},
        fixed={"mlp_bias": _NO_BIAS},
        idle=IDLE,
    ),
    _qwen3,
    {
        **_LLAMA,
        "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.same),
        "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.same),
    },
    "Qwen3",
)
OLMO2 = _sibling(
    "olmo2",
    k.Keys(
        used={**COMMON, "rms_norm_eps": k.positive(1e-5), "attention_bias": k.flag(False)},
        fixed={"mlp_bias": _NO_BIAS, "sliding_window": _NO_WINDOW},
        idle=IDLE,
    ),
    _olmo2,
    {
        **ENDS,
        **ATTENTION,
        **GATED,
        "blocks.attn.q_norm.w": (f"{LAYER}self_attn.q_norm.weight", t.heads_bias),
        "blocks.attn.k_norm.w": (f"{LAYER}self_attn.k_norm.weight", t.heads_bias),
        **norm("blocks.ln1_post", f"{LAYER}post_attention_layernorm"),
        **norm("blocks.ln2_post", f"{LAYER}post_feedforward_layernorm"),
    },
    "Olmo2",
)
PHI3 = _sibling(
    "phi3",
    k.Keys(
        used={
            **{key: its for key, its in COMMON.items() if key != _ORIGINAL},
            "rms_norm_eps": k.positive(1e-5),
            "max_position_embeddings": k.size(4096),
            "sliding_window": k.size(None, null=True),
        },
        fixed={
            "attention_bias": _NO_BIAS,
            "mlp_bias": _NO_BIAS,
            "lm_head_bias": _NO_BIAS,
            "full_attn_mod": (1, "windows that differ by layer"),
            "interpolate_factor": (1, "positions that are scaled"),
        },
        idle={**IDLE, _ORIGINAL: "only scaled rotary positions read it, which are refused"},
    ),
    _phi3,
    {
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
    "Phi3",
)
