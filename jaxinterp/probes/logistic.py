"""Logistic regression of many splits and penalties at once, along the path of penalties.

Penalties are solved a few at a time, from the strongest down, each few from the last one's optimum:
there the Hessian is formed and factored once, and in the coordinates in which it is the identity
quasi-Newton steps of all of them at once take some ten matrix products to the optimum.

Axis letters: L points, S splits, R penalties, G penalties at a time, K outputs (1 for two classes).
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, real_number, whole_number
from jaxinterp.model.compiled import jit
from jaxinterp.probes.fit import Probes, alike, moments

TOLERANCE = 1e-8
TOGETHER = 10
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
    All is calculated in the dtype of X, or in float32 where that is less.
    """
    n_classes, max_steps = (
        whole_number("n_classes", n_classes, 2), whole_number("max_steps", max_steps, 1, MANY)
    )  # fmt: skip
    tolerance = real_number("tolerance", tolerance, least=0)
    used = int((np.asarray(weights) > 0).sum(-1).max())
    targets = jnp.asarray(targets)

    def fit(x: Any) -> Probes:
        x, *others = alike(x, weights, penalties, tolerance)
        found = _fit(
            x, targets, *others, n_classes=n_classes, max_steps=max_steps, scaled=scaled,
            used=used,
        )  # fmt: skip
        return jax.block_until_ready(found)

    if np.ndim(X) == 2:
        return fit(X)
    # Factorizations keep one core busy each: a second point fills the others meanwhile. A thread
    # does not know of ``jax.enable_x64`` around this call.
    with ThreadPoolExecutor(2) as pool:
        several = map if jax.config.read("jax_enable_x64") else pool.map
        found = [fit(X[0]), *several(fit, X[1:])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


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
    each = -(-len(penalties) // groups)
    # The last few are filled up with the weakest once more.
    filled = order[jnp.minimum(jnp.arange(groups * each), len(penalties) - 1)]

    def split(at: Any) -> Probes:
        target, weight, row, mean, deviation = at
        Z = (X[row] - mean) / deviation
        share = weight[row] / weight.sum()
        turn = None
        if Z.shape[0] < Z.shape[1]:  # penalised weights lie in the space of the examples
            turn, own = jnp.linalg.qr(Z.T)
            Z = own.T
        Z = jnp.concatenate([Z, jnp.ones((used, 1), Z.dtype)], 1)
        one_hot = target[row] == jnp.arange(n_classes)[-outputs:, None]
        problem = _Problem(Z, Z.T, one_hot.astype(Z.dtype), share)
        p = jnp.zeros((outputs, Z.shape[1]), Z.dtype)
        _, found = jax.lax.scan(
            lambda p, few: _down(problem, p, few, tolerance, max_steps), p,
            penalties[filled].reshape(groups, each),
        )  # fmt: skip
        back = jnp.argsort(order)
        p, loss, steps, gap = (x.reshape(-1, *x.shape[2:])[back] for x in found)
        W, b = p[:, :, :-1].mT, p[:, :, -1]
        W = (W if turn is None else matmul(turn, W)) / deviation[:, None]
        return Probes(W, b - matmul(mean, W), loss, steps, gap)

    mean, deviation = moments(X, weights)
    if not scaled:
        deviation = jnp.ones_like(deviation)
    return jax.lax.map(split, (targets, weights, rows, mean, deviation))


class _Problem(struct.PyTreeNode):
    """Examples Z [n D], the last column ones, targets as indicators [K n], shares of the loss [n].

    ZT [D n] is their transpose: both products of a step then run along rows.
    """

    Z: jax.Array
    ZT: jax.Array
    target: jax.Array
    share: jax.Array

    def said(self, p: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of weights p [K D]: probabilities [K n], and the cross-entropy of each example [n]."""
        z = matmul(p, self.ZT)
        if len(p) == 1:
            return jax.nn.sigmoid(z), (jax.nn.softplus(z) - self.target * z)[0]
        log_p = jax.nn.log_softmax(z, axis=0)
        return jnp.exp(log_p), -(self.target * log_p).sum(0)

    def look(self, p: jax.Array, penalty: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss at p [K D] and its gradient; the last weights, the biases, are free."""
        said, entropy = self.said(p)
        held = p.at[:, -1].set(0)
        loss = (self.share * entropy).sum() + penalty / 2 * jnp.square(held).sum()
        return loss, matmul(self.share * (said - self.target), self.Z) + penalty * held

    def coordinates(self, p: jax.Array, penalty: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A [K D D] and its transpose, p = A u: in u the Hessian at p is 1 within each output."""
        said, _ = self.said(p)
        decay = jnp.full(p.shape[1], penalty, p.dtype).at[-1].set(0)
        one = jnp.eye(p.shape[1], dtype=p.dtype)

        def output(curve: jax.Array) -> jax.Array:
            H = matmul(self.ZT * (self.share * curve), self.Z) + jnp.diag(decay)
            H += RIDGE * jnp.trace(H) / len(H) * one
            return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(H), one, lower=True)

        inverse = jax.lax.map(output, said * (1 - said))
        return inverse.mT, inverse


def _down(
    problem: _Problem, near: jax.Array, penalties: jax.Array, tolerance: jax.Array, max_steps: int
) -> Any:
    """The optima of penalties [G], strongest first, from the one of a little stronger penalty."""
    A, AT = problem.coordinates(near, jnp.exp(jnp.log(penalties).mean()))
    product = functools.partial(jnp.einsum, "ke,ked->kd", precision="highest")

    def one(penalty: jax.Array) -> Any:
        def look(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss, slope = problem.look(near + product(u, AT), penalty)
            return loss, product(slope, A)

        end = descend(look, jnp.zeros_like(near), tolerance, max_steps)
        return near + product(end.u, AT), end.loss, end.steps, end.gap

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


def descend(look: Any, u: jax.Array, tolerance: jax.Array, max_steps: int) -> Descent:
    """The least of a convex loss whose Hessian is about 1; ``look(u)``: it and its gradient.

    One look at the loss and its gradient per step: a trial that does not lower it enough (Armijo)
    is tried again half as far. So many descents in step, under `vmap`, are matrix products.
    """
    import optax

    quasi_newton = optax.scale_by_lbfgs(memory_size=8)

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
