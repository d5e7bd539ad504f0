"""Interchange within a subspace: part of a value from one run, the rest from another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.interventions import Edit, Index, replace, unshare
from jaxinterp.model import SITES, At, Config, Tokens
from jaxinterp.model.parts import einsum
from jaxinterp.model.sites import axis_size
from jaxinterp.numerics import wide


class Interchange(Edit):
    """Puts the source's component along some directions in place of the base's.

    x + B diag(w) B^T (source - x), with basis B [D k] and weights w [k] (None: all 1) over the
    site's last axis (Geiger et al. 2023, arXiv:2303.02536, eq. 3; with weights, Wu et al. 2023,
    arXiv:2305.08809, eq. 4). Made by `replace_component`; as an `Edit`, it also makes grids.
    """

    basis: Any
    weights: Any

    def _given(self, value: jax.Array, at: At) -> jax.Array:
        given, own, value = super()._given(value, at), value.dtype, wide(value)
        gap = given.astype(value.dtype) - value
        basis = jnp.asarray(unshare(self.basis)).astype(value.dtype)
        part = einsum(at.config, "...d,dk->...k", gap, basis)
        if self.weights is not None:
            part = part * jnp.asarray(unshare(self.weights)).astype(value.dtype)
        return (value + einsum(at.config, "...k,dk->...d", part, basis)).astype(own)

    def check(self, config: Config, tokens: Tokens) -> None:
        """As any `Edit`; also the basis, which fits the site and is orthonormal.

        Raises ``ValueError`` for what does not fit; of a traced basis only the shape is known.
        """
        super().check(config, tokens)
        width = axis_size(config, SITES[self.site], SITES[self.site].axes[-1])
        basis, weights = unshare(self.basis), unshare(self.weights)
        shape = np.shape(basis)
        if len(shape) < 2 or shape[-2] != width:
            raise ValueError(
                f"The basis has shape {list(shape)}, expected [{width}, k] at {self.site!r}: one "
                "direction per column."
            )
        if weights is not None and np.shape(weights)[-1:] != shape[-1:]:
            raise ValueError(
                f"The weights have shape {list(np.shape(weights))}, expected [{shape[-1]}]: one "
                "for each direction of the basis."
            )
        if not isinstance(basis, jax.core.Tracer):
            check_orthonormal(np.asarray(basis))


def check_orthonormal(basis: np.ndarray) -> None:
    """Refuse a basis [... D k] whose columns are not orthonormal; columns of zeros pass."""
    basis = wide(basis)
    gram = np.einsum("...dk,...dl->...kl", basis, basis)
    length = np.einsum("...kk->...k", gram)
    wanted = np.eye(basis.shape[-1]) * (length > 0.5)[..., None, :]
    worst = np.abs(gram - wanted).max(initial=0)
    if not worst < 1e-3:
        raise ValueError(
            f"The columns of the basis are not orthonormal (their products are off by {worst:.2g})"
            ": pass orthonormal(basis)."
        )


def replace_component(
    site: str, source: Any, basis: Any, *, weights: Any = None, layer: Index = None,
    position: Index = None, head: Index = None,
) -> Interchange:  # fmt: skip
    """An interchange intervention: ``source``'s component within a subspace.

    source: what `forward` recorded at the site on the source prompts, as for `replace`: stacked
    over layers [L B P ...], one layer [B P ...], or anything that broadcasts ([B 1 D]: the same
    at whatever position is chosen). basis [D k], orthonormal, over the site's last axis; k = 0
    changes nothing, k = D is `replace`. weights [k]: how much of each direction (None: all).

    Raises ``ValueError`` for sites whose last axis is no space of directions (attention scores
    and patterns, norm scales). A basis that does not fit is refused where it meets the model.
    """
    edit = replace(site, source, layer=layer, position=position, head=head)
    check_site(edit.site)
    return Interchange(edit.site, edit.operation, edit.where, edit.value, basis, weights)


def check_site(site: str) -> None:
    """Refuse a site whose last axis is no space of directions."""
    last = SITES[site].axes[-1]
    if last in ("source", "one"):
        raise ValueError(
            f"Site {site!r} ends in an axis of {last!r}, which has no subspaces: choose a site of "
            "vectors, such as resid_post, z or mlp_out."
        )


def orthonormal(matrix: Any) -> jax.Array:
    """An orthonormal basis [D k] of the columns of a matrix [D k], k <= D, by QR.

    Column i of the result lies in the span of columns 0 to i. Differentiable. In float32 or wider.
    """
    return jnp.linalg.qr(wide(jnp.asarray(matrix)))[0]


def random_basis(width: int, rank: int, seed: int = 0) -> np.ndarray:
    """An orthonormal basis [width rank] of a subspace drawn uniformly (QR of a Gaussian).

    Raises ``ValueError`` for a rank outside 0 to ``width``.
    """
    rank = whole_number("rank", rank, 0, whole_number("width", width, 1, MANY))
    gaussian = np.random.default_rng(random_seed(seed)).standard_normal((width, rank))
    return np.linalg.qr(gaussian)[0].astype(np.float32)


def principal_angles(a: Any, b: Any) -> np.ndarray:
    """The angles between two subspaces, in radians, ascending: [min(k, m)].

    a [D k], b [D m]: orthonormal bases. All 0: one contains the other; any pi/2: a direction of
    one is orthogonal to the other (Björck & Golub 1973). From sines where they are small, so that
    equal subspaces give 0 and not the root of the rounding error.
    """
    a, b = (np.linalg.qr(np.asarray(each, np.float64))[0] for each in (a, b))
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    cosine = np.linalg.svd(a.T @ b, compute_uv=False)
    sine = np.linalg.svd(b - a @ (a.T @ b), compute_uv=False)[::-1]
    return np.arctan2(sine, cosine)
