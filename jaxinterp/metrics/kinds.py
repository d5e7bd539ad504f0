"""The metrics, and the functions that make them.

Letters as in the model room, and R positions read, C tokens read, n tokens in a set.

Arguments that all constructors share:

- token ids are int [B] (one per prompt), [B n] or ragged lists (a set per prompt), or one id;
- ``position`` is within each prompt: None (its last token), an int, [B], [B R] (-1: none) or
  "all". Over several positions the metric is the mean.

They raise ``ValueError`` for text in place of ids, negative ids or positions, or empty sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.metrics.arguments import Position, as_array, is_numpy, place, record, token_ids
from jaxinterp.metrics.base import AtPositions
from jaxinterp.model import Tokens
from jaxinterp.numerics import wide


class LogitDiff(AtPositions):
    """Mean logit of the correct tokens [B n] minus mean logit of the wrong ones [B m]."""

    correct: Any
    wrong: Any

    label: str = struct.field(pytree_node=False, default="logit_diff", kw_only=True)

    unit, sets = "logits", ("correct", "wrong")

    @property
    def vocabulary(self) -> Any:
        concatenate = np.concatenate if is_numpy(self.correct, self.wrong) else jnp.concatenate
        prompts = max(self.correct.shape[0], self.wrong.shape[0])
        sets = [ids.repeat(prompts // ids.shape[0], 0) for ids in (self.correct, self.wrong)]
        return concatenate(sets, axis=-1).clip(0)

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        logits, n = _restrict(wide(logits), self.vocabulary), self.correct.shape[1]
        right = _mean_of_set(logits[..., :n], self.correct)
        wrong = _mean_of_set(logits[..., n:], self.wrong)
        return self.average(right - wrong, tokens)


class Logit(AtPositions):
    """The answer's logit; for a set, the mean."""

    answer: Any

    label: str = struct.field(pytree_node=False, default="logit", kw_only=True)

    unit, sets = "logits", ("answer",)

    @property
    def vocabulary(self) -> Any:
        return self.answer.clip(0)

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        logits = _restrict(wide(logits), self.vocabulary)
        return self.average(_mean_of_set(logits, self.answer), tokens)


class _OfAnswer(AtPositions):
    """Compares the answer [B n] with the whole vocabulary."""

    answer: Any

    sets = ("answer",)

    def score(self, logits: jax.Array) -> jax.Array:
        """Logits [B R V] to values [B R]."""
        raise NotImplementedError

    def members(self, logits: jax.Array) -> jax.Array:
        """The answer's logits [B R n], -inf where a set is shorter."""
        return _members(logits, self.answer)

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        return self.average(self.score(wide(logits)), tokens)


class LogProb(_OfAnswer):
    """The answer's log-probability; for a set, of any of its tokens."""

    label: str = struct.field(pytree_node=False, default="log_prob", kw_only=True)

    unit = "nats"

    def score(self, logits: jax.Array) -> jax.Array:
        own = jax.nn.logsumexp(self.members(logits), -1)
        return own - jax.nn.logsumexp(logits, -1)


class Prob(LogProb):
    """The answer's probability; for a set, of any of its tokens."""

    label: str = struct.field(pytree_node=False, default="prob", kw_only=True)

    unit = "probability"

    def score(self, logits: jax.Array) -> jax.Array:
        return jnp.exp(super().score(logits))


class ProbDiff(AtPositions):
    """Probability of any of the correct tokens [B n] minus that of any of the wrong [B m]."""

    correct: Any
    wrong: Any

    label: str = struct.field(pytree_node=False, default="prob_diff", kw_only=True)

    unit, sets = "probability", ("correct", "wrong")

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        log_probs = jax.nn.log_softmax(wide(logits))
        right, wrong = (_members(log_probs, ids) for ids in (self.correct, self.wrong))
        return self.average(jnp.exp(right).sum(-1) - jnp.exp(wrong).sum(-1), tokens)


class Rank(_OfAnswer):
    """How many tokens have a strictly higher logit than the answer (the set's best)."""

    label: str = struct.field(pytree_node=False, default="rank", kw_only=True)

    unit = "tokens"

    def score(self, logits: jax.Array) -> jax.Array:
        best = self.members(logits).max(-1)
        above = (logits > best[..., None]).sum(-1).astype(logits.dtype)
        return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, above)  # NaN compares as "top"


class Accuracy(_OfAnswer):
    """1 where the most likely token is the answer (or in its set), else 0."""

    label: str = struct.field(pytree_node=False, default="accuracy", kw_only=True)

    unit = "share of prompts"

    def score(self, logits: jax.Array) -> jax.Array:
        hit = (logits.argmax(-1)[..., None] == self.answer[:, None]).any(-1).astype(logits.dtype)
        return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, hit)


class KL(AtPositions):
    """KL(reference || logits): summed over the vocabulary, mean over the positions read."""

    reference: Any  # logits [B R V]

    label: str = struct.field(pytree_node=False, default="kl", kw_only=True)

    unit = "nats"

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        if self.reference.shape[1:] != logits.shape[1:]:
            raise ValueError(
                f"The reference logits are {list(self.reference.shape)}, the logits to compare "
                f"{list(logits.shape)} [prompt, position read, vocabulary]: keep the positions "
                "that are read, or pass position='all'."
            )
        reference = jax.nn.log_softmax(wide(self.reference))
        log_probs = jax.nn.log_softmax(wide(logits))
        p = jnp.exp(reference)
        gap = jnp.where(p > 0, reference, 0) - jnp.where(p > 0, log_probs, 0)  # 0 log 0 = 0
        return self.average((p * gap).sum(-1), tokens)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "reference": record(self.reference)}


class CrossEntropy(AtPositions):
    """Mean next-token loss of each prompt over its positions that have a next token."""

    label: str = struct.field(pytree_node=False, default="cross_entropy", kw_only=True)

    unit = "nats"

    def read(self, tokens: Tokens) -> Any:
        if tokens.shape[1] < 2:
            raise ValueError("cross_entropy needs prompts of at least 2 tokens, these have 1.")
        xp = np if is_numpy(tokens.positions) else jnp
        before, after = tokens.positions[:, :-1], tokens.positions[:, 1:]
        return xp.where(after > 0, before, -1)  # the neighbour is padding, or nothing precedes it

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        # Prompts are contiguous, so a position's target stands in the next column.
        log_probs = jax.nn.log_softmax(wide(logits))
        targets = jnp.asarray(tokens.ids)[:, 1:, None]
        return -self.average(jnp.take_along_axis(log_probs, targets, -1)[..., 0], tokens)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "position": "all"}


class Custom(AtPositions):
    """A function of the user's own: see `metric`."""

    function: Callable[..., jax.Array] = struct.field(pytree_node=False)
    data: tuple[Any, ...] = ()
    tokens: Any = None  # [B C]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def vocabulary(self) -> Any:
        return self.tokens

    def __call__(self, logits: jax.Array, tokens: Tokens) -> jax.Array:
        out = wide(self.function(wide(logits), *self.data))
        if out.shape != logits.shape[:1]:
            raise ValueError(
                f"{self.name} returned shape {list(out.shape)}, expected {[logits.shape[0]]}: a "
                "metric maps the whole batch [prompt, position, token] to one number per prompt."
            )
        return out

    def describe(self) -> dict[str, Any]:
        data = [record(leaf) for leaf in jax.tree.leaves((self.data, self.tokens))]
        module = getattr(self.function, "__module__", "")
        return {**super().describe(), "function": f"{module}.{self.name}", "data": data}


def logit_diff(correct: Any, wrong: Any, position: Position = None) -> LogitDiff:
    """Logit of ``correct`` minus logit of ``wrong`` (sets: of their means), in logits.

    Linear in the final residual stream, and the field's first choice (Zhang & Nanda 2023,
    arXiv:2309.16042). Reads only these tokens' logits.
    """
    return LogitDiff(token_ids(correct, "correct"), token_ids(wrong, "wrong"), **place(position))


def logit(answer: Any, position: Position = None) -> Logit:
    """The logit of ``answer`` (a set: their mean)."""
    return Logit(token_ids(answer, "answer"), **place(position))


def log_prob(answer: Any, position: Position = None) -> LogProb:
    """The log-probability of ``answer`` (a set: of any of its tokens), in nats."""
    return LogProb(token_ids(answer, "answer"), **place(position))


def prob(answer: Any, position: Position = None) -> Prob:
    """The probability of ``answer`` (a set: of any of its tokens)."""
    return Prob(token_ids(answer, "answer"), **place(position))


def prob_diff(correct: Any, wrong: Any, position: Position = None) -> ProbDiff:
    """Probability of ``correct`` minus that of ``wrong`` (sets: of any of their tokens).

    Between -1 and 1. For answers that are a range of tokens, as in greater-than (Hanna et al.
    2023, arXiv:2305.00586), where a mean of logits would weigh unlikely tokens like likely ones.
    """
    return ProbDiff(token_ids(correct, "correct"), token_ids(wrong, "wrong"), **place(position))


def rank(answer: Any, position: Position = None) -> Rank:
    """How many tokens have a strictly higher logit than ``answer`` (a set: its best): 0 is top."""
    return Rank(token_ids(answer, "answer"), **place(position))


def accuracy(answer: Any, position: Position = None) -> Accuracy:
    """1 where greedy decoding gives ``answer`` (or a token of the set), else 0.

    Of equal logits the lowest token id counts as the top one, as in argmax.
    """
    return Accuracy(token_ids(answer, "answer"), **place(position))


def kl(reference_logits: Any, position: Position = None) -> KL:
    """KL(reference || logits) in nats.

    reference_logits: [B R V] at the positions that are read, in the order of ``position``, or
    [B V] where that is one. With ``position="all"``, R runs over the columns of the tokens, as
    in `forward(...).logits`. Its gradient at the reference itself is zero.

    Raises ``ValueError`` for another rank, and for R other than 1 without a ``position``.
    """
    reference = as_array(reference_logits)
    reference = reference[:, None] if reference.ndim == 2 else reference
    where = place(position)
    if reference.ndim != 3 or (position is None and reference.shape[1] != 1):
        raise ValueError(
            f"The reference logits have shape {list(reference.shape)}, expected [prompt, position "
            "read, vocabulary]. The default reads the last position; for all, position='all'."
        )
    return KL(reference, **where)


def cross_entropy() -> CrossEntropy:
    """The mean next-token loss of each prompt in nats, over all its tokens but the first.

    NaN for a prompt of one token. Padding on either side has no weight.
    """
    return CrossEntropy()


def metric(
    function: Callable[..., jax.Array],
    position: Position = None,
    *,
    data: tuple[Any, ...] = (),
    vocabulary: Any = None,
) -> Custom:
    """A metric from your own function of the whole batch: ``function(logits, *data)`` to [B].

    logits: float [B R V] at the positions read, or [B R C] with ``vocabulary`` (ids [B C]), in
    float32 or wider. data: arrays with a leading prompt axis; pass them here rather than close
    over them, or prompts that run in chunks get the wrong rows. Use one named function: every
    new lambda compiles again, and its name labels the results.
    """
    tokens = None if vocabulary is None else token_ids(vocabulary, "vocabulary")
    arrays = tuple(as_array(a) for a in data)
    return Custom(function, arrays, tokens, **place(position))


def _take(logits: jax.Array, ids: Any) -> jax.Array:
    """The logits [B R n] of ids [B n], from [B R V]."""
    ids = jnp.broadcast_to(ids[:, None], (*logits.shape[:2], ids.shape[-1]))
    return jnp.take_along_axis(logits, ids, -1)


def _members(logits: jax.Array, ids: Any) -> jax.Array:
    """The logits [B R n] of sets of tokens [B n], -inf where a set is shorter."""
    return jnp.where((ids >= 0)[:, None], _take(logits, ids.clip(0)), -jnp.inf)


def _restrict(logits: jax.Array, vocabulary: Any) -> jax.Array:
    """Logits [B R C], unless that is what they are already."""
    return logits if logits.shape[-1] == vocabulary.shape[-1] else _take(logits, vocabulary)


def _mean_of_set(logits: jax.Array, ids: Any) -> jax.Array:
    """The mean [B R] of logits [B R n] over the tokens of each set."""
    held = jnp.asarray(ids >= 0)[:, None]
    return jnp.where(held, logits, 0).sum(-1) / held.sum(-1).astype(logits.dtype)
