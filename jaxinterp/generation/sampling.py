"""Sampling: which token comes next."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import real_number, whole_number
from jaxinterp.metrics.arguments import indices, is_concrete
from jaxinterp.model import Model


class Sampling(struct.PyTreeNode):
    """How tokens are chosen: see `generate`. Without a key, the likeliest is."""

    key: Any
    temperature: Any
    top_k: Any
    top_p: Any
    stop: Any
    pad: Any


def choose(logits: jax.Array, sampling: Sampling, step: jax.Array) -> jax.Array:
    """The next token [B] of each prompt."""
    best = logits.argmax(-1)
    if sampling.key is None:
        return best
    greedy = sampling.temperature == 0
    # The likeliest stays at 0, however small the temperature.
    scores = logits - logits.max(-1, keepdims=True)
    scores = scores / jnp.where(greedy, 1.0, sampling.temperature)
    scores = kept(scores, sampling.top_k, sampling.top_p)
    key = jax.random.fold_in(sampling.key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(scores)))
    return jnp.where(
        greedy, best, jax.vmap(jax.random.categorical)(keys, scores.astype(jnp.float32))
    )


def kept(scores: jax.Array, top_k: Any, top_p: Any) -> jax.Array:
    """Scores [B V] with -inf at tokens that may not be drawn.

    Nucleus sampling (Holtzman et al. 2020) of the ``top_k`` likeliest, renormalized.
    """
    if top_k is None and top_p is None:
        return scores
    order = jnp.argsort(scores, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    if top_k is not None:
        ranked = jnp.where(jnp.arange(ranked.shape[-1]) < top_k, ranked, -jnp.inf)
    if top_p is not None:
        p = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        # Rounded sums reach 1 too early.
        ranked = jnp.where((before < top_p) | (top_p >= 1), ranked, -jnp.inf)
    return jnp.put_along_axis(scores, order, ranked, axis=-1, inplace=False)


def as_sampling(
    model: Model, key: Any, temperature: Any, top_k: Any, top_p: Any, stop: Any, pad: Any
) -> Sampling:
    """The options of `generate` as arrays, checked."""
    size = model.config.vocab_size
    real_number("temperature", temperature, least=0)
    whole_number("top_k", top_k, 1, optional=True)
    real_number("top_p", top_p, above=0, most=1, optional=True)
    whole_number("pad", pad, 0, size - 1)
    hint = f"token ids from 0 to {size - 1}"
    none = stop is None or (is_concrete(stop) and np.size(stop) == 0)  # `Tokenizer.ends` may be ()
    stops = np.zeros(0, np.int32) if none else indices(stop, "stop", hint)
    if ((stops < 0) | (stops >= size)).any():
        raise ValueError(f"stop={stop!r}, expected {hint}.")
    greedy = is_concrete(temperature) and temperature == 0
    if key is None and not greedy:
        raise ValueError(
            f"temperature={temperature} draws tokens at random, which needs a key: pass "
            "key=jax.random.key(0), or temperature=0 for the likeliest tokens."
        )
    if greedy and not (top_k is None and top_p is None):
        raise ValueError(
            "top_k and top_p say what may be drawn, and at temperature 0 nothing is: pass "
            "temperature=, or leave them out."
        )
    # Of one dtype, so that 1 and 1.0 share a program.
    temperature, top_k, top_p = jax.tree.map(jnp.float32, (temperature, top_k, top_p))
    return Sampling(key, temperature, top_k, top_p, stops, jnp.int32(pad))
