"""MLP neurons: what activates them, and what they write. (What they cause: `ji.ablate`.)

All neurons of all layers are looked at in one pass over a corpus; what is kept is k examples each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.model import Model, Tokens, as_tokens, forward, unembed
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.parts import normalize
from jaxinterp.model.sites import require
from jaxinterp.points import layers_in
from jaxinterp.results import claim

if TYPE_CHECKING:
    import xarray as xr

BLOCK = 4096  # tokens of the vocabulary at a time


class _Kept(struct.PyTreeNode):
    """Of every neuron: values and windows of its best tokens [L N K ...], and a histogram."""

    value: jax.Array
    prompt: jax.Array
    position: jax.Array
    window: jax.Array
    counts: jax.Array  # [L N bins]


def top_examples(
    model: Model,
    batches: Iterable[Any],
    *,
    k: int = 10,
    site: str = "mlp_post",
    layers: Sequence[int] | None = None,
    window: tuple[int, int] = (10, 3),
    edges: Any = None,
    one_per_prompt: bool = False,
    tokenizer: Any = None,
    on_done: Callable[[int], None] = lambda tokens: None,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """The tokens of a corpus that activate each neuron most, and how often it is how active.

    batches: `Tokens` (or ids [B P]) of one shape, read once. site: ``"mlp_post"`` or
    ``"mlp_pre"``. window: tokens of context kept before and after. edges: of a histogram's bins,
    rising; none is counted by default. one_per_prompt: at most one example of each prompt.

    Returns a Dataset over (layer, neuron, rank): ``value``, ``prompt`` and ``position`` (counted
    over the stream, and within the prompt), and ``context`` with a dim ``offset`` (token ids, -1
    outside the prompt); with a tokenizer ``text``. With edges, ``count`` over (layer, neuron, bin);
    the first and last bins are open.

    Raises ``ValueError`` for an empty stream, batches of other shapes, and fewer real tokens in
    the first batch than k (prompts, if one each).
    """
    spec = require(model.config, site)
    if spec.axes != ("position", "neuron"):
        raise ValueError(f"{site!r} has axes {spec.axes}, expected 'mlp_post' or 'mlp_pre'.")
    c = model.config
    chosen = layers_in(c.n_layers, layers)
    before, after = window
    if k < 1 or before < 0 or after < 0:
        raise ValueError(f"k={k}, window={window}: expected k of 1 or more, no negative numbers.")
    bins = None if edges is None else np.asarray(edges, np.float32)
    if bins is not None and (bins.ndim != 1 or not (np.diff(bins) > 0).all()):
        raise ValueError("edges must be rising numbers.")
    kept, seen, shape, n_real = None, 0, None, 0
    for given in batches:
        tokens = as_tokens(given)
        check_tokens(c, tokens)
        real = int(np.asarray(tokens.lengths).sum())
        if kept is None:
            enough = len(tokens) if one_per_prompt else real
            if enough < k:
                raise ValueError(f"The first batch has {enough} examples to take, fewer than {k}.")
            shape = tokens.shape
            kept = _nothing(len(chosen), c.d_mlp, k, before + 1 + after, bins)
        if tokens.shape != shape:
            raise ValueError(f"A batch is {tokens.shape}, the first was {shape}: give one shape.")
        kept = _update(
            model, tokens, kept, jnp.int32(seen), jnp.asarray(chosen),
            None if bins is None else jnp.asarray(bins), site=site, window=window,
            one_per_prompt=one_per_prompt,
        )  # fmt: skip
        seen, n_real = seen + len(tokens), n_real + real
        on_done(real)
    if kept is None:
        raise ValueError("There are no prompts: is the stream used up?")
    attrs = claim(
        model, site=site, intervention="none", n_prompts=seen, n_tokens=n_real,
        **dict(record or {}),
    )  # fmt: skip
    return _labelled(kept, chosen, bins, window, tokenizer, attrs)


def _nothing(n_layers: int, width: int, k: int, size: int, bins: np.ndarray | None) -> _Kept:
    lead = (n_layers, width, k)
    return _Kept(
        value=jnp.full(lead, -jnp.inf), prompt=jnp.full(lead, -1), position=jnp.full(lead, -1),
        window=jnp.full((*lead, size), -1),
        counts=jnp.zeros((n_layers, width, 0 if bins is None else len(bins) + 1), jnp.int32),
    )  # fmt: skip


@functools.partial(jit, static=("site", "window", "one_per_prompt"))
def _update(
    model: Model, tokens: Tokens, kept: _Kept, seen: jax.Array, layers: jax.Array, bins: Any, *,
    site: str, window: tuple[int, int], one_per_prompt: bool,
) -> _Kept:  # fmt: skip
    values = forward(model, tokens, record=(site,)).activations[site][layers]  # L B P N
    n_prompts, length = tokens.shape
    mask, k = tokens.mask, kept.value.shape[-1]
    offsets = jnp.arange(-window[0], window[1] + 1)
    columns = jnp.arange(length)[:, None] + offsets  # P W
    inside = (columns >= 0) & (columns < length)
    columns = columns.clip(0, length - 1)
    windows = jnp.where(inside & mask[:, columns], tokens.ids[:, columns], -1)  # B P W

    def one(at: tuple[jax.Array, _Kept]) -> _Kept:
        x, old = at  # B P N
        y = jnp.where(mask[:, :, None], x.astype(jnp.float32), -jnp.inf).transpose(2, 0, 1)
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
        new = (
            best, seen + prompt, tokens.positions[prompt, column], windows[prompt, column],
        )  # fmt: skip
        both = [
            jnp.concatenate(pair, 1)
            for pair in zip((old.value, old.prompt, old.position, old.window), new, strict=True)
        ]
        value, order = jax.lax.top_k(both[0], k)  # of equal ones, the earlier stays
        counts = old.counts
        if bins is not None:
            counts = counts + _histogram(x, mask, bins)
        take = functools.partial(jnp.take_along_axis, axis=1)
        return _Kept(
            value, take(both[1], order), take(both[2], order),
            take(both[3], order[..., None]), counts,
        )  # fmt: skip

    return jax.lax.map(one, (values, kept))


def _histogram(x: jax.Array, mask: jax.Array, edges: jax.Array) -> jax.Array:
    """Counts [N bins] of x [B P N] at real tokens, one edge at a time."""
    real = mask[:, :, None]
    above = jax.lax.map(lambda edge: (real & (x >= edge)).sum((0, 1)), edges)  # edges N
    everything = jnp.broadcast_to(mask.sum(), above[:1].shape)
    upward = jnp.concatenate([everything, above, jnp.zeros_like(above[:1])])
    return (upward[:-1] - upward[1:]).T


def written_tokens(
    model: Model, layer: int, neurons: Sequence[int] | None = None, *, k: int = 10,
    tokenizer: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The tokens whose logits a neuron's output raises and lowers most, per unit of activation.

    Through the norms after it with their scales taken as 1: comparable within a layer, not between
    layers. neurons: default all of the layer.

    Returns a Dataset over (neuron, end, rank), end being "raised" and "lowered": ``token`` and
    ``change`` (of the logit); with a tokenizer ``text``.
    """
    import xarray as xr

    c = model.config
    if c.head == "none" or c.head_transform or c.attention_only:
        raise ValueError(f"A {c.family} model's neurons (if any) write to no logits directly.")
    if not 0 <= layer < c.n_layers:
        raise ValueError(f"layer={layer}, expected 0 to {c.n_layers - 1}.")
    chosen = np.arange(c.d_mlp) if neurons is None else np.asarray(neurons)
    if chosen.ndim != 1 or not ((chosen >= 0) & (chosen < c.d_mlp)).all():
        raise ValueError(f"neurons={neurons}, expected numbers from 0 to {c.d_mlp - 1}.")
    if not 1 <= k <= c.vocab_size:
        raise ValueError(f"k={k}, expected 1 to {c.vocab_size}.")
    value, token = _ends(model, jnp.int32(layer), jnp.asarray(chosen), k=k)
    dims = ("neuron", "end", "rank")
    data: dict[str, Any] = {"token": (dims, np.asarray(token)), "change": (dims, np.asarray(value))}
    if tokenizer is not None:
        data["text"] = (dims, tokenizer.token_texts(token))
    coords = {"neuron": chosen, "end": ["raised", "lowered"], "rank": np.arange(k)}
    return xr.Dataset(data, coords, claim(model, layer=layer, intervention="none"))


@functools.partial(jit, static=("k",))
def _ends(
    model: Model, layer: jax.Array, neurons: jax.Array, *, k: int
) -> tuple[jax.Array, jax.Array]:
    c, p = model.config, model.params

    def through(norm: Any, x: jax.Array) -> jax.Array:
        return x if norm is None else normalize(c, norm.replace(b=None), x, jnp.ones_like)

    post, mlp = p.blocks.ln2_post, p.blocks.mlp
    assert mlp is not None
    x = mlp.W_out[layer][neurons]
    x = through(None if post is None else jax.tree.map(lambda leaf: leaf[layer], post), x)
    x = through(p.ln_final, x)
    bare = model.replace(
        params=p.replace(ln_final=None, head=p.head.replace(b_U=None)),
        config=c.replace(logit_softcap=0.0),
    )
    size = c.vocab_size

    def step(kept: Any, ids: jax.Array) -> tuple[Any, None]:
        real, ids = ids < size, ids.clip(max=size - 1)
        z = unembed(bare, x[None], vocabulary=ids[None])[0]
        assert z is not None
        both = jnp.stack([z[0], -z[0]], 1)  # N 2 C
        both = jnp.where(real, both, -jnp.inf)
        value = jnp.concatenate([kept[0], both], -1)
        named = jnp.concatenate([kept[1], jnp.broadcast_to(ids, both.shape)], -1)
        best, order = jax.lax.top_k(value, k)
        return (best, jnp.take_along_axis(named, order, -1)), None

    blocks = jnp.arange(-(-size // BLOCK) * BLOCK).reshape(-1, BLOCK)
    lead = (len(neurons), 2, k)
    start = (jnp.full(lead, -jnp.inf, x.dtype), jnp.zeros(lead, blocks.dtype))
    (value, token), _ = jax.lax.scan(step, start, blocks)
    return value * jnp.asarray([1, -1])[:, None], token


def _labelled(
    kept: _Kept, layers: list[int], bins: np.ndarray | None, window: tuple[int, int],
    tokenizer: Any, attrs: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    import xarray as xr

    dims, k = ("layer", "neuron", "rank"), kept.value.shape[-1]
    context = np.asarray(kept.window)
    data: dict[str, Any] = {
        "value": (dims, np.asarray(kept.value)),
        "prompt": (dims, np.asarray(kept.prompt)),
        "position": (dims, np.asarray(kept.position)),
        "context": ((*dims, "offset"), context),
    }
    coords: dict[str, Any] = {
        "layer": layers, "neuron": np.arange(kept.value.shape[1]), "rank": np.arange(k),
        "offset": np.arange(-window[0], window[1] + 1),
    }  # fmt: skip
    if tokenizer is not None:
        flat = context.reshape(-1, context.shape[-1])
        texts = [tokenizer.decode(row[row >= 0].tolist()) for row in flat]
        data["text"] = (dims, np.asarray(texts, object).reshape(context.shape[:-1]))
    if bins is not None:
        data["count"] = (("layer", "neuron", "bin"), np.asarray(kept.counts))
        coords["bin"] = np.arange(len(bins) + 1)
        coords["above"] = ("bin", np.concatenate([[-np.inf], bins]))
    return xr.Dataset(data, coords, attrs)
