"""A search in every cell of a grid: in which layers and positions a subspace holds a variable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxinterp.cells import Cells as Grid
from jaxinterp.cells import coordinates, label, make_cells
from jaxinterp.checks import whole_number
from jaxinterp.grid_runs import Driver, batch_size, ignore, site_and_layers
from jaxinterp.interchange.accuracy import (
    Goal,
    check_pairs,
    check_places,
    part_at,
    position_in,
    said_of,
)
from jaxinterp.interchange.search import (
    Rank,
    ignore_step,
    layer_values,
    method,
    recipe_of,
    split,
    streams_before,
)
from jaxinterp.interchange.subspace import replace_component
from jaxinterp.interchange.training import Cells, Recipe, basis_of, cells_at_once, train
from jaxinterp.interventions import replace
from jaxinterp.metrics import Metric
from jaxinterp.model import SITES, Model, Tokens
from jaxinterp.results import claim
from jaxinterp.sweep import observe
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr


class Searched(NamedTuple):
    """What `sweep_das` found: accuracy (*over, "prompt") and basis (*over, width, "direction")."""

    accuracy: xr.DataArray
    basis: xr.DataArray


def sweep_das(
    model: Model,
    *,
    base: Any,
    source: Any,
    labels: Any = None,
    choices: Any = None,
    metric: Metric | None = None,
    read_at: Any = None,
    site: str = "resid_post",
    over: Sequence[str] = ("layer", "position"),
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    source_positions: Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    rank: Rank = 1,
    steps: int = 300,
    learning_rate: float = 0.1,
    batch: int = 32,
    held_out: float = 0.25,
    penalty: float = 0.05,
    temperature: tuple[float, float] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    record: Mapping[str, Any] | None = None,
    on_done: Callable[[int], None] = ignore,
) -> Searched:
    """`train_das` in every cell of a grid: where, and how well, a subspace holds the variable.

    over: "layer", with "position" and "head". positions, layers, heads: as in `patch`; positions
    may be roles. source_positions: the roles' positions in the source prompts, where they differ.
    The rest is as in `train_das`. All cells see the same pairs in the same order. on_done:
    called with the number of cells trained.

    The cells of a layer train together, as many as ``memory`` bytes hold: one program for all
    layers, its work in proportion to the cells. It costs cells x steps x batch passes forward and
    back from the cell's layer on: for 12 layers x 15 positions and 300 steps of 32 pairs, what
    some 2.5 million full passes cost. A few cells first, then a grid around what they show.

    Returns the accuracy on pairs held out, with coordinates ``base`` (without the interchange),
    ``full`` (the whole value exchanged in that cell) and ``rank``; and the bases, where columns
    from ``rank`` on are zero.

    Raises ``ValueError`` as `train_das` does, and for axes that cannot be searched over.
    """
    base, source, goal = check_pairs(model, base, source, labels, choices, metric, read_at)
    name, layers = site_and_layers(site, layers)
    over = (over,) if isinstance(over, str) else tuple(over)
    if "layer" not in over or not set(over) <= {"layer", "position", "head"}:
        raise ValueError(f"over={over}: a search runs over 'layer', with 'position' and 'head'.")
    check_places(model, name, base, source, whole="position" not in over)
    grid = make_cells(
        model, name, over, base, layers=layers, positions=positions, heads=heads
    )  # fmt: skip
    at = _source_positions(grid, source, positions, source_positions)
    recipe, width = recipe_of(
        model, name, rank, steps, learning_rate, batch, seed, penalty, temperature
    )
    whole_number("memory", memory, 1)
    split_rows = split(len(base), held_out, seed)
    search = Search(model, base, source, goal, name, grid, at, recipe, *split_rows, memory)
    values, full, bases, ranks = search.run(on_done)
    attrs = claim(
        model, site=name, over=list(grid.labels), intervention="interchange",
        method=method(rank), **recipe.describe(width), held_out=held_out,
        **said_of(goal, base, source), **dict(record or {}),
    )  # fmt: skip
    held = search.held
    coords = coordinates(grid, base[held], None, None, None)
    result = label(grid, values, goal.name, coords, attrs, {"base": full[0]})
    shaped = full[1:].reshape(*grid.shape, len(held))
    cells = {"rank": (tuple(grid.labels), ranks.reshape(grid.shape))}
    result = result.assign_coords({"full": (result.dims, shaped), "prompt": held, **cells})
    return Searched(result, _bases(grid, name, bases, cells, attrs))


@dataclasses.dataclass(frozen=True)
class Search:
    """A search over a grid. at: each cell's source positions, [E] or [E n] (None: all)."""

    model: Model
    base: Tokens
    source: Tokens
    goal: Goal
    site: str
    grid: Grid
    at: np.ndarray | None
    recipe: Recipe
    fitted: np.ndarray
    held: np.ndarray
    memory: int

    def run(self, on_done: Callable[[int], None]) -> tuple[np.ndarray, ...]:
        """Scores [E held]; [1 + E held] as it is and with whole values; bases; ranks [E]."""
        size = batch_size(self.model, self.base, None, self.memory)
        rows = min(self.recipe.batch, len(self.fitted))
        most = cells_at_once(self.model.config, rows, self.base.shape[1], self.memory)
        found: dict[int, tuple[np.ndarray, ...]] = {}
        layer_of = self.grid.where["layer"]
        kinds, counts = np.unique(layer_of, return_counts=True)
        most = min(most, int(counts.max()))
        for layer in kinds.tolist():
            streams = streams_before(self.model, self.base[self.fitted], layer, size)
            values = layer_values(self.model, self.source, self.site, layer, size)
            members = np.flatnonzero(layer_of == layer)
            for begin in range(0, len(members), most):
                own = members[begin : begin + most]
                results = self._chunk(np.resize(own, most), layer, streams, values)
                base = results[0]
                for place, cell in enumerate(own.tolist()):
                    found[cell] = tuple(each[place] for each in results[1:])
                on_done(len(own))
        in_order = [found[cell] for cell in sorted(found)]
        scores, full, bases, ranks = map(np.stack, zip(*in_order, strict=True))
        return scores, np.concatenate([base[None], full]), bases, ranks

    def _chunk(
        self, cells: np.ndarray, layer: int, streams: jax.Array, values: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """The score [held] as it is; of each cell: score, with the whole value, basis, rank."""
        given = np.stack([self._given(cell, values) for cell in cells.tolist()])
        where = {axis: index[cells] for axis, index in self.grid.where.items() if axis != "layer"}

        def some(rows: np.ndarray) -> dict[str, np.ndarray]:
            at = where.get("position")
            return where if at is None or at.ndim == 1 else {**where, "position": at[:, rows]}

        # One position for all pairs is spread out, so that every grid trains by one program.
        spread = dict(where)
        if "position" in where:
            at = where["position"].reshape(len(cells), -1)
            spread["position"] = np.broadcast_to(at, (len(cells), len(self.base)))[:, self.fitted]
        fit, _ = train(
            self.model, self.goal.of(self.fitted), self.base[self.fitted], self.site, layer,
            streams, Cells(spread, given[:, self.fitted]), self.recipe, ignore_step,
        )  # fmt: skip
        bases, ranks = basis_of(fit)
        own, driver = self.base[self.held], Driver.of(self.model, self.base[self.held], ())

        def run(rows: np.ndarray) -> np.ndarray:
            chosen, tokens = self.held[rows], own[rows]
            score, here = self.goal.of(chosen).score, some(chosen)
            here["layer"] = np.full(len(cells), layer)
            run, _ = observe(self.model, tokens, score)
            part = replace_component(self.site, given[:, chosen], bases, **here)
            whole = replace(self.site, given[:, chosen], **here)
            swept = [driver.sweep(tokens, edit, score, run) for edit in (part, whole)]
            return np.stack([np.broadcast_to(to_host(run.metric), swept[0].shape), *swept])

        found = driver.batches(run, 1)
        return found[0, 0], found[1], found[2], bases, ranks

    def _given(self, cell: int, values: np.ndarray) -> np.ndarray:
        """What the source holds in a cell, [n 1 (1) D]."""
        head = self.grid.where.get("head")
        at = None if self.at is None else np.broadcast_to(self.at[cell], len(self.source))
        chosen = None if head is None else int(head[cell])
        return np.asarray(part_at(values, self.source, at, chosen))


def _source_positions(
    grid: Grid, source: Tokens, positions: Any, given: Mapping[str, Any] | None
) -> np.ndarray | None:
    """The source position of every cell, [E] or [E n]; None where positions are not swept."""
    roles = isinstance(positions, Mapping)
    if given is not None and (not roles or set(given) != set(positions)):  # type: ignore[arg-type]
        raise ValueError(
            "source_positions= names the positions of roles in the source prompts: give positions= "
            f"with the same roles, {sorted(given)}."
        )
    if "position" not in grid.where:
        return None
    theirs = [given[role] for role in grid.labels["position"]] if given else None
    if theirs is None:
        at = grid.where["position"]
        for own in np.unique(at, axis=0):
            position_in(source, own, "position")
        return at
    rows = np.stack([position_in(source, own, "source_positions") for own in theirs])
    return rows[grid.along("position")]


def _bases(
    grid: Grid, site: str, bases: np.ndarray, coords: dict[str, Any], attrs: dict[str, Any]
) -> xr.DataArray:
    import xarray as xr

    coords = {**{axis: (axis, values) for axis, values in grid.labels.items()}, **coords}
    dims = (*grid.labels, SITES[site].axes[-1], "direction")
    return xr.DataArray(bases.reshape(*grid.shape, *bases.shape[1:]), coords, dims, "basis", attrs)
