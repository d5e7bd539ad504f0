"""Ablation: take something out, everywhere, one place at a time.

What stands in its place decides what the effect means (Miller et al. 2024, arXiv:2407.08734):
zero and a mean can leave the model's own distribution, another prompt's value (resample) and
the mean take out information, an optimal constant (Li & Janson 2024, arXiv:2409.09951) takes
out no more than that. `jaxinterp.ablation_grid` reports all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.ablation.fills import KINDS, Fill, at_role, fill_of, in_full
from jaxinterp.ablation.optimal import CellConstants, optimal_constants
from jaxinterp.cells import Cells, coordinates, label, make_cells
from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.grid_runs import (
    Driver,
    batch_size,
    felt_cells,
    ignore,
    open_axes,
    site_and_layers,
    spread,
)
from jaxinterp.interventions import Edit, Shared, Where, is_shared, replace, unshare
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import SITES, At, Config, Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import axis_size
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.results import claim, fingerprint
from jaxinterp.sweep import Ledger, observe
from jaxinterp.sweep.devices import checked, place_model, to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh


def ablate(
    model: Model,
    *,
    tokens: Any,
    metric: Metric,
    value: Any,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    direction: Any = None,
    means: Any = None,
    by: Any = "auto",
    donors: Any = None,
    draws: int | None = None,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    tokenizer: Any = None,
    names: Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    parts: str | None = None,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """Exact ablation over a grid: the metric without each cell, per prompt.

    value: what is put in its place.

    - ``"zero"``.
    - ``"mean"``: ``means`` from `jaxinterp.mean_activations` (of any corpus), or else the mean
      over the given prompts, ``by`` as there. The default "auto" takes a mean of each role
      where ``positions`` are roles, else of each position where prompts have equal lengths,
      else over all positions. Labels in ``by`` (one per prompt) say which group's mean a
      prompt gets: its template's.
    - ``"resample"``: what the site holds on another prompt: on ``donors`` (`Tokens`, each of
      its prompt's length), or on another of the prompts (of the same length; where positions
      are roles, of any length, taken at its own role). ``draws``: so many times over, a dim
      ``draw``; with ``donors`` they are then a pool to draw from.
    - ``"optimal"``: the constant that keeps the metric nearest to the unablated one, trained
      on these very prompts (`jaxinterp.optimal_constants`: see there what it costs).
    - an array as `jaxinterp.replace` takes it, or what `optimal_constants` returned (which may
      be trained on other prompts).

    direction: ablate nothing but the component along it: [D], the site's last axis; or one per
    layer [L D], at sites of heads per layer and head [L H D]. With "zero" that is to project it
    out, with "mean" its component becomes that of the mean, and so on.

    Other arguments and errors are as in `jaxinterp.patch`. Returns an ``xarray.DataArray`` with
    dims (*over, "prompt"), or (*over, "draw", "prompt"). The coordinate ``clean`` holds the
    unablated metric of each prompt. `jaxinterp.stats.effects` subtracts it.
    """
    tokens, seed = as_tokens(tokens), random_seed(seed)
    whole_number("draws", draws, 1, MANY, optional=True)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    name, layers = site_and_layers(site, layers)
    cells = make_cells(
        model, name, over, tokens, layers=layers, positions=positions, heads=heads, neurons=neurons
    )
    along = None if direction is None else check_along(model.config, name, direction)
    model = model if mesh is None else place_model(checked(mesh), model)
    if isinstance(value, str) and value == "optimal":
        value = optimal_constants(
            model, tokens=tokens, metric=metric, site=name, over=tuple(cells.labels),
            layers=layers, positions=positions, heads=heads, neurons=neurons, seed=seed,
            batch=batch, memory=memory,
        )  # fmt: skip
    fill = _fill(
        model, tokens, name, cells, value, means=means, by=by, donors=donors, draws=draws,
        seed=seed, roles=positions if isinstance(positions, Mapping) else None,
        size=batch_size(model, tokens, batch, memory),
    )  # fmt: skip
    said = {"intervention": "ablate", **fill.said}
    if along is not None:
        said["along"] = fingerprint(along)
    identity = (
        "ablate", tokens, metric.describe(), metric, name, list(cells.labels), cells.where,
        fill.identity(), along,
    )  # fmt: skip
    driver = Driver.of(
        model, tokens, identity, batch=batch, memory=memory, mesh=mesh, parts=parts, ledger=ledger,
        on_done=on_done,
    )  # fmt: skip
    values, clean = _run(driver, tokens, metric, name, cells, fill, along)
    attrs = claim(
        model, site=name, over=list(cells.labels), metric=metric.describe(), n_prompts=len(tokens),
        **{**said, **dict(record or {})},
    )  # fmt: skip
    coords = coordinates(cells, tokens, None, tokenizer, names)
    extra: tuple[str, ...] = ()
    if draws is None:
        values = values[:, 0]
    else:
        extra, coords["draw"] = ("draw",), ("draw", np.arange(fill.draws))
    return label(cells, values, metric.name, coords, attrs, {"clean": clean}, extra=extra)


def _run(
    driver: Driver, tokens: Tokens, metric: Metric, site: str, cells: Cells, fill: Fill, along: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The metric under every ablation [E draws B], and without any [B]."""
    firsts = [fill.first(tokens, draw) for draw in range(fill.draws)]
    felt = [felt_cells(driver.model, cells, tokens, first) for first in firsts]
    kept = np.stack([each.any(-1) for each in felt])  # what no prompt can feel is not run

    def run(rows: np.ndarray) -> np.ndarray:
        own, each = driver.place(tokens[rows]), of_prompts(metric, rows)
        base, _ = observe(driver.model, own, each)
        clean = to_host(base.metric)
        out = np.repeat(np.repeat(clean[None], len(cells), 0)[None], fill.draws, 0)
        for draw, first in enumerate(firsts):
            whole = open_axes(driver.model, site, cells.where, tokens, first)
            values = fill.values(driver, rows, draw)[site]
            for keep, given in _pieces(site, cells, fill, values, kept[draw]):
                if not keep.any():
                    continue
                if not isinstance(fill, CellConstants):
                    given = in_full(driver.model, site, given, own)
                grid = edit(site, given, {**cells.indices(keep, rows), **whole}, along)
                out[draw, keep] = driver.sweep(own, grid, each, base)
        return np.concatenate([out.reshape(-1, len(rows)), clean[None]])

    found = driver.batches(run, fill.draws * len(cells))
    by_draw = found[:-1].reshape(fill.draws, len(cells), -1)
    values = [
        spread(own[keep], mask, found[-1])
        for own, keep, mask in zip(by_draw, kept, felt, strict=True)
    ]
    return np.stack(values, 1), found[-1]


def _pieces(
    site: str, cells: Cells, fill: Fill, values: Any, kept: np.ndarray
) -> Iterator[tuple[np.ndarray, Any]]:
    """Cells (bool [E]) that share a value, and that value; constants are each cell's own."""
    if fill.roles:
        own = cells.along("position")
        for role in range(len(cells.labels["position"])):
            yield kept & (own == role), at_role(site, values, role)
    else:
        yield kept, values[kept] if isinstance(fill, CellConstants) else values


def _fill(
    model: Model, tokens: Tokens, site: str, cells: Cells, value: Any, **options: Any
) -> Fill:
    """What is put in place: one array for each cell, or what `fill_of` makes."""
    if hasattr(value, "dims"):  # an xarray.DataArray
        if options["means"] is not None or options["donors"] is not None:
            raise ValueError("value= holds constants already: leave out means= and donors=.")
        return CellConstants.of(model, site, cells, value)
    if isinstance(value, str) and value not in KINDS:
        raise ValueError(f"value is {value!r}, expected an array or one of {', '.join(KINDS)}.")
    if isinstance(value, Mapping):
        raise ValueError("value is a mapping, expected one array for one site.")
    return fill_of(model, tokens, (site,), value, **options)


class Along(Edit):
    """An edit of nothing but a value's component along a direction.

    direction: [D], or with a leading layer axis [L (H) D]; of any length but 0.
    """

    direction: Any

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        start = wide(value)
        change = wide(super().__call__(value, at)) - start
        unit = jnp.asarray(unshare(self.direction)).astype(wide_dtype(value))
        unit = unit if unit.ndim == 1 else unit[at.layer]
        unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
        moved = start + (change * unit).sum(-1, keepdims=True) * unit
        return moved.astype(value.dtype)


def edit(site: str, value: Any, where: dict[str, Any], along: Any = None) -> Edit:
    """`replace`, or only of the component along a direction."""
    if along is None:
        return replace(site, value, **where)
    return Along(site, "replace", Where(**where), value, Shared(along))


def check_along(config: Config, site: str, direction: Any) -> np.ndarray:
    """A direction of a site, or one per layer (and head).

    Raises ``ValueError`` for the wrong shape, for one that is not finite, and for length 0.
    """
    axes = SITES[site].axes
    given = np.asarray(unshare(direction) if is_shared(direction) else direction, np.float32)
    size = axis_size(config, SITES[site], axes[-1])
    shapes: list[tuple[int | None, ...]] = [(size,)]
    if SITES[site].layered:
        shapes.append((config.n_layers, size))
        if "head" in axes:
            shapes.append((config.n_layers, axis_size(config, SITES[site], "head"), size))
    if "source" in axes or given.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        wanted = "a site with vectors" if "source" in axes else expected
        raise ValueError(f"direction has shape {list(given.shape)} at {site!r}, expected {wanted}.")
    length = np.linalg.norm(given, axis=-1)
    if not np.isfinite(length).all() or not length.all():
        raise ValueError("direction holds a vector of length 0, or one that is not finite.")
    return given
