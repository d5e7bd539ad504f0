"""Edge pruning: a circuit found by gradient descent over masks.

Bhaskar et al. 2024 (arXiv:2406.16778): every edge has a hard-concrete gate (Louizos et al. 2018,
arXiv:1712.01312), trained so that the model with its gates open keeps the whole model's behaviour
while a Lagrangian drives the share of open gates to a target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp.checks import LONG, random_seed, real_number, whole_number
from jaxinterp.circuits.circuit import Circuit
from jaxinterp.circuits.masked import masked_metric
from jaxinterp.circuits.runs import Direction, Part, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.metrics import Metric
from jaxinterp.model import Model
from jaxinterp.model.compiled import jit

LOW, HIGH, HEAT = -0.1, 1.1, 2 / 3  # the stretch and temperature of Louizos et al.


class Gates(NamedTuple):
    """log_alpha [R S]: each gate's logit. lagrange [2]: multipliers of the target's miss."""

    log_alpha: Any
    lagrange: Any


def draw(log_alpha: jax.Array, key: jax.Array) -> jax.Array:
    """Hard-concrete gates in [0, 1] (Louizos et al. 2018, eq. 10 and 11)."""
    u = jax.random.uniform(key, log_alpha.shape, jnp.float32, 1e-6, 1 - 1e-6)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / HEAT)
    return (s * (HIGH - LOW) + LOW).clip(0, 1)


def chance_open(log_alpha: jax.Array) -> jax.Array:
    """The probability that a gate is not zero (eq. 12)."""
    return jax.nn.sigmoid(log_alpha - HEAT * jnp.log(-LOW / HIGH))


def prune_edges(
    model: Model,
    *,
    clean: Any,
    corrupted: Any = None,
    metric: Metric,
    share: float,
    steps: int = 300,
    learning_rate: float = 0.1,
    seed: int = 0,
    direction: Direction = "noise",
    alternative: Any = "run",
    batch: int | None = None,
    on_done: Callable[[int], None] = ignore,
) -> tuple[Circuit, np.ndarray]:
    """A circuit of about ``share`` of the edges, trained: (`Circuit`, gate logits [E]).

    Minimises the mean squared deviation of m(C) from m(M), in units of m(M) - m(0), under the
    constraint on the expected share of open gates; batches of prompts take turns. The circuit
    holds the n edges with the largest logits, n = share x edges, dangling ones removed.

    Raises ``ValueError`` for a share outside (0, 1).
    """
    share = real_number("share", share, above=0, below=1)
    steps = whole_number("steps", steps, 1, LONG)
    learning_rate = real_number("learning_rate", learning_rate, above=0)
    seed = random_seed(seed)
    runs = prepare(model, clean, corrupted, metric, direction, alternative, batch)
    size = runs.driver.size
    rows = [np.arange(i, i + size).clip(max=len(runs) - 1) for i in range(0, len(runs), size)]
    parts = [runs.part(some) for some in rows]
    ends = np.concatenate([part.baselines for part in parts], -1)
    unit = max(float(np.abs(ends[0] - ends[1]).mean()), 1e-6)
    optimizer = optax.multi_transform(
        {"gates": optax.adam(learning_rate), "lagrange": optax.chain(
            optax.adam(learning_rate), optax.scale(-1.0))},
        Gates("gates", "lagrange"),
    )  # fmt: skip
    # Gates begin open, and the target share comes down linearly over the first half.
    gates = Gates(jnp.full(runs.graph.exists.shape, 3.0), jnp.zeros(2))
    state, key = optimizer.init(gates), jax.random.key(seed)
    step = _step(optimizer)
    for i in range(steps):
        target = 1 - (1 - share) * min(1.0, (i + 1) / (steps / 2))
        part = parts[i % len(parts)]
        exists = jnp.asarray(runs.graph.exists)
        gates, state = step(gates, state, _inputs(part), exists, unit, target,
                            jax.random.fold_in(key, i))  # fmt: skip
        on_done(1)
    logits = np.asarray(gates.log_alpha)
    n = max(1, round(share * runs.graph.n_edges))
    cut = np.sort(logits[runs.graph.exists])[-n]
    circuit = Circuit(runs.graph, runs.graph.exists & (logits >= cut)).pruned()
    return circuit, logits[runs.graph.exists]


def _inputs(part: Part) -> tuple[Any, ...]:
    return part.model, part.tokens, part.metric, part.other, jnp.asarray(part.baselines[0])


def _step(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Gates, Any]]:
    def loss(
        gates: Gates, inputs: tuple[Any, ...], exists: jax.Array, unit: float, target: float,
        key: jax.Array,
    ) -> jax.Array:  # fmt: skip
        model, tokens, metric, other, whole = inputs
        mask = jnp.where(exists, 1 - draw(gates.log_alpha, key), 0)
        value = masked_metric(model, tokens, metric, mask, other)
        open_ = jnp.where(exists, chance_open(gates.log_alpha), 0).sum() / exists.sum()
        miss = open_ - target
        penalty = gates.lagrange[0] * miss + gates.lagrange[1] * miss**2
        return jnp.square((value - whole) / unit).mean() + penalty

    def step(
        gates: Gates, state: Any, inputs: tuple[Any, ...], exists: jax.Array, unit: float,
        target: float, key: jax.Array,
    ) -> tuple[Gates, Any]:  # fmt: skip
        gradient = jax.grad(loss)(gates, inputs, exists, unit, target, key)
        updates, state = optimizer.update(gradient, state, gates)
        return optax.apply_updates(gates, updates), state

    return jit(functools.wraps(step)(step))
