"""What a user hands to a metric: token ids, positions, arrays; checked at the door."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.checks import narrowed

Position = Any | Literal["all"]


def as_array(values: Any) -> Any:
    """A JAX array as it is, anything else as a NumPy array."""
    return values if isinstance(values, jax.Array) else np.asarray(values)


def is_numpy(*arrays: Any) -> bool:
    """Whether none of them is a JAX array."""
    return not any(isinstance(a, jax.Array) for a in arrays)


def is_concrete(*arrays: Any) -> bool:
    """Whether none of them is being traced."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def indices(values: Any, what: str, hint: str) -> Any:
    """Integers, with a length-1 prompt axis if they had no axis."""
    array = as_array(values)
    if array.dtype.kind not in "iu" or array.ndim > 2 or array.size == 0:
        raise ValueError(f"{what} is {array.dtype}{list(array.shape)}, expected {hint}.")
    array = narrowed(what, array)
    return array.reshape(1) if array.ndim == 0 else array


def token_ids(values: Any, what: str) -> Any:
    """Token ids [B n]; ragged sets are filled up with -1."""
    hint = 'token ids [B] or [B n]: tokenizer.single_token(" Mary") makes one'
    ragged = isinstance(values, (list, tuple)) and any(np.ndim(row) for row in values)
    if ragged and len({len(row) for row in values}) > 1:
        rows = [indices(row, what, hint) for row in values]
        values = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for i, row in enumerate(rows):
            values[i, : len(row)] = row
    elif is_concrete(values) and np.size(values) and np.asarray(values).dtype.kind in "iu":
        low = np.min(values)
        if low < 0:
            raise ValueError(f"{what} holds {low}, expected {hint}.")
    ids = indices(values, what, hint)
    return ids[:, None] if ids.ndim == 1 else ids


def place(position: Position) -> dict[str, Any]:
    """The fields of `AtPositions` that say where it reads."""
    if position is None or (isinstance(position, str) and position == "all"):
        return {"everywhere": position is not None}
    hint = 'None (the last token), "all", or positions within the prompt: an int, [B] or [B R]'
    array = indices(position, "position", hint)
    array = array[:, None] if array.ndim == 1 else array
    if is_concrete(array) and (np.asarray(array).max(-1) < 0).any():
        raise ValueError(f"position is negative, expected {hint}; -1 fills shorter rows only.")
    return {"position": array}


def record(array: Any) -> Any:
    """Index arrays in full; anything else by shape and hash."""
    array = np.asarray(array)
    if array.dtype.kind in "iu":
        return array.tolist()
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}
