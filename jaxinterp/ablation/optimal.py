"""Optimal ablation: the constant that hurts least (Li & Janson 2024, arXiv:2409.09951).

Zero and the mean can break later computation in ways that have nothing to do with the
information taken out. The best constant does not: what is lost under it is what the model
needed this value to *vary* for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp.ablation.fills import Fill
from jaxinterp.ablation.means import mean_activations
from jaxinterp.cells import Cells, make_cells
from jaxinterp.checks import LONG, random_seed, real_number, whole_number
from jaxinterp.grid_runs import Driver, site_and_layers
from jaxinterp.interventions import replace
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import (
    SITES,
    Config,
    Model,
    Tokens,
    as_tokens,
    embed,
    run_layers,
)
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import axis_size
from jaxinterp.results import claim, fingerprint
from jaxinterp.sweep import observe
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY
from jaxinterp.sweep.suffix import measure_from

if TYPE_CHECKING:
    import xarray as xr


def optimal_constants(
    model: Model,
    *,
    tokens: Any,
    metric: Metric,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    objective: Metric | None = None,
    steps: int = 100,
    rate: float = 0.05,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    seed: int = 0,
    batch: int | None = None,
    memory: int = MEMORY,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """For every cell the constant that does best in its place, trained with Adam.

    A constant is one vector for all prompts and (unless the grid has positions or roles) all
    positions. It begins at the mean. Minimised is ``objective``, the mean over prompts of any
    metric, such as ``kl(clean_logits)`` (the paper's) or ``cross_entropy()``; by default the
    mean squared change of ``metric``. A cell whose training did not beat the mean, measured on
    all prompts by an exact sweep, keeps the mean.

    steps of Adam, at ``rate`` standard deviations of the site's values, decaying to 0 as a
    cosine; a step sees ``batch`` prompts (default: as many as a program holds). Costs ``steps``
    times a forward and a backward pass, from the cell's layer on, for each cell: some 4 * steps
    times what ablating the grid costs.

    A constant fits the prompts it was trained on: pass it to `ablate` as ``value`` with others
    to see whether it holds there.

    Returns an ``xarray.DataArray`` with dims (*over, and the axes of the constant). Coordinates
    ``loss`` and ``loss_of_mean`` hold the objective. Raises ``ValueError`` as `ablate` does, and
    for sites with a source axis.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    if objective is not None:
        check_metric(objective, model, tokens)
    steps, rate = whole_number("steps", steps, 1, LONG), real_number("rate", rate, above=0)
    seed = random_seed(seed)
    name, layers = site_and_layers(site, layers)
    if "source" in SITES[name].axes:
        raise ValueError(f"{name!r} has rows that sum to one: a constant cannot stand for them.")
    cells = make_cells(
        model, name, over, tokens, layers=layers, positions=positions, heads=heads, neurons=neurons
    )
    driver = Driver.of(model, tokens, (), batch=batch, memory=memory)
    begin, scale = _means_of_cells(driver, tokens, name, cells, positions)
    clean = driver.batches(
        lambda rows: _clean(driver.model, tokens[rows], of_prompts(metric, rows)), 0
    )
    rng = np.random.default_rng(seed)
    per_epoch = -(-len(tokens) // driver.size)
    epochs = [rng.permutation(len(tokens)) for _ in range(-(-steps // per_epoch))]
    order = np.stack([np.resize(rows, (per_epoch, driver.size)) for rows in epochs])
    order = order.reshape(-1, driver.size)[:steps]
    target = clean if objective is None else None
    trained = begin.copy()
    for chosen, start in _chunks(model.config, cells, tokens, driver):
        where = {axis: index[chosen] for axis, index in cells.where.items()}
        trained[chosen] = _train(
            driver.model, tokens, metric if objective is None else objective, target, where,
            begin[chosen], scale[chosen], jnp.int32(start), order, rate, site=name,
        )  # fmt: skip
    score = functools.partial(_score, driver, tokens, metric, objective, name, cells, clean)
    before, after = score(begin), score(trained)
    better = after < before
    constants = np.where(better.reshape(-1, *[1] * (begin.ndim - 1)), trained, begin)
    attrs = claim(
        model, site=name, over=list(cells.labels), intervention="optimal constant",
        objective=(objective or metric).describe(), squared_change=objective is None,
        steps=steps, rate=rate, seed=seed, block=_block(cells), n_prompts=len(tokens),
        prompts=fingerprint(tokens), **dict(record or {}),
    )  # fmt: skip
    losses = {"loss": np.where(better, after, before), "loss_of_mean": before}
    return _labelled(model.config, name, cells, constants, losses, attrs)


@dataclasses.dataclass(frozen=True)
class CellConstants(Fill):
    """A constant for every cell of a grid: arrays hold [E ...]."""

    @classmethod
    def of(cls, model: Model, site: str, cells: Cells, constants: xr.DataArray) -> CellConstants:
        """Those of a result of `optimal_constants` that belong to the cells.

        Raises ``ValueError`` where it has none for a cell, or is of another site.
        """
        dims = (*cells.labels, *dict(_inner(model.config, site, cells)))
        if set(constants.dims) != set(dims) or constants.attrs.get("site", site) != site:
            raise ValueError(
                f"value has dims {list(constants.dims)} of {constants.attrs.get('site')!r}, "
                f"expected {list(dims)} of {site!r}, as optimal_constants gives them."
            )
        if constants.attrs.get("block", _block(cells)) != _block(cells):
            raise ValueError(
                f"value holds constants for blocks of {constants.attrs['block']} neurons, the "
                f"grid has blocks of {_block(cells)}."
            )
        try:
            own = constants.sel({axis: list(labels) for axis, labels in cells.labels.items()})
        except KeyError as error:
            raise ValueError(f"value has no constant for some cells of the grid: {error}") from None
        array = own.transpose(*dims).values.astype(np.float32)
        array = array.reshape(len(cells), *_shape(model.config, site, cells))
        return cls({site: array}, {"value": "constants", "constants": fingerprint(array)})

    def values(self, driver: Driver, rows: np.ndarray, draw: int) -> dict[str, Any]:
        return dict(self.arrays)


def _block(cells: Cells) -> int:
    """Neurons that are ablated together; 0 where they are not swept, or one by one."""
    index = cells.where.get("neuron")
    return 0 if index is None or index.ndim == 1 else int(index[0].sum())


def _inner(config: Config, site: str, cells: Cells) -> list[tuple[str, int]]:
    """The axes of one cell's constant, and their lengths."""
    out = []
    if SITES[site].layered and "layer" not in cells.where:
        out.append(("layer", config.n_layers))
    for axis in SITES[site].axes:
        if axis == "position" or (axis in cells.where and cells.where[axis].ndim == 1):
            continue
        size = axis_size(config, SITES[site], axis)
        out.append(("unit" if axis in cells.where else axis, size or 1))
    return out


def _shape(config: Config, site: str, cells: Cells) -> tuple[int, ...]:
    """One constant as `replace` takes it: [(L) B ...] with 1 where it is the same for all."""
    inner = dict(_inner(config, site, cells))
    axes = [inner.get(axis, inner.get("unit", 1) if axis == "neuron" else 1)
            for axis in SITES[site].axes]  # fmt: skip
    return (*([inner["layer"]] if "layer" in inner else []), 1, *axes)


def _labelled(
    config: Config, site: str, cells: Cells, constants: np.ndarray, losses: dict[str, np.ndarray],
    attrs: dict[str, Any],
) -> xr.DataArray:  # fmt: skip
    import xarray as xr

    inner = dict(_inner(config, site, cells))
    coords: dict[str, Any] = {axis: (axis, labels) for axis, labels in cells.labels.items()}
    for name, loss in losses.items():
        coords[name] = (tuple(cells.labels), loss.reshape(cells.shape))
    shaped = constants.reshape(*cells.shape, *inner.values())
    return xr.DataArray(shaped, coords, (*cells.labels, *inner), f"{site}_constant", attrs)


def _means_of_cells(
    driver: Driver, tokens: Tokens, site: str, cells: Cells, positions: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Every cell's mean [E ...], and the standard deviation of its values, one number [E 1 ...]."""
    roles, lengths = isinstance(positions, Mapping), np.asarray(tokens.lengths)
    by: Any = "position" if "position" in cells.where else None
    if roles:
        by = {role: np.broadcast_to(np.asarray(p), lengths.shape) for role, p in positions.items()}
    chunks = [tokens[at : at + driver.size] for at in range(0, len(tokens), driver.size)]
    mean = mean_activations(driver.model, chunks, (site,), by=by, second=True)[site]
    at = {axis: index for axis, index in cells.where.items() if index.ndim == 1}
    if roles:
        at["position"] = cells.along("position")
    index = [at.get(str(dim)) for dim in mean.dims]
    shape = _shape(driver.model.config, site, cells)
    arrays = (mean.values.astype(np.float32), mean.coords["variance"].values)
    means, deviations = [], []
    for e in range(len(cells)):
        entry = tuple(slice(None) if i is None else i[e] for i in index)
        own, variance = (np.atleast_1d(array[entry]) for array in arrays)
        held = cells.where["neuron"][e] if _block(cells) else slice(None)
        size = np.sqrt(np.square(own[..., held]).mean())
        deviations.append(np.sqrt(variance[..., held].mean()) + 1e-3 * size + 1e-6)
        means.append(own.reshape(shape))
    scale = np.asarray(deviations, np.float32).reshape(-1, *[1] * len(shape))
    return np.stack(means), scale


def _clean(model: Model, tokens: Tokens, metric: Metric) -> np.ndarray:
    return to_host(observe(model, tokens, metric)[0].metric)


def _chunks(
    config: Config, cells: Cells, tokens: Tokens, driver: Driver
) -> Iterator[tuple[np.ndarray, int]]:
    """Cells [n] of one layer that are trained together, all chunks of one size, and their layer."""
    c, rows = config, driver.size * tokens.shape[1]
    kept = c.n_layers * c.d_model  # the stream before every layer; the rest is computed again
    busy = 12 * c.d_model + 6 * c.d_mlp + 6 * c.n_heads * c.d_head + 4 * c.n_heads * tokens.shape[1]
    fit = max(1, driver.memory // (4 * rows * (kept + busy)))
    layer = cells.where.get("layer", np.zeros(len(cells), int))
    kinds, counts = np.unique(layer, return_counts=True)
    n = min(fit, int(counts.max()))
    for start in kinds:
        members = np.flatnonzero(layer == start)
        for begin in range(0, len(members), n):
            yield np.resize(members[begin : begin + n], n), int(start)


@functools.partial(jit, static=("site",))
def _train(
    model: Model, tokens: Tokens, metric: Metric, target: Any, where: dict[str, Any], begin: Any,
    scale: Any, start: Any, order: Any, rate: Any, *, site: str,
) -> jax.Array:  # fmt: skip
    """Constants [n ...] of n cells, trained together from their ``begin``.

    Minimises the mean square of metric - target, or (None) of the metric itself, over the
    prompts ``order`` [steps b].
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(order)))
    if not SITES[site].layered and site.startswith("ln_final"):
        start = jnp.int32(model.config.n_layers)

    def loss(theta: jax.Array, rows: jax.Array) -> jax.Array:
        own, each = tokens[rows], of_prompts(metric, rows)
        x, _ = run_layers(model, embed(model, own)[0], own, 0, start)

        def one(theta: jax.Array, begin: jax.Array, scale: jax.Array, where: Any) -> jax.Array:
            if "position" in where and where["position"].ndim:  # roles: one per prompt
                where = {**where, "position": where["position"][rows]}
            edit = replace(site, begin + scale * theta, **where)
            value = measure_from(model, x, start, own, each, (edit,))
            return value.mean() if target is None else jnp.square(value - target[rows]).mean()

        return jax.vmap(one)(theta, begin, scale, where).sum()

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        theta, state = carry
        updates, state = optimizer.update(jax.grad(loss)(theta, rows), state)
        return (optax.apply_updates(theta, updates), state), None

    theta = jnp.zeros_like(begin)
    (theta, _), _ = jax.lax.scan(step, (theta, optimizer.init(theta)), order)
    return begin + scale * theta


def _score(
    driver: Driver, tokens: Tokens, metric: Metric, objective: Metric | None, site: str,
    cells: Cells, clean: np.ndarray, constants: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The objective [E] of constants [E ...] over all prompts, from exact sweeps."""
    wanted, keep = objective or metric, np.ones(len(cells), bool)

    def run(rows: np.ndarray) -> np.ndarray:
        grid = replace(site, constants, **cells.indices(keep, rows))
        return driver.sweep(tokens[rows], grid, of_prompts(wanted, rows), None)

    values = driver.batches(run, 0)
    return values.mean(-1) if objective else np.square(values - clean).mean(-1)
