"""The small parts of a block: norms, rotary positions, masks, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model.config import GAIN_HELD, Config, Rotary
from jaxinterp.model.params import Norm
from jaxinterp.numerics import wide

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of that name; with `GAIN_HELD` after it, `held_gain` of it."""
    act = ACTIVATIONS[name.removesuffix(GAIN_HELD)]
    return held_gain(act) if name.endswith(GAIN_HELD) else act


def held_gain(act: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The activation function, with act(x) / x for a slope (at 0: its own slope)."""

    @jax.custom_jvp
    def held(x: jax.Array) -> jax.Array:
        return act(x)

    @held.defjvp
    def held_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        (x,), (way,) = primals, tangents
        y, slope = jax.jvp(act, (x,), (jnp.ones_like(x),))
        gain = jnp.where(x == 0, slope, y / jnp.where(x == 0, 1, x))
        return y, gain * way

    return held


def einsum(config: Config, equation: str, *operands: jax.Array, dtype: Any = None) -> jax.Array:
    """``jnp.einsum`` at the model's matmul precision; ``dtype``: of the result, if not theirs."""
    return jnp.einsum(equation, *operands, precision=config.precision, preferred_element_type=dtype)


def normalize(
    config: Config,
    p: Norm | None,
    x: jax.Array,
    tap_scale: Callable[[jax.Array], jax.Array] = lambda scale: scale,
    axes: tuple[int, ...] = (-1,),
    kind: str = "",
) -> jax.Array:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over ``axes``, in float32.

    ``tap_scale`` sees (and may replace) the scale that x is divided by. Without
    parameters, x is returned as it is.
    """
    if p is None:
        return x
    centred = wide(x)
    if (kind or config.norm) == "layer":
        centred = centred - centred.mean(axes, keepdims=True)
    scale = jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True) + config.norm_eps)
    y = centred / tap_scale(scale) * p.w
    return (y if p.b is None else y + p.b).astype(x.dtype)


def softmax(score: jax.Array, seen: jax.Array) -> jax.Array:
    """Softmax [... S] over the sources that are seen, in float32 at least; without any, zeros."""
    some = seen.any(-1, keepdims=True)
    # A row of -inf alone would give NaN, and slopes of NaN.
    score = jnp.where(seen, wide(score), jnp.where(some, -jnp.inf, 0))
    pattern = jax.nn.softmax(score, axis=-1)
    return jnp.where(some, pattern, 0)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Squash into (-cap, cap) (Gemma 2); 0 means no cap."""
    return cap * jnp.tanh(x / cap) if cap else x


def inverse_frequencies(rotary: Rotary, dtype: Any = np.float32) -> tuple[np.ndarray, float]:
    """The angle per position of each rotated pair, [dim/2], and the factor on cos and sin.

    Scalings: linear (Chen et al. 2023), llama3 (Llama 3.1's), yarn (Peng et al. 2023).
    """
    pairs = np.arange(0, rotary.dim, 2, dtype=dtype) / np.asarray(rotary.dim, dtype)
    inv = (1.0 / np.asarray(rotary.theta, dtype) ** pairs).astype(dtype)
    if not rotary.scaling:
        return inv, 1.0
    kind, factor, *numbers = rotary.scaling
    if kind == "linear":
        return inv / np.asarray(factor, dtype), 1.0
    if kind == "llama3":
        low, high, context = numbers
        turns = context * inv / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return ((1 - smooth) * inv / factor + smooth * inv).astype(dtype), 1.0
    if kind == "yarn":
        fast, slow, context, attention_factor, truncate = numbers

        def pair_turning(turns: float) -> float:
            at = math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))
            return rotary.dim * at

        first, last = pair_turning(fast), pair_turning(slow)
        if truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotary.dim - 1)
        ramp = (np.arange(rotary.dim // 2) - first) / max(last - first, 0.001)
        stretched = np.clip(ramp, 0, 1)
        inv = inv / factor * stretched + inv * (1 - stretched)
        return inv.astype(dtype), attention_factor or 0.1 * math.log(factor) + 1.0
    raise ValueError(f"Unknown rotary scaling {kind!r}: expected linear, llama3 or yarn.")


def rotary_tables(
    config: Config, positions: jax.Array, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """cos and sin for every kind of rotary layer, each [kinds B P dim/2], in ``dtype``."""
    kinds = [inverse_frequencies(r, dtype) for r in config.rotary]
    inv = jnp.asarray(np.stack([frequencies for frequencies, _ in kinds]))
    factor = jnp.asarray([factor for _, factor in kinds], dtype)[:, None, None, None]
    angle = positions.clip(0)[None, :, :, None] * inv[:, None, None, :]
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, rotary: Rotary) -> jax.Array:
    """Turn the first ``rotary.dim`` dimensions of x [B P H K] by cos, sin [B P dim/2]."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned, rest = x[..., : rotary.dim], x[..., rotary.dim :]
    turned = turned.astype(cos.dtype)
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([out.astype(x.dtype), rest], -1)


def visible(
    config: Config, query: jax.Array, source: jax.Array, window: jax.Array | None
) -> jax.Array:
    """Which source each query may attend to, bool [B Q S].

    ``query`` [B Q] and ``source`` [B S] are positions within the prompt; -1 is padding,
    which nobody sees. ``window`` is the layer's reach (0: everything).
    """
    q, s = query[:, :, None], source[:, None, :]
    seen = jnp.broadcast_to(s >= 0, jnp.broadcast_shapes(q.shape, s.shape))
    if config.causal:
        seen &= s <= q
    if window is not None:
        seen &= (window == 0) | (jnp.abs(q - s) < window)
    return seen
