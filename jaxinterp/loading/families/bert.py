"""BERT (Devlin et al. 2019): an encoder with norms after the residual, with or without its head."""

from __future__ import annotations

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import keys as k
from jaxinterp.loading.families.base import (
    Family,
    Values,
    activation,
    attention,
    linear,
    norm,
    split,
)  # fmt: skip
from jaxinterp.model import Config

_HEADS = ("BertForMaskedLM", "BertForPreTraining")
_POOLER = "no site reads the pooled first position"

_KEYS = k.Keys(
    used={
        "hidden_size": k.size(),
        "num_attention_heads": k.size(),
        "num_hidden_layers": k.size(most=k.MOST_LAYERS),
        "intermediate_size": k.size(),
        "vocab_size": k.size(),
        "max_position_embeddings": k.size(512),
        "type_vocab_size": k.size(2),
        "hidden_act": k.text("gelu"),
        "layer_norm_eps": k.positive(1e-12),
        "tie_word_embeddings": k.flag(True),
    },
    fixed={
        "is_decoder": (False, "BERT as a decoder"),
        "position_embedding_type": ("absolute", "relative positions"),
    },
    idle={
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), k.DROPOUT),
        **dict.fromkeys(
            ("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_type",
             "pooler_num_fc_layers", "pooler_size_per_head"),
            _POOLER,
        ),
    },
)  # fmt: skip


def _config(json: Values, architectures: tuple[str, ...]) -> Config:
    D, H = json["hidden_size"], json["num_attention_heads"]
    masked = any(name in _HEADS for name in architectures)
    return Config(
        family="bert",
        n_layers=json["num_hidden_layers"],
        d_model=D,
        n_heads=H,
        d_head=split(D, H, "bert"),
        d_mlp=json["intermediate_size"],
        vocab_size=json["vocab_size"],
        n_ctx=json["max_position_embeddings"],
        causal=False,
        bias_qkv=True,
        bias_o=True,
        positions="learned",
        norm="layer",
        norm_eps=json["layer_norm_eps"],
        norm_input=False,
        norm_stream=True,
        norm_embed=True,
        norm_final=False,
        act=activation(json["hidden_act"]),
        gated=False,
        bias_mlp=True,
        n_token_types=json["type_vocab_size"],
        head=("tied" if json["tie_word_embeddings"] else "untied") if masked else "none",
        head_transform=masked,
        bias_head=masked,
    )


_LAYER = "bert.encoder.layer.{}."
_HEAD = "cls.predictions."

FAMILY = Family(
    model_type="bert",
    keys=_KEYS,
    build=_config,
    models=_HEADS,
    bases=("BertModel",),
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
        "head.b_U": (f"{_HEAD}decoder.bias", t.same),
    },
    ties=(
        (f"{_HEAD}decoder.weight", "bert.embeddings.word_embeddings.weight"),
        (f"{_HEAD}decoder.bias", f"{_HEAD}bias"),
    ),
    # The first checkpoints name norms as TensorFlow did.
    renames=(
        (r"^bert\.", ""),
        (r"LayerNorm\.weight$", "LayerNorm.gamma"),
        (r"LayerNorm\.bias$", "LayerNorm.beta"),
    ),
    ignored=(
        (r"(bert\.)?embeddings\.(position_ids|token_type_ids)", "they count up, or are all 0"),
        (r"(bert\.)?pooler\.dense\.(weight|bias)", _POOLER),
        (r"cls\.seq_relationship\.(weight|bias)", "it says whether one text follows another"),
        (r"cls\.predictions\.bias", "the reference adds the decoder's, which it is tied to"),
    ),
)
