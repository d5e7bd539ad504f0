"""Reach: interventions on a text that is not whole yet.

An index may lie ahead of the text so far, in tokens to come; one that no pass meets is
refused.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxinterp.interventions import Edit, replace, unshare
from jaxinterp.metrics.arguments import as_array, is_concrete
from jaxinterp.model import SITES, Intervention, Model, Tokens
from jaxinterp.model.taps import as_interventions

Apply = Literal["both", "prompt", "generated"]


def reach(lengths: Any, n_new: int, apply: Apply) -> dict[str, tuple[Any, Any]]:
    """The positions and sources (from, up to) [B] of each prompt that interventions meet."""
    end = lengths + (0 if apply == "prompt" else n_new - 1)
    begin = lengths if apply == "generated" else 0 * lengths
    return {"position": (begin, end), "source": (0 * lengths, end)}


def foresee(
    interventions: tuple[Intervention, ...], tokens: Tokens, n_new: int, apply: Apply
) -> tuple[Intervention, ...]:
    """The interventions as they act on a text that is not whole yet."""
    met, length = reach(tokens.lengths, n_new, apply), tokens.shape[1] + n_new
    edits = [waiting(i, met, length) if isinstance(i, Edit) else [i] for i in interventions]
    return tuple(itertools.chain(*edits))


def waiting(edit: Edit, met: dict[str, tuple[Any, Any]], length: int) -> list[Intervention]:
    """An edit that can wait for a position ahead, and NaN in prompts where none comes.

    An `Edit` takes an integer beyond the text so far for a mistake, but not a mask.
    """
    mistakes: list[Intervention] = []
    for axis, (low, high) in met.items():
        index = integers(getattr(edit.where, axis))
        if index is None:
            continue
        index = jnp.broadcast_to(index, low.shape)
        mask = jnp.arange(length) == index[:, None]
        outside = jnp.broadcast_to(((index < low) | (index >= high))[:, None], mask.shape)
        edit = edit.replace(where=edit.where.replace(**{axis: mask}))
        mistakes.append(replace(edit.site, jnp.nan, position=outside))
    return [*mistakes, edit]


def integers(index: Any) -> Any:
    """An index of integers, [] or [B]; None for masks and where there is none."""
    index = None if index is None else as_array(unshare(index))
    return None if index is None or index.dtype == bool else index


def check_interventions(
    model: Model, tokens: Tokens, n_new: int, given: Any, apply: Apply
) -> tuple[Intervention, ...]:
    """The interventions as a flat tuple; each can act on the text that is generated."""
    if apply not in get_args(Apply):
        raise ValueError(f"apply={apply!r}, expected one of {', '.join(get_args(Apply))}.")
    ids = np.zeros((len(tokens), tokens.shape[1] + n_new), np.int32)
    whole = Tokens(ids, ids + np.arange(ids.shape[1]))
    interventions = as_interventions(model.config, given, whole)
    if interventions and apply == "generated" and n_new == 1:
        raise ValueError(
            "apply='generated' acts in the passes over new tokens, and n_new=1 needs none (the "
            "prompt predicts the first). Ask for more tokens, or apply='prompt'."
        )
    for intervention in interventions:
        if isinstance(intervention, Edit):
            check_reach(intervention, tokens, n_new, apply)
            if apply != "prompt":
                check_values(intervention, tokens, n_new)
    return interventions


def check_reach(edit: Edit, tokens: Tokens, n_new: int, apply: Apply) -> None:
    """Refuse an integer position or source that no pass with interventions meets."""
    for axis in ("position", "source"):
        index = integers(getattr(edit.where, axis))
        if index is None or not is_concrete(index, tokens.positions):
            continue
        lengths = np.asarray(tokens.lengths)
        low, high = reach(lengths, n_new, apply)[axis]
        index = np.broadcast_to(index, len(tokens))
        outside = np.flatnonzero((index < low) | (index >= high))
        if outside.size:
            b = outside[0]
            raise ValueError(
                f"{axis} {index[b]} at {edit.site!r} is not met in prompt {b} of {lengths[b]} "
                f"tokens: with n_new={n_new} and apply={apply!r}, expected {low[b]} to "
                f"{high[b] - 1} (the last new token is not run)."
            )


def check_values(edit: Edit, tokens: Tokens, n_new: int) -> None:
    """Refuse recorded values that do not say what new tokens' passes should get."""
    shape, axes = np.shape(unshare(edit.value)), ("batch", *SITES[edit.site].axes)
    if len(shape) < len(axes):
        return
    sizes = dict(zip(axes, shape[-len(axes) :], strict=True))
    given, length = sizes["position"], tokens.shape[1]
    what = f"The value for {edit.site!r} (shape {list(shape)})"
    if sizes.get("source", 1) > 1:
        raise ValueError(
            f"{what} is recorded over sources, which new tokens have more of: pass apply='prompt'."
        )
    if edit.where.position is None and 1 < given < length + n_new - 1:
        raise ValueError(
            f"{what} holds {given} columns, and {length + n_new - 1} are run: restrict it to "
            "positions it holds, or pass apply='prompt'."
        )
    if given > length and is_concrete(tokens.positions) and (tokens.positions[:, -1] < 0).any():
        raise ValueError(
            f"{what} holds new tokens' columns, and the prompts ({length} columns) are padded "
            "on the right: pad them on the left, so that columns are those of the result."
        )
