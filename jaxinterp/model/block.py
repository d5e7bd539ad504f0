"""The block: a layer's attention and MLP on the residual stream.

Axis letters: see `jaxinterp.model.params`. Every value with a name of its own passes
through ``tap``, where it may be changed and recorded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxinterp.model.attention import attention
from jaxinterp.model.config import Config
from jaxinterp.model.layers import Context, Layer, Prefix
from jaxinterp.model.params import MLP
from jaxinterp.model.parts import activation, einsum
from jaxinterp.model.taps import Frame, Tap, norm_site


def mlp(config: Config, p: MLP, x: jax.Array, tap: Tap, frame: Frame) -> jax.Array:
    """The MLP sublayer on its normed input [B P D]."""
    c = config

    def read(W: jax.Array, b: jax.Array | None) -> jax.Array:
        y = einsum(c, "bpd,dm->bpm", x, W)
        return y if b is None else y + b

    if c.gated:
        pre = tap("mlp_pre", read(p.W_gate, p.b_gate), frame)
        linear = tap("mlp_pre_linear", read(p.W_in, p.b_in), frame)
        post = activation(c.act)(pre) * linear
    else:
        pre = tap("mlp_pre", read(p.W_in, p.b_in), frame)
        post = activation(c.act)(pre)
    post = tap("mlp_post", post, frame)
    out = einsum(c, "bpm,md->bpd", post, p.W_out)
    return out if p.b_out is None else out + p.b_out


def block(
    config: Config,
    layer: Layer,
    x: jax.Array,
    context: Context,
    tap: Tap,
    frame: Frame,
    prefix: Prefix | None = None,
    read: jax.Array | None = None,
) -> tuple[jax.Array, Prefix]:
    """One layer on the residual stream x [B P D].

    ``read`` [B R] keeps only those columns (within the frame) of the output: what a last
    layer needs. Returns the stream [B P D] (or [B R D]) and this run's keys and values.
    """
    c, p = config, layer.params
    out_frame = frame if read is None else frame.read(read)
    x = tap("resid_pre", x, frame)
    attn_out, own = attention(c, layer, x, context, tap, frame, prefix, read)
    if read is not None:
        x = jnp.take_along_axis(x, read[:, :, None], axis=1)
    attn_out = norm_site(c, p.ln1_post, "ln1_post", attn_out, tap, out_frame)
    attn_out = tap("attn_out", attn_out, out_frame)

    mid = x + attn_out
    if p.mlp is not None:
        if not c.parallel:
            mid = tap("resid_mid", mid, out_frame)
        if c.norm_stream:
            mid = norm_site(c, p.ln1, "ln1", mid, tap, out_frame)
        h = tap("mlp_in", x if c.parallel else mid, out_frame)
        h = norm_site(c, p.ln2 if c.norm_input else None, "ln2", h, tap, out_frame)
        mlp_out = mlp(c, p.mlp, h, tap, out_frame)
        mlp_out = norm_site(c, p.ln2_post, "ln2_post", mlp_out, tap, out_frame)
        mid = mid + tap("mlp_out", mlp_out, out_frame)
    post = tap("resid_post", mid, out_frame)
    if c.norm_stream:
        last, name = (p.ln1, "ln1") if c.attention_only else (p.ln2, "ln2")
        post = norm_site(c, last, name, post, tap, out_frame)
    return post, own
