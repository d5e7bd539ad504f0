"""Activations whose features are known: a small version of SynthSAEBench's generator.

Features fire with Zipf-distributed probabilities, in a hierarchy (a child only with its parent),
some exclude each other, and their firings are correlated by a low-rank Gaussian copula. An example
is the sum of the features that fire, times their values.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, numbers, random_seed, real_number, whole_number


class Synthetic(struct.PyTreeNode):
    """A generator. directions [G D]; probability [G]: of firing, given that the parent fires.

    parent [G] (-1: a root; parents come before children); exclusive [G]: features of one number
    exclude each other (-1: of none); factors [G R]: of the copula; mean, spread [G]: of values.
    depth: of the hierarchy.
    """

    directions: jax.Array
    probability: jax.Array
    parent: jax.Array
    exclusive: jax.Array
    factors: jax.Array
    mean: jax.Array
    spread: jax.Array
    bias: jax.Array
    depth: int = struct.field(pytree_node=False)
    groups: int = struct.field(pytree_node=False)

    def __call__(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """n examples: activations [n D] and the features' true values [n G]."""
        n = whole_number("n", n, 1, MANY)
        common, own, sizes, ties = jax.random.split(key, 4)
        G, R = self.factors.shape
        shared = jax.random.normal(common, (n, R), jnp.float32) @ self.factors.T
        left = jnp.sqrt(jnp.maximum(1 - jnp.square(self.factors).sum(1), 0))
        z = shared + left * jax.random.normal(own, (n, G), jnp.float32)
        fires = z < jax.scipy.special.ndtri(jnp.clip(self.probability, 1e-7, 1 - 1e-7))
        fires = self._alone(fires, jax.random.uniform(ties, (n, G), jnp.float32))
        for _ in range(self.depth - 1):  # a child waits for all above it
            fires = fires & jnp.where(self.parent < 0, True, fires[:, self.parent])
        values = self.mean + self.spread * jax.random.normal(sizes, (n, G), jnp.float32)
        values = jnp.where(fires, jnp.maximum(values, 0.05), 0)
        return values @ self.directions + self.bias, values

    def _alone(self, fires: jax.Array, order: jax.Array) -> jax.Array:
        """Of features that exclude each other, one at random of those that would fire."""
        if not self.groups:
            return fires
        group = jnp.where(self.exclusive < 0, self.groups, self.exclusive)
        rank = jnp.where(fires, order, -1.0)
        best = jax.vmap(lambda r: jax.ops.segment_max(r, group, self.groups + 1))(rank)
        return fires & ((self.exclusive < 0) | (rank >= best[:, group]))


def synthetic(
    n_features: int, width: int, *, roots: int | None = None, branch: int = 4, depth: int = 3,
    exponent: float = 0.5, probabilities: tuple[float, float] = (5e-4, 0.4), rank: int = 25,
    correlation: float = 0.1, exclusive: float = 0.5, orthogonal: bool = False, bias: float = 0.0,
    seed: int = 0,
) -> Synthetic:  # fmt: skip
    """A generator of ``n_features`` in ``width`` dimensions.

    roots: features that are the first of a tree of ``depth`` levels, each with ``branch`` children;
    the rest stands alone (default: trees take half of all features). exponent,
    probabilities: of firing, all told, fall as rank^-exponent, stretched between these limits; a
    child's stays below its parent's. rank, correlation: of the copula, and the share of variance
    it explains. exclusive: the fraction of parents whose children exclude each other. orthogonal:
    orthonormal directions (needs n_features <= width), else random unit vectors.

    Raises ``ValueError`` for sizes that do not fit.
    """
    for name, size in (("n_features", n_features), ("width", width)):
        whole_number(name, size, 1, MANY)
    for name, size in (("branch", branch), ("depth", depth)):
        whole_number(name, size, 1, n_features)
    whole_number("rank", rank, 1, MANY)
    whole_number("roots", roots, 0, n_features, optional=True)
    for name, share in (("correlation", correlation), ("exclusive", exclusive)):
        real_number(name, share, least=0, most=1)
    exponent, bias = real_number("exponent", exponent, least=0), real_number("bias", bias)
    low, high = numbers("probabilities", probabilities, above=0, below=1).tolist()
    tree = sum(branch**level for level in range(depth))
    roots = max(1, n_features // (2 * tree)) if roots is None else roots
    if roots * tree > n_features:
        raise ValueError(
            f"{roots} trees of {tree} features do not fit n_features={n_features} (width={width})."
        )
    if orthogonal and n_features > width:
        raise ValueError(f"{n_features} directions cannot be orthogonal in {width} dimensions.")
    rng = np.random.default_rng(random_seed(seed))
    directions = rng.normal(size=(n_features, width))
    if orthogonal:
        directions = np.linalg.qr(directions.T)[0].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    parent = np.full(n_features, -1)
    level_begin, level = 0, roots
    begin = roots
    for _ in range(depth - 1):
        size = level * branch
        parent[begin : begin + size] = level_begin + np.arange(size) // branch
        level_begin, level, begin = begin, size, begin + size
    zipf = (1.0 + np.arange(n_features)) ** -exponent
    zipf = low + (high - low) * (zipf - zipf[-1]) / max(zipf[0] - zipf[-1], 1e-12)
    rng.shuffle(zipf)
    unconditional = np.array(zipf)
    for i in np.flatnonzero(parent >= 0):
        unconditional[i] = min(unconditional[i], 0.9 * unconditional[parent[i]])
    given = np.where(parent < 0, unconditional, unconditional / unconditional[parent])
    excludes = np.full(n_features, -1)
    parents = np.unique(parent[parent >= 0])
    chosen = parents[rng.random(len(parents)) < exclusive]
    for number, p in enumerate(chosen):
        excludes[parent == p] = number
    factors = rng.normal(size=(n_features, rank))
    factors *= np.sqrt(correlation) / np.linalg.norm(factors, axis=1, keepdims=True)

    def array(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    return Synthetic(
        directions=array(directions), probability=array(given), parent=jnp.asarray(parent),
        exclusive=jnp.asarray(excludes), factors=array(factors),
        mean=array(rng.uniform(0.75, 1.25, n_features)), spread=array(np.full(n_features, 0.1)),
        bias=array(bias * rng.normal(size=width)), depth=depth, groups=len(chosen),
    )  # fmt: skip


def batches(make: Synthetic, n: int, *, seed: int = 0, begin: int = 0) -> Any:
    """Endless batches [n D] of activations, each of its own number's key."""
    n, number, seed = whole_number("n", n, 1, MANY), whole_number("begin", begin), random_seed(seed)
    run = jax.jit(lambda key: make(key, n)[0])
    while True:
        yield run(jax.random.fold_in(jax.random.key(seed), number))
        number += 1
