"""Interventions: values that say what to change, where, and to what.

An intervention is any pytree with ``sites`` and ``__call__(value, at) -> value`` (see
`jaxinterp.model.Intervention`). The built-in ones are all one class, `Edit`: an operation
at a `Where`. Give any of their arrays a leading axis and they are a grid of experiments for
`jaxinterp.sweep`; wrap what all experiments share in `Shared`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.model.config import Config
from jaxinterp.model.inputs import Tokens
from jaxinterp.model.sites import SITES, absent, axis_size, parse
from jaxinterp.model.taps import At
from jaxinterp.numerics import wide, wide_dtype

Operation = Literal["replace", "add", "scale", "project_out", "apply"]
Index = Any  # None (everywhere), an integer, or a bool mask along the axis


class Shared(struct.PyTreeNode):
    """Marks what every experiment of a grid shares: it has no experiment axis."""

    value: Any


def is_shared(node: Any) -> bool:
    """Whether a node of a grid is marked `Shared`."""
    return isinstance(node, Shared)


def unshare(tree: Any) -> Any:
    """The tree without `Shared` marks."""
    return jax.tree.map(lambda n: n.value if is_shared(n) else n, tree, is_leaf=is_shared)


class Where(struct.PyTreeNode):
    """Which entries of a site change: one index per axis, None meaning all of it.

    Each index is an integer or a bool mask along its axis; for ``position`` and ``source``
    also one per prompt: integers [B], masks [B P]. Positions count within the
    prompt, so padding moves nothing. ``head`` means the key/value head at the sites of keys
    and values.
    """

    layer: Index = None
    position: Index = None
    head: Index = None
    neuron: Index = None
    source: Index = None

    def items(self) -> list[tuple[str, Any]]:
        """(axis, index) of the axes that are restricted."""
        pairs = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        return [(axis, index) for axis, index in pairs if index is not None]


def _matches(index: jax.Array, coordinate: jax.Array) -> jax.Array:
    """Where ``coordinate`` [B n] (or [1 n]) is selected by an integer [] or [B], or a mask."""
    if index.dtype == bool:
        inside = (coordinate >= 0) & (coordinate < index.shape[-1])
        entry = coordinate.clip(0, index.shape[-1] - 1)
        chosen = index[entry] if index.ndim == 1 else jnp.take_along_axis(index, entry, 1)
        return chosen & inside
    return coordinate == index.reshape(-1, 1)


def _outside(index: jax.Array, size: jax.Array | int) -> jax.Array:
    """[B or 1]: an integer index that the axis does not have."""
    if index.dtype == bool:
        return jnp.zeros(1, bool)
    index = index.reshape(-1)
    return (index < 0) | (index >= size)


class Edit(struct.PyTreeNode):
    """One operation at one place: what `replace`, `zero`, `add`, `scale`, ... make.

    value: what is put, added, ...; for ``apply`` a function that is a pytree.
    """

    site: str = struct.field(pytree_node=False)
    operation: Operation = struct.field(pytree_node=False)
    where: Where
    value: Any

    @property
    def sites(self) -> tuple[str, ...]:
        """Just one; a tuple of edits has several."""
        return (self.site,)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        """The value [B ...], changed where ``where`` selects; NaN for a traced index outside."""
        changed = self._changed(value, at)
        selected, outside = self._select(at, value.ndim)
        # Select, never interpolate: a NaN in what is not chosen must not leak.
        value = jnp.where(selected, changed, value)
        # A traced index cannot be refused at the door; NaN is louder than doing nothing.
        return jnp.where(outside, jnp.nan, value) if outside is not None else value

    def _changed(self, value: jax.Array, at: At) -> jax.Array:
        if self.operation == "apply":
            return jnp.asarray(unshare(self.value)(value, at)).astype(value.dtype)
        given = self._given(value, at)
        if self.operation == "replace":
            return jnp.broadcast_to(given, value.shape).astype(value.dtype)
        start = wide(value)  # rounded to the model's dtype once, at the end
        if self.operation == "add":
            changed = start + given
        elif self.operation == "scale":
            changed = start * given
        else:
            unit = given / jnp.linalg.norm(given, axis=-1, keepdims=True)
            changed = start - (start * unit).sum(-1, keepdims=True) * unit
        return changed.astype(value.dtype)

    def _given(self, value: jax.Array, at: At) -> jax.Array:
        """What is to be put, added or projected out, as far as it stands where ``value`` does."""
        given = at.donor(jnp.asarray(unshare(self.value))).astype(wide_dtype(value))
        try:
            fits = jnp.broadcast_shapes(given.shape, value.shape) == value.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"The value for {self.site!r} has shape {list(np.shape(unshare(self.value)))}, "
                f"which does not broadcast to {list(value.shape)} ({', '.join(at.axes)})."
            )
        return given

    def _select(self, at: At, ndim: int) -> tuple[jax.Array, jax.Array | None]:
        """bool arrays that broadcast to the value: what is selected, which prompts are bad."""
        selected = jnp.ones((1,) * ndim, bool)
        outside = None
        for axis, index in self.where.items():
            index = jnp.asarray(unshare(index))
            if axis == "layer":
                hit = index[at.layer] if index.dtype == bool else index == at.layer
                selected, bad = selected & hit, _outside(index, at.config.n_layers)
            else:
                place = at.axes.index(axis)
                if axis in ("position", "source"):
                    coordinate = at.positions if axis == "position" else at.sources
                    size: Any = at.sources.max(-1) + 1
                else:
                    size = axis_size(at.config, SITES[at.site], axis)
                    coordinate = jnp.arange(size)[None]
                match = _matches(index, coordinate)
                shape = [1] * ndim
                shape[0], shape[place] = match.shape
                selected, bad = selected & match.reshape(shape), _outside(index, size)
            bad = bad.reshape(-1, *[1] * (ndim - 1))
            outside = bad if outside is None else outside | bad
        return selected, outside

    def check(self, config: Config, tokens: Tokens) -> None:
        """Refuse what the model does not have; also for a whole grid. Traced values pass."""
        site = SITES[self.site]
        sizes = {axis: axis_size(config, site, axis) for axis in ("layer", "head", "neuron")}
        sizes |= dict.fromkeys(("position", "source"), tokens.shape[1])
        for axis, index in self.where.items():
            index = unshare(index)
            kind = np.dtype(getattr(index, "dtype", None) or np.asarray(index).dtype)
            if kind.kind not in "iub" or (kind.kind == "b" and np.ndim(index) == 0):
                raise ValueError(
                    f"{axis}={index!r} at {self.site!r}: expected a whole number, an array of them "
                    f"for a grid, or a bool mask along the {axis} axis."
                )
            if isinstance(index, jax.core.Tracer):
                continue
            index, size = np.asarray(index), sizes[axis] or 0
            if index.dtype == bool:
                if index.shape[-1] != size and axis not in ("position", "source"):
                    raise ValueError(
                        f"The {axis} mask of {self.site!r} has {index.shape[-1]} entries, "
                        f"expected {size}."
                    )
            elif index.size and (index.min() < 0 or index.max() >= size):
                bad = index.min() if index.min() < 0 else index.max()
                raise ValueError(
                    f"{axis} {bad} is out of range at {self.site!r}: "
                    f"expected 0 to {size - 1}{_HINTS.get(axis, '')}."
                )

    def check_single(self) -> None:
        """Refuse a grid where one experiment is asked for."""
        for axis, index in self.where.items():
            index = unshare(index)
            mask = np.dtype(getattr(index, "dtype", int)) == bool
            if axis in ("layer", "head", "neuron") and np.ndim(index) > mask:
                raise ValueError(
                    f"{axis} at {self.site!r} has shape {list(np.shape(index))}: a leading axis is "
                    "a grid of experiments, for jaxinterp.sweep (grid=True in a claim's "
                    "Experiment). For all of them at once give a bool mask."
                )

    def begins(self, config: Config) -> tuple[Any, Any]:
        """The first layer and the first position that can change, from concrete indices.

        Each is None (from the start) or an integer array with the grid's leading axis; the
        position may have a second axis, one entry per prompt. This is what lets a sweep skip
        the layers and positions before it.
        """
        where = self.where
        layer = where.layer
        if not SITES[self.site].layered:
            layer = config.n_layers - 1 if self.site.startswith("ln_final") else None
        # A changed key or pattern row at a position only reaches that position and later.
        return _first(layer), _first(where.position)


_HINTS = {
    "position": " (positions count within the prompt, from 0)",
    "head": " (key/value heads at the sites of keys and values)",
}


def _first(index: Any) -> Any:
    """The first selected entry of an index: itself, or a mask's first True."""
    if index is None or isinstance(unshare(index), jax.core.Tracer):
        return None
    index = np.asarray(index.value)[None] if is_shared(index) else np.asarray(index)
    if index.dtype == bool:
        return np.where(index.any(-1), index.argmax(-1), index.shape[-1] - 1)
    return index


def _edit(operation: Operation, site: str, value: Any, where: dict[str, Any]) -> Edit:
    name, layer = parse(site)
    if layer is not None:
        if where.get("layer") is not None:
            raise ValueError(f"{site!r} names layer {layer} already: leave out layer=.")
        where["layer"] = layer
    axes = SITES[name].axes
    for axis, index in where.items():
        known = SITES[name].layered if axis == "layer" else axis in axes
        if index is not None and not known:
            raise ValueError(f"Site {name!r} has no {axis} axis; it has {', '.join(axes)}.")
    return Edit(name, operation, Where(**where), value)


def replace(
    site: str, value: Any, *, layer: Index = None, position: Index = None, head: Index = None,
    neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Patch: put ``value`` there.

    ``value`` is what `forward` recorded at the site (stacked over layers, [L B P ...]), or
    one layer of it [B P ...], or anything that broadcasts to it ([D], a number).
    The indices select as `Where` says.
    """
    return _edit("replace", site, value, _where(layer, position, head, neuron, source))


def zero(
    site: str, *, layer: Index = None, position: Index = None, head: Index = None,
    neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Zero ablation."""
    where = _where(layer, position, head, neuron, source)
    return _edit("replace", site, Shared(np.float32(0)), where)


def add(
    site: str, value: Any, *, layer: Index = None, position: Index = None, head: Index = None,
    neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Steer: add ``value``."""
    return _edit("add", site, value, _where(layer, position, head, neuron, source))


def scale(
    site: str, value: Any, *, layer: Index = None, position: Index = None, head: Index = None,
    neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Multiply by ``value``."""
    return _edit("scale", site, value, _where(layer, position, head, neuron, source))


def project_out(
    site: str, direction: Any, *, layer: Index = None, position: Index = None,
    head: Index = None, neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Directional ablation: remove the component along ``direction`` (the site's last axis).

    Raises ``ValueError`` for a direction of length 0.
    """
    where, known = _where(layer, position, head, neuron, source), unshare(direction)
    if not isinstance(known, jax.core.Tracer) and not np.linalg.norm(wide(known), axis=-1).all():
        raise ValueError(f"A direction for {site!r} has length 0: there is nothing to project out.")
    return _edit("project_out", site, direction, where)


def apply(
    site: str, function: Any, *, layer: Index = None, position: Index = None, head: Index = None,
    neuron: Index = None, source: Index = None,
) -> Edit:  # fmt: skip
    """Put ``function(value, at)`` there: any map of the site's values, such as an eraser.

    function: a pytree (its arrays may have a grid's leading axis); see `jaxinterp.model.At`.
    """
    return _edit("apply", site, function, _where(layer, position, head, neuron, source))


def _where(layer: Index, position: Index, head: Index, neuron: Index, source: Index) -> dict:
    given = {
        "layer": layer, "position": position, "head": head, "neuron": neuron, "source": source,
    }  # fmt: skip
    # A list would be a node of the pytree, each of its numbers a leaf.
    listed = (list, tuple, range)
    return {k: np.asarray(v) if isinstance(v, listed) else v for k, v in given.items()}


def axes_of(config: Config, site: str) -> tuple[str, ...]:
    """The axes (without batch and width) that a grid over a site can run over."""
    name, _ = parse(site)
    reason = absent(config).get(name)
    if reason:
        raise ValueError(f"A {config.family} model has no site {name!r}: {reason}.")
    names = ("layer",) if SITES[name].layered else ()
    return names + tuple(
        a for a in SITES[name].axes if a in ("position", "head", "neuron", "source")
    )


def product(**axes: Any) -> dict[str, np.ndarray]:
    """Every combination of the given indices: ``{"layer": [E], "position": [E], ...}``.

    The last axis runs fastest, so a sweep's result reshapes to the axes' lengths.

    >>> product(layer=range(2), head=range(2))["layer"].tolist()
    [0, 0, 1, 1]
    """
    columns = np.meshgrid(*[np.asarray(v) for v in axes.values()], indexing="ij")
    return {name: c.reshape(-1) for name, c in zip(axes, columns, strict=True)}
