"""Attention in three steps: queries, keys and values; who attends to whom; what is moved.

A query receives nothing from a source that it may not see (a later one, one beyond the window,
padding, another experiment's), whatever is done to scores, pattern, keys and values. A query
without any source reads zero.

Axis letters: see `jaxinterp.model.params`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxinterp.model.config import Config
from jaxinterp.model.layers import Context, Layer, Prefix
from jaxinterp.model.params import Attention, Norm
from jaxinterp.model.parts import einsum, normalize, rotate, softcap, softmax, visible
from jaxinterp.model.taps import Frame, Tap, norm_site
from jaxinterp.numerics import wide


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
    q, own = project(c, layer, x, context, tap, frame, read)
    seen = visible(c, out_frame.positions, context.sources, layer.window)
    if (reach := context.reach) is not None:
        seen &= reach if read is None else jnp.take_along_axis(reach, read[:, :, None], axis=1)

    # Keys before the suffix keep their own product: no lane needs a copy of them.
    parts = [own] if prefix is None else [prefix, own]
    pattern = attend(c, q, [part.k for part in parts], seen, tap, out_frame)
    z = move(c, pattern, [part.v for part in parts], seen)
    z = tap("z", z, out_frame)

    if tap.wants("result"):
        result = tap("result", einsum(c, "bqhk,hkd->bqhd", z, p.W_O), out_frame)
    if tap.edits("result"):
        out = wide(result).sum(2).astype(result.dtype)
    else:  # recording changes nothing, in half precision either
        out = einsum(c, "bqhk,hkd->bqd", z, p.W_O)
    return (out if p.b_O is None else out + p.b_O), own


def project(
    config: Config,
    layer: Layer,
    x: jax.Array,
    context: Context,
    tap: Tap,
    frame: Frame,
    read: jax.Array | None,
) -> tuple[jax.Array, Prefix]:
    """Queries [B Q H K], keys and values [B P G K] of x [B P D]; queries and keys rotated."""
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
    return q, Prefix(k, v)


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


def qk_norm(
    config: Config, p: Attention, q: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """RMSNorm of queries and keys [B P H K], per head or over all heads at once."""
    axes = (-2, -1) if config.qk_norm == "joint" else (-1,)
    return (
        normalize(config, p.q_norm, q, axes=axes, kind="rms"),
        normalize(config, p.k_norm, k, axes=axes, kind="rms"),
    )


def attend(
    config: Config, q: jax.Array, keys: list[jax.Array], seen: jax.Array, tap: Tap, frame: Frame
) -> jax.Array:
    """The pattern [B H Q S] of queries [B Q H K] over keys [B S G K], given in parts along S.

    A source whose score is set to -inf (or to the dtype's least number, which stands where a
    query sees nothing) is one that the query does not see.
    """
    c, n_heads = config, q.shape[2]
    grouped = q.reshape(*q.shape[:2], c.n_kv_heads, -1, c.d_head)  # B Q G R K
    scores = [einsum(c, "bqgrk,bsgk->bgrqs", grouped, k) for k in keys]
    score = jnp.concatenate(scores, -1) if len(scores) > 1 else scores[0]
    score = softcap(score * jnp.asarray(c.attn_scale, score.dtype), c.attn_softcap)
    score = score.reshape(score.shape[0], n_heads, *score.shape[3:])  # B H Q S
    seen = seen[:, None]
    hidden = jnp.finfo(score.dtype).min

    def hide(score: jax.Array) -> jax.Array:
        return jnp.where(seen, score, hidden)

    score = tap("attn_scores", hide(score), frame, hide)
    attended = seen & ~(score <= hidden) if tap.edits("attn_scores") else seen
    pattern = softmax(score, attended).astype(score.dtype)
    return tap("pattern", pattern, frame, lambda pattern: jnp.where(seen, pattern, 0))


def move(config: Config, pattern: jax.Array, values: list[jax.Array], seen: jax.Array) -> jax.Array:
    """z [B Q H K]: the values [B S G K], given in parts along S, that the pattern moves.

    A value that is not finite spoils all queries that see it, and no others (0 x NaN is NaN).
    """
    c = config
    grouped = pattern.reshape(pattern.shape[0], c.n_kv_heads, -1, *pattern.shape[2:])  # B G R Q S
    z: jax.Array | None = None
    start = 0
    for v in values:
        part = slice(start, start + v.shape[1])
        finite = jnp.isfinite(v)
        moved = einsum(c, "bgrqs,bsgk->bqgrk", grouped[..., part], jnp.where(finite, v, 0))
        spoilt = jnp.einsum(
            "bqs,bsg->bqg", seen[..., part].astype(v.dtype), (~finite.all(-1)).astype(v.dtype)
        )
        moved = jnp.where(spoilt[:, :, :, None, None] > 0, jnp.nan, moved)
        z = moved if z is None else z + moved
        start += v.shape[1]
    assert z is not None
    return z.reshape(*z.shape[:2], c.n_heads, c.d_head)
