"""Decodable or used? Probe, erase what the probe found, and measure behaviour, in one call.

A concept that a probe finds need not be used. If erasing it changes behaviour by more than erasing
as many random dimensions does, the model reads something that was erased with it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.erasure import Eraser, inlp, leace, mean_eraser, random_eraser, stack
from jaxinterp.grid_runs import Driver, ignore
from jaxinterp.interventions import Shared, apply
from jaxinterp.metrics import Metric, check_metric, evaluate, kl, of_prompts
from jaxinterp.model import Model, as_tokens, forward
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import require
from jaxinterp.points import collect, layers_in, places_in
from jaxinterp.probes import fit_logistic, make_splits
from jaxinterp.results import claim

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["probe_and_erase"]

METHODS: dict[str, Callable[[Any, Any], Eraser]] = {
    "leace": leace, "mean": mean_eraser, "inlp": lambda X, y: inlp(X, y, rounds=5),
}  # fmt: skip


def probe_and_erase(
    model: Model,
    tokens: Any,
    labels: Any,
    metric: Metric,
    *,
    position: Any = -1,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    method: str | Callable[[Any, Any], Eraser] = "leace",
    erase_at: str = "position",
    placebos: int = 8,
    groups: Any = None,
    penalty: float = 1e-3,
    seed: int = 0,
    batch: int | None = None,
    on_done: Callable[[int], None] = ignore,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Per layer: what a probe reads, what it reads after erasure, and what behaviour loses.

    labels [n], one per prompt; position: where the concept is probed. Probes and erasers are fitted
    on one part of the prompts (by ``groups``, if given), everything is measured on the other.
    method: ``"leace"``, ``"mean"``, ``"inlp"`` or a function of (X, labels). erase_at:
    ``"position"`` or ``"all"`` positions. placebos: random projections of the same rank.

    Returns a Dataset over (layer, eraser, prompt), prompts being the test's: ``value``, the metric,
    and ``kl`` in nats at the last token; erasers are "erased", "random 0", ...; the coordinate
    ``clean`` is the metric without. Over (layer): ``accuracy`` before, ``accuracy_erased`` of a
    fresh probe after, ``rank``; ``majority``. ``attrs["says"]`` tells the two claims apart.

    Raises ``ValueError`` as `collect`, `make_splits` and the erasers do.
    """
    import xarray as xr

    tokens, labels = as_tokens(tokens), np.asarray(labels)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    axes = require(model.config, site).axes
    if axes != ("position", "d_model"):
        raise ValueError(f"{site!r} has axes {axes}, expected a site of the stream's shape.")
    if erase_at not in ("position", "all"):
        raise ValueError(f"erase_at={erase_at!r}, expected 'position' or 'all'.")
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method={method!r}, expected one of {', '.join(METHODS)} or a function.")
    made = METHODS[method] if isinstance(method, str) else method
    whole_number("batch", batch, 1, optional=True)
    placebos, seed = whole_number("placebos", placebos, 0, MANY), random_seed(seed)
    penalty = real_number("penalty", penalty, above=0)
    splits = make_splits(labels, groups=groups, n_splits=1, shares=(0.4, 0.1, 0.5), seed=seed)
    test = splits.test[0]
    places, X = places_in(tokens, position), collect(model, tokens, position, site=site)
    chosen = layers_in(len(X), layers)
    erasers, read = _fitted(X[chosen], labels, test, made, placebos, penalty, seed)
    stacked, rows = stack(erasers), np.flatnonzero(test)
    part, own = tokens[rows], of_prompts(metric, rows)
    where: dict[str, Any] = {"layer": np.repeat(chosen, placebos + 1)}
    driver = Driver.of(model, part, (), batch=batch, on_done=on_done)

    def run(measure: Callable[[Any, np.ndarray], Metric]) -> np.ndarray:
        def one(at: np.ndarray) -> np.ndarray:
            here, metric = part[at], measure(part[at], at)
            if erase_at == "position":
                where["position"] = Shared(places[rows][at])
            grid = apply(site, stacked, **where)
            base = np.asarray(evaluate(metric, model, here))
            return np.concatenate([driver.sweep(here, grid, metric, None), base[None]])

        return driver.batches(one, len(erasers))

    value = run(lambda here, at: of_prompts(own, at))
    apart = run(lambda here, at: kl(_last(model, here)))
    names = ["erased", *(f"random {i}" for i in range(placebos))]
    dims, shape = ("layer", "eraser", "prompt"), (len(chosen), len(names), len(rows))
    counts = np.unique(labels[test], return_counts=True)[1]
    attrs = claim(
        model, site=site, intervention="erase", metric=metric.describe(), erase_at=erase_at,
        method=method if isinstance(method, str) else getattr(method, "__name__", "own"),
        says="accuracy: decodable; value: used, where it changes by more than under placebos",
        n_fitted=int((~test).sum()), n_prompts=len(rows), seed=seed, **dict(record or {}),
    )  # fmt: skip
    return xr.Dataset(
        {
            "value": (dims, value[:-1].reshape(shape)),
            "kl": (dims, apart[:-1].reshape(shape)),
            **{name: ("layer", values) for name, values in read.items()},
            "majority": ((), counts.max() / counts.sum()),
        },
        {"layer": chosen, "eraser": names, "prompt": rows, "clean": ("prompt", value[-1])},
        attrs,
    )


def _fitted(
    X: np.ndarray, labels: np.ndarray, test: np.ndarray,
    method: Callable[[Any, Any], Eraser], placebos: int, penalty: float, seed: int,
) -> tuple[list[Eraser], dict[str, list[Any]]]:  # fmt: skip
    """For X [L n D]: by layer the eraser and its placebos; what probes read, before and after."""
    erasers: list[Eraser] = []
    read: dict[str, list[Any]] = {"accuracy": [], "accuracy_erased": [], "rank": []}
    for x in X:
        eraser = method(x[~test], labels[~test])
        centre = x[~test].mean(0)
        erasers += [eraser] + [
            random_eraser(x.shape[1], max(eraser.rank, 1), seed=seed * 1000 + i, centre=centre)
            for i in range(placebos)
        ]
        after = np.asarray(eraser(jnp.asarray(x)))
        read["accuracy"].append(_accuracy(x, labels, test, penalty))
        read["accuracy_erased"].append(_accuracy(after, labels, test, penalty))
        read["rank"].append(eraser.rank)
    return erasers, read


def _accuracy(x: np.ndarray, labels: np.ndarray, test: np.ndarray, penalty: float) -> float:
    """Of a probe fitted to the rest, on the test's examples."""
    classes, targets = np.unique(labels, return_inverse=True)
    probe = fit_logistic(
        jnp.asarray(x, jnp.float32), jnp.asarray(targets), jnp.asarray(~test, jnp.float32)[None],
        jnp.asarray([penalty], jnp.float32), n_classes=len(classes),
    )  # fmt: skip
    logits = np.asarray(probe(jnp.asarray(x, jnp.float32)))[0, 0]
    said = logits.argmax(-1) if logits.shape[-1] > 1 else (logits[:, 0] > 0).astype(int)
    return float((said == targets)[test].mean())


def _last(model: Model, tokens: Any) -> Any:
    """Logits [B V] at the last token of each prompt."""
    logits = forward(model, tokens).logits
    assert logits is not None
    columns = np.asarray(tokens.columns(np.asarray(tokens.lengths) - 1))
    return logits[np.arange(len(tokens)), columns]
