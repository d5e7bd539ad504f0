"""What directions in the stream write: the tokens whose logits they raise and lower."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.model import Model, unembed
from jaxinterp.model.compiled import jit
from jaxinterp.model.parts import normalize
from jaxinterp.numerics import wide_dtype

if TYPE_CHECKING:
    import xarray as xr

BLOCK = 4096  # tokens of the vocabulary at a time


def tokens_along(
    model: Model, rows: Any, *, unit: str = "direction", labels: Any = None, k: int = 10,
    tokenizer: Any = None, attrs: dict[str, Any] | None = None,
) -> xr.Dataset:  # fmt: skip
    """The tokens whose logits directions [N D] raise and lower most, per unit of length.

    Through the final norm with its scale taken as 1, so that directions of one layer compare with
    each other, not those of two layers. unit, labels: the name and coordinates of their dim.

    Returns a Dataset over (``unit``, end, rank), end being "raised" and "lowered": ``token`` and
    ``change`` (of the logit); with a tokenizer ``text``.

    Raises ``ValueError`` for a model without logits, other widths, and k beyond the vocabulary.
    """
    import xarray as xr

    c = model.config
    if c.head == "none" or c.head_transform:
        raise ValueError(f"In a {c.family} model the stream writes to no logits directly.")
    if np.ndim(rows) != 2 or np.shape(rows)[1] != c.d_model:
        raise ValueError(f"rows has shape {list(np.shape(rows))}, expected [n, {c.d_model}].")
    k = whole_number("k", k, 1, c.n_logits)
    value, token = _ends(model, jnp.asarray(rows, wide_dtype(model.params.embed.W_E)), k=k)
    dims = (unit, "end", "rank")
    data: dict[str, Any] = {"token": (dims, np.asarray(token)), "change": (dims, np.asarray(value))}
    if tokenizer is not None:
        data["text"] = (dims, tokenizer.token_texts(token))
    named = np.arange(len(rows)) if labels is None else labels
    coords = {unit: named, "end": ["raised", "lowered"], "rank": np.arange(k)}
    return xr.Dataset(data, coords, attrs)


def through_norm(model: Model, norm: Any, x: jax.Array) -> jax.Array:
    """x [N D] through a norm's gain (None: no norm), its scale taken as 1, without its shift."""
    if norm is None:
        return x
    return normalize(model.config, norm.replace(b=None), x, jnp.ones_like)


@functools.partial(jit, static=("k",))
def _ends(model: Model, rows: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    c, p = model.config, model.params
    x = through_norm(model, p.ln_final, rows)
    bare = model.replace(
        params=p.replace(ln_final=None, head=p.head.replace(b_U=None)),
        config=c.replace(logit_softcap=0.0),
    )
    size = c.n_logits

    def step(kept: Any, ids: jax.Array) -> tuple[Any, None]:
        real, ids = ids < size, ids.clip(max=size - 1)
        z = unembed(bare, x[None], vocabulary=ids[None])[0]
        assert z is not None
        both = jnp.stack([z[0], -z[0]], 1)  # N 2 C
        both = jnp.where(real, both, -jnp.inf)
        return best_of(kept[0], kept[1], both, ids), None

    blocks = jnp.arange(-(-size // BLOCK) * BLOCK).reshape(-1, BLOCK)
    lead = (len(rows), 2, k)
    start = (jnp.full(lead, -jnp.inf, x.dtype), jnp.zeros(lead, blocks.dtype))
    (value, token), _ = jax.lax.scan(step, start, blocks)
    return value * jnp.asarray([1, -1])[:, None], token


def best_of(
    best: jax.Array, named: jax.Array, values: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The K best so far [... K] and their tokens, after a block's values [... C] of tokens [C]."""
    both = jnp.concatenate([best, values], -1)
    tokens = jnp.concatenate([named, jnp.broadcast_to(ids, values.shape)], -1)
    best, order = jax.lax.top_k(both, best.shape[-1])
    return best, jnp.take_along_axis(tokens, order, -1)
