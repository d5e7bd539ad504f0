"""The Jacobian lens: what the last stream gains from a push at a point, to first order.

J_l is the mean over prompts and positions t of the sum over t' >= t of d final_t' / d h_{l,t}.
One backward pass gives a row of all L of them: its cotangent is one direction at every position,
and the slope at (l, t) is then the sum over t' already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.interventions import add
from jaxinterp.lens.kinds import JacobianLens
from jaxinterp.model import Model, Tokens, as_tokens, embed, run_layers
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide, wide_dtype


def fit_jacobian(
    model: Model,
    batches: Iterable[Any],
    *,
    chunk: int = 16,
    on_done: Callable[[int], None] = lambda tokens: None,
) -> JacobianLens:
    """The Jacobian lens of a corpus; about 100 prompts of 128 tokens are enough.

    batches: `Tokens` (or ids [B P]), every real token counts alike. chunk: backward passes at a
    time (d_model of them per batch, vmapped), which is the memory. on_done: called with the
    number of real tokens of each batch when it is done.

    Derivatives are the model's own, their mean and the lens in float32 or wider.

    Raises ``ValueError`` for an empty stream and bidirectional models (there is no later).
    """
    if not model.config.causal:
        raise ValueError(f"A {model.config.family} model is bidirectional: its lens is undefined.")
    chunk = whole_number("chunk", chunk, 1)
    total, seen = None, 0
    for given in batches:
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        found = np.asarray(_summed(model, tokens, chunk=chunk), np.float64)
        n_real = int(np.asarray(tokens.lengths).sum())
        total, seen = found if total is None else total + found, seen + n_real
        on_done(n_real)
    if total is None:
        raise ValueError("There are no prompts to take a mean of: is the stream used up?")
    return JacobianLens(jnp.asarray(total / seen, wide_dtype(model.params.embed.W_E)))


@functools.partial(jit, static=("chunk",))
def _summed(model: Model, tokens: Tokens, *, chunk: int) -> jax.Array:
    """[L E D]: the derivative of entry e of the last stream, summed over tokens and prompts."""
    c = model.config
    x, _ = embed(model, tokens)

    def last(pushes: jax.Array) -> jax.Array:  # [L B P D] -> [B P D]
        return run_layers(model, x, tokens, interventions=(add("resid_pre", pushes),))[0]

    zeros = jnp.zeros((c.n_layers, *x.shape), x.dtype)
    _, back = jax.vjp(last, zeros)
    real = tokens.mask[..., None]

    def row(direction: jax.Array) -> jax.Array:  # [D] -> [L D]
        (slopes,) = back(jnp.where(real, direction, 0))
        return jnp.where(real, wide(slopes), 0).sum((1, 2))

    return jax.lax.map(row, jnp.eye(c.d_model, dtype=x.dtype), batch_size=chunk).swapaxes(0, 1)
