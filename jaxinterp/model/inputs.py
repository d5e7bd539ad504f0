"""Token ids as the forward pass reads them: with padding and positions made explicit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.model.config import Config


class Tokens(struct.PyTreeNode):
    """A batch of prompts.

    ids: int [B P]. positions: int [B P], each token's position within its own prompt, -1
    where there is padding (on either side). types: int [B P] token types (BERT), or None. values:
    float [B P V], inputs that are no tokens, such as patches of an image: the embedding is then
    their product with W_E, and ids stand for nothing.
    """

    ids: Any
    positions: Any
    types: Any = None
    values: Any = None

    @property
    def mask(self) -> Any:
        """bool [B P]: True at real tokens."""
        return self.positions >= 0

    @property
    def shape(self) -> tuple[int, int]:
        """(B, P): prompts, and columns with padding among them."""
        return self.ids.shape

    @property
    def lengths(self) -> Any:
        """int [B]: the number of real tokens of each prompt."""
        return self.mask.sum(-1)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, prompts: Any) -> Tokens:
        """Some of the prompts (an int gives a batch of one)."""
        if isinstance(prompts, (int, np.integer)):
            prompts = slice(prompts, prompts + 1 or None)
        return jax.tree.map(lambda leaf: leaf[prompts], self)

    def differ(self, other: Tokens) -> Any:
        """bool [B P]: where two batches of prompts have different inputs."""
        out = self.ids != other.ids
        if self.types is not None and other.types is not None:
            out = out | (self.types != other.types)
        if self.values is not None and other.values is not None:
            out = out | (self.values != other.values).any(-1)
        return out

    def columns(self, positions: Any) -> Any:
        """The column of each position [B ...] of its prompt: int, same shape."""
        xp = np if isinstance(self.positions, np.ndarray) else jnp
        first = xp.argmax(self.mask, axis=-1)
        return positions + first.reshape(-1, *[1] * (xp.ndim(positions) - 1))


def as_tokens(tokens: Any) -> Tokens:
    """Tokens from `Tokens` or from bare ids [B P] or [P] (no padding).

    Floats [B P V] are inputs that are no tokens (`Tokens.values`).

    Raises ``ValueError`` for an empty batch, wrong rank or a non-integer dtype.
    """
    ids = tokens.ids if isinstance(tokens, Tokens) else _ids(tokens)
    if ids.ndim == 3 and jnp.issubdtype(ids.dtype, jnp.floating):
        return as_tokens(jnp.zeros(ids.shape[:2], jnp.int32)).replace(values=ids)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(
            f"tokens have shape {list(ids.shape)}, expected a non-empty [batch, position]."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"tokens are {ids.dtype}, expected integers (token ids).")
    if isinstance(tokens, Tokens):
        return tokens
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return Tokens(ids, positions)


def _ids(tokens: Any) -> jax.Array:
    """An array of what is given, unless it is text."""
    first = tokens
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, np.ndarray) and first.dtype.kind in "US" and first.size:
        first = str(first.reshape(-1)[0])
    if isinstance(first, str):
        raise ValueError(f"tokens are text, {first!r}: make ids of it, tokenizer([{first!r}]).")
    return jnp.asarray(tokens)


def check_tokens(config: Config, tokens: Tokens) -> None:
    """Refuse ids outside the vocabulary and prompts longer than learned positions reach.

    Values that are traced cannot be looked at; their shapes are checked all the same.
    """
    if config.positions == "learned" and tokens.shape[1] > config.n_ctx:
        raise ValueError(
            f"The prompt has {tokens.shape[1]} tokens; this {config.family} model has learned "
            f"positions for {config.n_ctx}. Shorten it."
        )
    if tokens.values is not None and tokens.values.shape != (*tokens.shape, config.vocab_size):
        raise ValueError(
            f"The inputs have shape {list(tokens.values.shape)}, expected "
            f"{[*tokens.shape, config.vocab_size]}: [batch, position, vocab_size]."
        )
    if isinstance(tokens.ids, jax.core.Tracer):
        return
    ids = np.asarray(tokens.ids)
    low, high = ids.min(), ids.max()
    if low < 0 or high >= config.vocab_size:
        bad = low if low < 0 else high
        raise ValueError(
            f"Token id {bad} is outside the vocabulary of {config.vocab_size}: were these "
            "tokens made by this model's tokenizer?"
        )
