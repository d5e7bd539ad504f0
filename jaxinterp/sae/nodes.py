"""The nodes of sparse feature circuits: features and errors of several SAEs, and their effects.

Marks et al. 2024 (arXiv:2403.19647). A metric of the model's logits is what they are to explain;
every node is exchanged for another run's, or for 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, real_number, whole_number
from jaxinterp.grid_runs import Driver, check_pair, recorded
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, described
from jaxinterp.sae.gradients import Place, bare, named, places_of, slopes, split

if TYPE_CHECKING:
    import xarray as xr

Aggregate = Literal["sum", "none"]
ERROR = -1  # the error's number among features


def feature_nodes(
    model: Model, dictionaries: Sequence[Dictionary], tokens: Any, metric: Metric, *,
    donor: Any = None, steps: int = 1, aggregate: Aggregate = "sum", batch: int | None = None,
) -> xr.DataArray:  # fmt: skip
    """The indirect effects of all features and errors of several SAEs, estimated from gradients.

    dictionaries: in the order of the forward pass. donor: the prompts whose features and errors
    are put in, token by token (default: 0 is). steps: 1 for attribution (eq. 3: one backward pass
    for all dictionaries), more for integrated gradients (eq. 4: so many points for each
    dictionary, whose features and error move together while others are left to follow).
    aggregate: ``"sum"`` over positions, or ``"none"``. batch: prompts per program.

    Returns dims (node, prompt), or (node, position, prompt), in the metric's units. Nodes are
    named as ``"resid_post.5.f12"`` and ``"resid_post.5.error"``; coordinates ``site``, ``layer``,
    ``feature`` (-1: the error). Padding has 0.

    Raises ``ValueError`` for dictionaries that are no SAEs, share a place or are out of order, a
    donor of another shape, steps below 1, and single positions of padded prompts.
    """
    runs = Runs.of(model, dictionaries, tokens, metric, donor, steps, batch)
    return node_effects(runs, aggregate)


def select_nodes(effects: xr.DataArray, threshold: float) -> xr.DataArray:
    """The nodes whose mean effect over prompts is ``threshold`` or more in size: (node, prompt).

    Where effects are of single positions, so are nodes: named ``"resid_post.5.f12@3"``, with the
    coordinate ``position``.

    Raises ``ValueError`` where there are none, naming the largest effect.
    """
    import xarray as xr

    threshold = real_number("threshold", threshold, least=0)
    effects = effects.transpose("node", ..., "prompt")
    size = np.abs(effects.mean("prompt").values)
    passing = np.nonzero(size >= threshold)
    rows = passing[0]
    if not len(rows):
        most = np.unravel_index(np.nanargmax(size), size.shape)
        raise ValueError(
            f"No node has a mean effect of {threshold} or more: the largest is {size[most]:.4g}, "
            f"of {effects['node'].values[most[0]]}. Lower the threshold."
        )
    names = effects["node"].values[rows]
    coords = {k: ("node", effects[k].values[rows]) for k in ("site", "layer", "feature")}
    if "position" in effects.dims:
        coords["position"] = ("node", passing[1])
        names = np.array([f"{n}@{p}" for n, p in zip(names, passing[1], strict=True)])
    return xr.DataArray(
        effects.values[passing], {"node": names, **coords, "prompt": effects["prompt"].values},
        ("node", "prompt"), effects.name, {**effects.attrs, "node_threshold": threshold},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """One batch of prompts. For each place: the values [B P D], those of the donor, the way from
    one to the other end of the exchange, and the metric's slopes along it.

    stream [L B P D]: before each layer.
    """

    tokens: Tokens
    metric: Metric
    values: list[jax.Array]
    donors: list[Any]
    changes: list[jax.Array]
    slopes: list[jax.Array]
    stream: jax.Array


@dataclasses.dataclass(frozen=True)
class Runs:
    """What a method over features of several SAEs is given, checked, to be taken by batches."""

    model: Model
    dictionaries: tuple[Dictionary, ...]
    places: tuple[Place, ...]
    tokens: Tokens
    donors: Tokens | None
    metric: Metric
    steps: int
    driver: Driver
    parts: dict[int, Part] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Model, dictionaries: Sequence[Dictionary], tokens: Any, metric: Metric,
        donor: Any, steps: int, batch: int | None,
    ) -> Runs:  # fmt: skip
        places = places_of(model, dictionaries)
        steps = whole_number("steps", steps, 1, MANY)
        tokens = as_tokens(tokens)
        check_tokens(model.config, tokens)
        check_metric(metric, model, tokens)
        donors = None if donor is None else as_tokens(donor)
        if donors is not None:
            check_pair(model, tokens, donors, ("given", "donor"))
        driver = Driver.of(model, tokens, (), batch=batch)
        return cls(model, tuple(dictionaries), places, tokens, donors, metric, steps, driver)

    def batches(self, run: Callable[[Part], np.ndarray]) -> np.ndarray:
        """``run(part)`` [... B] of all prompts; parts are kept for the next time."""

        def of_rows(rows: np.ndarray) -> np.ndarray:
            first = int(rows[0])
            if first not in self.parts:
                self.parts[first] = self._part(rows)
            return run(self.parts[first])

        return self.driver.batches(of_rows, 1)

    def _part(self, rows: np.ndarray) -> Part:
        model, tokens, metric = self.model, self.tokens[rows], of_prompts(self.metric, rows)
        values, stream = self.values(tokens)
        donors: list[Any] = [None] * len(values)
        ends = [d.params.b_dec for d in self.dictionaries]
        if self.donors is not None:
            ends = donors = self.values(self.donors[rows])[0]
        changes = [end - x for end, x in zip(ends, values, strict=True)]
        found = slopes(model, tokens, metric, self.places, changes, steps=self.steps)
        return Part(tokens, metric, values, donors, changes, found, stream)

    def values(self, tokens: Tokens) -> tuple[list[jax.Array], jax.Array]:
        """The values [B P D] at each place, and the stream [L B P D] before each layer.

        Values, and so features, changes and slopes, are in float32 or wider.
        """
        sites = tuple(dict.fromkeys(["resid_pre", *(site for site, _ in self.places)]))
        found = recorded(self.model, tokens, sites=sites)
        return [wide(found[site][layer]) for site, layer in self.places], found["resid_pre"]

    def claim(self, **fields: Any) -> dict[str, Any]:
        """The record of a result."""
        return claim(
            self.model, sites=list(map(named, self.places)), metric=self.metric.describe(),
            donor=self.donors is not None, n_prompts=len(self.tokens),
            dictionaries=self._described, **fields,
        )  # fmt: skip

    @functools.cached_property
    def _described(self) -> list[str]:
        return [described(d) for d in self.dictionaries]


def node_effects(runs: Runs, aggregate: Aggregate) -> xr.DataArray:
    """What `feature_nodes` returns."""
    import xarray as xr

    if aggregate not in ("sum", "none"):
        raise ValueError(f"aggregate={aggregate!r}, expected 'sum' (over positions) or 'none'.")
    if aggregate == "none":
        check_unpadded(runs.tokens)

    def run(part: Part) -> np.ndarray:
        found = [
            _effects(bare(d), x, donor, slope, part.tokens.mask)
            for d, x, donor, slope in zip(
                runs.dictionaries, part.values, part.donors, part.slopes, strict=True
            )
        ]  # fmt: skip
        if aggregate == "sum":
            found = [each.sum(1) for each in found]
        return np.concatenate(jax.device_get(found))

    values = runs.batches(run)
    names: list[str] = []
    sizes = [d.config.n_features for d in runs.dictionaries]
    for place, size in zip(runs.places, sizes, strict=True):
        names += [f"{named(place)}.f{i}" for i in range(size)] + [f"{named(place)}.error"]
    each = [size + 1 for size in sizes]
    dims = ("node", "prompt") if aggregate == "sum" else ("node", "position", "prompt")
    coords: dict[str, Any] = {
        "node": np.array(names),
        "site": ("node", np.repeat([site for site, _ in runs.places], each)),
        "layer": ("node", np.repeat([layer for _, layer in runs.places], each)),
        "feature": ("node", np.concatenate([np.append(np.arange(n), ERROR) for n in sizes])),
        **{dim: np.arange(n) for dim, n in zip(dims[1:], values.shape[1:], strict=True)},
    }
    attrs = runs.claim(
        method="attribution of features and errors", steps=runs.steps, aggregate=aggregate
    )
    return xr.DataArray(values, coords, dims, "effect", attrs)


@jit
def _effects(
    d: Dictionary, x: jax.Array, donor: jax.Array | None, slope: jax.Array, mask: jax.Array
) -> jax.Array:
    """slope . change of every feature, then of the error: [F + 1 P B]."""
    features, error = exchanged(d, x, donor, mask)
    along = features * along_rows(d, slope)
    every = jnp.concatenate([along, (slope * error).sum(-1, keepdims=True)], -1)
    return every.transpose(2, 1, 0)


def exchanged(
    d: Dictionary, x: jax.Array, donor: jax.Array | None, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How features [B P F] and error [B P D] change; 0 at padding."""
    own = split(d, x)
    other: tuple[Any, Any] = (0.0, 0.0) if donor is None else split(d, donor)
    real = jnp.asarray(mask)[:, :, None]
    features, error = (jnp.where(real, b - a, 0) for a, b in zip(own, other, strict=True))
    return features, error


def along_rows(d: Dictionary, slope: jax.Array) -> jax.Array:
    """The slopes [B P F] along every feature's row, from those of the value [B P D]."""
    return jnp.einsum("bpd,fd->bpf", slope, d.params.W_dec, precision="highest")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some nodes of one dictionary: names, numbers of features [K] (-1: the error), and where
    they stand, bool [K P]."""

    names: np.ndarray
    features: np.ndarray
    where: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_error(self) -> np.ndarray:
        return self.features == ERROR


def chosen_nodes(runs: Runs, nodes: xr.DataArray | xr.Dataset) -> list[Chosen]:
    """The nodes of each dictionary, from their coordinates.

    Raises ``ValueError`` for places, features and positions that there are not.
    """
    labels, features = nodes["node"].values, nodes["feature"].values.astype(int)
    keys = list(zip(nodes["site"].values.tolist(), nodes["layer"].values.tolist(), strict=True))
    length = runs.tokens.shape[1]
    where = np.ones((len(labels), length), bool)
    if "position" in nodes.coords:
        check_unpadded(runs.tokens)
        at = nodes["position"].values[:, None]
        if (at >= length).any():
            raise ValueError(f"A node is at position {at.max()}, the prompts have {length} tokens.")
        where = at == np.arange(length)
    sizes = {
        p: d.config.n_features for p, d in zip(runs.places, runs.dictionaries, strict=True)
    }  # fmt: skip
    for name, key, feature in zip(labels, keys, features, strict=True):
        if key not in sizes:
            raise ValueError(f"There is no dictionary for {name}: give the one at {named(key)}.")
        if not ERROR <= feature < sizes[key]:
            raise ValueError(f"There is no {name}: the dictionary has {sizes[key]} features.")
    rows = [np.array([key == place for key in keys], bool) for place in runs.places]
    return [Chosen(labels[own], features[own], where[own]) for own in rows]


def check_unpadded(tokens: Tokens) -> None:
    """Refuse padded prompts, of which positions cannot be told apart."""
    if not np.asarray(tokens.mask).all():
        raise ValueError(
            "Nodes of single positions need prompts of equal length; these are padded: use "
            "aggregate='sum'."
        )
