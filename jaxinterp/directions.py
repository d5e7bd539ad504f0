"""Directions in activation space: where they come from, their algebra, and their use.

A direction is a hypothesis. It means something once changing it changes behaviour: against
norm-matched random ones (`jaxinterp.steer`), by ablation, by addition.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.files import whole
from jaxinterp.interventions import Edit, add, project_out
from jaxinterp.numerics import wide
from jaxinterp.reading import damage_refused, parse_json, read_npz


@dataclasses.dataclass(frozen=True, repr=False)
class Direction:
    """A vector at a site: [D], or one per layer (or point) [L D]. ``source`` says how it was found.

    Directions add, subtract, scale and compare (`cosine`); results say what they come from.
    """

    vector: np.ndarray
    site: str = "resid_post"
    source: str = "given"

    def __post_init__(self) -> None:
        vector = np.asarray(self.vector, np.float32)
        if vector.ndim not in (1, 2) or not vector.size:
            raise ValueError(f"A direction has shape {list(vector.shape)}, expected [D] or [L D].")
        if not np.isfinite(vector).all():
            raise ValueError(f"The direction ({self.source}) has values that are not finite.")
        if not np.linalg.norm(vector, axis=-1).all():
            raise ValueError(f"The direction ({self.source}) has length 0.")
        object.__setattr__(self, "vector", vector)

    def __repr__(self) -> str:
        return f"Direction({list(self.vector.shape)} at {self.site!r}: {self.source})"

    @property
    def norm(self) -> np.ndarray:
        """Lengths, [] or [L]."""
        return np.asarray(np.linalg.norm(self.vector, axis=-1))

    @property
    def unit(self) -> Direction:
        """The same at length 1."""
        return dataclasses.replace(self, vector=self.vector / self.norm[..., None])

    def __getitem__(self, layer: int) -> Direction:
        """One layer's."""
        return dataclasses.replace(self, vector=self.vector[layer])

    def _check(self, other: Direction) -> None:
        if other.vector.shape != self.vector.shape or other.site != self.site:
            raise ValueError(
                f"Directions {list(self.vector.shape)} at {self.site!r} and "
                f"{list(other.vector.shape)} at {other.site!r} do not belong together."
            )

    def _with(self, other: Direction, sign: str) -> Direction:
        self._check(other)
        vector = self.vector + other.vector if sign == "+" else self.vector - other.vector
        return Direction(vector, self.site, f"({self.source} {sign} {other.source})")

    def __add__(self, other: Direction) -> Direction:
        return self._with(other, "+")

    def __sub__(self, other: Direction) -> Direction:
        return self._with(other, "-")

    def __mul__(self, factor: float) -> Direction:
        real_number("factor", factor)
        return Direction(self.vector * factor, self.site, f"{factor} {self.source}")

    __rmul__ = __mul__

    def __neg__(self) -> Direction:
        return self * -1

    def cosine(self, other: Direction) -> np.ndarray:
        """[] or [L]."""
        self._check(other)
        return np.asarray((self.unit.vector * other.unit.vector).sum(-1))

    def without(self, other: Direction) -> Direction:
        """What of it is orthogonal to another."""
        self._check(other)
        unit = other.unit.vector
        along = (self.vector * unit).sum(-1, keepdims=True) * unit
        return Direction(self.vector - along, self.site, f"({self.source} without {other.source})")

    def project(self, X: Any) -> np.ndarray:
        """Coordinates [...] along the unit vector of activations [... D], or [L ... D] by layer.

        Raises ``ValueError`` for another width, or number of layers.
        """
        X, unit = wide(np.asarray(X)), self.unit.vector
        if X.shape[-1] != unit.shape[-1] or (unit.ndim == 2 and len(X) != len(unit)):
            raise ValueError(
                f"Activations {list(X.shape)} do not fit a direction {list(unit.shape)}."
            )
        return X @ unit if unit.ndim == 1 else np.einsum("l...d,ld->l...", X, unit)

    def ablate(self, **where: Any) -> Edit:
        """Projects it out at its site; ``where`` as in `jaxinterp.project_out`."""
        return project_out(self.site, self._at_site(), **where)

    def add(self, factor: float = 1.0, **where: Any) -> Edit:
        """Adds ``factor`` times the vector at its site; ``where`` as in `jaxinterp.add`."""
        return add(self.site, real_number("factor", factor) * self._at_site(), **where)

    def _at_site(self) -> np.ndarray:
        """As an intervention takes it: with layers, [L 1 1 D]."""
        return self.vector if self.vector.ndim == 1 else self.vector[:, None, None]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .npz; whole or not at all."""
        with whole(path) as temporary, open(temporary, "wb") as out:
            np.savez(out, vector=self.vector, about=json.dumps([self.site, self.source]))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Direction:
        """Read one that `save` wrote.

        Raises ``FileNotFoundError``, and `jaxinterp.loading.LoadError` for other or damaged files.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"There is no direction file {path}.")
        with damage_refused(path, "a direction file", "Find the direction again and save it."):
            held = read_npz(path, "a direction file")
            if sorted(held) != ["about", "vector"] or held["vector"].dtype.kind != "f":
                raise ValueError(f"it holds {', '.join(held) or 'nothing'}")
            site, source = parse_json(str(held["about"]), path)
            if not isinstance(site, str) or not isinstance(source, str):
                raise ValueError(f"it is of the site {site!r:.40}")
            return cls(held["vector"], site, source)


def from_means(X: Any, labels: Any, site: str = "resid_post") -> Direction:
    """Difference of class means: examples labelled 1 (True) minus those labelled 0.

    X [n D], or [L n D] by layer; labels [n].

    Raises ``ValueError`` for shapes that do not match, labels that are not 0 and 1 (both are
    needed), and means that are equal.
    """
    X, labels = np.asarray(X, np.float64), np.asarray(labels)
    kinds = np.unique(labels)
    if X.ndim not in (2, 3) or labels.shape != X.shape[-2:-1]:
        raise ValueError(f"X {list(X.shape)} and labels {list(labels.shape)} do not match.")
    if kinds.tolist() not in ([0, 1], [False, True]):
        raise ValueError(f"Labels are {kinds.tolist()[:5]}, expected both 0 and 1.")
    high, low = (X[..., labels == kind, :].mean(-2) for kind in kinds[::-1])
    return Direction(high - low, site, "difference of means")


def from_pairs(A: Any, B: Any, site: str = "resid_post", *, method: str = "mean") -> Direction:
    """From contrast pairs, activations [n D] or [L n D] each: what A has and B lacks.

    method: ``"mean"`` of the differences, or ``"pca"``: their first singular vector, the
    differences not centred (centring would delete their mean), pointing as the mean does, as long
    as the root mean square along it.

    Raises ``ValueError`` for shapes that do not match, another method, and a direction of length 0.
    """
    A, B = np.asarray(A, np.float64), np.asarray(B, np.float64)
    if A.shape != B.shape or A.ndim not in (2, 3):
        raise ValueError(f"Pairs {list(A.shape)} and {list(B.shape)}, expected [n D] or [L n D].")
    differences = A - B
    mean = differences.mean(-2)
    if method == "mean":
        return Direction(mean, site, "mean of pair differences")
    if method != "pca":
        raise ValueError(f"method={method!r}, expected 'mean' or 'pca'.")
    _, s, Vh = np.linalg.svd(differences, full_matrices=False)
    first = Vh[..., 0, :] * s[..., :1] / np.sqrt(A.shape[-2])
    sign = np.where((first * mean).sum(-1, keepdims=True) < 0, -1, 1)
    return Direction(first * sign, site, "first component of pair differences")


def from_probe(found: Any, site: str = "resid_post") -> Direction:
    """The weights of two-class probes, averaged over splits, by point: towards the second class.

    found: of `jaxinterp.probes.probe`. Points become layers; of the stream's L + 1 points those
    that blocks leave are ``found.isel(point=slice(1, None))``.

    Raises ``ValueError`` for probes of more classes or several labels.
    """
    weight = found.weight
    if set(weight.dims) != {"point", "split", "width", "output"} or weight.sizes["output"] != 1:
        raise ValueError(f"The probes' weights are {dict(weight.sizes)}, expected one output each.")
    mean = weight.mean("split").isel(output=0).transpose("point", "width")
    return Direction(mean.values, site, f"probe of {found.attrs.get('classes', '')}")


def principal(X: Any, k: int = 1, site: str = "resid_post") -> list[Direction]:
    """The first ``k`` principal components of activations [n D], each as long as its deviation.

    Raises ``ValueError`` for another rank of X, and k outside 1 to min(n, D).
    """
    X = np.asarray(X, np.float64)
    if X.ndim != 2:
        raise ValueError(f"X has shape {list(X.shape)}, expected [n D].")
    k = whole_number("k", k, 1, min(X.shape))
    _, s, Vh = np.linalg.svd(X - X.mean(0), full_matrices=False)
    scaled = Vh * s[:, None] / np.sqrt(len(X))
    return [Direction(scaled[i], site, f"principal component {i}") for i in range(k)]


def random_like(direction: Direction, n: int, seed: int = 0) -> list[Direction]:
    """The placebo: random directions of the same length (by layer)."""
    rng = np.random.default_rng(random_seed(seed))
    drawn = rng.normal(size=(whole_number("n", n, 0, MANY), *direction.vector.shape))
    drawn *= direction.norm[..., None] / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return [Direction(v, direction.site, f"random {i}") for i, v in enumerate(drawn)]


def top_examples(direction: Direction, X: Any, texts: Sequence[str], k: int = 10) -> list[Any]:
    """(coordinate, text) of the ``k`` examples [n D] furthest along it, the furthest first.

    Raises ``ValueError`` for another number of texts than n, and as `Direction.project` does.
    """
    along, k = direction.project(X), whole_number("k", k, 1)
    if along.shape != (len(texts),):
        raise ValueError(f"There are {len(texts)} texts for coordinates {list(along.shape)}.")
    return [(float(along[i]), texts[i]) for i in np.argsort(-along, kind="stable")[:k]]
