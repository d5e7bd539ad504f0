"""What a dictionary is trained to make small: error, sparsity, and AuxK for dead features.

Errors are squared, summed over the width (and layers), averaged over examples, in float32 or wider.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.checks import whole_number
from jaxinterp.numerics import wide
from jaxinterp.sae.dictionary import (
    WRITE,
    Code,
    Dictionary,
    DictionaryConfig,
    decode,
    decoder_norms,
    encode,
    step,
    written,
)
from jaxinterp.sae.selection import keep_largest


class LossCoefficients(struct.PyTreeNode):
    """How hard a loss presses, all of it traced.

    sparsity: the penalty's coefficient. exponent: p of sum f^p (1: L1; p-annealing lowers it,
    Karvonen et al. 2024, arXiv:2408.00113), rescaled to the value of p = 1. target_l0: of a
    JumpReLU's penalty (L0 / target - 1)^2; 0 penalises L0 itself. auxk: the coefficient of
    `auxk`, times the targets' variance.
    """

    sparsity: Any = 0.0
    exponent: Any = 1.0
    target_l0: Any = 0.0
    auxk: Any = 0.0


class Parts(struct.PyTreeNode):
    """The parts of a loss, before their coefficients, and what is watched beside them.

    l0: features active per example. variance: of the targets, summed over the width.
    """

    error: jax.Array
    penalty: jax.Array
    auxk: jax.Array
    l0: jax.Array
    variance: jax.Array


class Firing(NamedTuple):
    """Which features are active on some example [F] (or [L F]), and the least activation."""

    fired: jax.Array
    least: jax.Array


def firing(features: jax.Array) -> Firing:
    """`Firing` of features [B F]; inf where nothing is active."""
    active = features > 0
    return Firing(active.any(0), jnp.where(active, features, jnp.inf).min())


def loss(
    d: Dictionary, x: jax.Array, y: jax.Array, coefficients: LossCoefficients,
    dead: jax.Array | None = None, *, k_aux: int = 0,
) -> tuple[jax.Array, tuple[Parts, jax.Array]]:  # fmt: skip
    """The loss of examples x with targets y; beside it its `Parts` and the features [B F].

    dead: features [F] (or [L F]) that `auxk` acts on, ``k_aux`` of an example's at a time.
    """
    k_aux = whole_number("k_aux", k_aux)
    c, x, y = d.config, wide(x), wide(y)
    code = encode(d, x, together=True)
    error, rest = reconstruction(d, code.features, x, y)
    main = error
    if c.activation == "gated":
        main = main + gate_error(d, code, x, y)
    penalty = sparsity(d, code, coefficients)
    n = x.shape[0]
    active = (code.features != 0).reshape(n, -1).sum(1).mean(dtype=error.dtype)
    parts = parts_of(y, rest, penalty, jnp.zeros_like(error), active)
    aux = parts.auxk
    if dead is not None and k_aux:
        aux = parts.variance * auxk(c, code.pre, written(d), rest, dead, k_aux)
    total = main + coefficients.sparsity * penalty + coefficients.auxk * aux
    parts = jax.tree.map(jax.lax.stop_gradient, parts.replace(auxk=aux))
    return total, (parts, code.features)


def parts_of(y: Any, rest: Any, penalty: Any, auxk: Any, l0: Any) -> Parts:
    """The parts, from the targets y [B ...] and what is left of them; no slopes to y's variance."""
    variance = jnp.square(y - y.mean(0)).reshape(len(y), -1).sum(1).mean()
    return Parts(rest_error(rest), penalty, auxk, l0, jax.lax.stop_gradient(variance))


def rest_error(rest: jax.Array) -> jax.Array:
    """What is left of the targets [B ...], squared, summed, averaged over examples."""
    return jnp.square(rest).reshape(len(rest), -1).sum(1).mean()


def reconstruction(
    d: Dictionary, features: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The error, and what the whole code leaves of y. A Matryoshka's is summed over prefixes."""
    c = d.config
    if not c.prefixes:
        rest = y - decode(d, features, x)
        return rest_error(rest), rest
    W, rest, total = written(d), y - decode(d, jnp.zeros_like(features), x), jnp.zeros((), x.dtype)
    for begin, end in zip((0, *c.prefixes[:-1]), c.prefixes, strict=True):
        part = slice(begin, end)
        rest = rest - jnp.einsum(WRITE[c.kind], features[..., part], W[..., part, :])
        total = total + rest_error(rest)
    return total, rest


def gate_error(d: Dictionary, code: Code, x: jax.Array, y: jax.Array) -> jax.Array:
    """The error of what the gates alone say, through a decoder that does not learn from it."""
    frozen = jax.tree.map(jax.lax.stop_gradient, d)
    return rest_error(y - decode(frozen, jax.nn.relu(code.pre), x))


def sparsity(d: Dictionary, code: Code, coefficients: LossCoefficients) -> jax.Array:
    """The penalty: powers of what active features write, or the (target's) count of them."""
    c, n = d.config, code.features.shape[0]
    if c.activation in ("topk", "batch_topk"):
        return jnp.zeros((), code.features.dtype)
    if c.activation == "jumprelu":
        fires = step(code.pre, d.params.threshold, c.bandwidth)
        l0 = fires.reshape(n, -1).sum(1).mean()
        wanted = jnp.where(coefficients.target_l0 > 0, coefficients.target_l0, 1)
        return jnp.where(coefficients.target_l0 > 0, jnp.square(l0 / wanted - 1), l0)
    active = jax.nn.relu(code.pre) if c.activation == "gated" else code.features
    size = active * decoder_norms(d)
    # 0^p has no slope: only what is active counts.
    powers = jnp.where(size > 0, jnp.where(size > 0, size, 1) ** coefficients.exponent, 0).sum() / n
    # As p falls the coefficients should not: the penalty keeps the value that p = 1 gives it.
    return powers * jax.lax.stop_gradient((size.sum() / n) / jnp.maximum(powers, 1e-30))


def auxk(
    c: DictionaryConfig, pre: jax.Array, W: jax.Array, rest: jax.Array, dead: jax.Array, k: int
) -> jax.Array:
    """AuxK (Gao et al. 2024, appendix A.2): dead features model what the others leave.

    The error of the k largest dead features of each example, over the variance of what is left: a
    share, which `loss` puts into the error's units, so that the coefficient means what it does
    where the error is a share of the variance. pre, W, dead: of all features, or of some.
    """
    rest = jax.lax.stop_gradient(rest)
    active = jnp.where(dead, jax.nn.relu(pre), 0)
    active = keep_largest(active, k, c.feature_axes)
    said = jnp.einsum(WRITE[c.kind], active, W)
    spread = jnp.square(rest - rest.mean(0)).reshape(len(rest), -1).sum(1).mean()
    return jnp.where(dead.any(), rest_error(rest - said) / jnp.maximum(spread, 1e-30), 0)
