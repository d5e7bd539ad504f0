"""One layer of a transformer: attention, MLP, and the block that joins them.

Axis letters: see `jaxinterp.model.params`. Every value with a name of its own passes
through ``tap``, where it may be changed and recorded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model.config import Config
from jaxinterp.model.inputs import Tokens
from jaxinterp.model.params import MLP, Attention, Blocks, Model, Norm
from jaxinterp.model.parts import (
    activation,
    einsum,
    normalize,
    rotary_tables,
    rotate,
    softcap,
    visible,
)  # fmt: skip
from jaxinterp.model.taps import Frame, Tap


class Context(struct.PyTreeNode):
    """What every layer of one run shares: who may see whom, and the rotary tables.

    ``sources`` [B S] are the positions of the keys. A run that holds only a suffix of the
    columns reads the keys and values of the columns before it from `Prefix`. ``reach``
    [B P S] narrows what each of its columns may see, beside causality and padding.
    """

    sources: jax.Array
    rotary: tuple[jax.Array, jax.Array] | None
    reach: jax.Array | None = None


class Layer(struct.PyTreeNode):
    """One layer: its index (traced), its parameters, and its own reach and rotary kind."""

    index: jax.Array
    params: Blocks
    window: jax.Array | None
    rotary_kind: jax.Array | None


class Prefix(struct.PyTreeNode):
    """Keys (rotated) and values [B S' G K] of the columns before a suffix, for one layer."""

    k: jax.Array
    v: jax.Array


def make_context(model: Model, tokens: Tokens) -> Context:
    """The `Context` of a batch of prompts."""
    positions = tokens.positions
    if model.config.positions != "rotary":
        return Context(positions, None)
    wide = jnp.promote_types(model.params.embed.W_E.dtype, jnp.float32)
    return Context(positions, rotary_tables(model.config, positions, wide))


def layers_of(model: Model) -> Layer:
    """All layers as one `Layer` whose leaves are stacked; index it or scan over it."""
    c = model.config
    return Layer(
        index=jnp.arange(c.n_layers),
        params=model.params.blocks,
        window=jnp.asarray(c.windows, jnp.int32) if any(c.windows) else None,
        rotary_kind=jnp.asarray(c.rotary_kind, jnp.int32) if c.rotary_kind else None,
    )


def layer_at(model: Model, index: int | jax.Array) -> Layer:
    """One layer, at a static or traced index."""
    return jax.tree.map(lambda leaf: leaf[index], layers_of(model))


def attention(
    config: Config,
    layer: Layer,
    x: jax.Array,
    context: Context,
    tap: Tap,
    frame: Frame,
    prefix: Prefix | None = None,
    read: jax.Array | None = None,
) -> tuple[jax.Array, Prefix]:
    """The attention sublayer on x [B P D], up to W_O: attn_out [B Q D].

    Returns also this run's own rotated keys and values. ``read`` [B Q] (columns within
    the frame) computes queries only there; None means everywhere.
    """
    c, p = config, layer.params.attn
    out_frame = frame if read is None else frame.read(read)

    # Each consumer reads the norm of the stream; per-head copies exist only when changed.
    ln1 = layer.params.ln1 if c.norm_input else None
    normed = norm_site(c, ln1, "ln1", x, tap, frame)

    def consume(site: str, W: jax.Array, b: jax.Array | None, heads: int) -> jax.Array:
        source, equation = normed, "bpd,hdk->bphk"
        if tap.wants(f"{site}_input"):
            copies = jnp.broadcast_to(x[:, :, None], (*x.shape[:2], heads, x.shape[2]))
            copies = tap(f"{site}_input", copies, frame)
            if tap.edits(f"{site}_input"):
                source = reread(c, ln1, x[:, :, None], normed[:, :, None], copies, tap)
                equation = "bphd,hdk->bphk"
        at = frame
        if site == "q" and read is not None:
            at = out_frame
            index = read.reshape(*read.shape, *[1] * (source.ndim - 2))
            source = jnp.take_along_axis(source, index, axis=1)
        y = einsum(c, equation, source, W)
        return tap(site, y if b is None else y + b, at)

    q = consume("q", p.W_Q, p.b_Q, c.n_heads)
    k = consume("k", p.W_K, p.b_K, c.n_kv_heads)
    v = consume("v", p.W_V, p.b_V, c.n_kv_heads)
    q, k = qk_norm(c, p, q, k)
    if context.rotary is not None:
        kind = 0 if layer.rotary_kind is None else layer.rotary_kind
        cos, sin = context.rotary[0][kind], context.rotary[1][kind]
        q = rotate(q, out_frame.take(cos, 1), out_frame.take(sin, 1), c.rotary[0])
        k = rotate(k, frame.take(cos, 1), frame.take(sin, 1), c.rotary[0])
        q, k = tap("rot_q", q, out_frame), tap("rot_k", k, frame)
    own = Prefix(k, v)

    grouped = q.reshape(*q.shape[:2], c.n_kv_heads, -1, c.d_head)  # B Q G R K
    # Keys before the suffix keep their own product: no lane needs a copy of them.
    parts = [own] if prefix is None else [prefix, own]
    scores = [einsum(c, "bqgrk,bsgk->bgrqs", grouped, part.k) for part in parts]
    score = jnp.concatenate(scores, -1) if prefix is not None else scores[0]
    score = softcap(score * jnp.asarray(c.attn_scale, score.dtype), c.attn_softcap)
    seen = visible(c, out_frame.positions, context.sources, layer.window)
    if (reach := context.reach) is not None:
        seen &= reach if read is None else jnp.take_along_axis(reach, read[:, :, None], axis=1)
    score = score.reshape(score.shape[0], c.n_heads, *score.shape[3:])  # B H Q S
    score = jnp.where(seen[:, None], score, jnp.finfo(score.dtype).min)
    # Nobody attends to padding, nor does it attend, whatever is done to scores and pattern.
    real = (out_frame.positions >= 0)[:, None, :, None] & (context.sources >= 0)[:, None, None]
    if tap.edits("attn_scores"):
        score = jnp.where(real, tap("attn_scores", score, out_frame), jnp.finfo(score.dtype).min)
    else:
        score = tap("attn_scores", score, out_frame)
    wide = jnp.promote_types(score.dtype, jnp.float32)
    pattern = jax.nn.softmax(score.astype(wide), axis=-1).astype(score.dtype)
    pattern = tap("pattern", pattern, out_frame)
    if tap.edits("pattern"):
        pattern = jnp.where(real, pattern, 0)

    grouped = pattern.reshape(pattern.shape[0], c.n_kv_heads, -1, *pattern.shape[2:])
    before = 0 if prefix is None else prefix.k.shape[1]
    finite = v if context.reach is None else jnp.nan_to_num(v, nan=0, posinf=0, neginf=0)
    z = einsum(c, "bgrqs,bsgk->bqgrk", grouped[..., before:], finite)
    if context.reach is not None:  # 0 x NaN would reach those who do not see it
        z = jnp.where(spoilt(seen[..., before:], v)[:, :, :, None], jnp.nan, z)
    if prefix is not None:
        z = z + einsum(c, "bgrqs,bsgk->bqgrk", grouped[..., :before], prefix.v)
    z = tap("z", z.reshape(*z.shape[:2], c.n_heads, c.d_head), out_frame)

    if tap.wants("result"):
        result = tap("result", einsum(c, "bqhk,hkd->bqhd", z, p.W_O), out_frame)
        out = result.sum(2)
    else:
        out = einsum(c, "bqhk,hkd->bqd", z, p.W_O)
    return (out if p.b_O is None else out + p.b_O), own


def reread(
    config: Config, ln1: Norm | None, x: jax.Array, normed: jax.Array, copies: jax.Array, tap: Tap
) -> jax.Array:
    """What heads read [B P H D] whose ``copies`` of the stream x [B P 1 D] may have changed.

    A changed copy is normed by itself. Where the norm itself was edited, a copy that is as it
    was reads what the edit left; its gradient is that of a copy normed by itself.
    """
    own = normalize(config, ln1, copies)
    if not tap.edits("ln1_scale", "ln1_normalized"):
        return own
    same = (copies == x).all(-1, keepdims=True)
    moved = normalize(config, ln1, jax.lax.stop_gradient(x) + (copies - x))
    return jnp.where(same, normed + (moved - jax.lax.stop_gradient(moved)), own)


def spoilt(seen: jax.Array, v: jax.Array) -> jax.Array:
    """Where a query sees a value that is not finite: [B Q G K], from seen [B Q S], v [B S G K]."""
    bad = ~jnp.isfinite(v)
    return jnp.einsum("bqs,bsgk->bqgk", seen.astype(v.dtype), bad.astype(v.dtype)) > 0


def qk_norm(
    config: Config, p: Attention, q: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """RMSNorm of queries and keys [B P H K], per head or over all heads at once."""
    axes = (-2, -1) if config.qk_norm == "joint" else (-1,)
    return (
        normalize(config, p.q_norm, q, axes=axes, kind="rms"),
        normalize(config, p.k_norm, k, axes=axes, kind="rms"),
    )


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


def norm_site(
    config: Config, p: Norm | None, name: str, x: jax.Array, tap: Tap, frame: Frame
) -> jax.Array:
    """A norm with its two sites: the scale it divides by, and what its readers read."""
    if p is None:
        return x
    y = normalize(config, p, x, lambda scale: tap(f"{name}_scale", scale, frame))
    return tap(f"{name}_normalized", y, frame)


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
