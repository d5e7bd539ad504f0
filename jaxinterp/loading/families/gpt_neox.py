"""GPT-NeoX (Black et al. 2022), Pythia: partial rotary, parallel blocks, fused q, k, v."""

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
from jaxinterp.loading.families.rotary import ROTARY, rotary
from jaxinterp.model import Config

_KEYS = k.Keys(
    used={
        "hidden_size": k.size(),
        "num_attention_heads": k.size(),
        "num_hidden_layers": k.size(most=k.MOST_LAYERS),
        "intermediate_size": k.size(),
        "vocab_size": k.size(),
        "max_position_embeddings": k.size(2048),
        "hidden_act": k.text("gelu"),
        "layer_norm_eps": k.positive(1e-5),
        "use_parallel_residual": k.flag(True),
        "attention_bias": k.flag(True),
        "tie_word_embeddings": k.flag(False),
        **ROTARY,
    },
    idle={
        "is_decoder": "the model is causal without it",
        **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), k.DROPOUT),
    },
    aliases={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
)


def _config(json: Values, architectures: tuple[str, ...]) -> Config:
    D, H = json["hidden_size"], json["num_attention_heads"]
    d_head, bias = split(D, H, "gpt_neox"), json["attention_bias"]
    return Config(
        family="gpt_neox",
        n_layers=json["num_hidden_layers"],
        d_model=D,
        n_heads=H,
        d_head=d_head,
        d_mlp=json["intermediate_size"],
        vocab_size=json["vocab_size"],
        n_ctx=json["max_position_embeddings"],
        bias_qkv=bias,
        bias_o=bias,
        rotary=(rotary(json, "gpt_neox", d_head, fraction=0.25, partial=True),),
        norm="layer",
        norm_eps=json["layer_norm_eps"],
        parallel=json["use_parallel_residual"],
        act=activation(json["hidden_act"]),
        gated=False,
        bias_mlp=True,
        head=head(json["tie_word_embeddings"]),
    )


_LAYER = "gpt_neox.layers.{}."
_QKV = f"{_LAYER}attention.query_key_value"

FAMILY = Family(
    model_type="gpt_neox",
    keys=_KEYS,
    build=_config,
    models=("GPTNeoXForCausalLM",),
    bases=("GPTNeoXModel",),
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
    ties=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
    renames=((r"^gpt_neox\.", ""), (r"^embed_out\.", "lm_head.")),
    ignored=(
        (r"(gpt_neox\.)?layers\.\d+\.attention\.(masked_)?bias", "it is the causal mask"),
        (r"(.*\.)?rotary_emb\.inv_freq", "it follows from the rotary settings"),
    ),
)
