"""BERT (Devlin et al. 2019): an encoder with norms after the residual, with or without its head."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.base import (
    Family,
    Json,
    activation,
    attention,
    linear,
    need,
    norm,
    refuse,
)  # fmt: skip
from jaxinterp.model import Config


def config(json: Json) -> Config:
    """Our config from Hugging Face's ``config.json``."""
    refuse(json, "is_decoder", False, "BERT as a decoder")
    refuse(json, "position_embedding_type", "absolute", "relative positions")
    D, H = need(json, "hidden_size"), need(json, "num_attention_heads")
    masked = any("MaskedLM" in a or "PreTraining" in a for a in json.get("architectures") or ())
    tied = json.get("tie_word_embeddings", True)
    return Config(
        family="bert",
        n_layers=need(json, "num_hidden_layers"),
        d_model=D,
        n_heads=H,
        d_head=D // H,
        d_mlp=need(json, "intermediate_size"),
        vocab_size=need(json, "vocab_size"),
        n_ctx=json.get("max_position_embeddings", 512),
        causal=False,
        bias_qkv=True,
        bias_o=True,
        positions="learned",
        norm="layer",
        norm_eps=json.get("layer_norm_eps", 1e-12),
        norm_input=False,
        norm_stream=True,
        norm_embed=True,
        norm_final=False,
        act=activation(json.get("hidden_act", "gelu")),
        gated=False,
        bias_mlp=True,
        n_token_types=json.get("type_vocab_size", 2),
        head=("tied" if tied else "untied") if masked else "none",
        head_transform=masked,
        bias_head=masked,
    )


_LAYER = "bert.encoder.layer.{}."
_HEAD = "cls.predictions."

FAMILY = Family(
    model_types=("bert",),
    config=config,
    rules={
        "embed.W_E": ("bert.embeddings.word_embeddings.weight", t.same),
        "embed.W_pos": ("bert.embeddings.position_embeddings.weight", t.same),
        "embed.W_type": ("bert.embeddings.token_type_embeddings.weight", t.same),
        **norm("embed.norm", "bert.embeddings.LayerNorm"),
        **attention(f"{_LAYER}attention.", "self.query", "self.key", "self.value", "output.dense"),
        **linear("blocks.mlp.W_in", "blocks.mlp.b_in", f"{_LAYER}intermediate.dense"),
        **linear("blocks.mlp.W_out", "blocks.mlp.b_out", f"{_LAYER}output.dense"),
        **norm("blocks.ln1", f"{_LAYER}attention.output.LayerNorm"),
        **norm("blocks.ln2", f"{_LAYER}output.LayerNorm"),
        **linear("head.W", "head.b", f"{_HEAD}transform.dense"),
        **norm("head.norm", f"{_HEAD}transform.LayerNorm"),
        "head.W_U": (f"{_HEAD}decoder.weight", t.transpose),
        "head.b_U": (f"{_HEAD}bias", t.same),
    },
    # The first checkpoints name norms as TensorFlow did.
    renames=(
        (r"^bert\.", ""),
        (r"LayerNorm\.weight$", "LayerNorm.gamma"),
        (r"LayerNorm\.bias$", "LayerNorm.beta"),
    ),
    ignored=(
        r".*position_ids",
        r"(bert\.)?pooler\..*",
        r"cls\.seq_relationship\..*",
        r"cls\.predictions\.decoder\.(weight|bias)",
    ),
)
