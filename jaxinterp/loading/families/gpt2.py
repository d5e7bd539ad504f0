"""GPT-2 (Radford et al. 2019): learned positions, fused q, k, v in Conv1D layers."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.base import (
    Family,
    Json,
    activation,
    head,
    linear,
    need,
    norm,
    refuse,
)
from jaxinterp.model import Config


def config(json: Json) -> Config:
    """Our config from Hugging Face's ``config.json``."""
    refuse(json, "scale_attn_by_inverse_layer_idx", False, "scores scaled by the layer's index")
    refuse(json, "add_cross_attention", False, "an encoder's output is attended to")
    D, H = need(json, "n_embd"), need(json, "n_head")
    return Config(
        family="gpt2",
        n_layers=need(json, "n_layer"),
        d_model=D,
        n_heads=H,
        d_head=D // H,
        d_mlp=json.get("n_inner") or 4 * D,
        vocab_size=need(json, "vocab_size"),
        n_ctx=json.get("n_positions", 1024),
        attn_scale=0.0 if json.get("scale_attn_weights", True) else 1.0,
        bias_qkv=True,
        bias_o=True,
        positions="learned",
        norm="layer",
        norm_eps=json.get("layer_norm_epsilon", 1e-5),
        act=activation(json.get("activation_function", "gelu_new")),
        gated=False,
        bias_mlp=True,
        head=head(json, default_tied=True),
    )


_LAYER = "transformer.h.{}."
_QKV = f"{_LAYER}attn.c_attn"

FAMILY = Family(
    model_types=("gpt2",),
    config=config,
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
    renames=((r"^transformer\.", ""),),
    ignored=(r".*attn\.(masked_)?bias",),
)
