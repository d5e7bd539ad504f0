"""Activation patching: put one run's values into another, everywhere, one place at a time.

*Denoising* patches the clean run's value into the corrupted run (what suffices to restore
the behaviour); *noising* patches the corrupted run's value into the clean run (what is
necessary for it). Heimersheim & Nanda 2024, arXiv:2404.15255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.cells import coordinates, label, make_cells
from jaxinterp.grid_runs import (
    Direction,
    Driver,
    check_direction,
    check_pair,
    felt_cells,
    first_difference,
    open_axes,
    site_and_layers,
    spread,
)
from jaxinterp.interventions import Shared, replace
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.results import claim
from jaxinterp.sweep import Ledger
from jaxinterp.sweep.base import observe_twins
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh


def patch(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "position"),
    direction: Direction = "denoise",
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
    on_done: Callable[[int], None] = lambda experiments: None,
) -> xr.DataArray:
    """Exact activation patching over a grid: the metric under each patch, per prompt.

    site: any site (ours or TransformerLens's name). over: the axes of the grid, among the
    site's own: ``layer``, ``position``, ``head`` (key/value heads for k and v), ``neuron``,
    ``source``. What is not named is patched whole (``over=("layer", "head")`` patches a
    head at every position at once).

    positions: some positions, or a mapping from role names to one position per prompt
    ({"S1": [B], "END": [B]}), which also works for prompts of unequal length.
    neurons: chosen neurons, or the size of the blocks to patch together (default: 64).
    batch: prompts per program. mesh: devices to split the work over, as in `sweep`.
    parts: a folder that keeps finished batches, so that a killed call resumes (delete it when
    the result is saved). ledger: takes down what was done. on_done: called with the number
    of experiments x prompts done, as they finish.
    tokenizer: labels positions with tokens. names: one per position ("" for none), shown
    beside its token (a task's ``labels()``). record: more to write into the claim.

    Returns an ``xarray.DataArray`` with dims (*over, "prompt"). Coordinates ``clean`` and
    ``corrupted`` (per prompt) hold the baselines, ``token`` the position's text. ``attrs``
    state the claim. `jaxinterp.share` turns it into a share of the effect.

    Raises ``ValueError`` for sites or axes the model lacks, for prompts that differ in
    length, and for unequal lengths over absolute positions.
    """
    clean, corrupted = as_tokens(clean), as_tokens(corrupted)
    check_pair(model, clean, corrupted)
    check_metric(metric, model, clean)
    check_direction(direction)
    name, layers = site_and_layers(site, layers)
    cells = make_cells(
        model, name, over, clean, layers=layers, positions=positions, heads=heads, neurons=neurons
    )
    said = metric.describe()
    identity = (
        clean, corrupted, said, metric, name, list(cells.labels), cells.where, direction,
    )  # fmt: skip
    driver = Driver.of(
        model, clean, identity, batch=batch, memory=memory, mesh=mesh, parts=parts, ledger=ledger,
        on_done=on_done,
    )  # fmt: skip
    # What no prompt can feel is left out of all batches alike: they run the same programs.
    first = first_difference(clean, corrupted)
    felt = felt_cells(model, cells, clean, first)
    kept, whole = np.asarray(felt.any(-1)), open_axes(model, name, cells.where, clean, first)

    def run(rows: np.ndarray) -> np.ndarray:
        where = {**cells.indices(kept, rows), **whole}
        twins = clean[rows], corrupted[rows]
        return _patch_batch(driver, *twins, of_prompts(metric, rows), name, where, direction)

    found = driver.batches(run, len(cells))
    values = spread(found[:-2], felt, found[-1 if direction == "denoise" else -2])
    attrs = claim(
        model, site=name, over=list(cells.labels), direction=direction, intervention="replace",
        metric=said, n_prompts=len(clean), **dict(record or {}),
    )  # fmt: skip
    coords = coordinates(cells, clean, corrupted, tokenizer, names)
    baselines = {"clean": found[-2], "corrupted": found[-1]}
    return label(cells, values, metric.name, coords, attrs, baselines)


def _patch_batch(
    driver: Driver, clean: Tokens, corrupted: Tokens, metric: Metric, site: str,
    where: dict[str, Any], direction: Direction,
) -> np.ndarray:  # fmt: skip
    """[E + 2, B]: the metric under every patch, then the clean and corrupted baselines."""
    clean, corrupted = driver.place(clean), driver.place(corrupted)
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    base_run, donated, recorded = observe_twins(driver.model, base, donor, metric, record=(site,))
    values = driver.sweep(base, replace(site, Shared(recorded[site]), **where), metric, base_run)
    ends = [to_host(donated), to_host(base_run.metric)]  # clean first
    return np.concatenate([values, ends if direction == "denoise" else ends[::-1]])
