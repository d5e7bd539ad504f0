"""GPT-NeoX (Black et al. 2022), Pythia: partial rotary, parallel blocks, fused q, k, v."""

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
    rotary,
)  # fmt: skip
from jaxinterp.model import Config


def config(json: Json) -> Config:
    """Our config from Hugging Face's ``config.json``."""
    D, H = need(json, "hidden_size"), need(json, "num_attention_heads")
    if not json.get("rope_parameters"):  # transformers 4
        json = {
            **json,
            "partial_rotary_factor": json.get("rotary_pct", 0.25),
            "rope_theta": json.get("rotary_emb_base", json.get("rope_theta", 10_000)),
        }
    bias = json.get("attention_bias", True)
    return Config(
        family="gpt_neox",
        n_layers=need(json, "num_hidden_layers"),
        d_model=D,
        n_heads=H,
        d_head=D // H,
        d_mlp=need(json, "intermediate_size"),
        vocab_size=need(json, "vocab_size"),
        n_ctx=json.get("max_position_embeddings", 2048),
        bias_qkv=bias,
        bias_o=bias,
        rotary=(rotary(json, D // H),),
        norm="layer",
        norm_eps=json.get("layer_norm_eps", 1e-5),
        parallel=json.get("use_parallel_residual", True),
        act=activation(json.get("hidden_act", "gelu")),
        gated=False,
        bias_mlp=True,
        head=head(json, default_tied=False),
    )


_LAYER = "gpt_neox.layers.{}."
_QKV = f"{_LAYER}attention.query_key_value"

FAMILY = Family(
    model_types=("gpt_neox",),
    config=config,
    rules={
        "embed.W_E": ("gpt_neox.embed_in.weight", t.same),
        **{
            f"blocks.attn.W_{letter}": (f"{_QKV}.weight", t.chain(t.interleaved(i), t.heads))
            for i, letter in enumerate("QKV")
        },
        **{
            f"blocks.attn.b_{letter}": (f"{_QKV}.bias", t.chain(t.interleaved(i), t.heads_bias))
            for i, letter in enumerate("QKV")
        },
        "blocks.attn.W_O": (f"{_LAYER}attention.dense.weight", t.heads_out),
        "blocks.attn.b_O": (f"{_LAYER}attention.dense.bias", t.same),
        **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{_LAYER}mlp.dense_h_to_4h"),
        **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{_LAYER}mlp.dense_4h_to_h"),
        **norm("blocks.ln1", f"{_LAYER}input_layernorm"),
        **norm("blocks.ln2", f"{_LAYER}post_attention_layernorm"),
        **norm("ln_final", "gpt_neox.final_layer_norm"),
        "head.W_U": ("embed_out.weight", t.transpose),
    },
    renames=((r"^gpt_neox\.", ""), (r"^embed_out\.", "lm_head.")),
    ignored=(r".*attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
)
