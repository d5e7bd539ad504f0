"""What a metric is, where it reads, and how a plain forward is measured."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.metrics.arguments import is_concrete, is_numpy, record
from jaxinterp.model import Config, Frame, Model, Tokens, as_tokens, embed, run_layers, unembed
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.taps import as_interventions
from jaxinterp.numerics import wide


@runtime_checkable
class Metric(Protocol):
    """What the engine needs of a metric."""

    @property
    def name(self) -> str:
        """For labels: results and errors are named by it."""

    @property
    def vocabulary(self) -> Any:
        """int [B C]: the tokens whose logits it reads; None: all."""

    def read(self, tokens: Tokens) -> Any:
        """int [B R]: the positions within each prompt whose logits it reads.

        -1 means none: the engine clips it, the metric gives what it then gets no weight.
        """

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        """Logits [B R V], or [B R C] in the order of ``vocabulary``, to float [B].

        Logits whose last axis has length C are taken for the latter.
        """

    def describe(self) -> dict[str, Any]:
        """A JSON-able record for the claim."""


class AtPositions(struct.PyTreeNode):
    """Where a metric reads, and what all of them share."""

    position: Any = struct.field(default=None, kw_only=True)  # [B R]
    everywhere: bool = struct.field(pytree_node=False, default=False, kw_only=True)

    # Static, and different in each class: see `jaxinterp.model.compiled`.
    label: str = struct.field(pytree_node=False, default="", kw_only=True)

    unit: ClassVar[str] = ""
    sets: ClassVar[tuple[str, ...]] = ()  # fields with token ids [B n]; -1 fills shorter sets

    @property
    def name(self) -> str:
        return self.label

    @property
    def vocabulary(self) -> Any:
        return None

    def read(self, tokens: Tokens) -> Any:
        for leaf in jax.tree.leaves(self):
            if leaf.shape[0] not in (1, len(tokens)):
                raise ValueError(
                    f"{self.name} holds values for {leaf.shape[0]} prompts, the batch has "
                    f"{len(tokens)}: give one per prompt."
                )
        if self.everywhere:
            return tokens.positions
        if self.position is None:
            return (tokens.lengths - 1)[:, None]
        return jnp.broadcast_to(self.position, (len(tokens), self.position.shape[1]))

    def average(self, values: jax.Array, tokens: Tokens) -> jax.Array:
        """The mean [B] of values [B R] over the positions read; NaN where there are none."""
        real = jnp.asarray(self.read(tokens) >= 0)
        return jnp.where(real, values, 0).sum(-1) / real.sum(-1).astype(values.dtype)

    def check(self, config: Config, tokens: Tokens) -> None:
        """Refuse tokens and positions that do not exist. Traced values pass."""
        read = self.read(tokens)
        for name in self.sets:
            ids = getattr(self, name)
            if is_concrete(ids) and np.max(ids) >= config.n_logits:
                raise ValueError(
                    f"Token id {np.max(ids)} in {name} of {self.name} is outside the vocabulary "
                    f"of {config.n_logits}: was it made by this model's tokenizer?"
                )
        if is_concrete(read, tokens.positions):
            late = np.asarray(read) >= np.asarray(tokens.lengths)[:, None]
            if late.any():
                bad = int(late.any(-1).argmax())
                raise ValueError(
                    f"{self.name} reads position {np.max(read[bad])} of prompt {bad}, which has "
                    f"{tokens.lengths[bad]} tokens (positions count within the prompt, from 0)."
                )

    def describe(self) -> dict[str, Any]:
        where = "all" if self.everywhere else "last"
        where = where if self.position is None else record(self.position)
        fields: dict[str, Any] = {k: record(getattr(self, k)) for k in self.sets}
        return {"metric": self.name, "unit": self.unit, "position": where, **fields}


def normalized(effect: Any, clean: Any, corrupted: Any) -> Any:
    """``(effect - corrupted) / (clean - corrupted)``: 0 is as corrupted, 1 as clean.

    Arrays broadcast: effects [E B] with baselines [B]. NaN where clean and corrupted are
    equal: there is nothing to restore there, and no share of it is meaningful.
    """
    xp = np if is_numpy(effect, clean, corrupted) else jnp
    given = (effect, clean, corrupted)
    effect, clean, corrupted = (wide(x if hasattr(x, "dims") else xp.asarray(x)) for x in given)
    gap = clean - corrupted
    return (effect - corrupted) / xp.where(gap == 0, xp.nan, gap)


def check_metric(metric: Metric, model: Model, tokens: Tokens) -> None:
    """Refuse a metric whose tokens or positions do not exist; ``check`` is optional."""
    if model.config.head == "none":
        raise ValueError(f"{model.name} has no unembedding: a metric of logits needs one.")
    if not isinstance(metric, Metric):
        raise TypeError(
            f"{metric!r} is not a metric: make one of your function of logits [B 1 V] with "
            "jaxinterp.metric(function)."
        )
    check = getattr(metric, "check", None)
    if check is not None:
        check(model.config, tokens)


def of_prompts(metric: Any, rows: Any) -> Any:
    """The metric for some of the prompts; values that all prompts share stay."""
    return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == 1 else leaf[rows], metric)


def read_columns(tokens: Tokens, metric: Metric) -> Any:
    """The columns [B R] whose logits the metric needs."""
    return tokens.columns(metric.read(tokens).clip(0))


def read_out(
    model: Model,
    x: jax.Array,
    tokens: Tokens,
    metric: Metric,
    frame: Frame,
    interventions: tuple[Any, ...] = (),
) -> jax.Array:
    """The metric [B] of a stream [B R D] that holds just the columns it reads.

    Raises ``ValueError`` for a model without an unembedding.
    """
    logits, _ = unembed(model, x, frame, interventions, vocabulary=metric.vocabulary)
    if logits is None:
        raise ValueError(f"{model.name} has no unembedding: a metric of logits needs one.")
    return metric(wide(logits), tokens)


def evaluate(metric: Metric, model: Model, tokens: Any, interventions: Any = ()) -> jax.Array:
    """The metric [B] of a plain forward; only the positions it reads are unembedded.

    Raises ``ValueError`` as `forward` does, and for tokens or positions of the metric that do
    not exist.
    """
    tokens = as_tokens(tokens)
    interventions = as_interventions(model.config, interventions, tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    return _evaluate(metric, model, tokens, interventions)


@jit
def _evaluate(
    metric: Metric, model: Model, tokens: Tokens, interventions: tuple[Any, ...]
) -> jax.Array:
    x, _ = embed(model, tokens, interventions)
    x, _ = run_layers(model, x, tokens, interventions=interventions)
    columns = read_columns(tokens, metric)
    x = jnp.take_along_axis(x, columns[:, :, None], axis=1)
    frame = Frame(tokens.positions).read(columns)
    return read_out(model, x, tokens, metric, frame, interventions)
