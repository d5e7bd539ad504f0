"""`jax.jit` for functions that take values of the user's own classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

F = TypeVar("F", bound=Callable[..., Any])


def classes(structure: Any) -> Any:
    """The classes of all nodes of a tree structure, nested."""
    node = structure.node_data()
    return node and (node[0], *map(classes, structure.children()))


def jit(function: F, static: tuple[str, ...] = ()) -> F:
    """``jax.jit`` that never serves one class with a program compiled for another.

    JAX (up to 0.10 at least) compares the tree structures of registered dataclasses by their
    fields and not by their class, so that a plain jit may run the wrong ``__call__`` of two
    interventions or metrics that look alike. Keyword arguments in ``static`` are static.
    """

    @functools.partial(jax.jit, static_argnames=(*static, "kinds"))
    def compiled(args: Any, traced: Any, kinds: Any, **fixed: Any) -> Any:
        return function(*args, **traced, **fixed)

    def on(use: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        fixed = {k: kwargs.pop(k) for k in static if k in kwargs}
        return use(args, kwargs, kinds=classes(jax.tree.structure((args, kwargs))), **fixed)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return on(compiled, args, kwargs)

    call.compiled = compiled  # type: ignore[attr-defined]
    call.lower = lambda *args, **kwargs: on(compiled.lower, args, kwargs)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
