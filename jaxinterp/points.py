"""Activations as data: what stands at a position of every prompt, at every layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.grid_runs import batch_size, site_and_layers
from jaxinterp.model import SITES, Model, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import require
from jaxinterp.numerics import wide
from jaxinterp.sweep.schedule import MEMORY


def collect(
    model: Model,
    tokens: Any,
    position: Any = -1,
    *,
    site: str | None = None,
    batch: int | None = None,
) -> np.ndarray:
    """Activations [layer, prompt, ...] at one position of each prompt, in float32 or wider.

    position: within the prompt, an int (negative: from its end) or one per prompt; ``"mean"``
    averages over a prompt's tokens. site: by default the residual stream at all L + 1 points
    (layer l: the input of block l; L: what the last block leaves), else any site with a position
    axis, by our name or TransformerLens's (which also chooses the layer). batch: prompts per
    program.

    Raises ``ValueError`` for sites without positions of their own and positions that do not exist.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    name, layers = (None, None) if site is None else site_and_layers(site, None)
    if name is not None and require(model.config, name).axes[0] != "position":
        raise ValueError(f"{name!r} has axes {SITES[name].axes}: it has no value at a position.")
    mean = isinstance(position, str)
    if mean and position != "mean":
        raise ValueError(f"position={position!r}, expected integers or 'mean'.")
    places = places_in(tokens, 0 if mean else position)
    size, pieces = batch_size(model, tokens, batch, MEMORY), []
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        part = tokens[rows]
        columns = None if mean else jnp.asarray(part.columns(places[rows]))
        pieces.append(np.asarray(_collected(model, part, columns, site=name)))
    found = np.concatenate(pieces, 1)[:, : len(tokens)]
    found = wide(found)  # sums of a half-precision array would be rounded by whoever takes them
    return found if layers is None else found[list(layers)]


@functools.partial(jit, static=("site",))
def _collected(
    model: Model, tokens: Tokens, columns: jax.Array | None, *, site: str | None
) -> jax.Array:
    sites = ("resid_pre", "resid_post") if site is None else (site,)
    found = forward(model, tokens, record=sites).activations
    values = found[sites[0]]
    if site is None:
        values = jnp.concatenate([values, found["resid_post"][-1:]])
    elif not SITES[site].layered:
        values = values[None]
    if columns is not None:
        return values[:, jnp.arange(len(columns)), columns]
    real = tokens.mask.reshape(1, *tokens.shape, *[1] * (values.ndim - 3))
    return jnp.where(real, wide(values), 0).sum(2) / real.sum(2)


def places_in(tokens: Tokens, position: Any) -> np.ndarray:
    """One position per prompt, int [B], counted from 0; negative ones count from the end.

    Raises ``ValueError`` for positions outside their prompts.
    """
    lengths = np.asarray(tokens.lengths)
    given = np.asarray(position)
    if given.dtype.kind not in "iu" or given.shape not in ((), lengths.shape):
        raise ValueError(f"position={position!r}, expected an integer, or {len(lengths)} of them.")
    places = np.broadcast_to(given, lengths.shape)
    places = np.where(places < 0, places + lengths, places)
    if (places < 0).any() or (places >= lengths).any():
        raise ValueError(f"position={position!r} is outside prompts of {lengths.tolist()} tokens.")
    return places


def layers_in(n_layers: int, given: Sequence[int] | None, name: str = "layers") -> list[int]:
    """The chosen layers, by default all. Raises ``ValueError`` for none, or ones not there."""
    given = range(n_layers) if given is None else given
    layers = [whole_number(name, layer, 0, n_layers - 1) for layer in given]
    if not layers:
        raise ValueError(f"{name}={given!r}, expected layers from 0 to {n_layers - 1}.")
    return layers
