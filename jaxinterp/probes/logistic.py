"""Logistic regression of many splits and penalties at once, along the path of penalties.

Penalties are solved a few at a time, from the strongest down, each few from the last one's optimum:
there the Hessian is formed and factored once, and in the coordinates in which it is the identity
quasi-Newton steps of all of them at once take some ten matrix products to the optimum.

Axis letters: L points, S splits, R penalties, G penalties at a time, K outputs (1 for two classes).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.model.compiled import jit
from jaxinterp.probes.fit import Probes, cross_entropy, moments

TOLERANCE = 1e-8
TOGETHER = 7
ROUNDING = 2e-7  # of a loss in float32, relative
RIDGE = 1e-6  # of the Hessian's mean diagonal: what keeps its factor finite in float32

matmul = functools.partial(jnp.matmul, precision="highest")


def fit_logistic(
    X: Any,
    targets: Any,
    weights: Any,
    penalties: Any,
    *,
    n_classes: int,
    max_steps: int = 500,
    tolerance: float = TOLERANCE,
    scaled: bool = True,
) -> Probes:
    """Logistic regression for every split and penalty: probes [S R] of X [n D].

    Of X [L n D], activations at several points, probes [L S R]. targets int [n] or one set per
    split [S n], weights [S n] (>= 0; 0 leaves an example out), penalties [R].

    Minimises the weighted mean cross-entropy + penalty / 2 * |W|^2, W of the scaled activations
    and b free (scikit-learn's C is 1 / (n penalty)), by L-BFGS (Liu & Nocedal 1989) in coordinates
    in which the Hessian at a neighbouring optimum is the identity. A fit ends when the loss is
    within ``tolerance`` of its least by the Newton decrement (Boyd & Vandenberghe 2004, 9.5.1), or
    where float32 ends. scaled: activations are scaled to deviation 1 over each split's examples.
    """
    used = int((np.asarray(weights) > 0).sum(-1).max())
    return _fit(
        jnp.asarray(X), jnp.asarray(targets), jnp.asarray(weights), jnp.asarray(penalties),
        jnp.float32(tolerance), n_classes=n_classes, max_steps=max_steps, scaled=scaled, used=used,
    )  # fmt: skip


@functools.partial(jit, static=("n_classes", "max_steps", "scaled", "used"))
def _fit(
    X: jax.Array, targets: jax.Array, weights: jax.Array, penalties: jax.Array,
    tolerance: jax.Array, *, n_classes: int, max_steps: int, scaled: bool, used: int,
) -> Probes:  # fmt: skip
    """used: the most examples of any split; rows of weight 0 beyond them are not multiplied."""
    targets = jnp.broadcast_to(targets, weights.shape)
    outputs = 1 if n_classes == 2 else n_classes
    rows = jnp.argsort(weights <= 0, axis=-1, stable=True)[:, :used]
    order = jnp.argsort(-penalties)
    groups = -(-len(penalties) // TOGETHER)
    # The last few are filled up with the weakest once more.
    filled = order[jnp.minimum(jnp.arange(groups * TOGETHER), len(penalties) - 1)]

    def split(at: Any, X: jax.Array) -> Probes:
        target, weight, row, mean, deviation = at
        Z = (X[row] - mean) / deviation
        share = weight[row] / weight.sum()
        turn = None
        if Z.shape[0] < Z.shape[1]:  # penalised weights lie in the space of the examples
            turn, own = jnp.linalg.qr(Z.T)
            Z = own.T
        Z = jnp.concatenate([Z, jnp.ones((used, 1), Z.dtype)], 1)
        problem = _Problem(Z, target[row], share)
        p = jnp.zeros((Z.shape[1], outputs), Z.dtype)
        _, found = jax.lax.scan(
            lambda p, few: _down(problem, p, few, tolerance, max_steps), p,
            penalties[filled].reshape(groups, TOGETHER),
        )  # fmt: skip
        back = jnp.argsort(order)
        p, loss, steps, gap = (x.reshape(-1, *x.shape[2:])[back] for x in found)
        W, b = p[:, :-1], p[:, -1]
        W = (W if turn is None else matmul(turn, W)) / deviation[:, None]
        return Probes(W, b - matmul(mean, W), loss, steps, gap)

    def point(X: jax.Array) -> Probes:
        mean, deviation = moments(X, weights)
        if not scaled:
            deviation = jnp.ones_like(deviation)
        splits = (targets, weights, rows, mean, deviation)
        return jax.lax.map(lambda at: split(at, X), splits)

    return point(X) if X.ndim == 2 else jax.lax.map(point, X)


class _Problem(struct.PyTreeNode):
    """Examples Z [n D], the last column ones, their targets [n] and shares of the loss [n]."""

    Z: jax.Array
    target: jax.Array
    share: jax.Array

    def loss(self, p: jax.Array, penalty: jax.Array) -> jax.Array:
        """Of p [D K]; the last row, the bias, is free."""
        entropy = cross_entropy(matmul(self.Z, p), self.target)
        return (self.share * entropy).sum() + penalty / 2 * jnp.square(p[:-1]).sum()

    def coordinates(self, p: jax.Array, penalty: jax.Array) -> jax.Array:
        """A [K D D], p = A u: in u the Hessian at p is the identity, within each output."""
        logits = matmul(self.Z, p)
        said = jax.nn.sigmoid(logits) if p.shape[1] == 1 else jax.nn.softmax(logits)
        decay = jnp.full(len(p), penalty, p.dtype).at[-1].set(0)

        def output(curve: jax.Array) -> jax.Array:
            H = matmul(self.Z.T, (self.share * curve)[:, None] * self.Z) + jnp.diag(decay)
            H += RIDGE * jnp.trace(H) / len(H) * jnp.eye(len(H), dtype=H.dtype)
            L = jnp.linalg.cholesky(H)
            return jax.scipy.linalg.solve_triangular(L, jnp.eye(len(H), dtype=H.dtype), lower=True)

        return jax.lax.map(output, (said * (1 - said)).T).mT


def _down(
    problem: _Problem, near: jax.Array, penalties: jax.Array, tolerance: jax.Array, max_steps: int
) -> Any:
    """The optima of penalties [G], strongest first, from the one of a little stronger penalty."""
    middle = jnp.exp(jnp.log(penalties).mean())
    A = problem.coordinates(near, middle)

    def p_at(u: jax.Array) -> jax.Array:
        return near + jnp.einsum("kde,ek->dk", A, u, precision="highest")

    def one(penalty: jax.Array) -> Any:
        end = descend(
            lambda u: problem.loss(p_at(u), penalty), jnp.zeros_like(near), tolerance, max_steps
        )
        return p_at(end.u), end.loss, end.steps, end.gap

    found = jax.vmap(one)(penalties)
    return found[0][-1], found


class Descent(struct.PyTreeNode):
    """A point u, the loss and the quasi-Newton move there, how far along it the next trial is."""

    u: jax.Array
    loss: jax.Array
    move: jax.Array
    gap: jax.Array
    memory: Any
    length: jax.Array
    steps: jax.Array


def descend(loss: Any, u: jax.Array, tolerance: jax.Array, max_steps: int) -> Descent:
    """The least of a convex loss whose Hessian is about the identity.

    One look at the loss and its gradient per step: a trial that does not lower it enough (Armijo)
    is tried again half as far. So many descents in step, under `vmap`, are matrix products.
    """
    import optax

    quasi_newton = optax.scale_by_lbfgs(memory_size=8)
    look = jax.value_and_grad(loss)

    def at(u: jax.Array, memory: Any, steps: jax.Array) -> Descent:
        value, slope = look(u)
        move, memory = quasi_newton.update(slope, memory, u)
        gap = (move * slope).sum() / 2
        return Descent(u, value, move, gap, memory, jnp.ones_like(value), steps)

    def step(now: Descent) -> Descent:
        trial = at(now.u - now.length * now.move, now.memory, now.steps + 1)
        wanted = now.loss - 2e-4 * now.length * now.gap + ROUNDING * jnp.abs(now.loss)
        again = now.replace(length=now.length / 2, steps=now.steps + 1)
        return jax.tree.map(functools.partial(jnp.where, trial.loss <= wanted), trial, again)

    def unfinished(now: Descent) -> jax.Array:
        return (now.gap > tolerance) & (now.steps < max_steps) & (now.length > 1e-3)

    return jax.lax.while_loop(unfinished, step, at(u, quasi_newton.init(u), jnp.int32(0)))
