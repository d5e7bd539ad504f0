"""Training a tuned lens: all translators at once, each for itself.

A translator's loss is KL(model || lens) at its point, in nats, averaged over real tokens
(Belrose et al. 2023, arXiv:2303.08112, section 3). Nothing ties one point to another, so each has
its own clipping and its own optimizer's state: training all is training each alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import LONG, random_seed, whole_number
from jaxinterp.lens.kinds import TunedLens
from jaxinterp.model import Model, Tokens, as_tokens, forward, unembed
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide, wide_dtype

if TYPE_CHECKING:
    import optax


def start_tuned(model: Model) -> TunedLens:
    """Translators of zeros: the logit lens, in float32 or wider whatever the model's dtype."""
    c, dtype = model.config, wide_dtype(model.params.embed.W_E)
    return TunedLens(
        jnp.zeros((c.n_layers, c.d_model, c.d_model), dtype),
        jnp.zeros((c.n_layers, c.d_model), dtype),
    )


def published_optimizer(steps: int) -> optax.GradientTransformation:
    """Belrose et al.'s: SGD with Nesterov momentum 0.9, clipping at 1, weight decay 1e-3.

    The learning rate falls in a straight line from 1, scaled by 1 - momentum. Meant for large
    batches (2^18 tokens, 250 steps; `optax.MultiSteps` adds up small ones).
    """
    import optax

    steps = whole_number("steps", steps, 1, LONG)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-3),
        optax.sgd(optax.linear_schedule(1.0 - 0.9, 0.0, steps), momentum=0.9, nesterov=True),
    )


def train_tuned(
    model: Model,
    batches: Iterable[Any],
    steps: int,
    *,
    optimizer: optax.GradientTransformation | None = None,
    rows: int | None = None,
    start: TunedLens | None = None,
    seed: int = 0,
    on_step: Callable[[int, np.ndarray], None] = lambda step, losses: None,
) -> tuple[TunedLens, np.ndarray]:
    """A tuned lens, and its losses [step, layer] (nats, each step's batch, before its update).

    batches: `Tokens` (or ids [B P]) of one shape, one per step. optimizer: any of optax's, by
    default Adam at 1e-3, falling in a straight line; `published_optimizer` is the paper's. rows:
    that many random real tokens of each batch are learned from, all layers from the same ones
    (default: all of them); a step holds their logits at one point, rows x vocabulary, about four
    times. start: a lens to go on from. on_step: called with the step's number and losses [layer].

    Raises ``ValueError`` for a stream shorter than ``steps``, for rows beyond a batch's real
    tokens, a model without an unembedding, or a ``start`` that is another model's.
    """
    import optax

    if model.config.head == "none":
        raise ValueError(f"A {model.config.family} model without an unembedding has no lens.")
    steps, seed = whole_number("steps", steps, 1, LONG), random_seed(seed)
    whole_number("rows", rows, 1, optional=True)
    lens = start_tuned(model) if start is None else jax.tree.map(wide, start)
    lens.check(model.config)
    if optimizer is None:
        optimizer = optax.adam(optax.linear_schedule(1e-3, 0.0, steps))
    state, key, losses = jax.vmap(optimizer.init)(lens), jax.random.key(seed), []
    for step, given in enumerate(itertools.islice(batches, steps)):
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        n_real = int(np.asarray(tokens.lengths).sum())
        if rows is not None and rows > n_real:
            raise ValueError(f"rows={rows}, but batch {step} has {n_real} real tokens.")
        picked = jax.random.fold_in(key, step)
        lens, state, loss = _step(
            model, lens, state, tokens, picked, optimizer=optimizer, rows=rows
        )
        losses.append(np.asarray(loss))
        on_step(step, losses[-1])
    if len(losses) < steps:
        raise ValueError(f"The stream has {len(losses)} batches, {steps} steps need as many.")
    return lens, np.stack(losses)


@functools.partial(jit, static=("optimizer", "rows"))
def _step(
    model: Model, lens: TunedLens, state: Any, tokens: Tokens, key: jax.Array, *,
    optimizer: optax.GradientTransformation, rows: int | None,
) -> tuple[TunedLens, Any, jax.Array]:  # fmt: skip
    import optax

    found = forward(model, tokens, record=("resid_pre", "resid_post")).activations
    weight = tokens.mask.reshape(-1).astype(wide_dtype(found["resid_pre"]))
    points = wide(found["resid_pre"]).reshape(model.config.n_layers, -1, model.config.d_model)
    last = found["resid_post"][-1].reshape(points.shape[1:])
    if rows is not None:
        # Gumbel noise where there is a token: a uniform draw without replacement.
        noise = jnp.where(weight > 0, jax.random.gumbel(key, weight.shape, jnp.float32), -jnp.inf)
        _, chosen = jax.lax.top_k(noise, rows)
        points, last, weight = points[:, chosen], last[chosen], weight[chosen]
    final = jax.nn.log_softmax(_logits(model, last))

    def one(at: tuple[TunedLens, jax.Array]) -> tuple[jax.Array, TunedLens]:
        translator, x = at

        def loss(t: TunedLens) -> jax.Array:
            read = jax.nn.log_softmax(_logits(model, x + x @ t.W + t.b))
            kl = (jnp.exp(final) * (final - read)).sum(-1)
            return (kl * weight).sum() / weight.sum()

        return jax.value_and_grad(loss)(translator)

    losses, slopes = jax.lax.map(one, (lens, points))  # one point's logits at a time
    updates, state = jax.vmap(optimizer.update)(slopes, state, lens)
    return optax.apply_updates(lens, updates), state, losses


def _logits(model: Model, x: jax.Array) -> jax.Array:
    """[N D] -> [N V]"""
    logits, _ = unembed(model, x[None])
    assert logits is not None
    return wide(logits[0])
