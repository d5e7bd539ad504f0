"""How bases are trained: all cells of a layer at once, from the stream before that layer on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp.checks import LONG, numbers, random_seed, real_number, whole_number
from jaxinterp.interchange.accuracy import Goal
from jaxinterp.interchange.subspace import Interchange, orthonormal
from jaxinterp.interventions import Where
from jaxinterp.metrics import Metric, of_prompts
from jaxinterp.model import (
    Config,
    Frame,
    Model,
    Tokens,
    block,
    embed,
    layer_at,
    make_context,
    run_layers,
)
from jaxinterp.model.compiled import jit
from jaxinterp.model.taps import Tap
from jaxinterp.numerics import wide
from jaxinterp.sweep.suffix import measure_from


class Recipe(NamedTuple):
    """How to train.

    rank: of the subspace; None: boundless, learned. temperature: of the boundary in dimensions,
    first and last step. penalty: of every direction before the boundary, in nats.
    """

    rank: int | None
    steps: int
    learning_rate: float
    batch: int
    seed: int
    penalty: float
    temperature: tuple[float, float] | None

    def describe(self, width: int) -> dict[str, Any]:
        """For the claim."""
        said = self._asdict()
        if self.rank is None:
            return {**said, "rank": "boundless", "temperature": self.heat(width)}
        return {k: v for k, v in said.items() if k not in ("penalty", "temperature")}

    def heat(self, width: int) -> tuple[float, float]:
        """The temperatures of the boundary, by default from an eighth of the width to 0.1."""
        return self.temperature or (max(width / 8, 1.0), 0.1)


class Fit(NamedTuple):
    """What is trained, of C cells: matrices theta [C D k] whose QR is the basis, and where the
    boundary stands as a logit of its share of the width, [C] (None: all k directions count)."""

    theta: jax.Array
    boundary: jax.Array | None


class Cells(NamedTuple):
    """Cells of one layer: where [C] (positions [C n]), source values [C n 1 (1) D]."""

    where: dict[str, Any]
    source: Any


def check_recipe(recipe: Recipe, width: int) -> None:
    """Refuse what cannot be trained."""
    whole_number("rank", recipe.rank, 1, width, optional=True)
    whole_number("steps", recipe.steps, 1, LONG)
    whole_number("batch", recipe.batch, 1)
    real_number("learning_rate", recipe.learning_rate, above=0)
    real_number("penalty", recipe.penalty, least=0)
    random_seed(recipe.seed)
    ends = (1.0, 1.0) if recipe.temperature is None else recipe.temperature
    if len(numbers("temperature", ends, above=0)) != 2:
        raise ValueError(f"temperature={recipe.temperature}, expected two numbers above 0.")


def train(
    model: Model, goal: Goal, base: Tokens, site: str, layer: int, streams: jax.Array, cells: Cells,
    recipe: Recipe, on_step: Callable[[int, jax.Array], None],
) -> tuple[Fit, np.ndarray]:  # fmt: skip
    """Train the bases of C cells: what was found, and the losses [steps C].

    streams [n P D]: before the layer, of the base prompts.
    """
    n, count, width = len(base), len(cells.source), cells.source.shape[-1]
    rank = width if recipe.rank is None else recipe.rank
    rng = np.random.default_rng(recipe.seed)
    # Entries of size one, so that a learning rate means the same at any width.
    start = np.linalg.qr(rng.standard_normal((width, rank)))[0] * width**0.5
    start = np.broadcast_to(start, (count, width, rank))
    boundary = jnp.zeros(count) if recipe.rank is None else None
    fit = Fit(jnp.asarray(start, jnp.float32), boundary)
    state = optax.scale_by_adam().init(fit)
    heat, losses = recipe.heat(width), []
    inputs = (model, base, goal.objective, streams, cells, jnp.int32(layer))
    for step, rows in enumerate(order(rng, n, recipe)):
        done = step / recipe.steps
        rate = recipe.learning_rate * (1 + np.cos(np.pi * done)) / 2
        warm = heat[0] * (heat[1] / heat[0]) ** done
        knobs = jnp.asarray([rate, warm, recipe.penalty], jnp.float32)
        fit, state, loss = _step(fit, state, *inputs, jnp.asarray(rows), knobs, site=site)
        losses.append(loss)
        on_step(step, loss)
    return fit, np.asarray(jnp.stack(losses))


def order(rng: np.random.Generator, n: int, recipe: Recipe) -> np.ndarray:
    """Which pairs each step sees, [steps batch]: all of them in turn, shuffled."""
    batch = min(recipe.batch, n)
    per_epoch = -(-n // batch)
    epochs = -(-recipe.steps // per_epoch)
    rows = [np.resize(rng.permutation(n), (per_epoch, batch)) for _ in range(epochs)]
    return np.concatenate(rows)[: recipe.steps]


@functools.partial(jit, static=("site",))
def _step(
    fit: Fit, state: Any, model: Model, base: Tokens, objective: Metric, streams: jax.Array,
    cells: Cells, layer: jax.Array, rows: jax.Array, knobs: jax.Array, *, site: str,
) -> tuple[Fit, Any, jax.Array]:  # fmt: skip
    """One step of Adam for every cell; knobs: learning rate, temperature, penalty."""
    rate, temperature, penalty = knobs
    x, tokens, metric = streams[rows], base[rows], of_prompts(objective, rows)

    def loss(fit: Fit, cell: Cells) -> jax.Array:
        weights = None
        if fit.boundary is not None:
            weights = soft(fit.boundary, fit.theta.shape[-1], temperature)
        edit = edit_of(site, layer, cell, rows, orthonormal(fit.theta), weights)
        value = -wide(measure_from(model, x, layer, tokens, metric, (edit,))).mean()
        if fit.boundary is None:
            return value
        return value + penalty * fit.theta.shape[-1] * jax.nn.sigmoid(fit.boundary)

    def total(fit: Fit) -> tuple[jax.Array, jax.Array]:
        each = jax.vmap(loss)(fit, cells)
        return each.sum(), each

    gradient, each = jax.grad(total, has_aux=True)(fit)
    updates, state = optax.scale_by_adam().update(gradient, state)
    # The boundary has the width to cross, a direction only has to turn.
    rates = Fit(rate, None if fit.boundary is None else 3 * rate)  # type: ignore[arg-type]
    return jax.tree.map(lambda p, u, r: p - r * u, fit, updates, rates), state, each


def edit_of(
    site: str, layer: Any, cell: Cells, rows: Any, basis: jax.Array, weights: jax.Array | None
) -> Interchange:
    """The interchange of one cell (without its leading axis) for some of the pairs."""
    where = dict(cell.where)
    if "position" in where:
        where["position"] = where["position"][rows]
    return Interchange(
        site, "replace", Where(layer=layer, **where), cell.source[rows], basis, weights
    )


def soft(boundary: jax.Array, width: int, temperature: jax.Array) -> jax.Array:
    """Weights [D]: 1 before the boundary, 0 beyond it, the more sharply the colder.

    Wu et al. 2023, eq. 5, with the lower boundary at 0.
    """
    middle = jnp.arange(width) + 0.5
    return jax.nn.sigmoid((width * jax.nn.sigmoid(boundary) - middle) / temperature)


def basis_of(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Bases [C D k], columns beyond the boundary zero, and ranks [C]."""
    basis = np.array(jax.vmap(orthonormal)(fit.theta))
    ranks = np.full(len(basis), basis.shape[-1])
    if fit.boundary is not None:
        ranks = np.rint(basis.shape[-1] * np.asarray(jax.nn.sigmoid(fit.boundary))).astype(int)
    return basis * (np.arange(basis.shape[-1]) < ranks[:, None])[:, None], ranks


@jit
def before(model: Model, tokens: Tokens, layer: jax.Array) -> jax.Array:
    """The stream [B P D] before a layer."""
    return run_layers(model, embed(model, tokens)[0], tokens, 0, layer)[0]


@functools.partial(jit, static=("site",))
def within(model: Model, x: jax.Array, tokens: Tokens, layer: jax.Array, *, site: str) -> jax.Array:
    """A site's value [B P ...] in a layer, from the stream before it."""
    context = make_context(model, tokens)
    tap = Tap(model.config, (), (site,), context.sources, layer)
    block(model.config, layer_at(model, layer), x, context, tap, Frame(tokens.positions))
    return tap.recorded[site]


def in_batches(tokens: Tokens, size: int) -> Iterator[tuple[np.ndarray, Tokens]]:
    """(row numbers, prompts), all of one shape: the last one repeats its last prompt."""
    for begin in range(0, len(tokens), size):
        rows = np.arange(begin, begin + size).clip(max=len(tokens) - 1)
        yield rows, tokens[rows]


def cells_at_once(config: Config, batch: int, length: int, memory: int) -> int:
    """How many cells fit ``memory`` bytes when each trains on ``batch`` prompts at a time."""
    c = config
    kept = c.n_layers * c.d_model  # the stream before every layer; the rest is computed again
    busy = 12 * c.d_model + 6 * c.d_mlp + 4 * c.n_heads * (2 * c.d_head + length)
    return max(1, memory // (4 * batch * length * (kept + busy)))
