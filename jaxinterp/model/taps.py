"""Taps: where interventions meet the forward pass, and where values are recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxinterp.model.config import Config
from jaxinterp.model.inputs import Tokens
from jaxinterp.model.params import Norm
from jaxinterp.model.parts import normalize
from jaxinterp.model.sites import SITES, require


@dataclasses.dataclass(frozen=True)
class Frame:
    """The token columns a value holds: all of them, a suffix, or a few that are read.

    ``positions`` [B P] are positions within each prompt (-1: padding); ``columns`` says
    which columns of the token array these are: a slice, or indices [B P]. ``owner`` [B P]:
    whose they are, where a sweep runs several experiments side by side.
    """

    positions: jax.Array
    columns: slice | jax.Array = dataclasses.field(default_factory=lambda: slice(None))
    owner: jax.Array | None = None

    def take(self, whole: jax.Array, axis: int) -> jax.Array:
        """This frame's P columns of an array [B ...] that holds every column along ``axis``."""
        if isinstance(self.columns, slice):
            return whole[(slice(None),) * axis + (self.columns,)]
        shape = [1] * whole.ndim
        shape[0], shape[axis] = self.columns.shape
        return jnp.take_along_axis(whole, self.columns.reshape(shape), axis)

    def read(self, columns: jax.Array) -> Frame:
        """The frame of a few columns [B R], counted within this frame."""

        def part(values: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values, columns, 1)

        if isinstance(self.columns, slice):
            return Frame(part(self.positions), columns + (self.columns.start or 0))
        owner = None if self.owner is None else part(self.owner)
        return Frame(part(self.positions), part(self.columns), owner)


@dataclasses.dataclass(frozen=True)
class At:
    """Where an intervention is called.

    site: the site's name. config: the architecture. layer: the layer, a traced integer
    (None at sites that occur once). positions: [B P], the position within its prompt of
    each token the value holds (-1: padding). sources: [B S], the same for the source axis.
    """

    site: str
    config: Config
    layer: jax.Array | None
    frame: Frame
    sources: jax.Array

    @property
    def positions(self) -> jax.Array:
        """int [B P], within each prompt; of a suffix run or a decoding step only some."""
        return self.frame.positions

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the value's axes."""
        return ("batch", *SITES[self.site].axes)

    def donor(self, values: jax.Array) -> jax.Array:
        """The part of recorded ``values`` that stands where this value stands.

        ``values`` may be stacked over layers, as `forward` records them, or belong to one
        layer; positions that this run does not hold are left out. Anything of fewer axes
        is broadcast as NumPy would.

        Raises ``ValueError`` for values stacked over another number of layers.
        """
        if values.ndim == len(self.axes) + 1:
            if self.layer is None or len(values) != self.config.n_layers:
                has = "no layers" if self.layer is None else f"{self.config.n_layers} layers"
                raise ValueError(
                    f"The values for {self.site!r} are stacked over {len(values)} layers, "
                    f"{list(values.shape)}; it has {has}: give them as `forward` records them, or "
                    "those of one layer."
                )
            values = values[self.layer]  # a traced index would be clamped, not refused
        if values.ndim == len(self.axes):
            axis = self.axes.index("position")
            if values.shape[axis] > 1:
                values = self.frame.take(values, axis)
        return values


@runtime_checkable
class Intervention(Protocol):
    """Any pytree that maps (value, where) to a value of the same shape and dtype."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The (static) names of the sites it changes."""

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        """The value [B ...] (axes: ``at.axes``), changed or not; called at its ``sites`` alone."""


def as_interventions(
    config: Config, given: Any, tokens: Tokens, *, grid: bool = False
) -> tuple[Intervention, ...]:
    """A flat tuple of interventions, each checked against the model and the tokens.

    Raises ``TypeError`` for what is not an intervention and ``ValueError`` for one that
    names a site the architecture lacks or an index out of range, and for a grid of them where
    none is asked for.
    """
    if isinstance(given, (tuple, list)):
        return tuple(i for each in given for i in as_interventions(config, each, tokens, grid=grid))
    if not isinstance(given, Intervention) or not callable(given):
        raise TypeError(
            f"{given!r} is not an intervention: it needs `sites` (a tuple of site names) "
            "and `__call__(value, at)`."
        )
    for site in given.sites:
        require(config, site)
    if hasattr(given, "check"):
        given.check(config, tokens)
    if not grid and hasattr(given, "check_single"):
        given.check_single()
    return (given,)


def apply(interventions: Iterable[Intervention], value: jax.Array, at: At) -> jax.Array:
    """A value after the interventions that are for its site, in order."""
    for intervention in interventions:
        if at.site in intervention.sites:
            changed = intervention(value, at)
            if (changed.shape, changed.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"{type(intervention).__name__} at {at.site!r} returned "
                    f"{changed.dtype}{list(changed.shape)}, expected "
                    f"{value.dtype}{list(value.shape)} {' '.join(at.axes)}: "
                    "an intervention keeps its value's shape and dtype."
                )
            value = changed
    return value


class Tap:
    """Applies the interventions at each site and keeps what is to be recorded.

    Lives only while one stage or one layer is traced.
    """

    def __init__(
        self,
        config: Config,
        interventions: Iterable[Intervention],
        record: Iterable[str],
        sources: jax.Array,
        layer: jax.Array | None = None,
    ):
        self.config, self.layer, self.sources = config, layer, sources
        self.interventions, self.record = tuple(interventions), frozenset(record)
        self.recorded: dict[str, Any] = {}

    def edits(self, *sites: str) -> bool:
        """Whether an intervention changes one of the sites."""
        return any(site in i.sites for i in self.interventions for site in sites)

    def wants(self, *sites: str) -> bool:
        """Whether one of the sites is changed or recorded."""
        return self.edits(*sites) or not self.record.isdisjoint(sites)

    def __call__(
        self,
        site: str,
        value: jax.Array,
        frame: Frame,
        restore: Callable[[jax.Array], jax.Array] = lambda value: value,
    ) -> jax.Array:
        """The value [B ...] after its edits; ``restore`` takes back what no edit may change."""
        at = At(site, self.config, self.layer, frame, self.sources)
        if self.edits(site):
            value = restore(apply(self.interventions, value, at))
        if site in self.record:
            self.recorded[site] = value
        return value


def norm_site(
    config: Config, p: Norm | None, name: str, x: jax.Array, tap: Tap, frame: Frame
) -> jax.Array:
    """A norm with its two sites: the scale it divides by, and what its readers read."""
    if p is None:
        return x
    y = normalize(config, p, x, lambda scale: tap(f"{name}_scale", scale, frame))
    return tap(f"{name}_normalized", y, frame)
