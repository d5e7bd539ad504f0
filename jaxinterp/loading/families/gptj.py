"""GPT-J (Wang & Komatsuzaki 2021): parallel blocks behind one norm, interleaved rotary."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.base import (
    Family,
    Json,
    activation,
    attention,
    head,
    linear,
    need,
    norm,
)  # fmt: skip
from jaxinterp.model import Config, Rotary


def config(json: Json) -> Config:
    """Our config from Hugging Face's ``config.json``."""
    D, H = need(json, "n_embd"), need(json, "n_head")
    return Config(
        family="gptj",
        n_layers=need(json, "n_layer"),
        d_model=D,
        n_heads=H,
        d_head=D // H,
        d_mlp=json.get("n_inner") or 4 * D,
        vocab_size=need(json, "vocab_size"),
        n_ctx=json.get("n_positions", 2048),
        rotary=(Rotary(json.get("rotary_dim") or D // H, interleaved=True),),
        norm="layer",
        norm_eps=json.get("layer_norm_epsilon", 1e-5),
        parallel=True,
        act=activation(json.get("activation_function", "gelu_new")),
        gated=False,
        bias_mlp=True,
        head=head(json, default_tied=False),
        bias_head=True,
    )


_LAYER = "transformer.h.{}."

FAMILY = Family(
    model_types=("gptj",),
    config=config,
    rules={
        "embed.W_E": ("transformer.wte.weight", t.same),
        **attention(f"{_LAYER}attn.", "q_proj", "k_proj", "v_proj", "out_proj"),
        **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{_LAYER}mlp.fc_in"),
        **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{_LAYER}mlp.fc_out"),
        **norm("blocks.ln1", f"{_LAYER}ln_1"),
        **norm("blocks.ln2", f"{_LAYER}ln_1"),  # attention and MLP share it
        **norm("ln_final", "transformer.ln_f"),
        "head.W_U": ("lm_head.weight", t.transpose),
        "head.b_U": ("lm_head.bias", t.same),
    },
    renames=((r"^transformer\.", ""),),
    ignored=(r".*attn\.(masked_)?bias", r".*attn\.embed_positions"),
)
