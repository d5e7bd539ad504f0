"""Attention heads: where they look, what they move, and whom they listen to.

A pattern says where a head looks, not that it matters: `pattern_scores` can weigh attention by
the size of what is moved (Kobayashi et al. 2020, arXiv:2004.10102), and a patch or ablation is the
test. Weights are taken as they are: pass ``fold_norm(model)`` to count the norms' gains in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.factored import FactoredMatrix
from jaxinterp.grid_runs import batch_size
from jaxinterp.model import Model, Tokens, as_tokens, forward, run_layers
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.results import claim
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr

Targets = Callable[[Tokens], Any]


def repeated_tokens(
    model: Model, *, n: int = 16, length: int = 32, seed: int = 0, bos: int | None = None
) -> Tokens:
    """Random tokens said twice, [n, 2 length] (one more with ``bos``): text without any meaning.

    Within a half no token repeats, so that each has one earlier place at most.

    Raises ``ValueError`` for n < 1, and a length outside 2 to the vocabulary's size.
    """
    size = model.config.vocab_size
    n, length = whole_number("n", n, 1, MANY), whole_number("length", length, 2, size)
    bos = whole_number("bos", bos, 0, size - 1, optional=True)
    rng = np.random.default_rng(random_seed(seed))
    halves = np.stack([rng.choice(size, length, replace=False) for _ in range(n)])
    start = np.full((n, 0 if bos is None else 1), bos or 0)
    return as_tokens(np.concatenate([start, halves, halves], 1).astype(np.int32))


def previous_token(tokens: Tokens) -> np.ndarray:
    """[B P S]: the token just before."""
    positions = np.asarray(tokens.positions)
    return _known(tokens) & (positions[:, None] == positions[:, :, None] - 1)


def duplicate_token(tokens: Tokens) -> np.ndarray:
    """[B P S]: earlier places of the same token."""
    ids = np.asarray(tokens.ids)
    return _known(tokens) & _earlier(tokens) & (ids[:, None] == ids[:, :, None])


def induction(tokens: Tokens) -> np.ndarray:
    """[B P S]: the tokens that came after earlier places of the same token (Olsson et al. 2022)."""
    duplicates = duplicate_token(tokens)
    after = np.zeros_like(duplicates)
    after[:, :, 1:] = duplicates[:, :, :-1]
    return after & _known(tokens)


def first_token(tokens: Tokens) -> np.ndarray:
    """[B P S]: the prompt's first token, where heads that have nothing to do rest."""
    return _known(tokens) & (np.asarray(tokens.positions)[:, None] == 0)


PATTERNS: dict[str, Targets] = {
    "previous_token": previous_token,
    "duplicate_token": duplicate_token,
    "induction": induction,
    "first_token": first_token,
}


def pattern_scores(
    model: Model,
    tokens: Any,
    pattern: str | Targets | Any,
    *,
    by_value: bool = False,
    batch: int | None = None,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """How much of its attention each head gives to certain places: (layer, head, prompt).

    pattern: a name in `PATTERNS`, a function of `Tokens`, or an array: bool (or weights)
    [B P S] of query and source columns. The score is the attention on the targets, averaged
    over the queries that have one. by_value: attention times the norm of what the head moves from
    there (its value through W_O), as a share of their sum over sources.

    Raises ``ValueError`` for an unknown name, a pattern of another shape, and prompts in which no
    query has a target.
    """
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    name, wanted = _targets(tokens, pattern)
    size, pieces = batch_size(model, tokens, batch, MEMORY), []
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        found = _scores(model, tokens[rows], jnp.asarray(wanted[rows]), by_value=by_value)
        pieces.append(np.asarray(found))
    values = np.concatenate(pieces, -1)[..., : len(tokens)]
    attrs = claim(
        model, site="pattern", intervention="none", pattern=name, by_value=by_value,
        n_prompts=len(tokens), **dict(record or {}),
    )  # fmt: skip
    return _by_head(values, ("layer", "head", "prompt"), name, attrs)


@functools.partial(jit, static=("by_value",))
def _scores(model: Model, tokens: Tokens, wanted: jax.Array, *, by_value: bool) -> jax.Array:
    """[L H B]"""
    weight = _weights(model, tokens, by_value=by_value)
    has = (wanted != 0).any(-1)  # B P
    on = (weight * wanted[None, :, None]).sum(-1)  # L B H P
    mean = jnp.where(has[None, :, None], on, 0).sum(-1) / has.sum(-1)[None, :, None]
    return mean.swapaxes(1, 2)


@functools.partial(jit, static=("by_value",))
def _weights(model: Model, tokens: Tokens, *, by_value: bool) -> jax.Array:
    """Attention [L B H P S], or the share of what a head moves that comes from each source."""
    c = model.config
    found = forward(model, tokens, record=("pattern", "v") if by_value else ("pattern",))
    weight = wide(found.activations["pattern"])
    if not by_value:
        return weight
    W_O = wide(jnp.asarray(model.params.blocks.attn.W_O))  # L H K D
    v = jnp.repeat(wide(found.activations["v"]), c.n_heads // c.n_kv_heads, axis=3)  # L B S H K
    gram = jnp.einsum("lhkd,lhjd->lhkj", W_O, W_O, precision="highest")
    square = jnp.einsum("lbshk,lhkj,lbshj->lbhs", v, gram, v, precision="highest")
    weight = weight * jnp.sqrt(jnp.maximum(square, 0))[:, :, :, None]
    return weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-30)


def attention(
    model: Model, tokens: Any, *, tokenizer: Any = None, by_value: bool = False
) -> xr.DataArray:
    """Every head's attention on one prompt: (layer, head, query, source), to look at.

    tokens: one prompt [P] or [1 P], or text with a tokenizer. by_value: as in `pattern_scores`.
    The coordinate ``token`` holds the tokens' texts (ids without a tokenizer), by source.

    Raises ``ValueError`` for several prompts and padding.
    """
    given = tokenizer([tokens]) if isinstance(tokens, str) and tokenizer is not None else tokens
    tokens = as_tokens(given)
    check_tokens(model.config, tokens)
    if len(tokens) != 1 or not np.asarray(tokens.mask).all():
        raise ValueError(f"The tokens have shape {list(tokens.shape)}, expected one whole prompt.")
    values = np.asarray(_weights(model, tokens, by_value=by_value))[:, 0]
    ids = np.asarray(tokens.ids)[0]
    texts = [str(i) for i in ids] if tokenizer is None else tokenizer.token_texts(ids).tolist()
    attrs = claim(model, site="pattern", intervention="none", by_value=by_value, n_prompts=1)
    found = _by_head(values, ("layer", "head", "query", "source"), "attention", attrs)
    return found.assign_coords(token=("source", texts))


def ov_circuits(model: Model) -> FactoredMatrix:
    """What each head writes for what it reads: W_V W_O, [L H D D] (rows read, columns written)."""
    attn = model.params.blocks.attn
    return FactoredMatrix(_per_head(model, attn.W_V), jnp.asarray(attn.W_O))


def qk_circuits(model: Model) -> FactoredMatrix:
    """What each head's queries seek: W_Q W_K^T, [L H D D] (rows query, columns key).

    Without rotation: for models with rotary positions, the circuit at distance 0.
    """
    attn = model.params.blocks.attn
    return FactoredMatrix(jnp.asarray(attn.W_Q), _per_head(model, attn.W_K).mT)


def copying_scores(model: Model, *, through_mlp: bool = False) -> xr.DataArray:
    """Whether a head's full OV circuit raises the token it reads: (layer, head), -1 to 1.

    The sum of the eigenvalues of W_E W_V W_O W_U over the sum of their sizes (Elhage et al.
    2021), from d_head x d_head products. through_mlp: the embedding after the first layer's MLP,
    as early MLPs do part of the embedding's work.
    """
    if model.config.head == "none":
        raise ValueError(f"A {model.config.family} model without an unembedding copies no token.")
    p = model.params
    W_E = p.embed.W_E
    if through_mlp:
        W_E = _after_first_mlp(model)
    W_U = p.embed.W_E.T if model.config.head == "tied" else p.head.W_U
    between = jnp.matmul(  # D D, the vocabulary summed over
        W_U, W_E, precision="highest", preferred_element_type=wide_dtype(W_U, W_E)
    )
    values = (between @ ov_circuits(model)).eigenvalues()
    scores = values.sum(-1).real / np.abs(values).sum(-1)
    return _by_head(scores, ("layer", "head"), "copying", claim(model, intervention="none"))


def composition_scores(model: Model, kind: str, *, baseline: bool = True) -> xr.DataArray:
    """How much of what one head writes another reads.

    kind: ``"q"``, ``"k"`` or ``"v"``. ||W_OV W|| / (||W_OV|| ||W||) in Frobenius norms, W being
    the receiver's W_QK (transposed for k) or W_OV (Elhage et al. 2021, "composition scores"). NaN
    where the receiver is not in a later layer. baseline: minus the mean of random matrices of the
    same shapes, which is not 0: about 1 / sqrt(d_model).

    Returns dims (sender_layer, sender_head, layer, head). Raises ``ValueError`` for another kind.
    """
    if kind not in ("q", "k", "v"):
        raise ValueError(f"kind={kind!r}, expected 'q', 'k' or 'v'.")
    c = model.config
    ov, qk = ov_circuits(model), qk_circuits(model)
    reads = {"q": qk, "k": qk.T, "v": ov}[kind]
    lead = (c.n_layers, c.n_heads)
    values = np.asarray(_composed(ov, reads)).reshape(*lead, *lead)
    if baseline:
        values = values - _random_composition(c.d_model, c.d_head)
    later = np.arange(c.n_layers)[:, None] < np.arange(c.n_layers)
    values = np.where(later[:, None, :, None], values, np.nan)
    attrs = claim(model, intervention="none", kind=kind, baseline=baseline)
    dims = ("sender_layer", "sender_head", "layer", "head")
    return _by_head(values, dims, f"{kind}_composition", attrs)


@jax.jit
def _composed(first: FactoredMatrix, second: FactoredMatrix) -> jax.Array:
    """[N N] of N matrices each: ||F S|| / (||F|| ||S||), one sender at a time."""
    flat = jax.tree.map(lambda x: wide(x).reshape(-1, *x.shape[-2:]), (first, second))
    first, second = flat
    gram = jnp.matmul(second.B, second.B.mT, precision="highest")  # N K K
    norms = second.norm()

    def one(sender: FactoredMatrix) -> jax.Array:
        middle = jnp.einsum("kd,ndj->nkj", sender.B, second.A, precision="highest")
        mine = jnp.matmul(sender.A.mT, sender.A, precision="highest")
        square = jnp.einsum("kl,nkj,nji,nli->n", mine, middle, gram, middle, precision="highest")
        return jnp.sqrt(jnp.maximum(square, 0)) / (sender.norm() * norms)

    return jax.lax.map(one, first)


def _random_composition(width: int, rank: int, draws: int = 8) -> float:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(draws, width, rank), (draws, rank, width)] * 2
    a, b, c, d = (jax.random.normal(k, s, jnp.float32) for k, s in zip(keys, shapes, strict=True))
    return float(_composed(FactoredMatrix(a, b), FactoredMatrix(c, d)).mean())


def _after_first_mlp(model: Model) -> jax.Array:
    """[V D]: each token's embedding with what the first MLP adds to it alone."""
    if model.config.attention_only:
        raise ValueError("An attention-only model has no MLP: leave through_mlp out.")
    blocks = model.params.blocks
    silent = model.replace(
        params=model.params.replace(
            blocks=blocks.replace(
                attn=blocks.attn.replace(
                    W_O=jnp.zeros_like(blocks.attn.W_O),
                    b_O=None if blocks.attn.b_O is None else jnp.zeros_like(blocks.attn.b_O),
                )
            )
        )
    )
    return run_layers(silent, model.params.embed.W_E[:, None], np.zeros((1, 1), int), 0, 1)[0][:, 0]


def _per_head(model: Model, W: Any) -> jax.Array:
    """Weights of key/value heads [L G D K], one for each query head [L H D K]."""
    return jnp.repeat(jnp.asarray(W), model.config.n_heads // model.config.n_kv_heads, axis=1)


def _targets(tokens: Tokens, pattern: Any) -> tuple[str, np.ndarray]:
    if isinstance(pattern, str) and pattern not in PATTERNS:
        raise ValueError(f"pattern={pattern!r}, expected one of {', '.join(PATTERNS)}.")
    if isinstance(pattern, str):
        name, wanted = pattern, PATTERNS[pattern](tokens)
    elif callable(pattern):
        name, wanted = getattr(pattern, "__name__", "pattern"), pattern(tokens)
    else:
        name, wanted = "pattern", pattern
    wanted = np.asarray(wanted)
    wanted = wanted.astype(np.float32) if wanted.dtype != bool else wanted
    expected = (*tokens.shape, tokens.shape[1])
    if wanted.shape != expected:
        raise ValueError(
            f"The pattern {name} has shape {list(wanted.shape)}, expected {list(expected)} "
            "(prompt, query, source)."
        )
    empty = ~(wanted != 0).any((1, 2))
    if empty.any():
        raise ValueError(
            f"In prompt {int(np.argmax(empty))} no query has a target of the pattern {name}: "
            "give prompts in which it occurs."
        )
    return name, wanted


def _known(tokens: Tokens) -> np.ndarray:
    mask = np.asarray(tokens.mask)
    return mask[:, :, None] & mask[:, None]


def _earlier(tokens: Tokens) -> np.ndarray:
    positions = np.asarray(tokens.positions)
    return positions[:, None] < positions[:, :, None]


def _by_head(values: Any, dims: tuple[str, ...], name: str, attrs: dict[str, Any]) -> xr.DataArray:
    import xarray as xr

    values = np.asarray(values)
    coords = {dim: np.arange(size) for dim, size in zip(dims, values.shape, strict=True)}
    return xr.DataArray(values, coords, dims, name, attrs)
