"""The toy model of superposition: more features than dimensions (Elhage et al. 2022).

x' = relu(W^T W x + b), W [m n]: n features pass through m dimensions. A feature is 0, but with
probability ``density`` uniform in [0, 1]. The loss is the squared error weighted by importance.
Whole grids of densities and importances train as one vmapped program.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import LONG, MANY, numbers, random_seed, real_number, whole_number
from jaxinterp.numerics import wide

if TYPE_CHECKING:
    import xarray as xr


class Toy(struct.PyTreeNode):
    """W [... m n], b [... n]."""

    W: jax.Array
    b: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [... batch n] to x' of the same shape."""
        W = wide(self.W)
        hidden = jnp.einsum("...mn,...bn->...bm", W, x)
        return jax.nn.relu(jnp.einsum("...mn,...bm->...bn", W, hidden) + self.b[..., None, :])

    @property
    def norms(self) -> jax.Array:
        """[... n]: how strongly each feature is represented (0: not at all, 1: fully)."""
        return jnp.linalg.norm(wide(self.W), axis=-2)

    @property
    def interference(self) -> jax.Array:
        """[... n]: sum over other features j of (unit(w_i) . w_j)^2; 0: a dimension of its own."""
        W = wide(self.W)
        unit = W / jnp.maximum(self.norms, 1e-9)[..., None, :]
        along = jnp.einsum("...mi,...mj->...ij", unit, W) ** 2
        return along.sum(-1) - jnp.diagonal(along, axis1=-2, axis2=-1)

    @property
    def dimensions(self) -> jax.Array:
        """[... n]: each feature's share of a dimension, |w_i|^2 / sum_j (unit(w_i) . w_j)^2."""
        square = self.norms**2
        return square / jnp.maximum(square + self.interference, 1e-9)


def train(
    key: jax.Array,
    density: jax.Array,
    importance: jax.Array,
    *,
    n_hidden: int,
    steps: int = 5000,
    batch: int = 1024,
    learning_rate: Any = 3e-3,
) -> tuple[Toy, jax.Array]:
    """Train toys for densities [G] and importances [G n], one seed each: toys [G], losses [G].

    Adam, its rate falling as a cosine to 0. The loss is over 16 fresh batches at the end, summed
    over features.

    Raises ``ValueError`` for sizes below 1 and a learning rate that is not above 0.
    """
    return _train(
        key, density, importance, real_number("learning_rate", learning_rate, above=0),
        n_hidden=whole_number("n_hidden", n_hidden, 1, MANY),
        steps=whole_number("steps", steps, 1, LONG),
        batch=whole_number("batch", batch, 1, MANY),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("n_hidden", "steps", "batch"))
def _train(
    key: jax.Array, density: jax.Array, importance: jax.Array, learning_rate: jax.Array, *,
    n_hidden: int, steps: int, batch: int,
) -> tuple[Toy, jax.Array]:  # fmt: skip
    import optax

    n = importance.shape[-1]
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def examples(key: jax.Array, density: jax.Array, size: int) -> jax.Array:
        there, value = jax.random.split(key)
        x = jax.random.uniform(value, (size, n), jnp.float32)
        return jnp.where(jax.random.uniform(there, (size, n), jnp.float32) < density, x, 0)

    def loss_of(toy: Toy, x: jax.Array, importance: jax.Array) -> jax.Array:
        return (importance * jnp.square(x - toy(x))).sum(-1).mean()

    def one(key: jax.Array, density: jax.Array, importance: jax.Array) -> tuple[Toy, jax.Array]:
        begin, data, final = jax.random.split(key, 3)
        W = jax.random.normal(begin, (n_hidden, n), jnp.float32) / np.sqrt(n_hidden)
        toy = Toy(W, jnp.zeros(n))

        def step(state: Any, i: jax.Array) -> tuple[Any, None]:
            toy, opt = state
            x = examples(jax.random.fold_in(data, i), density, batch)
            updates, opt = optimizer.update(jax.grad(loss_of)(toy, x, importance), opt, toy)
            return (optax.apply_updates(toy, updates), opt), None

        (toy, _), _ = jax.lax.scan(step, (toy, optimizer.init(toy)), jnp.arange(steps))
        return toy, loss_of(toy, examples(final, density, 16 * batch), importance)

    return jax.vmap(one)(jax.random.split(key, len(density)), density, importance)


def phase_diagram(
    densities: Any,
    importances: Any,
    *,
    n_features: int = 2,
    n_hidden: int = 1,
    seeds: int = 4,
    seed: int = 0,
    **training: Any,
) -> xr.Dataset:
    """What becomes of the last feature, by its density and its importance beside the others' 1.

    Of ``seeds`` runs per cell the one of least loss counts. Everything is one program.

    Returns dims (importance, density, feature): ``norm``, ``interference``; and (importance,
    density): ``loss`` and ``phase`` of the last feature: ``"ignored"`` (norm below 0.5),
    ``"dedicated"`` (interference below 0.25) or ``"superposed"``.

    Raises ``ValueError`` for densities outside (0, 1], importances that are not positive, and
    fewer than two features.
    """
    import xarray as xr

    densities = numbers("densities", densities, above=0, most=1)
    importances = numbers("importances", importances, above=0)
    whole_number("n_features", n_features, 2, MANY)
    whole_number("n_hidden", n_hidden, 1, MANY)
    seeds, seed = whole_number("seeds", seeds, 1, MANY), random_seed(seed)
    shape = (len(importances), len(densities), seeds)
    d = np.broadcast_to(densities[None, :, None], shape).reshape(-1)
    i = np.broadcast_to(importances[:, None, None], shape).reshape(-1)
    weights = np.concatenate([np.ones((len(i), n_features - 1)), i[:, None]], 1)
    toy, loss = train(
        jax.random.key(seed), jnp.asarray(d, jnp.float32), jnp.asarray(weights, jnp.float32),
        n_hidden=n_hidden, **training,
    )  # fmt: skip
    losses = np.asarray(loss).reshape(shape)
    best = losses.argmin(-1)[..., None]

    def chosen(values: jax.Array) -> np.ndarray:
        each = np.asarray(values).reshape(*shape, n_features)
        return np.take_along_axis(each, best[..., None], 2)[:, :, 0]

    norm, interference = chosen(toy.norms), chosen(toy.interference)
    phase = np.where(
        norm[..., -1] < 0.5, "ignored",
        np.where(interference[..., -1] < 0.25, "dedicated", "superposed"),
    )  # fmt: skip
    cell = ("importance", "density")
    return xr.Dataset(
        {
            "norm": ((*cell, "feature"), norm),
            "interference": ((*cell, "feature"), interference),
            "loss": (cell, np.take_along_axis(losses, best, 2)[..., 0]),
            "phase": (cell, phase),
        },
        {"importance": importances, "density": densities, "feature": np.arange(n_features)},
        {"n_features": n_features, "n_hidden": n_hidden, "seeds": seeds, "seed": seed},
    )
