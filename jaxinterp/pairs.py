"""Pairs: exact effects of two components at once, which single ones do not tell.

A backup head does nothing while the head it stands in for works; two redundant heads each
seem not to matter. Both show in pairs: the effect of one *given* the other, and what the two
do beyond the sum of their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.ablation.fills import Fill, fill_of, in_full
from jaxinterp.cells import Cells, coordinates, label, make_cells
from jaxinterp.checks import random_seed
from jaxinterp.components import Places, of_cells, of_list, of_sites
from jaxinterp.grid_runs import (
    Direction,
    Driver,
    batch_size,
    check_direction,
    check_pair,
    ignore,
    open_axes,
    site_and_layers,
)
from jaxinterp.interventions import replace
from jaxinterp.metrics import Metric, check_metric, evaluate, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.stats import baseline
from jaxinterp.sweep import Ledger, observe
from jaxinterp.sweep.devices import checked, place_model, to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh


def patch_pairs(
    model: Model,
    *,
    clean: Any,
    corrupted: Any = None,
    metric: Metric,
    value: Any = None,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    components: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    pairs: Sequence[tuple[Any, Any]] | None = None,
    direction: Direction = "denoise",
    means: Any = None,
    by: Any = "auto",
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    tokenizer: Any = None,
    record: Mapping[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    parts: str | None = None,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """The exact metric under patching each pair of components at once, and each single one.

    corrupted: the prompts to patch with, as in `patch`. Or leave it out and give ``value``: both
    of a pair are then ablated in the clean run, as `ablate` does ("zero", "mean" with ``means``
    and ``by``, "resample", or an array; no roles).

    components: some of the grid's cells, as tuples of indices along ``over``
    ([(9, 6), (10, 0)]), or by site ({"z": [(9, 6)], "mlp_out": [10]}: a layer, or a layer and a
    head or neuron). Default: the whole grid of ``site``, ``over``, ``layers``, ``heads`` and so
    on. pairs: of components, by their number or name; default: all. n components have
    n (n - 1) / 2 pairs.

    Returns an ``xarray.DataArray`` with dims ("a", "b", "prompt"), symmetric, the single ones on
    the diagonal and NaN for pairs that were not asked for. `conditional` and `interaction`
    read it. Other arguments, coordinates and errors are as in `patch`.
    """
    clean, seed = as_tokens(clean), random_seed(seed)
    check_direction(direction)
    check_tokens(model.config, clean)
    check_metric(metric, model, clean)
    if (corrupted is None) == (value is None):
        raise ValueError("Give corrupted prompts to patch with, or value= to ablate: one of them.")
    if value is None and (means is not None or not (isinstance(by, str) and by == "auto")):
        raise ValueError("means= and by= are for ablation: corrupted prompts do not use them.")
    groups = _groups(
        model, clean, site, over, components, layers=layers, positions=positions, heads=heads,
        neurons=neurons,
    )  # fmt: skip
    names = [name for group in groups for name in group.names]
    chosen = _pairs(names, pairs)
    model = model if mesh is None else place_model(checked(mesh), model)
    base, donors, said = clean, None, {}
    if corrupted is not None:
        corrupted = as_tokens(corrupted)
        check_pair(model, clean, corrupted)
        base, donors = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        said = {"direction": direction, "intervention": "replace"}
    size = batch_size(model, base, batch, memory)
    fill = fill_of(
        model, base, [group.site for group in groups], "resample" if donors is not None else value,
        means=means, by=by, donors=donors, seed=seed, size=size,
    )  # fmt: skip
    said = said or {"intervention": "ablate", **fill.said}
    identity = (
        "pairs", base, metric.describe(), metric, chosen, fill.identity(),
        [[group.site, list(group.where), group.where] for group in groups],
    )  # fmt: skip
    driver = Driver.of(
        model, base, identity, batch=batch, memory=memory, mesh=mesh, parts=parts, ledger=ledger,
        on_done=on_done,
    )  # fmt: skip
    found = _run(driver, base, donors, metric, groups, chosen, fill)
    ends = {"clean": found[-2]}
    if corrupted is not None:
        order = (-1, -2) if direction == "denoise" else (-2, -1)
        ends = {name: found[i] for name, i in zip(("clean", "corrupted"), order, strict=True)}
    n = len(names)
    values = np.full((n, n, len(clean)), np.nan, found.dtype)
    values[chosen[:, 0], chosen[:, 1]] = values[chosen[:, 1], chosen[:, 0]] = found[:-2]
    cells = Cells({"a": names, "b": names}, {})
    attrs = claim(
        model, site=", ".join(group.site for group in groups),
        over=[list(group.where) for group in groups], metric=metric.describe(),
        n_prompts=len(clean), n_pairs=len(chosen) - n, **{**said, **dict(record or {})},
    )  # fmt: skip
    coords = coordinates(cells, clean, corrupted, tokenizer, None)
    return label(cells, values.reshape(n * n, -1), metric.name, coords, attrs, ends)


def conditional(result: xr.DataArray) -> xr.DataArray:
    """The effect of b where a is patched already, m(a, b) - m(a), from `patch_pairs`.

    Dims ("a", "b", "prompt"). A backup b has a small effect alone (`singles`) and a large one
    given a.
    """
    return _like(result, wide(result) - _single(result, "a"), "conditional")


def interaction(result: xr.DataArray) -> xr.DataArray:
    """m(a, b) - m(a) - m(b) + m(), from `patch_pairs`: what a pair does beyond its parts.

    Dims ("a", "b", "prompt"), symmetric; NaN on the diagonal.
    """
    both = wide(result) - _single(result, "a") - _single(result, "b") + baseline(result)
    both = both.transpose("a", "b", "prompt").copy()
    both.values[np.diag_indices(both.sizes["a"])] = np.nan
    return _like(result, both, "interaction")


def singles(result: xr.DataArray) -> xr.DataArray:
    """The effect of each component alone, m(a) - m(), from `patch_pairs`: dims ("a", "prompt")."""
    return _like(result, _single(result, "a") - baseline(result), "single")


def _single(result: xr.DataArray, axis: str) -> xr.DataArray:
    """The metric under each single component, along a or b."""
    import xarray as xr

    order = result.transpose("a", "b", "prompt")
    values = np.einsum("aap->ap", wide(order.values))
    coords = {axis: result.coords[axis].values, "prompt": result.coords["prompt"].values}
    return xr.DataArray(values, coords, (axis, "prompt"))


def _like(result: xr.DataArray, derived: xr.DataArray, what: str) -> xr.DataArray:
    return derived.rename(f"{result.name}_{what}").assign_attrs({**result.attrs, "effect": what})


def _groups(
    model: Model, tokens: Tokens, site: str, over: Sequence[str], components: Any, **choices: Any
) -> list[Places]:
    """The components, site by site."""
    if components is not None:
        given = [f"{name}=" for name, choice in choices.items() if choice is not None]
        if given:
            raise ValueError(f"components= names them all: leave out {', '.join(given)}")
    if isinstance(components, Mapping):
        return of_sites(model, components, tokens)
    name, choices["layers"] = site_and_layers(site, choices["layers"])
    over = (over,) if isinstance(over, str) else tuple(over)
    if components is not None:
        return [of_list(model, name, over, components, tokens)]
    return [of_cells(name, make_cells(model, name, over, tokens, **choices))]


def _pairs(names: list[str], pairs: Sequence[tuple[Any, Any]] | None) -> np.ndarray:
    """Numbers [n 2] of the components of every pair, a <= b; single ones are (a, a)."""
    n = len(names)
    if pairs is None:
        return np.stack(np.triu_indices(n), -1)
    known: dict[Any, int] = {name: i for i, name in enumerate(names)}
    known |= {i: i for i in range(n)}
    wanted = {(i, i) for i in range(n)}
    for pair in pairs:
        if len(pair) != 2 or any(each not in known for each in pair):
            raise ValueError(
                f"{pair} is not a pair of components: expected numbers below {n}, or names "
                f"such as {names[0]!r}."
            )
        a, b = sorted(known[each] for each in pair)
        wanted.add((a, b))
    return np.array(sorted(wanted))


def _run(
    driver: Driver, base: Tokens, donors: Tokens | None, metric: Metric, groups: list[Places],
    chosen: np.ndarray, fill: Fill,
) -> np.ndarray:  # fmt: skip
    """[E + 2, n]: the metric under every pair, without any, and of the donors (if any)."""
    owner = np.concatenate([np.full(len(group), i) for i, group in enumerate(groups)])
    own = np.concatenate([np.arange(len(group)) for group in groups])
    first = fill.first(base, 0)

    def run(rows: np.ndarray) -> np.ndarray:
        tokens, each = driver.place(base[rows]), of_prompts(metric, rows)
        start, _ = observe(driver.model, tokens, each)
        before = to_host(start.metric)
        other = before
        if donors is not None:
            other = to_host(evaluate(each, driver.model, driver.place(donors[rows])))
        values = fill.values(driver, rows, 0).items()
        puts = {site: in_full(driver.model, site, value, tokens) for site, value in values}
        out = np.empty((len(chosen) + 2, len(rows)), before.dtype)
        out[-2:] = before, other
        for kind in np.unique(owner[chosen], axis=0):  # pairs of the same two sites
            some = (owner[chosen] == kind).all(-1)
            grid = []
            for side in (0, 1):
                group = groups[kind[side]]
                where: dict[str, Any] = group.at(own[chosen[some, side]], rows)
                where |= open_axes(driver.model, group.site, where, base, first)
                grid.append(replace(group.site, puts[group.site], **where))
            out[:-2][some] = driver.sweep(tokens, tuple(grid), each, start)
        return out

    return driver.batches(run, len(chosen))
