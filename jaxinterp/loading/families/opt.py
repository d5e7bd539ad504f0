"""OPT (Zhang et al. 2022): learned positions whose first two rows are never used, ReLU."""

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
    refuse,
)  # fmt: skip
from jaxinterp.model import Config


def config(json: Json) -> Config:
    """Our config from Hugging Face's ``config.json``."""
    D, H = need(json, "hidden_size"), need(json, "num_attention_heads")
    refuse(json, "do_layer_norm_before", True, "norms after the residual, as in OPT-350m")
    refuse(json, "_remove_final_layer_norm", False, "no final norm")
    refuse(json, "layer_norm_elementwise_affine", True, "norms without gain and shift")
    refuse(json, "word_embed_proj_dim", D, "embeddings projected to another width, as in OPT-350m")
    bias = json.get("enable_bias", True)
    return Config(
        family="opt",
        n_layers=need(json, "num_hidden_layers"),
        d_model=D,
        n_heads=H,
        d_head=D // H,
        d_mlp=need(json, "ffn_dim"),
        vocab_size=need(json, "vocab_size"),
        n_ctx=json.get("max_position_embeddings", 2048),
        bias_qkv=bias,
        bias_o=bias,
        positions="learned",
        norm="layer",
        act=activation(json.get("activation_function", "relu")),
        gated=False,
        bias_mlp=bias,
        head=head(json, default_tied=True),
    )


_LAYER = "model.decoder.layers.{}."

FAMILY = Family(
    model_types=("opt",),
    config=config,
    rules={
        "embed.W_E": ("model.decoder.embed_tokens.weight", t.same),
        "embed.W_pos": ("model.decoder.embed_positions.weight", t.drop_rows(2)),
        **attention(f"{_LAYER}self_attn.", "q_proj", "k_proj", "v_proj", "out_proj"),
        **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{_LAYER}fc1"),
        **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{_LAYER}fc2"),
        **norm("blocks.ln1", f"{_LAYER}self_attn_layer_norm"),
        **norm("blocks.ln2", f"{_LAYER}final_layer_norm"),
        **norm("ln_final", "model.decoder.final_layer_norm"),
        "head.W_U": ("lm_head.weight", t.transpose),
    },
    renames=((r"^model\.", ""), (r"^decoder\.", "")),
)
