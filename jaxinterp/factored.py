"""Products of two thin matrices, never multiplied out: a head's OV and QK circuits are such.

A [... M R] times B [... R N], R being small: what is asked of the [... M N] matrix is answered
from the factors. Products are taken in float32 or wider.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.numerics import wide


class FactoredMatrix(struct.PyTreeNode):
    """A [... M R] @ B [... R N]; leading axes are many matrices, and broadcast."""

    A: jax.Array
    B: jax.Array

    __array_ufunc__ = None  # NumPy's arrays leave ``array @ matrix`` to us

    @property
    def shape(self) -> tuple[int, ...]:
        """[... M N]"""
        lead = jnp.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return (*lead, self.A.shape[-2], self.B.shape[-1])

    @property
    def T(self) -> FactoredMatrix:
        """Transposed."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __getitem__(self, at: Any) -> FactoredMatrix:
        """Some of the many matrices, by their leading axes."""
        return FactoredMatrix(self.A[at], self.B[at])

    def __matmul__(self, other: Any) -> FactoredMatrix:
        """The product, factored: with another `FactoredMatrix`, or [... N K]."""
        if isinstance(other, FactoredMatrix):
            middle = _product(_product(self.B, other.A), other.B)
            return FactoredMatrix(self.A, middle)
        return FactoredMatrix(self.A, _product(self.B, jnp.asarray(other)))

    def __rmatmul__(self, other: Any) -> FactoredMatrix:
        return FactoredMatrix(_product(jnp.asarray(other), self.A), self.B)

    def dense(self) -> jax.Array:
        """The matrix itself, [... M N]."""
        return _product(self.A, self.B)

    def svd(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """U [... M R], singular values [... R] (descending), V^T [... R N].

        Of the R x R core that two QR decompositions leave.
        """
        Qa, Ra = jnp.linalg.qr(wide(self.A))
        Qb, Rb = jnp.linalg.qr(wide(self.B.mT))
        U, S, Vh = jnp.linalg.svd(_product(Ra, Rb.mT), full_matrices=False)
        return _product(Qa, U), S, _product(Vh, Qb.mT)

    def eigenvalues(self) -> np.ndarray:
        """complex [... R]: the eigenvalues that can differ from 0 (those of B A).

        Raises ``ValueError`` unless the matrix is square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"A matrix {list(self.shape[-2:])} has no eigenvalues: not square.")
        return np.linalg.eigvals(np.asarray(_product(self.B, self.A), np.float64))

    def norm(self) -> jax.Array:
        """[...]: Frobenius norms, from the two Gram matrices."""
        inner = _product(self.A.mT, self.A) * _product(self.B, self.B.mT)
        return jnp.sqrt(jnp.maximum(inner.sum((-1, -2)), 0))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(wide(x), (*lead, *x.shape[-2:])) for x in (a, b))
    return jnp.matmul(a, b, precision="highest")
