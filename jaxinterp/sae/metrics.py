"""How good a dictionary is: on activations, in the model's loss, and against known features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.interventions import apply, replace
from jaxinterp.metrics import cross_entropy, evaluate
from jaxinterp.model import Model, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, decode, described
from jaxinterp.sae.edits import Splice

if TYPE_CHECKING:
    import xarray as xr


def reconstruction(d: Dictionary, batches: Iterable[Any]) -> xr.Dataset:
    """What a dictionary makes of activations, in one pass.

    batches: x [B ...], or pairs of x and targets; as training takes them, unscaled.

    Returns ``l0`` (mean number of features that are not 0), ``explained`` = 1 - E|y - y'|^2 /
    (E|y|^2 - |E y|^2), ``error`` = E|y - y'|^2, ``shrinkage`` = E|y'|^2 / E[y . y'], ``cosine``
    (mean), and by feature ``density`` (the fraction of examples it is active on) and ``mean``
    (of its active values); ``dead``: the fraction active on none of the ``examples``.

    Raises ``ValueError`` for no examples and for values that are not finite, naming the batch.
    """
    import xarray as xr

    total: dict[str, np.ndarray] = {}
    n = 0
    for number, batch in enumerate(batches):
        x, y = batch if isinstance(batch, tuple) else (batch, batch)
        found = {name: np.asarray(v, np.float64) for name, v in _sums(d, x, y).items()}
        if not all(np.isfinite(value).all() for value in found.values()):
            raise ValueError(f"Batch {number} has values that are not finite.")
        n += len(x)
        for name, value in found.items():
            total[name] = total.get(name, 0) + value
    if not n:
        raise ValueError("There are no examples.")
    variance = total["square"] / n - np.square(total["sum"] / n).sum()
    active = total["active"].reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(active > 0, total["values"].reshape(-1) / active, 0)
        shrinkage = total["said"] / total["along"]
    return xr.Dataset(
        {
            "l0": active.sum() / n, "explained": 1 - total["error"] / n / variance,
            "error": total["error"] / n, "shrinkage": shrinkage, "cosine": total["cosine"] / n,
            "dead": (active == 0).mean(), "density": ("feature", active / n),
            "mean": ("feature", mean),
        },
        {"feature": np.arange(len(active))}, {"examples": n},
    )  # fmt: skip


@jax.jit
def _sums(d: Dictionary, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    x, y = wide(x), wide(y)
    features = d.encode(x)
    said = decode(d, features, x)
    n = len(x)
    flat, made = y.reshape(n, -1), said.reshape(n, -1)
    along = (flat * made).sum(1)
    lengths = jnp.linalg.norm(flat, axis=1) * jnp.linalg.norm(made, axis=1)
    return {
        "active": (features != 0).sum(0), "values": features.sum(0), "sum": y.sum(0),
        "square": jnp.square(flat).sum(), "error": jnp.square(flat - made).sum(),
        "said": jnp.square(made).sum(), "along": along.sum(),
        "cosine": (along / jnp.maximum(lengths, 1e-30)).sum(), "read": x.sum(),
    }  # fmt: skip


def loss_recovered(
    model: Model, d: Dictionary, batches: Iterable[Any], mean: Any, *, first: bool = False
) -> xr.Dataset:
    """The model's next-token loss with the dictionary's reconstruction in place, in nats.

    batches: tokens [B P] without padding. mean [D]: the site's mean, for mean ablation. first:
    whether the first token's value is replaced too (by default it stays in all runs, as
    dictionaries are trained without it).

    Returns ``original``, ``dictionary``, ``zero`` and ``mean`` losses, ``raw`` = dictionary -
    original, and ``recovered_zero``, ``recovered_mean`` = (ablated - dictionary) / (ablated -
    original), all scalars of a Dataset. For an SAE, whose site is where it writes.

    Raises ``ValueError`` for other kinds, and a dictionary without a site and layer.
    """
    import xarray as xr

    site, layer = d.config.place
    sums, n = np.zeros(4), 0
    for given in batches:
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        position = None if first else np.arange(tokens.shape[1]) > 0
        edits = (
            (), apply(site, Splice(d, error=0.0), layer=layer, position=position),
            replace(site, 0.0, layer=layer, position=position),
            replace(site, np.asarray(mean, np.float32), layer=layer, position=position),
        )  # fmt: skip
        values = [
            np.asarray(evaluate(cross_entropy(), model, tokens, e), np.float64).sum() for e in edits
        ]
        sums, n = sums + values, n + len(tokens)
    if not n:
        raise ValueError("There are no batches.")
    original, own, zero, average = (sums / n).tolist()
    return xr.Dataset(
        {
            "original": original, "dictionary": own, "zero": zero, "mean": average,
            "raw": own - original, "recovered_zero": (zero - own) / (zero - original),
            "recovered_mean": (average - own) / (average - original),
        },
        attrs=claim(
            model, method="loss recovered", site=site, layer=layer, metric="cross_entropy",
            n_prompts=n, first=first, dictionary=described(d),
        ),
    )  # fmt: skip


def recovery(rows: Any, truth: Any) -> dict[str, float]:
    """How well a dictionary's directions [F D] are the true ones [G D].

    ``mcc``: mean |cosine| of the best matching, each with one other (Hungarian); ``mmcs``: mean
    over true features of the largest cosine; ``uniqueness``: the fraction of dictionary features'
    nearest true ones that are different ones.

    Raises ``ValueError`` for widths that differ and directions of no length.
    """
    from scipy.optimize import linear_sum_assignment

    rows, truth = np.asarray(rows, np.float64), np.asarray(truth, np.float64)
    if rows.ndim != 2 or truth.ndim != 2 or rows.shape[1] != truth.shape[1]:
        raise ValueError(f"Directions [F D] and [G D], got {rows.shape} and {truth.shape}.")
    if not (np.linalg.norm(truth, axis=1) > 0).all():
        raise ValueError("A true direction has no length.")
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    cosines = unit @ (truth / np.linalg.norm(truth, axis=1, keepdims=True)).T
    matched = linear_sum_assignment(-abs(cosines))
    nearest = abs(cosines).argmax(1)
    return {
        "mcc": float(abs(cosines[matched]).mean()), "mmcs": float(cosines.max(0).mean()),
        "uniqueness": len(set(nearest.tolist())) / len(rows),
    }  # fmt: skip


def detection(features: Any, true: Any, rows: Any, truth: Any) -> dict[str, float]:
    """Whether features fire when the true ones do that they are nearest to.

    features [n F], true [n G]: values (0: silent); rows [F D], truth [G D]: the directions. Means
    over all features, each with the true one of largest |cosine|, of ``f1``, ``precision`` and
    ``recall``; one that never fires has 0. ``f1_matched``: over pairs of the best matching (as
    for ``mcc``) whose true feature ever fires.
    """
    from scipy.optimize import linear_sum_assignment

    fires, there = np.asarray(features) != 0, np.asarray(true) != 0
    unit = [np.asarray(a, np.float64) for a in (rows, truth)]
    unit = [a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30) for a in unit]
    cosines = abs(unit[0] @ unit[1].T)

    def scores(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = fires[:, own], there[:, other]
        both = (a & b).sum(0)
        precision = both / np.maximum(a.sum(0), 1)
        recall = both / np.maximum(b.sum(0), 1)
        return 2 * both / np.maximum(a.sum(0) + b.sum(0), 1), precision, recall

    f1, precision, recall = scores(np.arange(len(cosines)), cosines.argmax(1))
    own, other = linear_sum_assignment(-cosines)
    known = there[:, other].any(0)  # what never fires cannot be detected
    matched, _, _ = scores(own[known], other[known])
    return {
        "f1": float(f1.mean()), "precision": float(precision.mean()),
        "recall": float(recall.mean()), "f1_matched": float(matched.mean()),
    }  # fmt: skip
