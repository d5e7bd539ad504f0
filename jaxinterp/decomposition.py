"""Direct logit attribution: a residual stream as the sum of what was written into it.

The stream at a point is embedding + heads + MLPs + biases, exactly; along a direction each part
has a share, and the shares sum to the stream's own value there. Read as logits, the final norm's
scale is held at what the whole stream gives (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"): that makes it linear, and it is an assumption. It is what the parts *write*
that is read, not what changes when they are changed: check with a patch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.circuits import Graph
from jaxinterp.circuits.masked import walk
from jaxinterp.grid_runs import recorded
from jaxinterp.metrics.arguments import token_ids
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.parts import einsum, normalize
from jaxinterp.numerics import wide
from jaxinterp.points import places_in
from jaxinterp.results import claim
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr

By = Literal["layer", "head", "neuron"]


def attribute_logits(
    model: Model,
    tokens: Any,
    answer: Any,
    wrong: Any = None,
    *,
    layer: int | None = None,
    position: Any = -1,
    by: By = "head",
    batch: int | None = None,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Direct logit attribution: what each part of the stream adds to a logit (or a difference).

    answer, wrong: one token per prompt (or one for all); without ``wrong`` the logit itself.
    layer: the stream before that block, as if the model ended there (default: the last stream).
    position: within each prompt, an int (negative: from its end) or one per prompt.
    by: ``"head"`` (embedding, every head, every MLP, biases), ``"layer"`` (heads of a layer
    together), ``"neuron"`` (every MLP by neuron too). batch: prompts per program.

    Returns dims (component, prompt): ``input`` (the whole embedding), ``a3.h1``, ``m3`` (or
    ``m3.n17``), ``bias`` (what attention and MLP norms add whatever they read), ``norm_bias`` and
    ``unembed_bias``. Coordinates ``kind`` and ``layer`` (-1: none), and ``total`` per prompt, the
    logit by the model's own way; the components sum to it. A soft-cap comes after and is left out.

    Raises ``ValueError`` for models that norm the stream itself or transform it before the
    unembedding (BERT), and for layers, positions or tokens that do not exist.
    """
    c = model.config
    if c.head == "none" or c.head_transform:
        raise ValueError(
            f"A {c.family} model has {'no unembedding' if c.head == 'none' else 'a transform'} "
            "after its last layer: its logits are no sum over what was written."
        )
    tokens = as_tokens(tokens)
    vectors, constant = _logit_directions(model, len(tokens), answer, wrong)
    found = _shares(model, tokens, vectors, layer, position, by, batch, read_norm=True)
    fields = {"reads": "logit" if wrong is None else "logit_diff", "norm": "scale held"}
    if c.logit_softcap:
        fields["softcap"] = "left out"
    return _labelled(model, found, by, {"unembed_bias": constant}, fields | dict(record or {}))


def attribute_stream(
    model: Model,
    tokens: Any,
    direction: Any,
    *,
    layer: int | None = None,
    position: Any = -1,
    by: By = "head",
    batch: int | None = None,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """What each part of the stream adds to its projection on a direction; no norm is involved.

    direction: [D], or one per prompt [B D]; not scaled. The rest is as in `attribute_logits`.

    Raises ``ValueError`` for directions of another shape or not finite, models that norm the stream
    itself, and layers or positions that do not exist.
    """
    tokens, vectors = as_tokens(tokens), np.asarray(direction)
    width = model.config.d_model
    if vectors.shape not in ((width,), (len(tokens), width)) or not np.isfinite(vectors).all():
        raise ValueError(
            f"The direction has shape {list(vectors.shape)} and "
            f"{int((~np.isfinite(vectors)).sum())} values that are not finite, expected finite "
            f"values [{width}] or [{len(tokens)}, {width}]."
        )
    vectors = np.broadcast_to(vectors, (len(tokens), width))
    found = _shares(model, tokens, vectors, layer, position, by, batch, read_norm=False)
    return _labelled(model, found, by, {}, {"reads": "direction", **dict(record or {})})


def _logit_directions(
    model: Model, n: int, answer: Any, wrong: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the unembedding [B D] (differences of two), and of its bias [B]."""
    p = model.params
    W = p.embed.W_E if model.config.head == "tied" else p.head.W_U.T
    b = np.zeros(len(W)) if p.head.b_U is None else wide(np.asarray(p.head.b_U))

    def rows(given: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(token_ids(given, name))
        ids = ids.reshape(-1) if ids.size in (1, n) else ids
        if ids.ndim != 1 or (ids < 0).any() or (ids >= len(W)).any():
            raise ValueError(f"{name}={given!r}, expected one token of {len(W)} for each of {n}.")
        ids = np.broadcast_to(ids, n)
        return wide(np.asarray(W[ids])), b[ids]

    vectors, constant = rows(answer, "answer")
    if wrong is None:
        return vectors, constant
    others, other = rows(wrong, "wrong")
    return vectors - others, constant - other


def _shares(
    model: Model, tokens: Tokens, vectors: np.ndarray, layer: int | None, position: Any, by: By,
    batch: int | None, *, read_norm: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Each part's share by kind, prompts last; ``total``, the stream's own."""
    c, graph = model.config, Graph(model.config)
    check_tokens(c, tokens)
    if by not in ("layer", "head", "neuron"):
        raise ValueError(f"by={by!r}, expected 'layer', 'head' or 'neuron'.")
    batch = whole_number("batch", batch, 1, optional=True)
    layer = whole_number("layer", layer, 0, c.n_layers, optional=True)
    point = c.n_layers if layer is None else layer
    places = places_in(tokens, position)
    each = 4 * graph.n_senders * tokens.shape[1] * c.d_model
    size = min(len(tokens), batch or max(1, MEMORY // each))
    pieces = []
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        part = tokens[rows]
        pieces.append(jax.device_get(_part(
            model, part, jnp.asarray(part.columns(places[rows])), jnp.asarray(vectors[rows]),
            jnp.int32(point), neurons=by == "neuron", read_norm=read_norm,
        )))  # fmt: skip
    found = {k: np.concatenate([p[k] for p in pieces], -1)[..., : len(tokens)] for k in pieces[0]}
    return {k: v[:point] if k in ("heads", "mlp", "neurons") else v for k, v in found.items()}


@functools.partial(jit, static=("neurons", "read_norm"))
def _part(
    model: Model, tokens: Tokens, columns: jax.Array, vectors: jax.Array, point: jax.Array, *,
    neurons: bool, read_norm: bool,
) -> dict[str, jax.Array]:  # fmt: skip
    """One batch: shares along the directions [B D], read off the stream before block ``point``."""
    c, p = model.config, model.params
    rows = jnp.arange(len(columns))
    run = walk(model, tokens)
    streams = jnp.concatenate([run.resid_pre, run.stream[None]])
    stream = wide(streams[point][rows, columns])
    written, vectors = wide(run.written[:, rows, columns]), vectors.astype(stream.dtype)
    norm, norm_bias = (p.ln_final if read_norm else None), jnp.zeros(len(rows), stream.dtype)
    total, along = _held(c, norm, stream, vectors)
    if norm is not None and norm.b is not None:
        norm_bias = einsum(c, "d,bd->b", norm.b, vectors)
    reached = jnp.arange(c.n_layers) < point
    shares = einsum(c, "sbd,bd->sb", written, along)
    layers = shares[1:].reshape(c.n_layers, -1, len(rows))
    bias = jnp.zeros((c.n_layers, c.d_model), stream.dtype)
    blocks = p.blocks
    if blocks.ln1_post is not None:
        bias = bias if blocks.ln1_post.b is None else bias + blocks.ln1_post.b
    elif blocks.attn.b_O is not None:
        bias = bias + blocks.attn.b_O
    bias = einsum(c, "ld,bd->lb", bias, along)
    out = {
        "input": shares[:1],
        "heads": layers[:, : c.n_heads],
        "norm_bias": norm_bias,
        "total": total,
    }
    if not c.attention_only:
        out["mlp"] = layers[:, c.n_heads :]
    if neurons and not c.attention_only:
        sites = ("mlp_post", *(["ln2_post_scale"] if blocks.ln2_post is not None else []))
        found = recorded(model, tokens, sites=sites)
        post = wide(found["mlp_post"][:, rows, columns])

        def one(at: Any) -> tuple[jax.Array, jax.Array]:
            block, post, scale = at
            added, along_here = jnp.zeros(c.d_model, post.dtype), along
            if block.ln2_post is not None:
                added = added if block.ln2_post.b is None else block.ln2_post.b
                along_here = _pulled(c, block.ln2_post, scale, along)
            share = post * einsum(c, "nd,bd->bn", block.mlp.W_out, along_here)
            constant = einsum(c, "d,bd->b", added, along)
            if block.mlp.b_out is not None:
                constant = constant + einsum(c, "d,bd->b", block.mlp.b_out, along_here)
            return share.T, constant

        scale = found.get("ln2_post_scale")
        scale = jnp.ones((c.n_layers, len(rows), 1)) if scale is None else scale[:, rows, columns]
        out["neurons"], constants = jax.lax.map(one, (blocks, post, scale))
        bias = bias + constants
    out["bias"] = jnp.where(reached[:, None], bias, 0).sum(0)
    return out


def _held(c: Any, norm: Any, stream: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The stream's value along the directions after the norm [B], and the directions before it.

    A norm whose scale is held is linear, so that what it reads along ``vectors`` is what stands
    before it along its transpose of them.
    """
    if norm is None:
        return einsum(c, "bd,bd->b", stream, vectors), vectors
    seen: dict[str, jax.Array] = {}

    def see(scale: jax.Array) -> jax.Array:
        return seen.setdefault("scale", scale)

    read = normalize(c, norm, stream, see)
    return einsum(c, "bd,bd->b", read, vectors), _pulled(c, norm, seen["scale"], vectors)


def _pulled(c: Any, norm: Any, scale: jax.Array, vectors: jax.Array) -> jax.Array:
    """The transpose of a norm, its scale [B 1] held, on vectors [B D]."""
    bare = norm.replace(b=None)
    _, back = jax.vjp(lambda x: normalize(c, bare, x, lambda _: scale), jnp.zeros_like(vectors))
    return back(vectors)[0]


def _labelled(
    model: Model, found: dict[str, np.ndarray], by: By, constants: Mapping[str, np.ndarray],
    fields: Mapping[str, Any],
) -> xr.DataArray:  # fmt: skip
    import xarray as xr

    parts: list[tuple[str, str, int, np.ndarray]] = [("input", "embed", -1, found["input"][0])]
    for layer, heads in enumerate(found["heads"]):
        if by == "layer":
            parts.append((f"a{layer}", "attn", layer, heads.sum(0)))
        else:
            parts += [(f"a{layer}.h{h}", "head", layer, v) for h, v in enumerate(heads)]
        if "neurons" in found:
            each = enumerate(found["neurons"][layer])
            parts += [(f"m{layer}.n{n}", "neuron", layer, v) for n, v in each]
        elif "mlp" in found:
            parts.append((f"m{layer}", "mlp", layer, found["mlp"][layer, 0]))
    biases = {"bias": found["bias"], "norm_bias": found["norm_bias"], **constants}
    parts += [(name, "bias", -1, value) for name, value in biases.items()]
    names, kinds, layers, values = zip(*parts, strict=True)
    total = found["total"] + sum(constants.values())
    coords = {
        "component": list(names), "prompt": np.arange(len(total)),
        "kind": ("component", list(kinds)), "layer": ("component", list(layers)),
        "total": ("prompt", total),
    }  # fmt: skip
    attrs = claim(model, intervention="none", by=by, n_prompts=len(total), **fields)
    return xr.DataArray(np.stack(values), coords, ("component", "prompt"), "share", attrs)


def top_components(result: xr.DataArray, n: int = 10) -> xr.DataArray:
    """The ``n`` components of largest mean share, by size, the largest first: the same dims."""
    mean, n = np.abs(result.mean("prompt").values), whole_number("n", n, 1)
    chosen: Sequence[int] = np.argsort(-mean, kind="stable")[:n].tolist()
    return result.isel(component=list(chosen))
