"""Numeric options are checked here, in one place: what is wrong, and what was expected.

A traced value cannot be looked at and passes; so does None where ``optional`` is given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

MANY = 10_000_000  # prompts, draws and resamples: more than any of these analyses can use
LONG = 1_000_000_000  # steps of a training: more than any run here finishes


def whole_number(
    name: str, value: Any, least: int = 0, most: int | None = None, *, optional: bool = False
) -> Any:
    """The option ``name`` as an int of at least ``least`` and at most ``most``.

    Raises ``ValueError`` for anything else: fractions, NaN, booleans, text, values out of range.
    """
    if (optional and value is None) or isinstance(value, jax.core.Tracer):
        return value
    expected = f"a whole number of at least {least}"
    if most is not None:
        expected = f"a whole number from {least} to {most}"
    if isinstance(value, float) and value.is_integer():
        expected += f", as an int ({int(value)})"
    if isinstance(value, (bool, np.bool_)) or np.ndim(value):
        raise ValueError(f"{name}={value!r}, expected {expected}.")
    plain = value.item() if isinstance(value, (jax.Array, np.ndarray, np.generic)) else value
    try:
        found = operator.index(plain)
    except TypeError:
        raise ValueError(f"{name}={value!r}, expected {expected}.") from None
    if found < least or (most is not None and found > most):
        raise ValueError(f"{name}={value!r}, expected {expected}.")
    return found


def real_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> Any:
    """The option ``name`` as a finite float within the bounds that are given.

    least, most: bounds that the value may equal. above, below: bounds that it may not equal.

    Raises ``ValueError`` for anything else: NaN, infinities, booleans, text, values out of range.
    """
    if (optional and value is None) or isinstance(value, jax.core.Tracer):
        return value
    bounds = [("at least", least), ("more than", above), ("at most", most), ("less than", below)]
    limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    expected = f"a finite number{f' of {limits}' if limits else ''}"
    wrong = isinstance(value, (bool, np.bool_, str, bytes)) or bool(np.ndim(value))
    try:
        found = math.nan if wrong else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    fits = (
        math.isfinite(found)
        and (least is None or found >= least)
        and (above is None or found > above)
        and (most is None or found <= most)
        and (below is None or found < below)
    )
    if not fits:
        raise ValueError(f"{name}={value!r}, expected {expected}.")
    return found


def random_seed(value: Any, name: str = "seed") -> Any:
    """A seed: a whole number from 0 that 32 bits hold, or NumPy's own forms of one.

    Raises ``ValueError`` for anything else. A random generator or a sequence of whole numbers
    passes, for NumPy to read.
    """
    if isinstance(value, (np.random.Generator, np.random.SeedSequence)):
        return value
    if isinstance(value, (list, tuple)) and value:
        return [random_seed(each, name) for each in value]
    return whole_number(name, value, 0, 2**32 - 1)


def numbers(name: str, values: Any, *, empty: bool = False, **bounds: Any) -> np.ndarray:
    """The option ``name``, float64 [n]: a sequence of numbers, each as `real_number` wants it.

    empty: whether there may be none. Raises ``ValueError`` for anything else.
    """
    given = values.tolist() if isinstance(values, (np.ndarray, jax.Array)) else values
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise ValueError(f"{name}={values!r}, expected a sequence of numbers.")
    found = [real_number(name, each, **bounds) for each in given]
    if not found and not empty:
        raise ValueError(f"{name}={values!r}, expected at least one number.")
    return np.array(found, np.float64)


def one_of(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """The option ``name``, which is one of ``choices``. Raises ``ValueError`` for anything else."""
    choices = tuple(choices)
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, int, float, type(None))) or value not in choices:
        raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, choices))}.")
    return value


def is_known(value: Any) -> bool:
    """Whether it is an array with values to look at: not traced, abstract, or on other hosts."""
    if not isinstance(value, jax.Array):
        return isinstance(value, np.ndarray)
    if isinstance(value, jax.core.Tracer):
        return False
    return value.is_fully_addressable or value.is_fully_replicated


def narrowed(name: str, array: Any) -> Any:
    """An array of integers as int32, which JAX computes with; traced ones are cast as they are.

    Raises ``ValueError`` where a value does not fit, which a plain cast would change in silence:
    2^32 + 5 would become 5.
    """
    if array.dtype == np.int32 or not hasattr(array, "astype"):
        return array
    if is_known(array) and array.size and array.dtype.itemsize >= 4:
        values, limits = np.asarray(array), np.iinfo(np.int32)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            bad = low if low < limits.min else high
            raise ValueError(
                f"{name} {bad} is out of range: expected at most {limits.max}, and no less than "
                f"{limits.min}."
            )
    return array.astype(np.int32)
