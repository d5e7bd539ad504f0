"""Linear probes as array functions: many at once over the same activations.

Activations X [n D] are shared by every split and penalty: a split is weights [n] (0 leaves an
example out), and scaling to the mean and deviation of its examples is folded into the probe. Axis
letters: S splits, R penalties, K outputs (1 for two classes). All is calculated in float32, or in
the activations' dtype where that is wider.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model.compiled import jit
from jaxinterp.numerics import wide


class Probes(struct.PyTreeNode):
    """Logits X W + b. W [... D K], b [... K], in the activations' own units.

    loss [...]: mean cross-entropy plus penalty at the end. Of those that are found step by step:
    steps [...], and gap [...], about how far the loss still is above its least.
    """

    W: jax.Array
    b: jax.Array
    loss: jax.Array
    steps: jax.Array
    gap: jax.Array

    def __call__(self, X: jax.Array) -> jax.Array:
        """Logits [... n K] of activations [n D] (or one set for each probe, [... n D])."""
        X = wide(jnp.asarray(X))
        return jnp.matmul(X, self.W, precision="highest") + self.b[..., None, :]


def moments(X: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation [S D] of the weighted examples; a deviation of 0 counts as 1."""
    X, weights = alike(X, weights)
    share = weights / weights.sum(-1, keepdims=True)
    mean = jnp.matmul(share, X, precision="highest")
    # Centred squares, split by split: E[x^2] - E[x]^2 loses all digits of large means.
    square = jax.lax.map(lambda at: (at[0][:, None] * jnp.square(X - at[1])).sum(0), (share, mean))
    deviation = jnp.sqrt(square)
    return mean, jnp.where(deviation > 0, deviation, 1)


def alike(X: Any, *others: Any) -> tuple[jax.Array, ...]:
    """Activations in float32 or wider, and other arrays in the same dtype."""
    X = wide(jnp.asarray(X))
    return X, *(jnp.asarray(other).astype(X.dtype) for other in others)


@jit
def fit_ridge(X: jax.Array, targets: jax.Array, weights: jax.Array, penalties: jax.Array) -> Probes:
    """Ridge regression of targets [n K] (or [n]): probes [S R], from one decomposition a split.

    Minimises the weighted mean of |x W + b - y|^2 / 2 + penalty / 2 * |W|^2 over scaled
    activations. The loss is that, without steps.
    """
    X, targets, weights, penalties = alike(X, targets, weights, penalties)
    y = targets[:, None] if targets.ndim == 1 else targets
    mean, deviation = moments(X, weights)

    def one(split: Any) -> Probes:
        weight, mean, deviation = split
        share = (weight / weight.sum())[:, None]
        centre = (share * y).sum(0)
        Z = jnp.sqrt(share) * (X - mean) / deviation
        values, V = jnp.linalg.eigh(jnp.matmul(Z.T, Z, precision="highest"))
        along = V.T @ (Z.T @ (jnp.sqrt(share) * (y - centre)))

        def solve(penalty: jax.Array) -> Probes:
            scaled = V @ (along / (jnp.maximum(values, 0) + penalty)[:, None])
            W = scaled / deviation[:, None]
            b = centre - mean @ W
            error = (share * jnp.square(X @ W + b - y)).sum() / 2
            loss = error + penalty / 2 * jnp.square(scaled).sum()
            return Probes(W, b, loss, jnp.int32(0), jnp.zeros((), X.dtype))

        return jax.vmap(solve)(penalties)

    return jax.lax.map(one, (weights, mean, deviation))


@functools.partial(jit, static=("whitened",))
def fit_means(
    X: jax.Array, targets: jax.Array, weights: jax.Array, *, whitened: bool = False
) -> Probes:
    """Difference of means of two classes: probes [S], the threshold half-way between them.

    targets: int [n] or [S n], in {0, 1}. whitened: mass-mean probing (Marks & Tegmark 2023,
    arXiv:2310.06824): the inverse of the covariance within classes times the difference, which is
    linear discriminant analysis.
    """
    X, targets, weights = alike(X, targets, weights)
    targets = jnp.broadcast_to(targets, weights.shape)
    _, deviation = moments(X, weights)

    def one(split: Any) -> Probes:
        target, weight, deviation = split
        ones, zeros = weight * target, weight * (1 - target)
        high, low = (w @ X / w.sum() for w in (ones, zeros))
        direction = high - low
        if whitened:
            own = jnp.where(target[:, None] == 1, high, low)
            Z = jnp.sqrt(weight / weight.sum())[:, None] * (X - own) / deviation
            inverse = jnp.linalg.pinv(Z.T @ Z, hermitian=True, rtol=1e-5)
            direction = inverse @ (direction / deviation) / deviation
        W = direction[:, None]
        b = -(high + low) @ W / 2
        z = (X @ W + b)[:, 0]
        entropy = jax.nn.softplus(z) - target * z
        loss = (weight * entropy).sum() / weight.sum()
        return Probes(W, b, loss, jnp.int32(0), jnp.zeros((), X.dtype))

    return jax.lax.map(one, (targets, weights, deviation))
