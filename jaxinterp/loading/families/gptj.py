"""GPT-J (Wang & Komatsuzaki 2021): parallel blocks behind one norm, interleaved rotary."""

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
from jaxinterp.loading.families.gpt2 import ALIASES, SUMMARY
from jaxinterp.model import Config, Rotary
from jaxinterp.reading import LoadError

_KEYS = k.Keys(
    used={
        "n_embd": k.size(),
        "n_head": k.size(),
        "n_layer": k.size(most=k.MOST_LAYERS),
        "vocab_size": k.size(),
        "n_positions": k.size(2048),
        "n_inner": k.size(None, null=True),
        "rotary_dim": k.size(64),
        "activation_function": k.text("gelu_new"),
        "layer_norm_epsilon": k.positive(1e-5),
        "tie_word_embeddings": k.flag(False),
    },
    fixed={
        "rotary": (True, "no rotary positions"),
        "scale_attn_weights": (True, "scores that are not scaled"),
    },
    idle={
        "n_ctx": "n_positions says it",
        "is_decoder": "the model is causal without it",
        **SUMMARY,
    },
    aliases=ALIASES,
)


def _config(json: Values, architectures: tuple[str, ...]) -> Config:
    D, H, turned = json["n_embd"], json["n_head"], json["rotary_dim"]
    d_head = split(D, H, "gptj")
    if turned % 2 or turned > d_head:
        raise LoadError(
            f"rotary_dim={turned} of this gptj model is no even number up to its heads' {d_head}: "
            "write the right one into config.json."
        )
    return Config(
        family="gptj",
        n_layers=json["n_layer"],
        d_model=D,
        n_heads=H,
        d_head=d_head,
        d_mlp=json["n_inner"] or 4 * D,
        vocab_size=json["vocab_size"],
        n_ctx=json["n_positions"],
        rotary=(Rotary(turned, interleaved=True),),
        norm="layer",
        norm_eps=json["layer_norm_epsilon"],
        parallel=True,
        act=activation(json["activation_function"]),
        gated=False,
        bias_mlp=True,
        head=head(json["tie_word_embeddings"]),
        bias_head=True,
    )


_LAYER = "transformer.h.{}."

FAMILY = Family(
    model_type="gptj",
    keys=_KEYS,
    build=_config,
    models=("GPTJForCausalLM",),
    bases=("GPTJModel",),
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
    ties=(("lm_head.weight", "transformer.wte.weight"),),
    renames=((r"^transformer\.", ""),),
    ignored=(
        (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", "it is the causal mask"),
        (r"(transformer\.)?h\.\d+\.attn\.embed_positions", "it follows from rotary_dim"),
    ),
)
