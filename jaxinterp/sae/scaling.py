"""Centring and scaling of activations before training, folded exactly into what is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import LONG, real_number, whole_number
from jaxinterp.numerics import wide
from jaxinterp.sae.dictionary import Dictionary


class Scaling(struct.PyTreeNode):
    """x' = (x - centre_in) gain_in, y' = (y - centre_out) gain_out; gains are one per layer.

    centre_in [D] or [L D], gain_in [] or [L 1]; the same of the targets.
    """

    centre_in: Any
    gain_in: Any
    centre_out: Any
    gain_out: Any

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs [B ...] and targets [B ...] as training sees them, same shapes."""
        x, y = wide(x), wide(y)
        return (x - self.centre_in) * self.gain_in, (y - self.centre_out) * self.gain_out


def measure(x: Any, y: Any, *, centre: str = "mean") -> Scaling:
    """The scaling of a first sample x [B ...], y [B ...]: centred, at a mean norm of sqrt(width).

    centre: ``"mean"``, ``"median"`` (the geometric median) or ``"none"``. Where y is x, both are
    scaled alike.

    Raises ``ValueError`` for another word, and for a sample that is not finite or all alike.
    """
    if centre not in ("mean", "median", "none"):
        raise ValueError(f"centre={centre!r}, expected 'mean', 'median' or 'none'.")
    read = _one(np.asarray(x, np.float64), centre, "inputs")
    wrote = read if y is x else _one(np.asarray(y, np.float64), centre, "targets")
    return Scaling(*(np.asarray(n, np.float32) for n in (*read, *wrote)))


def _one(x: np.ndarray, centre: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(x).all():
        raise ValueError(f"The first sample's {what} are not finite.")
    at = {"mean": lambda: x.mean(0), "median": lambda: geometric_median(x),
          "none": lambda: np.zeros(x.shape[1:])}[centre]()  # fmt: skip
    norm = np.linalg.norm(x - at, axis=-1).mean(0)
    if not (norm > 0).all():
        raise ValueError(f"The first sample's {what} are all alike: there is nothing to learn.")
    gain = np.sqrt(x.shape[-1]) / norm
    return at, gain[..., None] if gain.ndim else gain


def geometric_median(x: np.ndarray, steps: int = 100, within: float = 1e-6) -> np.ndarray:
    """The point [...] of least mean distance to x [B ...], by Weiszfeld's iteration, per layer."""
    x, steps = wide(np.asarray(x)), whole_number("steps", steps, 1, LONG)
    within = real_number("within", within, least=0)
    at = x.mean(0)
    for _ in range(steps):
        weight = 1 / np.maximum(np.linalg.norm(x - at, axis=-1, keepdims=True), 1e-12)
        new = (x * weight).sum(0) / weight.sum(0)
        if np.linalg.norm(new - at) <= within * (1 + np.linalg.norm(at)):
            return new
        at = new
    return at


def fold(d: Dictionary, s: Scaling) -> Dictionary:
    """The dictionary that does to raw activations what ``d`` does to scaled ones.

    Features come out in raw units where one gain serves all (their rows keep their norms);
    a dictionary over layers of different gains keeps the features of the scaled ones.
    """
    p, c = jax.tree.map(wide, d.params), d.config
    g, h = np.asarray(s.gain_in, np.float64), np.asarray(s.gain_out, np.float64)
    # With one gain, features scale with the activations: f = f' / unit.
    unit = np.ones(()) if c.layered else g
    W_enc = p.W_enc * (g[..., None] if c.layered else g)
    moved = jnp.asarray(s.centre_in)
    if not c.subtract_bias:
        taken = jnp.einsum("ld,ldf->lf" if c.layered else "d,df->f", moved, W_enc)
        taken = taken.sum(0) if c.kind == "crosscoder" else taken
        b_enc = p.b_enc - taken
    else:
        b_enc = p.b_enc
    gain_of_row = (h[..., None] if c.layered else h) / unit
    magnitude = {}
    if c.activation == "gated":
        # The magnitude's path reads through W_enc e^r_mag, the centre with it.
        taken = p.b_enc - b_enc
        magnitude = {"b_mag": (p.b_mag - taken * jnp.exp(p.r_mag)) / unit}
    params = p.replace(
        W_enc=W_enc / unit, b_enc=b_enc / unit, W_dec=p.W_dec / gain_of_row,
        b_dec=p.b_dec / h + jnp.asarray(s.centre_out), **magnitude,
    )  # fmt: skip
    if p.threshold is not None:
        params = params.replace(threshold=p.threshold / unit)
    if c.skip:
        skip = p.W_skip * g / h
        params = params.replace(W_skip=skip, b_dec=params.b_dec - moved @ skip)
    return d.replace(params=params)
