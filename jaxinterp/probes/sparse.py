"""Sparse probes: how few units tell a concept (Gurnee et al. 2023, arXiv:2305.01610)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.probes.probe import PENALTIES, Fits, given, majority
from jaxinterp.probes.splits import Splits

if TYPE_CHECKING:
    import xarray as xr


def sparse_probe(
    X: Any,
    labels: Any,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32),
    points: Any = None,
    groups: Any = None,
    splits: Splits | int = 5,
    penalties: Any = PENALTIES,
    seed: int = 0,
    on_done: Callable[[int], None] = lambda fits: None,
) -> xr.Dataset:
    """Probes of X [L n D] that read k units each: the k whose class means lie furthest apart.

    On each split's training examples units are ranked by the largest difference between class
    means, in their deviations, and a softmax-linear probe is fitted to the first k. Everything else
    is as in `probe`.

    Returns a Dataset: ``accuracy`` (point, split, k), ``unit`` (point, split, rank), the units in
    their order; ``majority`` (split). One unit that reads a concept well need not be its only
    place: compare ``accuracy`` with `probe`'s, of all units.

    Raises ``ValueError`` as `probe` does, and for k outside 1 to D.
    """
    import xarray as xr

    X, targets, classes, splits, names = given(X, labels, points, groups, splits, seed)
    width = X.shape[-1]
    ks = [whole_number("ks", k, 1, width) for k in ks]
    if not ks or ks != sorted(set(ks)):
        raise ValueError(f"ks={list(ks)}, expected rising numbers from 1 to {width}.")
    accuracy = np.zeros((len(X), len(splits), len(ks)))
    unit = np.zeros((len(X), len(splits), ks[-1]), int)
    for s in range(len(splits)):
        fits = Fits(splits[s], np.asarray(penalties, np.float64), len(classes), on_done)
        train = splits.train[s]
        for point, x in enumerate(X):
            unit[point, s] = np.argsort(-spread(x[train], targets[train]), kind="stable")[: ks[-1]]
            best = x[:, unit[point, s]]
            for i, k in enumerate(ks):  # of one shape: one program
                kept = np.where(np.arange(ks[-1]) < k, best, 0)
                accuracy[point, s, i] = fits(kept, targets)[0][0]
    data = {
        "accuracy": (("point", "split", "k"), accuracy),
        "unit": (("point", "split", "rank"), unit),
        "majority": ("split", majority(targets, splits)),
    }
    coords = {"point": names, "split": np.arange(len(splits)), "k": list(ks)}
    attrs = {
        "says": "decodable", "classes": [str(c) for c in classes], "n_examples": len(targets),
        "ranked_by": "largest difference of class means, in deviations", "seed": seed,
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs)


def spread(x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[D]: the largest difference between class means of x [n D], in each unit's deviations."""
    means = np.stack([x[targets == k].mean(0) for k in np.unique(targets)])
    deviation = x.std(0)
    return np.ptp(means, axis=0) / np.where(deviation > 0, deviation, 1)
