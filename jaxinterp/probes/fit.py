"""Linear probes as array functions: many at once over the same activations.

Activations X [n D] are shared by every split and penalty: a split is weights [n] (0 leaves an
example out), and scaling to the mean and deviation of its examples is folded into the probe. Axis
letters: S splits, R penalties, K outputs (1 for two classes).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model.compiled import jit

TOLERANCE = 1e-5
ROUNDING = 1e-7  # of a loss in float32, relative


class Probes(struct.PyTreeNode):
    """Logits X W + b. W [... D K], b [... K], in the activations' own units.

    loss [...]: mean cross-entropy plus penalty at the end; steps [...]: of the optimizer, for
    those that are found by one; slope [...]: the largest entry of the gradient there.
    """

    W: jax.Array
    b: jax.Array
    loss: jax.Array
    steps: jax.Array
    slope: jax.Array

    def __call__(self, X: jax.Array) -> jax.Array:
        """Logits [... n K] of activations [n D] (or one set for each probe, [... n D])."""
        return jnp.matmul(X, self.W, precision="highest") + self.b[..., None, :]


def moments(X: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation [S D] of the weighted examples; a deviation of 0 counts as 1."""
    share = weights / weights.sum(-1, keepdims=True)
    mean = jnp.matmul(share, X, precision="highest")
    # Centred squares, split by split: E[x^2] - E[x]^2 loses all digits of large means.
    square = jax.lax.map(lambda at: (at[0][:, None] * jnp.square(X - at[1])).sum(0), (share, mean))
    deviation = jnp.sqrt(square)
    return mean, jnp.where(deviation > 0, deviation, 1)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[n] of logits [n K]: sigmoid for one output with targets [n] in {0, 1}, else softmax."""
    if logits.shape[-1] == 1:
        z = logits[:, 0]
        return jax.nn.softplus(z) - targets * z
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]


@functools.partial(jit, static=("n_classes", "max_steps", "scaled"))
def fit_logistic(
    X: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    penalties: jax.Array,
    *,
    n_classes: int,
    max_steps: int = 500,
    tolerance: Any = TOLERANCE,
    scaled: bool = True,
) -> Probes:
    """Logistic regression for every split and penalty: probes [S R].

    X [n D], targets int [n] or one set per split [S n], weights [S n] (>= 0), penalties [R].
    Minimises the weighted mean cross-entropy + penalty / 2 * |W|^2, W of the scaled activations
    and b free (scikit-learn's C is 1 / (n penalty)), by L-BFGS (Liu & Nocedal 1989) in the
    activations' principal axes, each in units of the loss's curvature, until no entry of the
    gradient there exceeds ``tolerance``, or the loss falls no more. scaled: activations are scaled
    to mean 0 and deviation 1 over each split's examples.
    """
    import optax

    width = X.shape[1]
    outputs = 1 if n_classes == 2 else n_classes
    targets = jnp.broadcast_to(targets, weights.shape)
    mean, deviation = moments(X, weights)
    if not scaled:
        mean, deviation = jnp.zeros_like(mean), jnp.ones_like(deviation)
    # In these units a whole step is nearly always right; where float32 ends, no search helps.
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=4, initial_guess_strategy="one")
    optimizer = optax.lbfgs(memory_size=10, linesearch=search)
    matmul = functools.partial(jnp.matmul, precision="highest")

    def axes(split: Any) -> tuple[jax.Array, jax.Array]:
        """Principal axes [D D] of a split's scaled activations, and their variances."""
        weight, mean, deviation = split
        Z = jnp.sqrt(weight / weight.sum())[:, None] * (X - mean) / deviation
        values, V = jnp.linalg.eigh(matmul(Z.T, Z))
        return V, jnp.maximum(values, 0)

    V, values = jax.lax.map(axes, (weights, mean, deviation))
    turned = jax.lax.map(lambda at: matmul((X - at[0]) / at[1], at[2]), (mean, deviation, V))

    def one(split: Any, penalty: jax.Array) -> Probes:
        target, weight, mean, deviation, V, values, Z = split
        share = weight / weight.sum()
        # In units in which the loss curves about alike in all directions: a quarter of the
        # variance (the most that a logistic loss has of it), and the penalty.
        unit = 1 / jnp.sqrt(values / 4 + penalty)[:, None]

        def loss(p: Any) -> jax.Array:
            along = unit * p[0]
            entropy = cross_entropy(matmul(Z, along) + p[1], target)
            return (share * entropy).sum() + penalty / 2 * jnp.square(along).sum()

        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(at: Any) -> Any:
            p, state, _, count, before, stalled = at
            value, slope = value_and_grad(p, state=state)
            updates, state = optimizer.update(
                slope, state, p, value=value, grad=slope, value_fn=loss
            )
            p = optax.apply_updates(p, updates)
            largest, now = _largest(optax.tree.get(state, "grad")), optax.tree.get(state, "value")
            # Past this the numbers' own precision decides: no step is better than another.
            gained = before - now > ROUNDING * jnp.abs(now)
            return p, state, largest, count + 1, now, jnp.where(gained, 0, stalled + 1)

        def unfinished(at: Any) -> jax.Array:
            _, _, largest, count, _, stalled = at
            return (largest > tolerance) & (count < max_steps) & (stalled < 3)

        p = (jnp.zeros((width, outputs), X.dtype), jnp.zeros(outputs, X.dtype))
        far = jnp.asarray(jnp.inf, X.dtype)
        start = (p, optimizer.init(p), far, jnp.int32(0), far, jnp.int32(0))
        p, _, slope, count, _, _ = jax.lax.while_loop(unfinished, step, start)
        W = matmul(V, unit * p[0]) / deviation[:, None]
        return Probes(W, p[1] - matmul(mean, W), loss(p), count, slope)

    splits = (targets, weights, mean, deviation, V, values, turned)
    return jax.vmap(lambda s: jax.vmap(lambda r: one(s, r))(penalties))(splits)


def _largest(tree: Any) -> jax.Array:
    return jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)]).max()


@jit
def fit_ridge(X: jax.Array, targets: jax.Array, weights: jax.Array, penalties: jax.Array) -> Probes:
    """Ridge regression of targets [n K] (or [n]): probes [S R], from one decomposition a split.

    Minimises the weighted mean of |x W + b - y|^2 / 2 + penalty / 2 * |W|^2 over scaled
    activations. The loss is that, without steps.
    """
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
        entropy = cross_entropy(X @ W + b, target)
        loss = (weight * entropy).sum() / weight.sum()
        return Probes(W, b, loss, jnp.int32(0), jnp.zeros((), X.dtype))

    return jax.lax.map(one, (targets, weights, deviation))
