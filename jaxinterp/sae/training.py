"""Training dictionaries: one pure update, vmapped over the members of a front.

Members differ in learning rate, sparsity, target of L0, k and seed, and see the same activations;
harvesting them from the model is part of the same program (`Harvest`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import LONG, real_number, whole_number
from jaxinterp.numerics import wide
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig, Parameters
from jaxinterp.sae.losses import LossCoefficients, Parts, firing, loss
from jaxinterp.sae.scaling import Scaling
from jaxinterp.sae.sparse import TOPK, most_active, room_for_dead, sparse_loss

ALONE = 2**18  # activations (examples x features) from which a member is work enough by itself


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What the members of a front share.

    steps: updates. warmup, decay: fractions of them over which the learning rate rises at the
    start and falls at the end; sparsity_warmup: over which the penalty rises. exponent: to which
    the penalty's power falls from 1 after ``anneal`` of the steps. unit_norm: decoder rows of norm
    1 throughout. dead_after: examples without firing; k_aux: dead features that learn from one
    example (default d_out / 2); auxk: the coefficient of their loss (default 1/32 with TopK and
    BatchTopK, else none). threshold: JumpReLU's at the start.
    threshold_decay: of BatchTopK's running threshold. b1, b2: Adam's. clip: the global norm to
    which slopes are cut (0: not), lest the first ones fill Adam's second moments. slots: features
    of an example that a TopK's or BatchTopK's update holds, which then multiplies by them alone
    where they suffice (`jaxinterp.sae.sparse`); 0: none, None: `train` chooses.
    """

    steps: int
    warmup: float = 0.01
    decay: float = 0.2
    sparsity_warmup: float = 0.05
    exponent: float = 1.0
    anneal: float = 0.2
    unit_norm: bool = False
    decoder_norm: float = 0.1
    dead_after: int = 10_000_000
    k_aux: int | None = None
    auxk: float | None = None
    threshold: float = 0.1
    threshold_decay: float = 0.99
    slots: int | None = None
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1, LONG)
        for name in ("warmup", "decay", "sparsity_warmup", "anneal", "threshold_decay"):
            real_number(name, getattr(self, name), least=0, most=1)
        for name in ("dead_after", "k_aux", "slots"):
            whole_number(name, getattr(self, name), optional=name != "dead_after")
        for name in ("clip", "decoder_norm", "threshold", "auxk"):
            real_number(name, getattr(self, name), least=0, optional=name == "auxk")
        for name in ("b1", "b2"):
            real_number(name, getattr(self, name), least=0, below=1)
        real_number("exponent", self.exponent, above=0, most=1)

    def rate(self, step: Any) -> Any:
        """The learning rate's factor at a step."""
        rise, fall = max(1, round(self.warmup * self.steps)), max(1, round(self.decay * self.steps))
        return jnp.minimum(1, (step + 1) / rise) * jnp.minimum(1, (self.steps - step) / fall)

    def auxk_of(self, config: DictionaryConfig) -> float:
        """The coefficient of AuxK, the loss that revives dead features."""
        if self.auxk is not None:
            return self.auxk
        return 1 / 32 if config.activation in TOPK else 0.0

    def coefficients(
        self, config: DictionaryConfig, member: Hyperparameters, step: Any
    ) -> LossCoefficients:
        """The loss's coefficients at a step."""
        rise = max(1, round(self.sparsity_warmup * self.steps))
        begin = self.anneal * self.steps
        done = jnp.clip((step - begin) / max(1.0, self.steps - begin), 0, 1)
        return LossCoefficients(
            sparsity=member.sparsity * jnp.minimum(1, (step + 1) / rise),
            exponent=1 + (self.exponent - 1) * done, target_l0=member.target_l0,
            auxk=self.auxk_of(config),
        )  # fmt: skip


class Hyperparameters(struct.PyTreeNode):
    """What members of a front may differ in; arrays [N] of them.

    sparsity: the penalty's coefficient; target_l0: a JumpReLU's (0: penalise L0 itself); k: of
    TopK and BatchTopK.
    """

    learning_rate: Any = 3e-4
    sparsity: Any = 0.0
    target_l0: Any = 0.0
    k: Any = 0
    seed: Any = 0

    def spread(self) -> Hyperparameters:
        """All fields as arrays of one length.

        Raises ``ValueError`` for fields of two lengths, and numbers that mean nothing.
        """
        fields = {name: np.atleast_1d(np.asarray(value)) for name, value in vars(self).items()}
        lengths = {name: len(value) for name, value in fields.items()}
        n = max(lengths.values())
        if any(length not in (1, n) for length in lengths.values()):
            raise ValueError(f"The members' fields have lengths {lengths}, expected one or {n}.")
        for name, value in fields.items():
            for each in value.tolist():
                if name == "seed":
                    whole_number(name, each, 0, 2**31 - 1)
                else:
                    real_number(name, each, least=0)
        kinds = {"seed": np.int32}
        return Hyperparameters(**{
            name: np.broadcast_to(value, n).astype(kinds.get(name, np.float32))
            for name, value in fields.items()
        })  # fmt: skip

    def check(self, config: DictionaryConfig) -> None:
        """Raises ``ValueError`` where nothing makes it sparse, or what is given has no use."""
        k, sparsity, target = (np.asarray(v) for v in (self.k, self.sparsity, self.target_l0))
        kind, n = config.activation, config.n_features
        if kind in TOPK:
            if not ((k > 0) & (k <= n)).all() or (kind == "topk" and (k % 1 != 0).any()):
                whole = "" if kind == "batch_topk" else "a whole number of them, "
                raise ValueError(
                    f"k={k.tolist()}: a {kind} dictionary keeps {whole}1 to {n} features of an "
                    "example."
                )
            if (sparsity > 0).any():
                raise ValueError(f"sparsity={sparsity.tolist()}, but k makes a {kind} sparse.")
        elif (k > 0).any():
            raise ValueError(f"k={k.tolist()}, but a {kind} dictionary has no k.")
        elif not (sparsity > 0).all():
            raise ValueError(
                f"sparsity={sparsity.tolist()}: without a penalty a {kind} dictionary is dense."
            )
        if (target > 0).any() and kind != "jumprelu":
            raise ValueError(f"target_l0={target.tolist()} is a jumprelu's; this is a {kind}.")


class State(struct.PyTreeNode):
    """A member on its way: examples since each feature fired, and updates done."""

    dictionary: Dictionary
    moments: Any
    silent: jax.Array
    step: jax.Array


class Seen(struct.PyTreeNode):
    """What one update tells: the loss's parts, the fraction of dead features, whether finite.

    given: whether the batch is; finite: whether the loss and its slopes are too.
    """

    parts: Parts
    dead: jax.Array
    given: jax.Array
    finite: jax.Array


def start(config: DictionaryConfig, training: TrainingConfig, member: Hyperparameters) -> State:
    """A member before its first update: random decoder rows, W_enc their transpose, no biases."""
    optimizer = _adam(training)
    key, c = jax.random.key(member.seed), config
    shapes = c.shapes
    W_dec = jax.random.normal(key, shapes["W_dec"], jnp.float32)
    if c.kind == "cross_layer":
        W_dec = jnp.where(
            jnp.triu(jnp.ones((c.n_layers, c.n_layers), bool))[..., None, None], W_dec, 0
        )
    whole = _row_norms(W_dec, c)
    W_dec = W_dec * (1.0 if training.unit_norm else training.decoder_norm) / whole
    arrays = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    arrays["W_dec"] = W_dec
    arrays["W_enc"] = _transposed(W_dec, c, jax.random.fold_in(key, 1))
    if c.activation == "jumprelu":
        arrays["threshold"] = jnp.full(shapes["threshold"], training.threshold)
    params = Parameters(**arrays)
    k = member.k if c.activation in TOPK else None
    return State(
        Dictionary(params, config, k), optimizer.init(params),
        jnp.zeros(shapes["b_enc"], jnp.int32), jnp.zeros((), jnp.int32),
    )  # fmt: skip


def _transposed(W_dec: jax.Array, c: DictionaryConfig, key: jax.Array) -> jax.Array:
    """An encoder that reads what the decoder writes, where the widths allow."""
    if c.kind == "crosscoder" and c.d_in == c.d_out:
        return W_dec.swapaxes(-1, -2)
    if c.kind == "cross_layer" and c.d_in == c.d_out:
        return jnp.einsum("llfo->lof", W_dec)
    if c.kind == "sae":
        return W_dec.T
    W = jax.random.normal(
        key, c.shapes["W_enc"], jnp.float32
    )  # a transcoder: what it reads is another space
    return W / jnp.linalg.norm(W, axis=-2, keepdims=True)


def _row_norms(W_dec: jax.Array, c: DictionaryConfig) -> jax.Array:
    """The norm of all that a feature writes, over layers too, kept for broadcasting."""
    return jnp.sqrt(jnp.square(W_dec).sum(c.write_axes, keepdims=True))


def _adam(training: TrainingConfig) -> Any:
    import optax

    return optax.scale_by_adam(training.b1, training.b2)


def update(
    state: State,
    member: Hyperparameters,
    x: jax.Array,
    y: jax.Array,
    training: TrainingConfig,
    auxk: bool = True,
) -> tuple[State, Seen]:
    """One update of one member on examples x [B ...], y [B ...], centred and scaled.

    auxk: False where it is known that no feature is dead, which saves two products. Where an
    example, the loss or a slope is not finite, nothing changes but the step.
    """
    import optax

    d, c, x, y = state.dictionary, state.dictionary.config, wide(x), wide(y)
    dead = state.silent >= training.dead_after
    coefficients = training.coefficients(c, member, state.step)
    k_aux = c.d_out // 2 if training.k_aux is None else training.k_aux

    def dense(params: Parameters) -> Any:
        one = d.replace(params=params)
        total, (parts, features) = loss(
            one, x, y, coefficients, dead if auxk else None, k_aux=k_aux
        )
        return total, (parts, firing(features))

    def sparse(params: Parameters) -> Any:
        one = d.replace(params=params)
        return sparse_loss(
            one, x, y, active, coefficients.auxk, dead if auxk else None, k_aux=k_aux
        )

    def sloped(function: Any) -> Any:
        return lambda: jax.value_and_grad(function, has_aux=True)(d.params)

    if training.slots:
        active = most_active(d, x, training.slots)
        short = active.short | (auxk & (dead.sum() > room_for_dead(c)))
        found = jax.lax.cond(short, sloped(dense), sloped(sparse))
    else:
        found = sloped(dense)()
    (total, (parts, seen)), slopes = found
    if training.unit_norm:
        W, slope = d.params.W_dec, slopes.W_dec
        slopes = slopes.replace(W_dec=slope - _along(slope, W, c) * W)
    size = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(slopes)))
    if training.clip:
        slopes = jax.tree.map(lambda g: g * jnp.minimum(1, training.clip / size), slopes)
    moves, moments = _adam(training).update(slopes, state.moments, d.params)
    rate = member.learning_rate * training.rate(state.step)
    params = optax.apply_updates(d.params, jax.tree.map(lambda m: -rate * m, moves))
    if training.unit_norm:
        params = params.replace(W_dec=params.W_dec / _row_norms(params.W_dec, c))
    if c.activation == "jumprelu":
        params = params.replace(threshold=jnp.maximum(params.threshold, 0))
    if c.activation == "batch_topk":
        least = jnp.where(jnp.isfinite(seen.least), seen.least, d.params.threshold)
        # Early on the mean is over what there has been, lest it lag behind in short runs.
        decay = jnp.minimum(training.threshold_decay, (1 + state.step) / (10 + state.step))
        kept = decay * d.params.threshold + (1 - decay) * least
        params = params.replace(threshold=jnp.where(state.step == 0, least, kept))
    silent = jnp.where(seen.fired, 0, jnp.minimum(state.silent, 2**30) + x.shape[0])
    new = State(d.replace(params=params), moments, silent, state.step + 1)
    given = jnp.isfinite(x).all() & jnp.isfinite(y).all()
    sound = given & jnp.isfinite(total) & jnp.isfinite(size)
    kept_state = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, state)
    dead_now = (new.silent >= training.dead_after).mean(dtype=parts.error.dtype)
    return kept_state.replace(step=state.step + 1), Seen(parts, dead_now, given, sound)


def _along(slope: jax.Array, W: jax.Array, c: DictionaryConfig) -> jax.Array:
    return (slope * W).sum(c.write_axes, keepdims=True) / jnp.square(_row_norms(W, c))


@functools.partial(jax.jit, static_argnames=("training",), donate_argnums=0)
def advance(
    states: State,
    source: Any,
    members: Hyperparameters,
    scaling: Scaling,
    batch: Any,
    *,
    training: TrainingConfig,
) -> tuple[State, Any, Seen]:
    """All members one update on, on what the source makes of a batch.

    Together under ``vmap``, or one after another where one alone is work enough.
    """
    source, x, y = source.take(batch)
    x, y = scaling(x, y)
    size = len(x) * states.silent[0].size

    def moved(auxk: bool) -> Any:
        run: Any = functools.partial(update, training=training, auxk=auxk)
        if size >= ALONE or training.slots:
            return lambda: jax.lax.map(lambda one: run(*one, x, y), (states, members))
        return lambda: jax.vmap(run, in_axes=(0, 0, None, None))(states, members, x, y)

    # Outside the vmap, where a condition leaves work out: mostly no feature of any member is dead.
    if training.auxk_of(states.dictionary.config):
        some_dead = (states.silent >= training.dead_after).any()
        states, seen = jax.lax.cond(some_dead, moved(True), moved(False))
    else:
        states, seen = moved(False)()
    return states, source, seen


class Given(struct.PyTreeNode):
    """A source whose batches are activations: x [B ...], or a pair of them and their targets."""

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from other sources: a checkpoint belongs to one."""
        return {}

    @property
    def kept(self) -> dict[str, jax.Array]:
        """What changes from batch to batch: a checkpoint keeps it (``replace`` puts it back)."""
        return {}

    def take(self, batch: Any) -> tuple[Given, jax.Array, jax.Array]:
        """The source afterwards, examples [B ...] and targets (default the examples)."""
        x, y = batch if isinstance(batch, tuple) else (batch, batch)
        return self, x, y
