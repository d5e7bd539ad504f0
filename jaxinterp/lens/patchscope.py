"""Patchscopes: let the model itself say what a hidden state holds (Ghandeharioun et al. 2024,
arXiv:2401.06102): put it into another prompt, and read what the model goes on with there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import MANY, whole_number
from jaxinterp.generation import generate
from jaxinterp.generation.run import ends_of
from jaxinterp.grid_runs import recorded
from jaxinterp.interventions import replace
from jaxinterp.model import Model, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.points import layers_in, places_in
from jaxinterp.results import claim

if TYPE_CHECKING:
    import xarray as xr


def patchscope(
    model: Model,
    source: Any,
    at: Any,
    target: Any,
    into: Any,
    *,
    n_new: int = 1,
    layers: Sequence[int] | None = None,
    into_layers: Sequence[int] | None = None,
    tokenizer: Any = None,
) -> xr.Dataset:
    """What the model says after ``target`` when the source's stream is put into it.

    source, target: prompts [B P] and [B Q], or one target for all. at, into: positions within
    each prompt, an int or [B]. layers: the source's (the stream before block l), default all.
    into_layers: where it is put, before which block; default: the same as the source's. Given
    both, every pair is run. n_new: tokens to generate, greedily.

    Returns a Dataset with dims (layer, into_layer where given, prompt, new): ``token`` and its
    ``log_prob``; with a tokenizer also ``text`` without the last dim. A text ends with one of the
    tokenizer's ``ends``; ``token`` is -1 after it, ``log_prob`` 0.

    Raises ``ValueError`` for positions or layers out of range, and prompts that do not match.
    """
    import xarray as xr

    source, target = as_tokens(source), as_tokens(target)
    n_new = whole_number("n_new", n_new, 1, MANY)
    if len(target) == 1 and len(source) > 1:
        target = target[np.zeros(len(source), int)]
    if len(target) != len(source):
        raise ValueError(f"There are {len(source)} sources and {len(target)} targets.")
    for tokens in (source, target):
        check_tokens(model.config, tokens)
    c, rows = model.config, np.arange(len(source))
    from_where = source.columns(places_in(source, at))
    places = places_in(target, into)
    given = layers_in(c.n_layers, layers)
    others = None if into_layers is None else layers_in(c.n_layers, into_layers, "into_layers")
    stream = recorded(model, source, sites=("resid_pre",))["resid_pre"]
    values = np.asarray(stream[:, rows, np.asarray(from_where)])  # [L B D]
    stop = ends_of(model, tokenizer)
    tokens, log_probs, texts = [], [], list[str]()
    for layer in given:
        for put in [layer] if others is None else others:
            edit = replace("resid_pre", values[layer][:, None], layer=put, position=places)
            found = generate(model, target, n_new, interventions=edit, apply="prompt", stop=stop)
            tokens.append(found.kept())
            texts += [] if tokenizer is None else found.texts(tokenizer)
            log_probs.append(np.asarray(found.log_probs))
    dims = ("layer", *(() if others is None else ("into_layer",)), "prompt", "new")
    shape = (len(given), *(() if others is None else (len(others),)), len(source), n_new)
    data = {
        "token": (dims, np.stack(tokens).reshape(shape)),
        "log_prob": (dims, np.stack(log_probs).reshape(shape)),
    }
    if tokenizer is not None:
        data["text"] = (dims[:-1], np.asarray(texts, object).reshape(shape[:-1]))
    coords = {"layer": given, "prompt": rows} | ({} if others is None else {"into_layer": others})
    attrs = claim(
        model, site="resid_pre", intervention="replace", at=at, into=into, n_prompts=len(source)
    )
    return xr.Dataset(data, coords, attrs)
