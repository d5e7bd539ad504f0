"""Top examples: the tokens of a corpus on which units are largest, in one pass.

A unit is whatever a reader gives: an MLP's neurons, a dictionary's features. What is kept is k
examples of each, with their context; a corpus may be longer than memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens

if TYPE_CHECKING:
    import xarray as xr

ORDERS = ("top", "random")


class Kept(struct.PyTreeNode):
    """Of every unit: values and windows of its chosen tokens [L N K ...], and a histogram.

    key: by which they are chosen, the largest stay.
    """

    key: jax.Array
    value: jax.Array
    prompt: jax.Array
    position: jax.Array
    window: jax.Array
    counts: jax.Array  # [L N bins]


def find_examples(
    model: Model, batches: Iterable[Any], reader: Any, shape: tuple[int, int], *, k: int,
    order: str = "top", window: tuple[int, int] = (10, 3), edges: Any = None,
    one_per_prompt: bool = False, seed: int = 0, on_done: Callable[[int], None],
) -> tuple[Kept, int, int]:  # fmt: skip
    """What is kept of every unit, and how many prompts and real tokens there were.

    reader: a pytree; (model, tokens) to values [L B P N], of which ``shape`` is (L, N); -inf is no
    example. order:
    ``"top"`` keeps the largest values, ``"random"`` any that are above 0, each as likely. The other
    arguments, and what is refused, as in `jaxinterp.neurons.top_examples`.
    """
    before, after = (whole_number("window", each, 0, MANY) for each in window)
    k, seed = whole_number("k", k, 1, MANY), random_seed(seed)
    if order not in ORDERS:
        raise ValueError(f"order={order!r}, expected one of {', '.join(ORDERS)}.")
    bins = None if edges is None else np.asarray(edges, np.float32)
    if bins is not None and (bins.ndim != 1 or not (np.diff(bins) > 0).all()):
        raise ValueError("edges must be rising numbers.")
    kept, seen, first, n_real = None, 0, None, 0
    for number, given in enumerate(batches):
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        real = int(np.asarray(tokens.lengths).sum())
        if kept is None:
            enough = len(tokens) if one_per_prompt else real
            if enough < k:
                raise ValueError(f"The first batch has {enough} examples to take, fewer than {k}.")
            first = tokens.shape
            kept = _nothing(shape, k, before + 1 + after, bins)
        if tokens.shape != first:
            raise ValueError(f"A batch is {tokens.shape}, the first was {first}: give one shape.")
        draw = jax.random.fold_in(jax.random.key(seed), number)
        kept = _update(
            model, tokens, kept, reader, jnp.int32(seen), draw,
            None if bins is None else jnp.asarray(bins), window=window,
            one_per_prompt=one_per_prompt, order=order,
        )  # fmt: skip
        seen, n_real = seen + len(tokens), n_real + real
        on_done(real)
    if kept is None:
        raise ValueError("There are no prompts: is the stream used up?")
    return kept, seen, n_real


def _nothing(shape: tuple[int, int], k: int, size: int, bins: np.ndarray | None) -> Kept:
    lead = (*shape, k)
    return Kept(
        key=jnp.full(lead, -jnp.inf), value=jnp.full(lead, -jnp.inf),
        prompt=jnp.full(lead, -1), position=jnp.full(lead, -1),
        window=jnp.full((*lead, size), -1),
        counts=jnp.zeros((*shape, 0 if bins is None else len(bins) + 1), jnp.int32),
    )  # fmt: skip


@functools.partial(jit, static=("window", "one_per_prompt", "order"))
def _update(
    model: Model, tokens: Tokens, kept: Kept, reader: Any, seen: jax.Array, draw: jax.Array,
    bins: Any, *, window: tuple[int, int], one_per_prompt: bool, order: str,
) -> Kept:  # fmt: skip
    values = reader(model, tokens)  # L B P N
    n_prompts, length = tokens.shape
    mask, k = tokens.mask, kept.value.shape[-1]
    offsets = jnp.arange(-window[0], window[1] + 1)
    columns = jnp.arange(length)[:, None] + offsets  # P W
    inside = (columns >= 0) & (columns < length)
    columns = columns.clip(0, length - 1)
    windows = jnp.where(inside & mask[:, columns], tokens.ids[:, columns], -1)  # B P W

    def one(at: tuple[jax.Array, Kept, jax.Array]) -> Kept:
        x, old, key = at  # B P N
        y = x.astype(jnp.float32)
        if order == "random":
            y = jnp.where(y > 0, jax.random.uniform(key, y.shape, jnp.float32), -jnp.inf)
        y = jnp.where(mask[:, :, None], y, -jnp.inf).transpose(2, 0, 1)
        if one_per_prompt:
            place = y.argmax(-1)  # N B
            y = y.max(-1)
        else:
            place = jnp.broadcast_to(jnp.arange(n_prompts * length), (y.shape[0], y[0].size))
            y = y.reshape(len(y), -1)
        best, i = jax.lax.top_k(y, min(k, y.shape[1]))
        where = jnp.take_along_axis(place, i, 1)
        prompt = i if one_per_prompt else where // length
        column = where if one_per_prompt else where % length
        value = x[prompt, column, jnp.arange(x.shape[-1])[:, None]].astype(jnp.float32)
        real = best > -jnp.inf
        new = (
            best, jnp.where(real, value, -jnp.inf), jnp.where(real, seen + prompt, -1),
            jnp.where(real, tokens.positions[prompt, column], -1),
            jnp.where(real[..., None], windows[prompt, column], -1),
        )  # fmt: skip
        fields = (old.key, old.value, old.prompt, old.position, old.window)
        both = [jnp.concatenate(pair, 1) for pair in zip(fields, new, strict=True)]
        best, chosen = jax.lax.top_k(both[0], k)  # of equal ones, the earlier stays
        counts = old.counts
        if bins is not None:
            counts = counts + _histogram(x, mask, bins)
        take = functools.partial(jnp.take_along_axis, axis=1)
        return Kept(
            best, take(both[1], chosen), take(both[2], chosen), take(both[3], chosen),
            take(both[4], chosen[..., None]), counts,
        )  # fmt: skip

    keys = jax.random.split(draw, len(values))
    return jax.lax.map(one, (values, kept, keys))


def _histogram(x: jax.Array, mask: jax.Array, edges: jax.Array) -> jax.Array:
    """Counts [N bins] of x [B P N] at real tokens, one edge at a time."""
    real = mask[:, :, None]
    above = jax.lax.map(
        lambda edge: (real & (x >= edge)).sum((0, 1), dtype=jnp.int32), edges
    )  # edges N
    everything = jnp.broadcast_to(mask.sum(dtype=jnp.int32), above[:1].shape)
    upward = jnp.concatenate([everything, above, jnp.zeros_like(above[:1])])
    return (upward[:-1] - upward[1:]).T


def labelled(
    kept: Kept, unit: str, layers: list[int], edges: Any, window: tuple[int, int], tokenizer: Any,
    attrs: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    """`find_examples`'s with names: dims (layer, ``unit``, rank) and ``offset``, ``bin``."""
    import xarray as xr

    dims, k = ("layer", unit, "rank"), kept.value.shape[-1]
    context = np.asarray(kept.window)
    data: dict[str, Any] = {
        "value": (dims, np.asarray(kept.value)),
        "prompt": (dims, np.asarray(kept.prompt)),
        "position": (dims, np.asarray(kept.position)),
        "context": ((*dims, "offset"), context),
    }
    coords: dict[str, Any] = {
        "layer": layers, unit: np.arange(kept.value.shape[1]), "rank": np.arange(k),
        "offset": np.arange(-window[0], window[1] + 1),
    }  # fmt: skip
    if tokenizer is not None:
        flat = context.reshape(-1, context.shape[-1])
        texts = [tokenizer.decode(row[row >= 0].tolist()) for row in flat]
        data["text"] = (dims, np.asarray(texts, object).reshape(context.shape[:-1]))
    if edges is not None:
        data["count"] = (("layer", unit, "bin"), np.asarray(kept.counts))
        coords["bin"] = np.arange(len(edges) + 1)
        coords["above"] = ("bin", np.concatenate([[-np.inf], np.asarray(edges)]))
    return xr.Dataset(data, coords, attrs)
