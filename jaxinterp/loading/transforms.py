"""From a tensor as a checkpoint stores it to one layer of one of our leaves.

Each transform takes ``(x, config)`` and returns a view where it can. Axis letters: see
`jaxinterp.model.params`. A ``Linear`` weight is stored [out, in]; GPT-2's ``Conv1D`` [in, out].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxinterp.model import Config

Transform = Callable[[np.ndarray, Config], np.ndarray]


def same(x: np.ndarray, config: Config) -> np.ndarray:
    """As it is."""
    return x


def transpose(x: np.ndarray, config: Config) -> np.ndarray:
    """A Linear weight [out in] to [in out]."""
    return x.T


def heads(x: np.ndarray, config: Config) -> np.ndarray:
    """A Linear weight into heads, [H*K D] to [H D K]."""
    return x.reshape(-1, config.d_head, x.shape[1]).swapaxes(1, 2)


def heads_conv(x: np.ndarray, config: Config) -> np.ndarray:
    """A Conv1D weight into heads, [D H*K] to [H D K]."""
    return x.reshape(x.shape[0], -1, config.d_head).swapaxes(0, 1)


def heads_bias(x: np.ndarray, config: Config) -> np.ndarray:
    """A bias or gain of heads, [H*K] to [H K]."""
    return x.reshape(-1, config.d_head)


def heads_out(x: np.ndarray, config: Config) -> np.ndarray:
    """A Linear weight out of heads, [D H*K] to [H K D]."""
    return x.T.reshape(-1, config.d_head, x.shape[0])


def heads_out_conv(x: np.ndarray, config: Config) -> np.ndarray:
    """A Conv1D weight out of heads, [H*K D] to [H K D]."""
    return x.reshape(-1, config.d_head, x.shape[1])


def plus_one(x: np.ndarray, config: Config) -> np.ndarray:
    """Gemma stores a norm's gain minus one."""
    return x.astype(np.float32) + np.float32(1)


def drop_rows(count: int) -> Transform:
    """Without the first rows (OPT's two unused positions)."""
    return lambda x, config: x[count:]


def third(i: int) -> Transform:
    """GPT-2: q, k, v side by side on the last axis, [... 3*H*K] to [... H*K]."""

    def take(x: np.ndarray, config: Config) -> np.ndarray:
        width = x.shape[-1] // 3
        return x[..., i * width : (i + 1) * width]

    return take


def interleaved(i: int) -> Transform:
    """GPT-NeoX: q, k, v of each head together, [H*3*K ...] to [H*K ...]."""

    def take(x: np.ndarray, config: Config) -> np.ndarray:
        parts = x.reshape(-1, 3, config.d_head, *x.shape[1:])
        return parts[:, i].reshape(-1, *x.shape[1:])

    return take


def qkv_rows(i: int) -> Transform:
    """Phi-3: all of q, then k, then v, [(H+2G)*K D] to [H*K D] or [G*K D]."""

    def take(x: np.ndarray, config: Config) -> np.ndarray:
        sizes = np.array([config.n_heads, config.n_kv_heads, config.n_kv_heads]) * config.d_head
        if x.shape[0] != sizes.sum():
            raise ValueError(f"{x.shape[0]} rows for {sizes.sum()} of q, k and v")
        start = int(sizes[:i].sum())
        return x[start : start + int(sizes[i])]

    return take


def half(i: int) -> Transform:
    """Phi-3: gate then up, [2*M D] to [M D]."""
    return lambda x, config: x[i * (x.shape[0] // 2) : (i + 1) * (x.shape[0] // 2)]


def unpermute(x: np.ndarray, config: Config) -> np.ndarray:
    """Undo llama.cpp's order of rotary rows: neighbours back to halves, [H*K ...] kept."""
    parts = x.reshape(-1, config.d_head // 2, 2, *x.shape[1:])
    return parts.swapaxes(1, 2).reshape(x.shape)


def chain(*steps: Transform) -> Transform:
    """One transform after another, first to last."""

    def run(x: np.ndarray, config: Config) -> np.ndarray:
        for step in steps:
            x = step(x, config)
        return x

    return run
