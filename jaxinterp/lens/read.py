"""Reading a model's streams through a lens: top tokens, target's rank, entropy, distance."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.grid_runs import batch_size
from jaxinterp.lens.kinds import Lens, LogitLens
from jaxinterp.lens.readout import Reading, read_rows
from jaxinterp.model import Model, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import parse, require
from jaxinterp.model.taps import as_interventions
from jaxinterp.results import claim
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr


def read(
    model: Model,
    tokens: Any,
    lens: Lens | None = None,
    *,
    site: str | None = None,
    targets: Any = None,
    top: int = 5,
    interventions: Any = (),
    tokenizer: Any = None,
    batch: int | None = None,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """What every point of the residual stream says of the next token.

    lens: `LogitLens` (default), `TunedLens`, `JacobianLens`. site: by default the stream at all
    L + 1 points (layer l: the input of block l; L: what the last block leaves), or any site of
    the stream's width, such as ``"attn_out"`` or ``"result"`` (each head's own output), which the
    logit lens reads by itself, through the model's final norm.
    targets: tokens [B], or [B P], whose probability and rank are read; by default each position's
    next token. interventions: as in `forward`, all prompts in one program then; those at the final
    norm do not reach the lens. top: how many tokens are named. batch: prompts per program.

    Returns a Dataset with dims (layer, head where the site has one, prompt, position) and
    variables ``kl`` (KL(model || lens), nats), ``entropy`` (nats), ``log_prob`` and ``rank`` of
    the target (0: top), ``top_token`` and ``top_log_prob`` (with a dim ``top``); with a tokenizer
    ``top_text`` and the prompts' own ``token``. Positions count within each prompt; beyond its
    end, and where there is no target, values are NaN and tokens -1.

    Raises ``ValueError`` for a model without an unembedding, sites of another width, a lens made
    for another model or used beside the stream, and targets of another shape.
    """
    tokens = as_tokens(tokens)
    lens = LogitLens() if lens is None else lens
    check_tokens(model.config, tokens)
    name, axes = _site(model, site, lens)
    wanted, known = _targets(tokens, targets)
    top = whole_number("top", top, 1, model.config.n_logits)
    interventions = as_interventions(model.config, interventions, tokens)
    size = len(tokens) if interventions else batch_size(model, tokens, batch, MEMORY)
    pieces = []
    lengths = np.asarray(tokens.lengths)
    at = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        part = tokens[rows]
        pieces.append(jax.device_get(_read(
            model, part, part.columns(at[rows]), wanted[rows], lens, interventions, site=name,
            top=top,
        )))  # fmt: skip
    lead = ("layer", "head") if "head" in axes else ("layer",)
    whole: Reading = jax.tree.map(lambda *each: np.concatenate(each, len(lead)), *pieces)
    found = jax.tree.map(lambda a: a.take(np.arange(len(tokens)), len(lead)), whole)
    dims = (*lead, "prompt", "position")
    real = np.arange(at.shape[1]) < lengths[:, None]
    attrs = claim(
        model, site=name or "residual stream", lens=type(lens).__name__, intervention="none",
        n_prompts=len(tokens), targets="next" if targets is None else "given",
        **dict(record or {}),
    )  # fmt: skip
    return _labelled(tokens, found, dims, real, real & known, tokenizer, attrs)


@functools.partial(jit, static=("site", "top"))
def _read(
    model: Model, tokens: Tokens, columns: jax.Array, targets: jax.Array, lens: Lens,
    interventions: Any, *, site: str | None, top: int,
) -> Reading:  # fmt: skip
    """Readings with axes (layer, head?, B, P)."""
    found = forward(
        model, tokens, interventions, record=(site or "resid_pre", "resid_post")
    ).activations
    last, points = found["resid_post"][-1:], found[site or "resid_pre"]
    points = points if points.ndim > 3 else points[None]  # embed has no layer
    if site is None:
        points = lens(jnp.concatenate([points, last]))
    points, final = _at(points, columns), _at(last, columns)[0]
    if points.ndim == 5:  # [L B P H D]: each head is a point of its own
        points = jnp.moveaxis(points, 3, 1)
    lead, shape = points.shape[:-3], final.shape[:2]
    reading = read_rows(
        model, points.reshape(-1, shape[0] * shape[1], points.shape[-1]),
        final.reshape(-1, final.shape[-1]), targets.reshape(-1), k=top,
    )  # fmt: skip
    return jax.tree.map(lambda a: a.reshape(*lead, *shape, *a.shape[2:]), reading)


def _at(streams: jax.Array, columns: jax.Array) -> jax.Array:
    """The columns [B Q] of streams [L B P ...]."""
    return streams[:, jnp.arange(len(columns))[:, None], columns]


def _site(model: Model, site: str | None, lens: Lens) -> tuple[str | None, tuple[str, ...]]:
    """The site's own name and axes; it must be one that the final norm and head can read."""
    if model.config.head == "none":
        raise ValueError(f"A {model.config.family} model without an unembedding has no lens.")
    lens.check(model.config)
    if site is None:
        return None, ()
    if not isinstance(lens, LogitLens):
        raise ValueError(
            f"site={site!r} with a {type(lens).__name__}: that lens was made for the residual "
            "stream; leave site out, or read the site with the logit lens."
        )
    name, layer = parse(site)
    if layer is not None:
        raise ValueError(f"{site!r} names a layer: a lens reads them all; pass {name!r}.")
    axes = require(model.config, name).axes
    if axes[-1] != "d_model":
        raise ValueError(
            f"{name!r} has {axes[-1]} values, the unembedding reads d_model: expected a site of "
            "the stream's width, such as 'resid_mid', 'attn_out', 'mlp_out' or 'result'."
        )
    return name, axes


def _targets(tokens: Tokens, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """The target at every position [B P] counted within each prompt, and where there is one."""
    lengths, width = np.asarray(tokens.lengths), int(np.asarray(tokens.lengths).max())
    at = np.arange(width)
    if given is None:
        after = np.minimum(at + 1, lengths[:, None] - 1)
        ids = np.take_along_axis(np.asarray(tokens.ids), np.asarray(tokens.columns(after)), 1)
        return ids, at + 1 < lengths[:, None]
    ids = np.asarray(given)
    ids = np.broadcast_to(ids[:, None], (len(ids), width)) if ids.ndim == 1 else ids
    if ids.shape != (len(tokens), width) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"targets are {np.asarray(given).dtype} {list(np.shape(given))}, expected token ids "
            f"[{len(tokens)}], or [{len(tokens)}, {width}] (one for every position)."
        )
    return ids, np.ones(ids.shape, bool)


def _labelled(
    tokens: Tokens, found: Reading, dims: tuple[str, ...], real: np.ndarray, known: np.ndarray,
    tokenizer: Any, attrs: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    import xarray as xr

    top = (*dims, "top")
    data = {
        "kl": (dims, np.where(real, found.kl, np.nan)),
        "entropy": (dims, np.where(real, found.entropy, np.nan)),
        "log_prob": (dims, np.where(known, found.log_prob, np.nan)),
        "rank": (dims, np.where(known, found.rank, np.nan)),
        "top_token": (top, np.where(real[..., None], found.top, -1)),
        "top_log_prob": (top, np.where(real[..., None], found.top_log_prob, np.nan)),
    }
    coords: dict[str, Any] = {
        dim: np.arange(size) for dim, size in zip(top, found.top.shape, strict=True)
    }
    if tokenizer is not None:
        ids = np.take_along_axis(
            np.asarray(tokens.ids),
            np.asarray(tokens.columns(np.where(real, np.arange(real.shape[1]), 0))), 1,
        )  # fmt: skip
        coords["token"] = (("prompt", "position"), tokenizer.token_texts(np.where(real, ids, -1)))
        data["top_text"] = (top, tokenizer.token_texts(data["top_token"][1]))
    return xr.Dataset(data, coords, attrs)
