"""Causal tracing: where in the network a fact about the subject is restored.

Meng et al. 2022, arXiv:2202.05262: noise on the embeddings of the subject's tokens spoils the
answer; putting the clean run's values back, at one position in a few layers, shows where what
was known of the subject passes. Zhang & Nanda 2023 (arXiv:2309.16042) found that Gaussian
noise and wide windows can both mislead: prefer `patch` with counterfactual prompts where there
are any.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.cells import Cells, coordinates, label, make_cells
from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.components import position_mask
from jaxinterp.grid_runs import (
    Driver,
    felt_cells,
    ignore,
    open_axes,
    recorded,
    site_and_layers,
    spread,
)
from jaxinterp.interventions import Shared, add, replace
from jaxinterp.metrics import Metric, check_metric, evaluate, of_prompts
from jaxinterp.model import SITES, Model, Prefix, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.parts import normalize
from jaxinterp.results import claim
from jaxinterp.sweep import Base, Ledger
from jaxinterp.sweep.devices import to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh

__all__ = ["trace_causes"]


def trace_causes(
    model: Model,
    *,
    tokens: Any,
    subject: Any,
    metric: Metric,
    site: str = "resid_post",
    over: Sequence[str] = ("layer", "position"),
    window: int = 1,
    noise: float = 3.0,
    samples: int = 10,
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
    """The metric when the clean value is put back, cell by cell, into runs with a noised subject.

    subject: the positions of the subject's tokens: one per prompt [B], several [B n] (-1 fills
    shorter rows), or a mask [B P] over positions. noise: its standard deviation, in those of
    the embeddings of all given subjects (the paper's 3). samples: noises per prompt; each is
    the same for all cells, whatever the batch size.

    window: layers that are restored together, from ``layer - window // 2`` on, as far as there
    are any (the paper: 1 for the residual stream, 10 for ``mlp_out`` and ``attn_out``). The
    grid needs an axis ``layer``.

    Returns an ``xarray.DataArray`` with dims (*over, "sample", "prompt"). Coordinates:
    ``clean`` [prompt] and ``corrupted`` [sample, prompt], the metric with noise and nothing
    restored. The indirect effect of a cell is the result minus ``corrupted``. Other arguments
    and errors are as in `patch`; ``attrs`` also hold the noise's standard deviation, ``sigma``.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    name, layers = site_and_layers(site, layers)
    cells = make_cells(
        model, name, over, tokens, layers=layers, positions=positions, heads=heads, neurons=neurons
    )
    if "layer" not in cells.where:
        raise ValueError(f"over={over} has no layer: tracing restores a site in some layers.")
    samples, window = whole_number("samples", samples, 1, MANY), whole_number("window", window, 1)
    noise, seed = real_number("noise", noise, above=0), random_seed(seed)
    noised = position_mask(tokens, subject, "subject")
    sigma = noise * _deviation(model, tokens, noised)
    cells = Cells(cells.labels, {**cells.where, "layer": _windows(model, cells, window)})
    rows_of = np.repeat(np.arange(len(tokens)), samples)  # every sample is a prompt of its own
    stacked = tokens[rows_of]
    identity = (
        "trace", tokens, metric.describe(), metric, name, list(cells.labels), cells.where, noised,
        sigma, samples, seed,
    )  # fmt: skip
    driver = Driver.of(
        model, stacked, identity, batch=batch, memory=memory, mesh=mesh, parts=parts,
        ledger=ledger, on_done=on_done,
    )  # fmt: skip
    first = noised.argmax(-1)
    felt = felt_cells(model, _for_rows(cells, rows_of), stacked, first[rows_of])
    kept, whole = np.asarray(felt.any(-1)), open_axes(model, name, cells.where, tokens, first)

    def run(rows: np.ndarray) -> np.ndarray:
        prompts = rows_of[rows]
        own, each = driver.place(tokens[prompts]), of_prompts(metric, prompts)
        added = _noise(tokens, noised, prompts, rows % samples, sigma, seed, model.config.d_model)
        spoil = add("embed", jnp.asarray(added))
        clean = recorded(driver.model, own, sites=(name,))[name]
        base = base_with(driver.model, own, each, (spoil,))
        where = {**cells.indices(kept, prompts), **whole}
        values = driver.sweep(own, replace(name, Shared(clean), **where), each, base)
        ends = [to_host(base.metric), to_host(evaluate(each, driver.model, own))]
        return np.concatenate([values, ends])

    found = driver.batches(run, len(cells))
    values = spread(found[:-2], felt, found[-2])
    shaped = np.moveaxis(values.reshape(len(cells), len(tokens), samples), -1, 1)
    attrs = claim(
        model, site=name, over=list(cells.labels), intervention="restore", direction="denoise",
        corruption="noise on the subject's embeddings", noise=noise, sigma=sigma, samples=samples,
        seed=seed, window=window, subject=noised.astype(int), metric=metric.describe(),
        n_prompts=len(tokens), **dict(record or {}),
    )  # fmt: skip
    coords = coordinates(cells, tokens, None, tokenizer, names)
    coords["sample"] = ("sample", np.arange(samples))
    ends = {"clean": found[-1][::samples], "corrupted": found[-2].reshape(-1, samples).T}
    return label(cells, shaped, metric.name, coords, attrs, ends, extra=("sample",))


def base_with(model: Model, tokens: Tokens, metric: Metric, edits: tuple[Any, ...]) -> Base:
    """What a sweep starts from when ``edits`` have been made already: they are not made again.

    Only edits of the embedding, which no experiment of the sweep can undo.
    """
    assert all(not SITES[site].layered for edit in edits for site in edit.sites)
    resid_pre, kv = _stream_with(model, tokens, edits)
    return Base(resid_pre, kv, evaluate(metric, model, tokens, edits))


@jit
def _stream_with(
    model: Model, tokens: Tokens, edits: tuple[Any, ...]
) -> tuple[jax.Array, Prefix]:  # fmt: skip
    """The stream before every layer [L B P D], and keys and values as attention reads them."""
    c = model.config
    key = "rot_k" if c.positions == "rotary" else "k"
    found = forward(model, tokens, edits, record=("resid_pre", key, "v")).activations
    k = found[key]
    if key == "k" and c.qk_norm != "none":  # recorded before its norm
        axes = (-2, -1) if c.qk_norm == "joint" else (-1,)
        norm = functools.partial(normalize, c, axes=axes, kind="rms")
        k = jax.vmap(norm)(model.params.blocks.attn.k_norm, k)
    return found["resid_pre"], Prefix(k, found["v"])


def _windows(model: Model, cells: Cells, window: int) -> np.ndarray:
    """bool [E L]: the layers that each cell restores."""
    offset = np.arange(model.config.n_layers) - cells.where["layer"][:, None]
    return (offset >= -(window // 2)) & (offset < window - window // 2)


def _for_rows(cells: Cells, rows: np.ndarray) -> Cells:
    """The cells for other rows of prompts."""
    return Cells(cells.labels, cells.indices(np.ones(len(cells), bool), rows))


def _deviation(model: Model, tokens: Tokens, noised: np.ndarray) -> float:
    """The standard deviation of the numbers in all subjects' embeddings."""
    prompt, position = np.nonzero(noised)
    columns = position + np.asarray(tokens.mask).argmax(-1)[prompt]
    values = model.params.embed.W_E[np.asarray(tokens.ids)[prompt, columns]]
    return float(np.asarray(values, np.float64).std() * model.config.embed_scale)


def _noise(
    tokens: Tokens, noised: np.ndarray, prompts: np.ndarray, samples: np.ndarray, sigma: float,
    seed: int, width: int,
) -> np.ndarray:  # fmt: skip
    """float32 [B P D], by column: each prompt's and sample's own, zero outside the subject."""
    out = np.zeros((len(prompts), tokens.shape[1], width), np.float32)
    starts = np.asarray(tokens.mask).argmax(-1)
    for row, (prompt, sample) in enumerate(zip(prompts.tolist(), samples.tolist(), strict=True)):
        rng = np.random.default_rng([seed, prompt, sample])
        columns = np.flatnonzero(noised[prompt]) + starts[prompt]
        out[row, columns] = sigma * rng.standard_normal((len(columns), width))
    return out
