"""Trees of the library's own classes as JSON and back, bit for bit.

A class becomes its name within jaxinterp and its fields. An array becomes a key into a table of
arrays, so that what several experiments share is written once. Nothing but jaxinterp's own
dataclasses and functions is looked up by name when JSON is read.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model import Config, Rotary
from jaxinterp.results import fingerprint
from jaxinterp.sae.dictionary import DictionaryConfig

PACKAGE = "jaxinterp."
ROOMS = ("algorithmic", "interventions", "metrics", "model", "tasks")  # whose functions are kept


def held(tree: Any) -> Any:
    """The tree with its arrays on the host, as copies that nobody can write to."""

    def one(leaf: Any) -> Any:
        writable = isinstance(leaf, np.ndarray) and leaf.flags.writeable
        if writable or isinstance(leaf, jax.Array):
            leaf = np.array(leaf)
            leaf.flags.writeable = False
        return leaf

    return jax.tree.map(one, tree)


def to_plain(value: Any, arrays: dict[str, Any] | None = None) -> Any:
    """A value that JSON can hold; its arrays go into ``arrays`` (None: are only looked at).

    Raises ``ValueError`` for whatever could not be made again from the JSON alone: classes and
    functions from outside jaxinterp, arrays of objects.
    """
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return {"array": _put(np.asarray(value), arrays)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [to_plain(item, arrays) for item in value]
    if type(value) is tuple:
        return {"tuple": [to_plain(item, arrays) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_plain(item, arrays) for key, item in value.items()}}
    if _is_own(value) and _is_ready_function(value):
        return {"function": _name(value)}
    if _is_own(type(value)) and _is_value(type(value)):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        inside = {name: to_plain(getattr(value, name), arrays) for name in fields}
        return {"class": _name(type(value)), "fields": inside}
    kind = value if isinstance(value, FunctionType) else type(value)
    raise ValueError(
        f"{kind.__module__}.{kind.__qualname__} is not jaxinterp's own: a claim is run again from "
        "its JSON alone, where code from elsewhere is not at hand. Use the interventions and "
        "metrics that jaxinterp makes (replace, zero, add, ..., logit_diff, log_prob, ...)."
    )


def from_plain(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `to_plain`, given the arrays that `read_arrays` returns.

    Raises ``ValueError`` for what it did not write.
    """
    if isinstance(plain, list):
        return [from_plain(item, arrays) for item in plain]
    if not isinstance(plain, dict):
        return plain
    match plain:
        case {"float": str(text)}:
            return float(text)
        case {"array": str(key)} if key in arrays:
            return arrays[key]
        case {"tuple": list(items)}:
            return tuple(from_plain(item, arrays) for item in items)
        case {"dict": dict(items)}:
            return {key: from_plain(item, arrays) for key, item in items.items()}
        case {"function": str(name)}:
            return _find(name, "function", _is_ready_function)
        case {"class": str(name), "fields": dict(fields)}:
            cls = _find(name, "class", _is_value)
            try:
                return cls(**{key: from_plain(item, arrays) for key, item in fields.items()})
            except TypeError as error:  # fields of another version
                raise ValueError(f"{name} cannot be made from {sorted(fields)}: {error}") from error
    raise ValueError(f"{str(plain)[:80]} is nothing that a claim writes: was the JSON changed?")


def read_arrays(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a table that `to_plain` filled, read-only.

    Raises ``ValueError`` for an array whose bytes are not those that its key stands for.
    """
    out = {}
    for key, entry in table.items():
        try:
            data = base64.b64decode(entry["base64"], validate=True)
            array = np.frombuffer(data, jnp.dtype(entry["dtype"])).reshape(entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Array {key} of the claim cannot be read: {error}") from error
        if _key(array) != key:
            raise ValueError(f"Array {key} of the claim holds other numbers: it was changed.")
        out[key] = array
    return out


def _put(array: np.ndarray, arrays: dict[str, Any] | None) -> str:
    if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(f"An array of {array.dtype} cannot be kept: expected numbers or bools.")
    if arrays is None:
        return ""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    key = _key(array)
    arrays[key] = {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(array.tobytes()).decode(),
    }
    return key


def _key(array: np.ndarray) -> str:
    return fingerprint(str(array.shape), array)


def _is_own(kind: Any) -> bool:
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", "")
    return f"{module}.".startswith(PACKAGE) and name.isidentifier()


def _is_value(found: Any) -> bool:
    """A class of numbers (a pytree) or of a description beside them: making one does no more."""
    described = found in (Config, Rotary, DictionaryConfig)
    return isinstance(found, type) and (described or "_flax_dataclass" in vars(found))


def _is_ready_function(found: Any) -> bool:
    """A function of numbers: those of other rooms may read and write files."""
    room = getattr(found, "__module__", "").removeprefix(PACKAGE).split(".")[0]
    return isinstance(found, FunctionType) and room in ROOMS


def _name(kind: Any) -> str:
    return f"{kind.__module__.removeprefix(PACKAGE)}.{kind.__qualname__}"


def _find(name: str, what: str, fits: Any) -> Any:
    """jaxinterp's own class or function of that name."""
    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(PACKAGE + module), last)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not fits(found) or not _is_own(found):
        raise ValueError(
            f"jaxinterp has no {what} {name!r}: the claim was written by another version, or its "
            "JSON was changed."
        )
    return found
