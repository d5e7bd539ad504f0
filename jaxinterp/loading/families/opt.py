"""OPT (Zhang et al. 2022): learned positions whose first two rows are never used, ReLU."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import keys as k
from jaxinterp.loading.families.base import (
    Family,
    Values,
    activation,
    attention,
    head,
    linear,
    norm,
    split,
)  # fmt: skip
from jaxinterp.model import Config
from jaxinterp.reading import LoadError

_KEYS = k.Keys(
    used={
        "hidden_size": k.size(),
        "num_attention_heads": k.size(),
        "num_hidden_layers": k.size(most=k.MOST_LAYERS),
        "ffn_dim": k.size(),
        "vocab_size": k.size(),
        "max_position_embeddings": k.size(2048),
        "word_embed_proj_dim": k.size(None, null=True),
        "activation_function": k.text("relu"),
        "enable_bias": k.flag(True),
        "tie_word_embeddings": k.flag(True),
    },
    fixed={
        "do_layer_norm_before": (True, "norms after the residual, as in OPT-350m"),
        "_remove_final_layer_norm": (False, "no final norm"),
        "layer_norm_elementwise_affine": (True, "norms without gain and shift"),
    },
    idle={
        **dict.fromkeys(("dropout", "layerdrop", "activation_dropout"), k.DROPOUT),
        "init_std": k.INITIAL,
        "is_decoder": "the model is causal without it",
    },
)


def _config(json: Values, architectures: tuple[str, ...]) -> Config:
    D, H, bias = json["hidden_size"], json["num_attention_heads"], json["enable_bias"]
    if json["word_embed_proj_dim"] not in (None, D):
        raise LoadError(
            f"word_embed_proj_dim={json['word_embed_proj_dim']} of this opt model is not supported "
            f"(embeddings projected to another width, as in OPT-350m); expected {D}. Choose "
            "another checkpoint."
        )
    return Config(
        family="opt",
        n_layers=json["num_hidden_layers"],
        d_model=D,
        n_heads=H,
        d_head=split(D, H, "opt"),
        d_mlp=json["ffn_dim"],
        vocab_size=json["vocab_size"],
        n_ctx=json["max_position_embeddings"],
        bias_qkv=bias,
        bias_o=bias,
        positions="learned",
        norm="layer",
        act=activation(json["activation_function"]),
        gated=False,
        bias_mlp=bias,
        head=head(json["tie_word_embeddings"]),
    )


_LAYER = "model.decoder.layers.{}."

FAMILY = Family(
    model_type="opt",
    keys=_KEYS,
    build=_config,
    models=("OPTForCausalLM",),
    bases=("OPTModel",),
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
    ties=(("lm_head.weight", "model.decoder.embed_tokens.weight"),),
    renames=((r"^model\.", ""), (r"^decoder\.", "")),
)
