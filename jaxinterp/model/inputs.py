"""Token ids as the forward pass reads them: with padding and positions made explicit.

What comes in from outside is checked here, in two steps: `as_tokens` looks at its form (shapes,
dtypes, ids before they are narrowed to 32 bits, positions that run on), and `check_tokens` compares
it with a model. Traced values and abstract ones cannot be looked at and pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import is_known, narrowed
from jaxinterp.model.config import Config

# The arrays of a tokenizer's batch encoding that `Tokens.of` takes, by their names there.
ENCODING = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}


class Tokens(struct.PyTreeNode):
    """A batch of prompts; `Tokens.of` makes one from ids and an attention mask.

    ids: int [B P]. positions: int [B P], each token's position within its own prompt, -1
    where there is padding (on either side). types: int [B P] token types (BERT), or None. values:
    float [B P V], inputs that are no tokens, such as patches of an image: the embedding is then
    their product with W_E, and ids stand for nothing.
    """

    ids: Any
    positions: Any
    types: Any = None
    values: Any = None

    @classmethod
    def of(cls, ids: Any, mask: Any = None, types: Any = None) -> Tokens:
        """Tokens from ids and an attention mask, or from a tokenizer's batch encoding.

        ids: int [B P] or [P]; lists of unequal length are padded on the right. Or a mapping
        with ``input_ids`` and, if it has them, ``attention_mask`` and ``token_type_ids``, such as
        a tokenizer of ``transformers`` returns. mask: bool or 0 and 1, shaped as the ids: 1 at
        tokens, 0 at padding, on the left or on the right; None: no padding. types: int, shaped
        as the ids (BERT's token types).

        Returns `Tokens` [B P] whose positions count from 0 within each prompt, -1 at padding.

        Raises ``ValueError`` for a mapping with other keys, a mask of other values, of another
        shape, with padding between tokens or without any token in a prompt, and as `forward`
        does for ids.
        """
        if isinstance(ids, Mapping):
            if mask is not None or types is not None:
                raise ValueError("The mapping holds the mask and the types: give it alone.")
            return cls.of(**_fields_of(ids))
        tokens = as_tokens(ids)
        if mask is not None:
            tokens = tokens.replace(positions=_positions_of(_batch(mask, 0), tokens))
        if types is not None:
            tokens = tokens.replace(types=_batch(types, 0))
        return as_tokens(tokens)

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
    """Tokens from `Tokens`, from bare ids [B P] or [P], or from a tokenizer's batch encoding.

    Lists of ids of unequal length are padded on the right; mappings go through `Tokens.of`.
    Floats [B P V] are inputs that are no tokens (`Tokens.values`). Integers become int32.

    Raises ``ValueError`` for an empty batch or prompt, wrong rank, a non-integer dtype, ids that
    32 bits do not hold, and `Tokens` whose arrays do not fit each other or whose positions do not
    run on by one from the first token of each prompt to its last.
    """
    if isinstance(tokens, Tokens):
        return _in_form(tokens)
    if isinstance(tokens, Mapping):
        return Tokens.of(tokens)
    _refuse_text(tokens)
    if rows := _ragged(tokens):
        filled = _batch(rows, 0)
        lengths = np.array([len(row) for row in rows])
        column = np.arange(filled.shape[1], dtype=np.int32)
        return _in_form(Tokens(filled, np.where(column < lengths[:, None], column, np.int32(-1))))
    ids = _array(tokens)
    if ids.ndim == 3 and jnp.issubdtype(ids.dtype, jnp.floating):
        return as_tokens(jnp.zeros(ids.shape[:2], jnp.int32)).replace(values=jnp.asarray(ids))
    ids = jnp.asarray(_ids(ids[None] if ids.ndim == 1 else ids))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return Tokens(ids, positions)


def _refuse_text(values: Any) -> None:
    """Refuse text in place of ids, alone or in lists."""
    first = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, np.ndarray) and first.dtype.kind in "US" and first.size:
        first = str(first.reshape(-1)[0])
    if isinstance(first, str):
        raise ValueError(f"tokens are text, {first!r}: make ids of it, tokenizer([{first!r}]).")


def _array(values: Any) -> Any:
    """An array of what is given: JAX's where it holds any, else NumPy's."""
    held = values if isinstance(values, (list, tuple)) else [values]
    return (
        jnp.asarray(values) if any(isinstance(v, jax.Array) for v in held) else np.asarray(values)
    )


def _ragged(values: Any) -> list[np.ndarray] | None:
    """The rows of a list of rows of unequal lengths; None for anything else."""
    if not isinstance(values, (list, tuple)):
        return None
    lengths = [
        len(row) if isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) > 0 else None
        for row in values
    ]
    if None in lengths or len(set(lengths)) < 2:
        return None
    for i, (row, length) in enumerate(zip(values, lengths, strict=True)):
        if not length or _depth(row) != 1:
            raise ValueError(f"Prompt {i} is {row!r}, expected a list of at least one token id.")
    return [np.asarray(row) for row in values]


def _depth(row: Any) -> int | None:
    """The number of axes of a row; None where it has none that go together."""
    try:
        return np.ndim(row)
    except ValueError:
        return None


def _batch(values: Any, fill: int) -> Any:
    """An array [B P] of rows; unequal ones are filled up on the right."""
    rows = _ragged(values)
    if rows is None:
        array = _array(values)
        return array[None] if array.ndim == 1 else array
    dtype = np.result_type(*rows)
    array = np.full((len(rows), max(map(len, rows))), fill, dtype)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def _fields_of(encoding: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Tokens.of` in a tokenizer's batch encoding."""
    unknown = [repr(key) for key in encoding if key not in ENCODING]
    if unknown or "input_ids" not in encoding:
        found = f"has {', '.join(unknown)}" if unknown else "has no 'input_ids'"
        raise ValueError(
            f"The mapping given for tokens {found}, expected 'input_ids' and, where there are any, "
            f"{', '.join(repr(key) for key in ENCODING if key != 'input_ids')}: give those alone."
        )
    return {ENCODING[key]: value for key, value in encoding.items() if value is not None}


def _positions_of(mask: Any, tokens: Tokens) -> Any:
    """The positions [B P] that an attention mask [B P] stands for."""
    if mask.shape != tokens.shape:
        raise ValueError(
            f"The attention mask has shape {list(mask.shape)}, expected {list(tokens.shape)}, as "
            "the ids have: 1 at tokens and 0 at padding."
        )
    if not is_known(mask):
        return jnp.where(mask, jnp.cumsum(mask, -1, dtype=jnp.int32) - 1, -1)
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biu" or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"The attention mask is {mask.dtype} with values {np.unique(mask)[:5].tolist()}, "
            "expected booleans, or integers 1 at tokens and 0 at padding."
        )
    mask = mask.astype(bool)
    gaps = (np.diff(mask, axis=1, prepend=False) & mask).sum(-1) > 1
    if gaps.any():
        bad = int(gaps.argmax())
        raise ValueError(
            f"The attention mask of prompt {bad} has padding between tokens: "
            f"{_shown(mask[bad].astype(int))}. Padding belongs at the ends: give the tokens of a "
            "prompt one after the other."
        )
    if not mask.any(-1).all():
        raise ValueError(
            f"Prompt {int(mask.any(-1).argmin())} is all padding, expected at least one token: "
            "leave it out."
        )
    return np.where(mask, np.cumsum(mask, -1) - 1, -1).astype(np.int32)


def _shown(row: np.ndarray, most: int = 12) -> str:
    """The beginning of a row of integers, for an error."""
    return f"[{' '.join(map(str, row[:most].tolist()))}{' ...' if len(row) > most else ''}]"


def _ids(ids: Any) -> Any:
    """Ids [B P] as int32, refused where they are no ids."""
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(
            f"tokens have shape {list(ids.shape)}, expected a non-empty [batch, position]."
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"tokens are {ids.dtype}, expected integers (token ids).")
    return narrowed("Token id", ids)


def _in_form(tokens: Tokens) -> Tokens:
    """The tokens with int32 arrays of one shape, whose positions run on."""
    fields = {"ids": tokens.ids, "positions": tokens.positions, "types": tokens.types}
    fields = {
        name: np.asarray(value) if isinstance(value, (list, tuple)) else value
        for name, value in fields.items()
    }
    if not hasattr(fields["ids"], "dtype"):  # a placeholder, such as a sharding
        return tokens
    fields["ids"] = _ids(fields["ids"])
    shape = fields["ids"].shape
    for name in ("positions", "types"):
        array = fields[name]
        if not hasattr(array, "dtype"):
            continue
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"The {name} of the tokens are {array.dtype}{list(array.shape)}, expected integers "
                f"{list(shape)}, as the ids have.{_MASK if name == 'positions' else ''}"
            )
        fields[name] = narrowed(f"A token's {name[:-1]}", array)
    if is_known(fields["positions"]):
        _check_positions(np.asarray(fields["positions"]))
    same = all(value is getattr(tokens, name) for name, value in fields.items())
    return tokens if same else tokens.replace(**fields)


_MASK = " Of an attention mask (1 at tokens, 0 at padding), make tokens by Tokens.of(ids, mask)."


def _check_positions(positions: np.ndarray, start: int | None = None) -> None:
    """Refuse positions [B P] that do not count the tokens of each prompt one after the other.

    start: the position that the first token has to have; None: any, as in some columns of prompts.
    """
    real = positions >= 0
    first, columns = real.argmax(-1)[:, None], np.arange(positions.shape[1])
    inside = (columns >= first) & (columns < first + real.sum(-1, keepdims=True))
    begin = np.take_along_axis(positions, first, 1) if start is None else start
    wrong = (positions != np.where(inside, columns - first + begin, -1)).any(-1)
    if wrong.any():
        bad = int(wrong.argmax())
        raise ValueError(
            f"The positions of prompt {bad} are {_shown(positions[bad])}, expected 0, 1, 2, ... "
            f"at its tokens, one after the other, and -1 at padding.{_MASK}"
        )


def check_tokens(config: Config, tokens: Tokens) -> None:
    """Refuse what the model cannot read, and prompts longer than learned positions reach.

    Ids and token types have to be among the model's, positions have to start at 0, every prompt
    has at least one token, and inputs that are no tokens are finite and as wide as the vocabulary.
    Values that are traced cannot be looked at; their shapes are checked all the same.
    """
    if config.positions == "learned" and tokens.shape[1] > config.n_ctx:
        raise ValueError(
            f"The prompt has {tokens.shape[1]} tokens; this {config.family} model has learned "
            f"positions for {config.n_ctx}. Shorten it."
        )
    if tokens.values is not None:
        _check_values(config, tokens)
    if is_known(tokens.ids):
        ids = np.asarray(tokens.ids)
        low, high = ids.min(), ids.max()
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(
                f"Token id {bad} is outside the vocabulary of {config.vocab_size}: were these "
                "tokens made by this model's tokenizer?"
            )
    if is_known(tokens.types):
        types, most = np.asarray(tokens.types), max(config.n_token_types - 1, 0)
        if types.min() < 0 or types.max() > most:
            raise ValueError(
                f"Token type {types.min() if types.min() < 0 else types.max()} is not among the "
                f"{config.n_token_types} of this {config.family} model: expected 0"
                f"{f' to {most}' if most else ''}."
            )
    if is_known(tokens.positions):
        positions = np.asarray(tokens.positions)
        _check_positions(positions, start=0)
        empty = (positions < 0).all(-1)
        if empty.any():
            raise ValueError(
                f"Prompt {int(empty.argmax())} is all padding, expected at least one token: "
                "leave it out."
            )


def _check_values(config: Config, tokens: Tokens) -> None:
    """Refuse inputs that are no tokens of another shape than the model's, or not finite."""
    values, expected = tokens.values, (*tokens.shape, config.vocab_size)
    if values.shape != expected:
        raise ValueError(
            f"The inputs have shape {list(values.shape)}, expected "
            f"{list(expected)}: [batch, position, vocab_size]."
        )
    if is_known(values):
        finite = np.asarray(jnp.isfinite(values).all((1, 2)))
        if not finite.all():
            raise ValueError(
                f"The inputs of prompt {int(finite.argmin())} hold NaN or an infinity, expected "
                "finite numbers."
            )
