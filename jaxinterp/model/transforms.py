"""Rewrites of the weights that leave the log-probabilities unchanged.

Patching does not depend on them; zero ablation and direct logit attribution do. Each is a
pure function on the model (Elhage et al. 2021; as in TransformerLens's weight processing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp.model.config import Config
from jaxinterp.model.params import Head, Model, Norm
from jaxinterp.numerics import wide, wide_dtype


def _require(model: Model, what: str, **expected: Any) -> Config:
    config = model.config
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"{what} needs config.{field}={value!r}; this {config.family} model has "
                f"{getattr(config, field)!r}."
            )
    return config


def untie(model: Model) -> Model:
    """The same model with an unembedding of its own in place of the tied one."""
    if model.config.head != "tied":
        return model
    head = model.params.head.replace(W_U=model.params.embed.W_E.T)
    config = model.config.replace(head="untied")
    return model.replace(params=model.params.replace(head=head), config=config)


def fold_norm(model: Model) -> Model:
    """Move every norm's gain and shift into the weights that read it.

    Gains become 1 and shifts 0; biases appear where a shift needs one. Norms of what
    sublayers write are left alone: their gain acts after the scale.
    """
    c = _require(model, "fold_norm", norm_input=True, norm_stream=False)
    if c.norm == "none":
        return model
    model = untie(model) if c.norm_final and c.head != "none" else model
    c, p, layered = model.config, model.params, c.norm == "layer"
    attn, mlp, head = p.blocks.attn, p.blocks.mlp, p.head
    changes: dict[str, Any] = {}

    ln1, ln2 = p.blocks.ln1, p.blocks.ln2
    assert ln1 is not None
    gain = ln1.w[:, None, :, None]
    if layered:
        for name in ("Q", "K", "V"):
            W, b = getattr(attn, f"W_{name}"), getattr(attn, f"b_{name}")
            shift = _einsum("ld,lhdk->lhk", ln1.b, W)
            attn = attn.replace(**{f"b_{name}": _moved(b, shift, W)})
        changes["bias_qkv"] = True
    attn = attn.replace(W_Q=attn.W_Q * gain, W_K=attn.W_K * gain, W_V=attn.W_V * gain)

    if mlp is not None:
        assert ln2 is not None
        for name in ("in", "gate") if c.gated else ("in",):
            W, b = getattr(mlp, f"W_{name}"), getattr(mlp, f"b_{name}")
            if layered:
                shift = _einsum("ld,ldm->lm", ln2.b, W)
                mlp = mlp.replace(**{f"b_{name}": _moved(b, shift, W)})
            mlp = mlp.replace(**{f"W_{name}": W * ln2.w[:, :, None]})
        if layered:
            if mlp.b_out is None:
                mlp = mlp.replace(b_out=jnp.zeros((c.n_layers, c.d_model), mlp.W_out.dtype))
            changes["bias_mlp"] = True

    final = p.ln_final
    if final is not None and c.head == "untied" and not c.head_transform:
        if layered:
            shift = _einsum("d,dv->v", final.b, head.W_U)
            head = head.replace(b_U=_moved(head.b_U, shift, head.W_U))
            changes["bias_head"] = True
        head = head.replace(W_U=head.W_U * final.w[:, None])
        final = _unit(final)
    blocks = p.blocks.replace(attn=attn, mlp=mlp, ln1=_unit(ln1), ln2=_unit(ln2))
    params = p.replace(blocks=blocks, head=head, ln_final=final)
    return model.replace(params=params, config=c.replace(**changes))


def _einsum(equation: str, *operands: jax.Array) -> jax.Array:
    """Summed in float32 or wider, whatever the weights' dtype."""
    dtype = wide_dtype(*operands)
    return jnp.einsum(equation, *operands, precision="highest", preferred_element_type=dtype)


def _moved(b: jax.Array | None, shift: jax.Array, like: jax.Array) -> jax.Array:
    """A bias (None: none so far) plus a shift, in the dtype of the weights it belongs to."""
    return (shift if b is None else wide(b) + shift).astype(like.dtype)


def _centred(W: jax.Array) -> jax.Array:
    """Weights [... n] without their mean over n, in their own dtype."""
    return (wide(W) - wide(W).mean(-1, keepdims=True)).astype(W.dtype)


def _unit(norm: Norm | None) -> Norm | None:
    if norm is None:
        return None
    b = None if norm.b is None else jnp.zeros_like(norm.b)
    return Norm(jnp.ones_like(norm.w), b)


def center_writing_weights(model: Model) -> Model:
    """Take the mean over d_model out of everything that writes to the stream.

    LayerNorm removes that mean anyway, so nothing that reads the stream changes. RMSNorm
    does not, so models with it are refused. A tied unembedding is untied first.
    """
    _require(
        model, "center_writing_weights",
        norm="layer", norm_input=True, norm_output=False, norm_stream=False, norm_embed=False,
        norm_final=True,
    )  # fmt: skip
    return change_writers(untie(model), _centred)


def change_writers(model: Model, change: Callable[[jax.Array], jax.Array]) -> Model:
    """The model with ``change`` done to all that writes to the stream, arrays [... D].

    These are the embeddings, heads' and MLPs' output matrices and their biases.
    """

    def changed(x: Any) -> Any:
        return None if x is None else change(x)

    p = model.params
    attn, mlp, embed = p.blocks.attn, p.blocks.mlp, p.embed
    attn = attn.replace(W_O=changed(attn.W_O), b_O=changed(attn.b_O))
    if mlp is not None:
        mlp = mlp.replace(W_out=changed(mlp.W_out), b_out=changed(mlp.b_out))
    embed = embed.replace(
        W_E=changed(embed.W_E), W_pos=changed(embed.W_pos), W_type=changed(embed.W_type)
    )
    params = p.replace(embed=embed, blocks=p.blocks.replace(attn=attn, mlp=mlp))
    return model.replace(params=params)


def center_unembed(model: Model) -> Model:
    """Take the mean over the vocabulary out of the unembedding: softmax does not see it.

    Refused for models with a soft-cap on logits, which does.
    """
    _require(model, "center_unembed", logit_softcap=0.0)
    if model.config.head == "none":
        raise ValueError("center_unembed needs an unembedding; this model has none.")
    model = untie(model)
    head: Head = model.params.head
    b_U = None if head.b_U is None else _centred(head.b_U)
    head = head.replace(W_U=_centred(head.W_U), b_U=b_U)
    return model.replace(params=model.params.replace(head=head))


def fold_value_biases(model: Model) -> Model:
    """Move the value biases into the output bias: attention weights sum to 1.

    b_O gains the sum over heads of b_V W_O; b_V becomes 0.
    """
    c, attn = model.config, model.params.blocks.attn
    if attn.b_V is None:
        return model
    b_V = jnp.repeat(attn.b_V, c.n_heads // c.n_kv_heads, axis=1)
    moved = _einsum("lhk,lhkd->ld", b_V, attn.W_O)
    attn = attn.replace(b_V=jnp.zeros_like(attn.b_V), b_O=_moved(attn.b_O, moved, attn.W_O))
    blocks = model.params.blocks.replace(attn=attn)
    params = model.params.replace(blocks=blocks)
    return model.replace(params=params, config=c.replace(bias_o=True))
