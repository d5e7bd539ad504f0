"""Which public functions return numbers, and how to call each on a model of any dtype.

Each file of entries beside this one declares cases with `case`: a function of a `Given` (models
and arrays in one dtype) that returns numbers, the public paths that it runs, and how near the
half-precision numbers have to be to float32's. What returns no numbers is declared with
`no_numbers`, which says why.

Models and arrays hold the same values in every dtype: they are rounded to what bfloat16 and
float16 can both hold. What differs is only what is calculated from them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_models import CONFIGS, small_model

from jaxinterp.model import Model

# How far a half-precision number may be from float32's, as a share of the largest in its array.
EXACT = {"bfloat16": 1e-5, "float16": 1e-5}  # of given values: only the order of sums differs
FORWARD = {"bfloat16": 0.06, "float16": 0.01}  # through a model, whose own values are rounded
GRADIENT = {"bfloat16": 0.15, "float16": 0.03}  # and through its derivative


@dataclasses.dataclass(frozen=True)
class Given:
    """What a case is called with: models and arrays in one dtype, of the same values in each."""

    dtype: str

    def model(self, name: str = "llama") -> Model:
        """The small random model of that name (of tests/small_models.py)."""
        return _small(name, self.dtype)

    def cast(self, tree: Any) -> Any:
        """Arrays (of a model, of a list) rounded to what every dtype holds, in this dtype."""
        return jax.tree.map(lambda x: jnp.asarray(rounded(x), self.dtype), tree)

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> Any:
        """An array [*shape] of random values in this dtype."""
        return self.cast(shift + scale * np.random.default_rng(seed).standard_normal(shape))


@dataclasses.dataclass(frozen=True)
class Case:
    """Numbers of public functions. name: as a test shows it; covers: their public paths."""

    name: str
    call: Callable[[Given], Any]
    covers: tuple[str, ...]
    within: Mapping[str, float]
    own: bool  # values of the model itself, which keep its dtype
    long: bool


CASES: dict[str, Case] = {}
NO_NUMBERS: dict[str, str] = {}  # why, by path


def case(
    *covers: str,
    within: Mapping[str, float] = FORWARD,
    own: bool = False,
    long: bool = False,
) -> Callable[[Callable[[Given], Any]], Callable[[Given], Any]]:
    """Declares a case: the decorated function of a `Given` returns numbers of these functions.

    covers: public paths without ``jaxinterp.``, each of which the case has to call (as
    ``ji.<path>``). within: by dtype, the largest difference as a share of the largest number of
    each array. own: the numbers are a model's own values and keep its dtype; all others have to
    come in float32 or wider. long: it takes over a second, and runs with the long tests.

    A case returns numbers, arrays, xarray's, or any nest of them in lists, dicts and dataclasses.
    Integers and booleans have to be equal. Where a sum could go wrong the case is large: hundreds
    of copies of a prompt, values in the hundreds.
    """

    def declared(call: Callable[[Given], Any]) -> Callable[[Given], Any]:
        assert call.__name__ not in CASES, call.__name__
        paths = tuple(f"jaxinterp.{path}" for path in covers)
        CASES[call.__name__] = Case(call.__name__, call, paths, within, own, long)
        return call

    return declared


def no_numbers(why: str, *paths: str) -> None:
    """Declares that these public paths (without ``jaxinterp.``) return no numbers, and why."""
    for path in paths:
        assert f"jaxinterp.{path}" not in NO_NUMBERS, path
        NO_NUMBERS[f"jaxinterp.{path}"] = why


def rounded(x: Any) -> np.ndarray:
    """The nearest values that bfloat16 and float16 both hold, in float32."""
    both = np.asarray(x, np.float32).astype(jnp.bfloat16).astype(np.float16)
    return both.astype(np.float32)


@functools.cache
def _small(name: str, dtype: str) -> Model:
    assert name in CONFIGS, f"expected one of {', '.join(CONFIGS)}"
    return Given(dtype).cast(small_model(name))


def numbers(result: Any, at: str = "") -> Iterator[tuple[str, np.ndarray, Any]]:
    """(where, values, dtype) of every array of numbers in a result, in its order."""
    if result is None or isinstance(result, (str, bytes)):
        return
    if hasattr(result, "variables") or hasattr(result, "coords"):  # xarray's
        variables = dict(getattr(result, "variables", result.coords))
        if not hasattr(result, "variables"):
            variables[""] = result.variable
        for name, variable in variables.items():
            if variable.dtype.kind not in "OUSM":
                yield f"{at}.{name}", *_array(variable.values)
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from numbers(value, f"{at}[{key}]")
    elif isinstance(result, (list, tuple)):
        for i, value in enumerate(result):
            yield from numbers(value, f"{at}[{i}]")
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from numbers(getattr(result, field.name), f"{at}.{field.name}")
    else:
        assert isinstance(result, (jax.Array, np.ndarray, np.generic, int, float)), type(result)
        yield at, *_array(result)


def _array(x: Any) -> tuple[np.ndarray, Any]:
    dtype = getattr(x, "dtype", np.dtype(type(x)))
    whole = dtype.kind in "biu"
    return np.asarray(x) if whole else np.asarray(x, np.float64), dtype


def differences(case: Case, dtype: str, found: Any, expected: Any) -> list[str]:
    """What is wrong with a half-precision result, in words."""
    a, b = list(numbers(found)), list(numbers(expected))
    if [(at, x.shape) for at, x, _ in a] != [(at, x.shape) for at, x, _ in b]:
        return [f"shapes {[(at, x.shape) for at, x, _ in a]}, not as in float32"]
    if not any(x.any() for _, x, _ in b):
        return ["float32 has nothing but zeros: the case shows nothing"]
    out = []
    for (at, x, kept), (_, y, _) in zip(a, b, strict=True):
        where = f"{case.name}{at}"
        if x.dtype.kind in "biu" or y.dtype.kind in "biu":
            if not np.array_equal(x, y):
                out.append(f"{where}: {_shown(x)}, in float32 {_shown(y)}")
            continue
        if kept.itemsize < 4 and not case.own:
            out.append(f"{where}: comes in {kept}, expected float32 or wider")
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            out.append(f"{where}: {_shown(x)}, in float32 {_shown(y)}: others are finite")
            continue
        finite = np.isfinite(y)
        size = np.abs(y[finite]).max(initial=0)
        off = np.abs(x[finite] - y[finite]).max(initial=0)
        if off > case.within[dtype] * size:
            out.append(
                f"{where}: off by {off:.3g} ({off / max(size, 1e-300):.2g} of the largest; "
                f"allowed {case.within[dtype]:.2g}): {_shown(x)}, in float32 {_shown(y)}"
            )
    return out


def _shown(x: np.ndarray) -> str:
    return np.array2string(x.ravel()[:6], precision=5, separator=", ")


def reached(path: str) -> tuple[Any, str, Any]:
    """(owner, name, thing) at a public path."""
    first, *parts, name = path.split(".")
    owner = importlib.import_module(first)
    for part in parts:
        if isinstance(owner, types.ModuleType) and not hasattr(owner, part):
            importlib.import_module(f"{owner.__name__}.{part}")
        owner = getattr(owner, part)
    return owner, name, inspect.getattr_static(owner, name)


def counted(monkeypatch: Any, path: str) -> Callable[[], int]:
    """How often what is at a public path (or overrides it in a subclass) is used from now on."""
    owner, name, _ = reached(path)
    seen = [0]

    def watched(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen[0] += 1
            return function(*args, **kwargs)

        return wrapper

    for place in _with_subclasses(owner) if inspect.isclass(owner) else [owner]:
        thing = inspect.getattr_static(place, name)
        if inspect.isclass(owner) and place is not owner and name not in vars(place):
            continue
        if isinstance(thing, property):
            new: Any = property(watched(thing.fget))
        elif isinstance(thing, functools.cached_property):
            new = property(watched(thing.func))
        elif isinstance(thing, (classmethod, staticmethod)):
            new = type(thing)(watched(thing.__func__))
        else:
            new = watched(thing)
        monkeypatch.setattr(place, name, new)
    return lambda: seen[0]


def _with_subclasses(owner: type) -> Iterator[type]:
    yield owner
    for each in owner.__subclasses__():
        yield from _with_subclasses(each)
