"""Erasing a concept from activations: after it, no linear probe finds it.

An `Eraser` is an affine map of small rank that works on arrays and inside a run::

    eraser = leace(X, labels)
    ji.forward(model, tokens, ji.apply("resid_post", eraser, layer=9))

That a concept cannot be read linearly from one place says nothing of other places or of nonlinear
readers, and erasing always removes something else too: `random_eraser` of the same rank is the
placebo.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.model import Model
from jaxinterp.model.transforms import change_writers, untie
from jaxinterp.numerics import wide
from jaxinterp.probes import fit_logistic

__all__ = [
    "Eraser", "direction_eraser", "inlp", "leace", "mean_eraser", "orthogonalize",
    "random_eraser", "stack",
]  # fmt: skip

SMALL = 0.01  # correlations below this are noise (Belrose et al.'s choice)


class Eraser(struct.PyTreeNode):
    """x - ((x - centre) removed) put: removed [... D R], put [... R D], centre [... D].

    NumPy arrays in float64, as they are fitted. With a leading layer axis (`stack`), a run's layer
    picks its own. Orthogonal projections have ``put`` = ``removed`` transposed.
    """

    removed: Any
    put: Any
    centre: Any

    @property
    def rank(self) -> int:
        """How many dimensions are removed."""
        return int(self.removed.shape[-1])

    def __call__(self, value: Any, at: Any = None) -> Any:
        """Erase from values [... D]; ``at`` is where a run is (`jaxinterp.apply` gives it).

        NumPy's arrays stay so. The map is applied in float32 or wider; values keep their dtype.

        Raises ``ValueError`` for values of another width, and where each layer has its own map and
        ``at`` tells no layer.
        """
        xp: Any = np if isinstance(value, np.ndarray) else jnp
        own, value = value.dtype, wide(value)
        removed, put, centre = (xp.asarray(leaf, value.dtype) for leaf in jax.tree.leaves(self))
        if removed.ndim == 3:
            if at is None or at.layer is None:
                raise ValueError("This eraser has one map for each layer: take one, eraser[9].")
            removed, put, centre = removed[at.layer], put[at.layer], centre[at.layer]
        if value.shape[-1] != centre.shape[-1]:
            raise ValueError(
                f"An eraser of width {centre.shape[-1]} cannot act on values of width "
                f"{value.shape[-1]}."
            )
        if xp is np:
            return (value - (value - centre) @ removed @ put).astype(own)
        inside = jnp.matmul(value - centre, removed, precision="highest")
        return (value - jnp.matmul(inside, put, precision="highest")).astype(own)

    def __getitem__(self, layer: Any) -> Eraser:
        return jax.tree.map(lambda leaf: leaf[layer], self)


def stack(erasers: list[Eraser]) -> Eraser:
    """One eraser for every layer, in order; smaller ranks are filled up with zeros."""
    rank = max(e.rank for e in erasers)
    return Eraser(
        np.stack([np.pad(e.removed, ((0, 0), (0, rank - e.rank))) for e in erasers]),
        np.stack([np.pad(e.put, ((0, rank - e.rank), (0, 0))) for e in erasers]),
        np.stack([e.centre for e in erasers]),
    )


def leace(
    X: Any, labels: Any, *, affine: bool = True, shrinkage: float | Literal["optimal"] = 0.0
) -> Eraser:
    """Least-squares concept erasure (Belrose et al. 2023, arXiv:2306.03819, theorem 4.2).

    x' = x - W^+ U U^T W (x - mu), W = Sigma_xx^(-1/2), U the left singular vectors of W Sigma_xz:
    the smallest change of x after which no linear probe does better than a constant.

    X [n D]; labels [n] of classes, or [n Z] of numbers. Computed in float64. affine: False takes
    mu = 0 (the map is then linear).

    shrinkage: the share from 0 to 1 of a multiple of the identity (of the same trace) that is mixed
    into Sigma_xx. The default, 0, takes the covariance as it is: of all maps that erase the concept
    from X, the one that changes X least. The reference library (``concept-erasure``) shrinks by
    default, by the share that "optimal" computes from X (Bodnar, Gupta & Parolya 2014,
    arXiv:1308.2608): another map, which erases the concept from X too, and which depends less on
    the examples drawn where they are few for the width.

    Raises ``ValueError`` for labels of one class, values that are not finite, or too few examples.
    """
    X, Z, _ = _given(X, labels)
    mean = X.mean(0)
    centred, concept = X - mean, Z - Z.mean(0)
    values, V = np.linalg.eigh(centred.T @ centred / len(X))
    share = _optimal_share(values, len(X)) if shrinkage == "optimal" else shrinkage
    share = real_number("shrinkage", share, least=0, most=1)
    values = (1 - share) * values + share * values.mean()
    kept = values > values.max() * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.where(kept, values, 1))
    W = (V * np.where(kept, 1 / root, 0)) @ V.T
    W_back = (V * np.where(kept, root, 0)) @ V.T
    U, s, _ = np.linalg.svd(W @ (centred.T @ concept / len(X)), full_matrices=False)
    U = U[:, s > SMALL]
    return _eraser(W @ U, (W_back @ U).T, mean if affine else np.zeros_like(mean))


def _optimal_share(values: np.ndarray, n: int) -> float:
    """How much of the identity is mixed into a covariance of eigenvalues [D], of n examples.

    The share is ``|S|_tr^2 / n`` over the squared distance of S from a multiple of the identity
    (Bodnar et al. 2014, eq. 2.14 with an isotropic target), at most 1.
    """
    apart = np.square(values).sum() - values.sum() ** 2 / len(values)
    return float(min(1.0, values.sum() ** 2 / n / apart)) if apart > 0 else 1.0


def inlp(X: Any, labels: Any, rounds: int, *, penalty: float = 1e-3) -> Eraser:
    """Iterative null-space projection (Ravfogel et al. 2020, arXiv:2004.07667).

    ``rounds`` times: fit a logistic probe to what is left, and project its directions out. The
    eraser is the one projection onto what no probe used. penalty: as in `fit_logistic`.

    Raises ``ValueError`` as `leace` does, for labels that are no classes, and for rounds < 1.
    """
    X, Z, n_classes = _given(X, labels)
    if n_classes is None:
        raise ValueError("INLP needs classes: labels [n] of whole numbers or text.")
    rounds = whole_number("rounds", rounds, 1, MANY)
    penalty = real_number("penalty", penalty, above=0)
    targets = Z.argmax(1)
    basis = np.zeros((X.shape[1], 0))
    for _ in range(rounds):
        left = X - (X @ basis) @ basis.T
        found = fit_logistic(
            jnp.asarray(left, jnp.float32), jnp.asarray(targets), jnp.ones((1, len(X))),
            jnp.asarray([penalty]), n_classes=n_classes,
        )  # fmt: skip
        directions = np.asarray(found.W[0, 0], np.float64)
        directions = directions - basis @ (basis.T @ directions)
        Q, s, _ = np.linalg.svd(directions, full_matrices=False)
        new = Q[:, s > 1e-6 * max(s.max(), 1e-30)]
        if basis.shape[1] + new.shape[1] > X.shape[1]:
            break
        basis = np.linalg.qr(np.concatenate([basis, new], 1))[0]
    return _eraser(basis, basis.T, np.zeros(X.shape[1]))


def mean_eraser(X: Any, labels: Any) -> Eraser:
    """Projects out the differences between the class means, about the mean of all.

    X [n D], labels [n]. Raises ``ValueError`` as `leace` does, and for labels that are no classes.
    """
    X, Z, n_classes = _given(X, labels)
    if n_classes is None:
        raise ValueError("Class means need classes: labels [n] of whole numbers or text.")
    means = (Z.T @ X) / Z.sum(0)[:, None]
    U, s, _ = np.linalg.svd((means - means.mean(0)).T, full_matrices=False)
    U = U[:, s > 1e-6 * s.max()]
    return _eraser(U, U.T, X.mean(0))


def direction_eraser(directions: Any) -> Eraser:
    """Projects out the span of directions [D] or [R D].

    Raises ``ValueError`` for one of length 0 or not finite.
    """
    V = np.atleast_2d(np.asarray(directions, np.float64))
    if not np.isfinite(V).all() or not np.linalg.norm(V, axis=1).all():
        raise ValueError("A direction has length 0 or is not finite: there is nothing to erase.")
    Q, s, _ = np.linalg.svd(V.T, full_matrices=False)
    Q = Q[:, s > 1e-6 * s.max()]
    return _eraser(Q, Q.T, np.zeros(V.shape[1]))


def random_eraser(width: int, rank: int, seed: int = 0, centre: Any = None) -> Eraser:
    """The placebo: a random projection of the same rank.

    centre: [D], default 0. Raises ``ValueError`` for a rank outside 1 to ``width``.
    """
    rank = whole_number("rank", rank, 1, whole_number("width", width, 1, MANY))
    rng = np.random.default_rng(random_seed(seed))
    Q = np.linalg.qr(rng.normal(size=(width, rank)))[0]
    return _eraser(Q, Q.T, np.zeros(width) if centre is None else np.asarray(centre, float))


def orthogonalize(model: Model, directions: Any) -> Model:
    """The model that can no longer write along directions [D], [R D] or a `Direction`.

    W - W V V^T (V an orthonormal basis of them) of everything that writes to the stream:
    embeddings, heads' outputs, MLPs' outputs and their biases (Arditi et al. 2024,
    arXiv:2406.11717). Its logits are those of projecting the directions out of the stream at every
    layer of a run. A tied unembedding, which reads, is untied first and stays as it is.

    Raises ``ValueError`` where a norm stands between the weights and the stream (its gain would
    turn what is written), and for directions of another width, of no length, or not finite.
    """
    c = model.config
    between = [n for n in ("norm_embed", "norm_output", "norm_stream") if getattr(c, n)]
    if between and c.norm != "none":
        raise ValueError(
            f"This {c.family} model norms what it writes (config.{between[0]}), so no weights are "
            "equal to the ablation: project the directions out at run time "
            "(jaxinterp.project_out at the stream's sites)."
        )
    vector = np.asarray(getattr(directions, "vector", directions))
    V = direction_eraser(vector).removed
    if len(V) != c.d_model:
        raise ValueError(f"The directions have width {len(V)}, the stream has {c.d_model}.")

    def without(W: jax.Array) -> jax.Array:
        whole = wide(jnp.asarray(W))
        basis = jnp.asarray(V, whole.dtype)
        along = jnp.matmul(whole, basis, precision="highest")
        return (whole - jnp.matmul(along, basis.T, precision="highest")).astype(W.dtype)

    return change_writers(untie(model), without)


def _eraser(removed: np.ndarray, put: np.ndarray, centre: np.ndarray) -> Eraser:
    return Eraser(removed, put, centre)


def _given(X: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Float64 examples [n D], indicators or numbers [n Z], and the number of classes."""
    X, labels = np.asarray(X, np.float64), np.asarray(labels)
    if X.ndim != 2 or len(X) < 2:
        raise ValueError(f"X has shape {list(X.shape)}, expected [example, width], 2 or more.")
    if not np.isfinite(X).all():
        bad = int(np.argmax(~np.isfinite(X).all(1)))
        raise ValueError(f"Activations of example {bad} are not finite: leave it out.")
    if len(labels) != len(X):
        raise ValueError(f"There are {len(labels)} labels for {len(X)} examples.")
    if labels.ndim == 2 or labels.dtype.kind == "f":
        Z = labels.astype(np.float64).reshape(len(X), -1)
        if not np.isfinite(Z).all() or not Z.std(0).any():
            raise ValueError("The labels are constant or not finite: there is nothing to erase.")
        return X, Z, None
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"All labels are {classes[0].item()!r}: erasing needs two classes or more."
        )
    return X, np.eye(len(classes))[index], len(classes)
