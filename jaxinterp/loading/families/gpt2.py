"""GPT-2 (Radford et al. 2019): learned positions, fused q, k, v in Conv1D layers."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import keys as k
from jaxinterp.loading.families.base import (
    Family,
    Values,
    activation,
    head,
    linear,
    norm,
    split,
)  # fmt: skip
from jaxinterp.model import Config

# The names of sizes that other families have; the reference takes them, too.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SUMMARY = dict.fromkeys(
    ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
     "summary_first_dropout", "summary_last_dropout", "predict_special_tokens", "n_special"),
    k.LABELS,
)  # fmt: skip

_KEYS = k.Keys(
    used={
        "n_embd": k.size(),
        "n_head": k.size(),
        "n_layer": k.size(most=k.MOST_LAYERS),
        "vocab_size": k.size(),
        "n_positions": k.size(1024),
        "n_inner": k.size(None, null=True),
        "activation_function": k.text("gelu_new"),
        "layer_norm_epsilon": k.positive(1e-5),
        "scale_attn_weights": k.flag(True),
        "tie_word_embeddings": k.flag(True),
    },
    fixed={"scale_attn_by_inverse_layer_idx": (False, "scores scaled by the layer's index")},
    idle={
        "reorder_and_upcast_attn": "it says in which precision the reference multiplies",
        "n_ctx": "n_positions says it",
        "is_decoder": "the model is causal without it",
        **SUMMARY,
    },
    aliases=ALIASES,
)


def _config(json: Values, architectures: tuple[str, ...]) -> Config:
    D, H = json["n_embd"], json["n_head"]
    return Config(
        family="gpt2",
        n_layers=json["n_layer"],
        d_model=D,
        n_heads=H,
        d_head=split(D, H, "gpt2"),
        d_mlp=json["n_inner"] or 4 * D,
        vocab_size=json["vocab_size"],
        n_ctx=json["n_positions"],
        attn_scale=0.0 if json["scale_attn_weights"] else 1.0,
        bias_qkv=True,
        bias_o=True,
        positions="learned",
        norm="layer",
        norm_eps=json["layer_norm_epsilon"],
        act=activation(json["activation_function"]),
        gated=False,
        bias_mlp=True,
        head=head(json["tie_word_embeddings"]),
    )


_LAYER = "transformer.h.{}."
_QKV = f"{_LAYER}attn.c_attn"

FAMILY = Family(
    model_type="gpt2",
    keys=_KEYS,
    build=_config,
    models=("GPT2LMHeadModel",),
    bases=("GPT2Model",),
    rules={
        "embed.W_E": ("transformer.wte.weight", t.same),
        "embed.W_pos": ("transformer.wpe.weight", t.same),
        **{
            f"blocks.attn.W_{letter}": (f"{_QKV}.weight", t.chain(t.third(i), t.heads_conv))
            for i, letter in enumerate("QKV")
        },
        **{
            f"blocks.attn.b_{letter}": (f"{_QKV}.bias", t.chain(t.third(i), t.heads_bias))
            for i, letter in enumerate("QKV")
        },
        "blocks.attn.W_O": (f"{_LAYER}attn.c_proj.weight", t.heads_out_conv),
        "blocks.attn.b_O": (f"{_LAYER}attn.c_proj.bias", t.same),
        **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{_LAYER}mlp.c_fc", t.same),
        **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{_LAYER}mlp.c_proj", t.same),
        **norm("blocks.ln1", f"{_LAYER}ln_1"),
        **norm("blocks.ln2", f"{_LAYER}ln_2"),
        **norm("ln_final", "transformer.ln_f"),
        "head.W_U": ("lm_head.weight", t.transpose),
    },
    ties=(("lm_head.weight", "transformer.wte.weight"),),
    renames=((r"^transformer\.", ""),),
    ignored=((r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", "it is the causal mask"),),
)
