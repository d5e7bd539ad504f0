"""Generation: new tokens from one compiled program, with interventions inside it.

The prompts pass through the model once and leave their keys and values in a cache; then a
loop runs one column at a time, the cache being its `Prefix`. Attention goes by positions, not
columns: padding stays where it is, and new tokens take the same column in every prompt.

Axis letters: see `jaxinterp.model.params`; T are all columns: P of prompts and N new.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, whole_number
from jaxinterp.generation.reach import Apply, check_interventions, foresee
from jaxinterp.generation.sampling import Sampling, as_sampling, choose
from jaxinterp.metrics.arguments import is_concrete
from jaxinterp.model import (
    Context,
    Frame,
    Intervention,
    Layer,
    Model,
    Prefix,
    Tokens,
    as_tokens,
    block,
    embed,
    layers_of,
    make_context,
    unembed,
)  # fmt: skip
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.taps import Tap


class Generated(struct.PyTreeNode):
    """What `generate` returns.

    tokens: `Tokens` [B P+N], padded on the left; the new ones are the last N columns, and
    what follows a stop token is padding. log_probs: float32 [B N], of each new token under the
    model as intervened on, at temperature 1; 0 after a stop token, so that a row's sum is its
    text's. lengths: int [B], the number of new tokens, a stop token included.
    """

    tokens: Tokens
    log_probs: jax.Array
    lengths: jax.Array

    @property
    def new(self) -> jax.Array:
        """int [B N]: the ids of the new tokens; the padding's after a stop token."""
        return self.tokens.ids[..., -self.log_probs.shape[-1] :]

    def texts(self, tokenizer: Any) -> list[str]:
        """The text of each prompt's new tokens, a stop token included, padding left out."""
        rows = zip(np.asarray(self.new), np.asarray(self.lengths), strict=True)
        return [tokenizer.decode(row[:n].tolist()) for row, n in rows]

    def kept(self) -> np.ndarray:
        """int [B N]: the ids of the new tokens, -1 after a stop token."""
        places = np.arange(self.log_probs.shape[-1])
        return np.where(places < np.asarray(self.lengths)[:, None], np.asarray(self.new), -1)


class State(struct.PyTreeNode):
    """A generation under way, ``n`` new tokens long.

    tokens: [B T], of which columns to come are padding. log_probs: [B N]. ended: bool [B].
    cache: [L B T-1 G K]; the last column is never run.
    """

    n: jax.Array
    tokens: Tokens
    log_probs: jax.Array
    ended: jax.Array
    cache: Prefix

    @property
    def column(self) -> jax.Array:
        """Where the next token goes."""
        return self.tokens.shape[1] - self.log_probs.shape[1] + self.n


def generate(
    model: Model,
    tokens: Any,
    n_new: int,
    *,
    interventions: Any = (),
    apply: Apply = "both",
    key: jax.Array | None = None,
    temperature: Any = 0.0,
    top_k: Any = None,
    top_p: Any = None,
    stop: int | Sequence[int] | None = None,
    pad: int = 0,
) -> Generated:
    """Continue prompts by up to ``n_new`` tokens, in one program with a cache.

    tokens: ids [B P], or `Tokens` padded on either side. interventions: as in `forward`; their
    positions count on from the prompt into the new tokens. apply: whether they act in the
    pass over the prompt (which predicts the first new token), in the passes over generated
    tokens, or in both. Recorded values stand in the columns of ``tokens``, then of new ones.

    temperature: 0 takes the likeliest token; otherwise ``key`` is needed. top_k: only the k
    likeliest may be drawn; top_p: of these the fewest whose probability reaches p. A draw
    depends on the key, the step and the prompt's index in the batch, not on other prompts,
    padding or ``n_new``. stop: the ids that end a prompt; once all prompts have ended, nothing
    more is run. pad: the id put at padding.

    Each token is what a `forward` of the whole text before it gives, for interventions that
    change a position by what stands at it or before: keys and values once cached stay.

    Raises ``ValueError`` for bidirectional models and those without an unembedding, for an
    empty prompt, options out of range and positions that no pass with interventions runs,
    and as `forward` does. A traced position that none runs gives NaN, as it does there.
    """
    tokens = as_tokens(tokens)
    check_prompts(model, tokens, n_new)
    sampling = as_sampling(model, key, temperature, top_k, top_p, stop, pad)
    given = check_interventions(model, tokens, n_new, interventions, apply)
    return _generate(model, tokens, given, sampling, n_new=n_new, apply=apply)


@functools.partial(jit, static=("n_new", "apply"))
def _generate(
    model: Model,
    tokens: Tokens,
    interventions: tuple[Intervention, ...],
    sampling: Sampling,
    *,
    n_new: int,
    apply: Apply,
) -> Generated:
    length = tokens.shape[1]
    active = foresee(interventions, tokens, n_new, apply)
    at_prompt = () if apply == "generated" else active
    at_new = () if apply == "prompt" else active

    whole = extended(tokens, n_new)
    context = make_context(model, whole)
    logits, kv = read_prompt(model, tokens, context, at_prompt)
    room = [(0, 0), (0, 0), (0, n_new - 1), (0, 0), (0, 0)]
    state = State(
        n=jnp.int32(0),
        tokens=whole.replace(positions=whole.positions.at[:, length:].set(-1)),
        log_probs=jnp.zeros((len(tokens), n_new), jnp.float32),
        ended=jnp.zeros(len(tokens), bool),
        cache=jax.tree.map(lambda a: jnp.pad(a, room), kv),
    )

    def unfinished(state: State) -> jax.Array:
        return (state.n < n_new) & ~state.ended.all()

    def step(state: State) -> State:
        logits, cache = read_newest(model, state, context, at_new)
        return add_token(state.replace(cache=cache), logits, sampling)

    state = jax.lax.while_loop(unfinished, step, add_token(state, logits, sampling))
    lengths = state.tokens.mask[:, length:].sum(-1)
    return Generated(padded_left(state.tokens, length, sampling.pad), state.log_probs, lengths)


def run_columns(
    model: Model,
    tokens: Tokens,
    frame: Frame,
    context: Context,
    interventions: tuple[Intervention, ...],
    cache: Prefix | None = None,
    read: jax.Array | None = None,
) -> tuple[Any, Prefix]:
    """Some columns [B Q] through the model: logits [B V], keys and values [L B Q G K].

    The logits are those after the column ``read`` [B 1]; without it, after the only one.
    """
    x, _ = embed(model, tokens, interventions, frame=frame)

    def run(x: jax.Array, each: tuple[Layer, Prefix | None]) -> tuple[jax.Array, Prefix]:
        layer, prefix = each
        tap = Tap(model.config, interventions, (), context.sources, layer.index)
        return block(model.config, layer, x, context, tap, frame, prefix)

    x, kv = jax.lax.scan(run, x, (layers_of(model), cache))
    if read is not None:
        x, frame = jnp.take_along_axis(x, read[:, :, None], axis=1), frame.read(read)
    logits: Any = unembed(model, x, frame, interventions)[0]
    return logits[:, 0], kv


def read_prompt(
    model: Model, tokens: Tokens, context: Context, interventions: tuple[Intervention, ...]
) -> tuple[jax.Array, Prefix]:
    """Logits [B V] after the prompts, and the keys and values of their columns [L B P G K]."""
    frame = Frame(tokens.positions, slice(0, tokens.shape[1]))
    context = context.replace(sources=tokens.positions)
    last = tokens.positions.argmax(-1)[:, None]
    return run_columns(model, tokens, frame, context, interventions, read=last)


def read_newest(
    model: Model, state: State, context: Context, interventions: tuple[Intervention, ...]
) -> tuple[jax.Array, Prefix]:
    """Logits [B V] after the newest token, and the cache with its keys and values."""
    column = state.column - 1
    take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=1, axis=1)
    newest = jax.tree.map(lambda leaf: take(leaf, column), state.tokens)
    # Its own slot of the cache is still empty, as are those to come.
    cached = state.tokens.positions.at[:, column].set(-1)[:, :-1]
    context = context.replace(sources=jnp.concatenate([cached, newest.positions], axis=1))
    frame = Frame(newest.positions, jnp.full(newest.shape, column))
    logits, own = run_columns(model, newest, frame, context, interventions, state.cache)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=column, axis=2)
    return logits, jax.tree.map(write, state.cache, own)


def add_token(state: State, logits: jax.Array, sampling: Sampling) -> State:
    """The state with the token that logits [B V] lead to; padding where a prompt has ended."""
    tokens, ended, column = state.tokens, state.ended, state.column
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = choose(logits, sampling, state.n).astype(tokens.ids.dtype)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
    log_prob = jnp.where(ended, 0.0, log_prob).astype(jnp.float32)
    position = jnp.where(ended, -1, tokens.lengths).astype(tokens.positions.dtype)
    return state.replace(
        n=state.n + 1,
        tokens=tokens.replace(
            ids=tokens.ids.at[:, column].set(chosen),
            positions=tokens.positions.at[:, column].set(position),
        ),
        log_probs=state.log_probs.at[:, state.n].set(log_prob),
        ended=ended | (chosen[:, None] == sampling.stop).any(-1),
    )


def extended(tokens: Tokens, n_new: int) -> Tokens:
    """The tokens with ``n_new`` more columns [B T], whose positions count on."""
    wide = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0), (0, n_new)]), tokens)
    new = tokens.lengths[:, None] + jnp.arange(n_new)
    new = new.astype(wide.positions.dtype)
    return wide.replace(positions=wide.positions.at[:, tokens.shape[1] :].set(new))


def padded_left(tokens: Tokens, length: int, pad: Any) -> Tokens:
    """The tokens with the padding of the first ``length`` columns on the left, and its id."""
    new = jnp.arange(tokens.shape[1]) >= length
    order = jnp.argsort(tokens.mask | new, axis=1, stable=True)
    tokens = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, order, axis=1), tokens)
    return tokens.replace(ids=jnp.where(tokens.mask, tokens.ids, pad))


def ends_of(model: Model, tokenizer: Any) -> tuple[int, ...] | None:
    """The ids that end a text, for ``stop=``, as far as the model has them; None without any."""
    ends = () if tokenizer is None else tokenizer.ends
    return tuple(i for i in ends if i < model.config.vocab_size) or None


def check_prompts(model: Model, tokens: Tokens, n_new: int) -> None:
    """Refuse models that cannot generate, and prompts or lengths they cannot take."""
    c, length = model.config, tokens.shape[1]
    if not c.causal:
        raise ValueError(
            f"{model.name} ({c.family}) is bidirectional, and generation needs a causal model "
            "(config.causal). Use `forward` on a whole text."
        )
    if c.head == "none":
        raise ValueError(
            f"{model.name} has no unembedding (config.head is 'none'), and generation needs "
            "logits. Load a checkpoint with a language-model head."
        )
    whole_number("n_new", n_new, 1, MANY)
    if c.positions == "learned" and length + n_new > c.n_ctx:
        raise ValueError(
            f"{length} columns of prompts and {n_new} new tokens make {length + n_new}; this "
            f"{c.family} model has learned positions for {c.n_ctx}. Shorten either."
        )
    check_tokens(c, tokens)
    if tokens.values is not None:
        raise ValueError("Generation writes tokens; these prompts are values: give token ids.")
    if is_concrete(tokens.positions):
        empty = np.flatnonzero(np.asarray(tokens.lengths) == 0)
        if empty.size:
            raise ValueError(f"Prompt {empty[0]} is all padding, expected at least one token.")
