"""Activation patching: put one run's values into another, everywhere, one place at a time.

*Denoising* patches the clean run's value into the corrupted run (what suffices to restore
the behaviour); *noising* patches the corrupted run's value into the clean run (what is
necessary for it). Heimersheim & Nanda 2024, arXiv:2404.15255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxinterp.cells import Cells, coordinates, label, make_cells
from jaxinterp.interventions import Shared, replace
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import SITES, Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import parse
from jaxinterp.results import Parts, claim, fingerprint, weights_digest
from jaxinterp.sweep import Ledger, sweep
from jaxinterp.sweep.base import observe_twins
from jaxinterp.sweep.devices import checked, place_model, place_tokens, to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh

Direction = Literal["denoise", "noise"]
BATCH = 32  # prompts per program, at most


def first_difference(clean: Tokens, corrupted: Tokens) -> np.ndarray:
    """The first position [B] at which two batches of prompts differ (their length if none)."""
    differ = np.asarray(clean.ids != corrupted.ids) & np.asarray(clean.mask)
    columns = np.where(differ.any(-1), differ.argmax(-1), clean.shape[1])
    return np.asarray(columns - np.asarray(clean.mask).argmax(-1))


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
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction is {direction!r}, expected 'denoise' or 'noise'.")
    name, layer = parse(site)
    if layer is not None:
        if layers is not None and list(layers) != [layer]:
            raise ValueError(f"{site!r} names layer {layer}, layers={layers} others: give one.")
        layers = [layer]
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}: a program holds at least one prompt.")
    cells = make_cells(
        model, name, over, clean, layers=layers, positions=positions, heads=heads, neurons=neurons
    )
    size = min(batch or _fitting(model, clean, memory), len(clean))
    store = None
    if parts is not None:
        key = fingerprint(
            weights_digest(model), repr(model.config), clean, corrupted, metric.describe(),
            metric, name, cells.where, direction, size,
        )  # fmt: skip
        store = Parts(parts, key)
    # What no prompt can feel is left out of all batches alike: they run the same programs.
    felt = felt_cells(model, cells, clean, corrupted)
    kept = np.asarray(felt.any(-1))
    shared = _open_axes(model, name, cells, clean, corrupted)
    placed = model if mesh is None else place_model(checked(mesh), model)
    pieces = []
    for number, begin in enumerate(range(0, len(clean), size)):
        piece = None if store is None else store.get(number)
        if piece is None:
            rows = np.arange(begin, begin + size).clip(max=len(clean) - 1)
            piece = _patch_batch(
                placed, clean[rows], corrupted[rows], of_prompts(metric, rows), name,
                {**cells.indices(kept, rows), **shared}, direction, memory, mesh, ledger,
            )  # fmt: skip
            if store is not None:
                store.put(number, piece)
        pieces.append(piece)
        on_done(len(cells) * min(size, len(clean) - begin))
    found = np.concatenate(pieces, -1)[:, : len(clean)]
    values = np.repeat(found[[-1 if direction == "denoise" else -2]], len(cells), axis=0)
    values[felt] = found[:-2][felt[kept]]
    values = np.concatenate([values, found[-2:]])
    attrs = claim(
        model, site=name, over=list(cells.labels), direction=direction, intervention="replace",
        metric=metric.describe(), n_prompts=len(clean), **dict(record or {}),
    )  # fmt: skip
    coords = coordinates(cells, clean, corrupted, tokenizer, names)
    return label(cells, values, metric.name, coords, attrs)


def _fitting(model: Model, tokens: Tokens, memory: int) -> int:
    """Prompts per program: those whose base run's streams, keys and values fit."""
    c = model.config
    width = 2 * c.d_model + 2 * c.n_kv_heads * c.d_head
    return int(max(1, min(BATCH, memory // (4 * c.n_layers * tokens.shape[1] * width))))


def _patch_batch(
    model: Model, clean: Tokens, corrupted: Tokens, metric: Metric, site: str,
    where: dict[str, Any], direction: Direction, memory: int, mesh: Mesh | None,
    ledger: Ledger | None,
) -> np.ndarray:  # fmt: skip
    """[E + 2, B]: the metric under every patch, then the clean and corrupted baselines."""
    if mesh is not None:
        clean, corrupted = (place_tokens(checked(mesh), t) for t in (clean, corrupted))
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    base_run, donated, recorded = observe_twins(model, base, donor, metric, record=(site,))
    grid = replace(site, Shared(recorded[site]), **where)
    values = sweep(
        model, base, grid, metric, base=base_run, memory=memory, mesh=mesh, ledger=ledger
    )
    ends = [to_host(donated), to_host(base_run.metric)]  # clean first
    return np.concatenate([values, ends if direction == "denoise" else ends[::-1]])


def felt_cells(model: Model, cells: Cells, clean: Tokens, corrupted: Tokens) -> np.ndarray:
    """bool [E B]: whether a patch can change anything, as far as the tokens tell."""
    first = first_difference(clean, corrupted)
    felt = np.repeat((first < np.asarray(clean.lengths))[None], len(cells), axis=0)
    if model.config.causal and "position" in cells.where:
        # A causal run cannot differ from its donor before the first token that differs.
        felt &= cells.where["position"].reshape(len(cells), -1) >= first
    return felt


def _open_axes(
    model: Model, site: str, cells: Cells, clean: Tokens, corrupted: Tokens
) -> dict[str, Any]:
    """Masks for axes that the grid does not sweep, where a part of them is known not to matter."""
    if "position" in cells.where or "position" not in SITES[site].axes or not model.config.causal:
        return {}
    first = first_difference(clean, corrupted).min()
    return {"position": Shared(np.arange(clean.shape[1]) >= first)}


def check_pair(model: Model, clean: Tokens, corrupted: Tokens) -> None:
    """Clean and corrupted prompts must match one to one, token by token."""
    for tokens in (clean, corrupted):
        check_tokens(model.config, tokens)
    if clean.shape[0] != corrupted.shape[0]:
        raise ValueError(
            f"There are {clean.shape[0]} clean and {corrupted.shape[0]} corrupted prompts: "
            "give each clean prompt its corrupted twin."
        )
    a, b = np.asarray(clean.lengths), np.asarray(corrupted.lengths)
    if clean.shape != corrupted.shape or (a != b).any():
        bad = int(np.argmax(a != b)) if (a != b).any() else 0
        raise ValueError(
            f"Prompt {bad} has {a[bad]} tokens clean and {b[bad]} corrupted: patching needs "
            "twins of equal length, so that every position has a counterpart."
        )
    if (np.asarray(clean.positions) != np.asarray(corrupted.positions)).any():
        raise ValueError("Clean and corrupted prompts are padded on different sides.")
    if (clean.types is None) != (corrupted.types is None):
        raise ValueError("Only one of clean and corrupted has token types: give both or neither.")
