"""How far a prediction is to be trusted: approximate patching beside exact patching.

An *effect* is what a patch does to the metric: its value minus the unpatched run's (corrupted
when denoising, clean when noising), mean over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp import stats
from jaxinterp.cells import make_cells
from jaxinterp.checks import random_seed, real_number, whole_number
from jaxinterp.grid_runs import Driver, check_pair, recorded, site_and_layers
from jaxinterp.interventions import Shared, replace
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import Model, as_tokens
from jaxinterp.patching import Direction, check_direction

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare", "exact_cells", "missed_bound", "verify"]

Exact = Callable[[np.ndarray], np.ndarray]


def effects(result: xr.DataArray) -> xr.DataArray:
    """What each patch does to the metric, mean over prompts: dims (*over), in the metric's unit."""
    effect = stats.effects(result).mean("prompt", skipna=False)
    return effect.rename("effect").assign_attrs(result.attrs)


def compare(
    exact: xr.DataArray,
    approximate: xr.DataArray | Mapping[str, xr.DataArray],
    *,
    k: Sequence[int] = (10,),
    worst: int = 10,
) -> xr.Dataset:
    """An approximation against the exact sweep of the same grid.

    exact: from `jaxinterp.patch`. approximate: from `jaxinterp.attribute` with the same
    arguments, or several by name. k: how many top cells are to be found again. worst: cells
    to list.

    Returns an ``xarray.Dataset`` (with a leading dim ``approximation`` for several):

    - ``pearson``, ``spearman`` of the effects, ``spearman_size`` of their absolute values
      (NaN where one of them does not vary);
    - ``recall`` [k]: the share of the k largest exact effects among the k largest approximate
      ones, by absolute value; ``flips_on_top`` [k]: how many of the k largest exact ones have
      the wrong sign;
    - ``sign_flips``: cells whose two effects have opposite signs, of ``n_cells``;
      ``flip_cell``, ``flip_exact``, ``flip_approximate``: the one of largest exact effect;
    - ``max_error``, ``median_error``: absolute, in the metric's unit;
    - ``worst_exact``, ``worst_approximate`` and the labels ``worst_<axis>``, all [worst]: the
      cells of largest error. ``to_pandas()`` of them is a table.

    Cells without a number in either are left out; ``n_left_out`` counts them.

    Raises ``ValueError`` for results of different grids, directions or metrics, and for k
    beyond the number of cells.
    """
    import xarray as xr

    if isinstance(approximate, Mapping):
        if not approximate:
            raise ValueError("approximate is an empty mapping: name at least one result.")
        each = [compare(exact, one, k=k, worst=worst) for one in approximate.values()]
        names = xr.DataArray(list(approximate), dims="approximation")
        return xr.concat(
            each, names, data_vars="all", coords="minimal", compat="override", join="exact",
            combine_attrs="drop_conflicts",
        )  # fmt: skip
    a, b = _matched(exact, approximate)
    x, y = a.values.reshape(-1), b.values.reshape(-1)
    kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    worst = whole_number("worst", worst)
    if not len(kept):
        raise ValueError("No cell has a number in both results: there is nothing to compare.")
    x, y = x[kept], y[kept]
    k = [whole_number("k", each, 1, len(kept)) for each in np.atleast_1d(k).tolist()]
    if not k:
        raise ValueError("k is empty: give one number of cells at least.")
    error, flipped = np.abs(x - y), x * y < 0
    order, guess = _largest(x), _largest(y)
    scalars: dict[str, Any] = {
        "n_cells": len(kept),
        "n_left_out": a.size - len(kept),
        "pearson": _correlation(x, y),
        "spearman": _correlation(_ranks(x), _ranks(y)),
        "spearman_size": _correlation(_ranks(np.abs(x)), _ranks(np.abs(y))),
        "max_error": error.max(),
        "median_error": np.median(error),
        "sign_flips": flipped.sum(),
    }
    top = _largest(np.where(flipped, x, 0))[:1] if flipped.any() else np.arange(0)
    scalars["flip_cell"] = _name(a, kept[top[0]]) if len(top) else ""
    scalars["flip_exact"] = x[top[0]] if len(top) else np.nan
    scalars["flip_approximate"] = y[top[0]] if len(top) else np.nan
    data: dict[str, Any] = {name: ((), value) for name, value in scalars.items()}
    data["recall"] = ("k", [len(np.intersect1d(order[:n], guess[:n])) / n for n in k])
    data["flips_on_top"] = ("k", [flipped[order[:n]].sum() for n in k])
    listed = _largest(error)[:worst]
    data |= _table(a, "worst", kept[listed], x[listed], y[listed])
    attrs = {
        name: approximate.attrs[name]
        for name in ("model", "site", "direction", "metric", "method", "n_prompts")
        if name in approximate.attrs
    }
    return xr.Dataset(data, {"k": k}, attrs)


def verify(
    exact: Exact | xr.DataArray,
    approximate: xr.DataArray,
    budget: int,
    *,
    k: int = 10,
    top: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Exact effects for a few cells, and a bound on what an approximation missed in the rest.

    The ``top`` cells by absolute approximate effect are run exactly (default: half the budget,
    at least k), and a random sample of the rest (without replacement, ``seed``). The k-th
    largest exact effect of the former is the threshold: a cell of the rest above it should
    have been among the k found.

    exact: a function from flat cells [n] to the metric under their patches [n, prompt] (see
    `exact_cells`), or a full sweep to read them from. budget: how many cells to run.

    Returns an ``xarray.Dataset``. For cells verified [cell]: their labels ``cell_<axis>``,
    ``cell_exact``, ``cell_approximate``, and ``cell_random``: whether they were drawn. Scalars:

    - ``threshold``; ``n_rest``: cells outside the top; ``n_random``: those drawn from them;
      ``n_missed``: those drawn that lie above the threshold;
    - ``missed_bound``: an upper confidence bound at ``level`` on the number of cells above the
      threshold among the rest, and ``missed_share_bound`` its share: the largest number for
      which drawing so few is not yet less likely than 1 - level (exact hypergeometric test;
      for a large rest and none found it is the share 1 - (1 - level)^(1 / n_random));
    - ``random_max``: the largest absolute effect drawn, and ``above_random_max``: at
      ``level`` at most this share of the rest lies above it (order statistics, Wilks 1941).

    The bound holds whatever the approximation is worth, over the random draw alone: not over
    prompts. Kramar et al. 2024 (arXiv:2403.00745) bound the same by sampling subsets of cells
    that are patched together; here cells are patched one by one.

    Raises ``ValueError`` for a budget, k, top or level out of range.
    """
    import xarray as xr

    guess = effects(approximate)
    size = guess.size
    for name, value in (("k", k), ("budget", budget), ("top", 1 if top is None else top)):
        whole_number(name, value, 1)
    top = max(k, budget // 2) if top is None else top
    if not 1 <= k <= top <= budget <= size:
        raise ValueError(
            f"k={k}, top={top}, budget={budget} for {size} cells: expected 1 <= k <= top <= "
            "budget <= the number of cells."
        )
    level, seed = real_number("level", level, above=0, below=1), random_seed(seed)
    order = _largest(guess.values.reshape(-1))
    drawn = np.random.default_rng(seed).permutation(order[top:])[: budget - top]
    cells = np.concatenate([order[:top], drawn])
    if isinstance(exact, xr.DataArray):
        found = _matched(exact, approximate)[0].values.reshape(-1)[cells]
    else:
        noising = approximate.attrs.get("direction") == "noise"
        base = approximate.coords["clean" if noising else "corrupted"].values
        found = (np.asarray(exact(cells)) - base).mean(-1)
    threshold = np.sort(np.abs(found[:top]))[-k]
    sizes = np.abs(found[top:])
    missed = int((sizes > threshold).sum())
    bound = missed_bound(size - top, len(drawn), missed, level)
    scalars = {
        "threshold": threshold,
        "n_rest": size - top,
        "n_random": len(drawn),
        "n_missed": missed,
        "missed_bound": bound,
        "missed_share_bound": bound / max(size - top, 1),
        "random_max": sizes.max() if len(drawn) else np.nan,
        "above_random_max": 1 - (1 - level) ** (1 / len(drawn)) if len(drawn) else 1.0,
    }
    data: dict[str, Any] = {name: ((), value) for name, value in scalars.items()}
    data |= _table(guess, "cell", cells, found, guess.values.reshape(-1)[cells])
    data["cell_random"] = ("cell", np.arange(budget) >= top)
    attrs = {"k": k, "budget": budget, "top": top, "level": level, "seed": seed}
    return xr.Dataset(data, attrs=attrs)


def missed_bound(rest: int, drawn: int, missed: int, level: float = 0.95) -> int:
    """An upper confidence bound on how many of ``rest`` cells are of a kind.

    ``drawn`` of them were looked at, at random and without replacement, and ``missed`` were of
    that kind. The largest number M with P(at most ``missed`` | M) > 1 - level, P being the
    hypergeometric distribution (the Clopper-Pearson bound of a finite population).
    """
    from scipy.stats import hypergeom

    rest = whole_number("rest", rest, 0)
    drawn = whole_number("drawn", drawn, 0, rest)
    missed = whole_number("missed", missed, 0, drawn)
    level = real_number("level", level, above=0, below=1)
    possible = np.arange(missed, rest - (drawn - missed) + 1)
    likely = hypergeom.cdf(missed, rest, possible, drawn) > 1 - level if rest else [True]
    return int(possible[np.flatnonzero(likely)[-1]])


def exact_cells(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "position"),
    direction: Direction = "denoise",
    batch: int | None = None,
    layers: Sequence[int] | None = None,
    **choices: Any,
) -> Exact:
    """Exact patching of any cells of a grid: a function from flat cells [n] to [n, prompt].

    Cells count through the grid of `jaxinterp.patch` with the same arguments, the last axis
    fastest. choices: ``positions``, ``heads``, ``neurons``. Raises ``ValueError`` as `patch`
    does.
    """
    clean, corrupted = as_tokens(clean), as_tokens(corrupted)
    check_pair(model, clean, corrupted)
    check_metric(metric, model, clean)
    check_direction(direction)
    whole_number("batch", batch, 1, optional=True)
    name, layers = site_and_layers(site, layers)
    cells = make_cells(model, name, over, clean, layers=layers, **choices)
    bases, donors = (corrupted, clean) if direction == "denoise" else (clean, corrupted)

    def run(chosen: np.ndarray) -> np.ndarray:
        chosen = np.asarray(chosen)
        names, keep = np.unique(chosen, return_inverse=True)
        kept = np.isin(np.arange(len(cells)), names)
        driver = Driver.of(model, clean, (), batch=batch)

        def some(rows: np.ndarray) -> np.ndarray:
            values = recorded(model, donors[rows], sites=(name,))[name]
            grid = replace(name, Shared(values), **cells.indices(kept, rows))
            return driver.sweep(bases[rows], grid, of_prompts(metric, rows), None)

        return driver.batches(some, len(names))[keep]

    return run


def _matched(exact: xr.DataArray, approximate: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The effects of both, after a check that they are of one grid."""
    a, b = effects(exact), effects(approximate)
    for name in ("direction", "metric", "site", "weights"):
        given = [r.attrs.get(name) for r in (exact, approximate)]
        if None not in given and given[0] != given[1]:
            raise ValueError(
                f"The exact result has {name} {given[0]!r}, the approximate one {given[1]!r}: "
                "compare results of the same arguments."
            )
    same = a.dims == b.dims and all(
        np.array_equal(a.coords[dim].values, b.coords[dim].values) for dim in a.dims
    )
    if not same or exact.sizes["prompt"] != approximate.sizes["prompt"]:
        raise ValueError(
            f"The grids differ: {dict(exact.sizes)} exact and {dict(approximate.sizes)} "
            "approximate (or their labels do). Compare results of the same arguments."
        )
    return a, b


def _table(
    grid: xr.DataArray, dim: str, cells: np.ndarray, exact: np.ndarray, approximate: np.ndarray
) -> dict[str, Any]:
    """Columns [dim] for some flat cells: their labels and both effects."""
    index = np.unravel_index(cells, grid.shape)
    columns = {
        f"{dim}_{axis}": (dim, grid.coords[axis].values[at])
        for axis, at in zip(map(str, grid.dims), index, strict=True)
    }
    return {**columns, f"{dim}_exact": (dim, exact), f"{dim}_approximate": (dim, approximate)}


def _name(grid: xr.DataArray, cell: int) -> str:
    """``layer 9, head 6``: a flat cell in words."""
    index = np.unravel_index(cell, grid.shape)
    axes = zip(map(str, grid.dims), index, strict=True)
    return ", ".join(f"{axis} {grid.coords[axis].values[at]}" for axis, at in axes)


def _largest(values: np.ndarray) -> np.ndarray:
    """Indices from the largest absolute value to the smallest; ties by index, NaN last."""
    size = np.where(np.isfinite(values), np.abs(values), -1)
    return np.argsort(-size, kind="stable")


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where one does not vary."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (x, y))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")
