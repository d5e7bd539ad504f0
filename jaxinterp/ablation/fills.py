"""Fills: what an ablation puts in place of a site's values.

Zero, any array, a mean (over a corpus or the prompts themselves), or what the site holds on
other prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.ablation.means import By, as_value, mean_activations
from jaxinterp.checks import MANY, whole_number
from jaxinterp.grid_runs import BATCH, Driver, check_pair, first_difference, recorded
from jaxinterp.interventions import Shared
from jaxinterp.model import SITES, Model, Tokens, as_tokens
from jaxinterp.model.sites import axis_size
from jaxinterp.results import fingerprint
from jaxinterp.sweep.devices import to_host

if TYPE_CHECKING:
    import xarray as xr

FULL = 1 << 24  # numbers that are no burden
KINDS = ("zero", "mean", "resample", "optimal")


@dataclasses.dataclass(frozen=True)
class Fill:
    """Arrays that stand still: zero, or given ones. Its subclasses make theirs.

    arrays: by site, as `replace` takes them; with a prompt axis they hold all prompts. said:
    for the claim.
    """

    arrays: Mapping[str, Any]
    said: Mapping[str, Any]

    draws = 1  # times over, each with other values
    roles = False  # whether the position axis of what `values` gives holds roles

    def identity(self) -> tuple[Any, ...]:
        """What tells it from other fills, to be hashed."""
        return (self.arrays, repr(self.said))

    def first(self, tokens: Tokens, draw: int) -> np.ndarray:
        """The first position [B] at which what is put in can differ from what is there."""
        return np.zeros(len(tokens), int)

    def values(self, driver: Driver, rows: np.ndarray, draw: int) -> dict[str, Any]:
        """By site, for a batch of the prompts."""
        return {site: _of_rows(site, array, rows) for site, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Means(Fill):
    """Means by site, from `mean_activations`; labels [n]: the group of each prompt."""

    tokens: Tokens
    labels: np.ndarray | None
    roles: bool

    def values(self, driver: Driver, rows: np.ndarray, draw: int) -> dict[str, Any]:
        labels = None if self.labels is None else self.labels[rows].tolist()
        tokens = self.tokens[rows]
        return {s: as_value(mean, s, tokens, labels) for s, mean in self.arrays.items()}

    def identity(self) -> tuple[Any, ...]:
        values = {site: mean.values for site, mean in self.arrays.items()}
        return (values, repr(self.said), self.labels)


@dataclasses.dataclass(frozen=True)
class Donors(Fill):
    """What the sites (the keys of ``arrays``) hold on other prompts, draw by draw.

    donors: a prompt for each of ours, in every draw. at: [roles n] in every draw, the donors'
    own positions of the roles; None: their positions are ours.
    """

    donors: tuple[Tokens, ...]
    at: tuple[np.ndarray, ...] | None

    @property
    def draws(self) -> int:  # type: ignore[override]
        return len(self.donors)

    @property
    def roles(self) -> bool:  # type: ignore[override]
        return self.at is not None

    def identity(self) -> tuple[Any, ...]:
        return (self.donors, self.at, repr(self.said))

    def first(self, tokens: Tokens, draw: int) -> np.ndarray:
        if self.roles:
            return super().first(tokens, draw)
        return first_difference(tokens, self.donors[draw])

    def values(self, driver: Driver, rows: np.ndarray, draw: int) -> dict[str, Any]:
        own = self.donors[draw][rows]
        found = recorded(driver.model, driver.place(own), sites=tuple(self.arrays))
        if self.at is None:
            return dict(found)
        columns = np.asarray(own.columns(self.at[draw][:, rows].T))  # [B roles]
        return {site: _at_columns(site, to_host(v), columns) for site, v in found.items()}


def fill_of(
    model: Model,
    tokens: Tokens,
    sites: Sequence[str],
    value: Any,
    *,
    means: Any = None,
    by: Any = "auto",
    donors: Any = None,
    draws: int | None = None,
    seed: int = 0,
    roles: Mapping[str, Any] | None = None,
    size: int = BATCH,
) -> Fill:
    """The fill that the arguments of `jaxinterp.ablate` describe.

    roles: the grid's, [n] each. size: prompts per program when means are taken.
    """
    kind = value if isinstance(value, str) else "array"
    if kind not in ("zero", "mean", "resample", "array"):
        raise ValueError(f"value is {value!r}, expected an array, 'zero', 'mean' or 'resample'.")
    unused = {
        "means": means is not None and kind != "mean",
        "by": not (isinstance(by, str) and by == "auto") and kind != "mean",
        "donors": donors is not None and kind != "resample",
        "draws": draws is not None and kind != "resample",
    }
    for option, wrong in unused.items():
        if wrong:
            raise ValueError(f"{option}= is given, but value={kind!r} does not use it: leave it.")
    if kind == "mean":
        return _means(model, tokens, sites, means, by, roles, size)
    if kind == "resample":
        return _donors(model, tokens, sites, donors, draws, seed, roles)
    if kind == "zero":
        return Fill(dict.fromkeys(sites, np.float32(0)), {"value": "zero"})
    return _given(tokens, sites, value)


def _given(tokens: Tokens, sites: Sequence[str], value: Any) -> Fill:
    """Arrays of the user's own: one, or one by site."""
    arrays = dict(value) if isinstance(value, Mapping) else dict.fromkeys(sites, value)
    if set(arrays) != set(sites):
        raise ValueError(f"value holds {sorted(arrays)}, expected arrays for {sorted(sites)}.")
    arrays = {site: np.asarray(array) for site, array in arrays.items()}
    for site, array in arrays.items():
        axis = _prompt_axis(site, array)
        if axis is not None and array.shape[axis] not in (1, len(tokens)):
            raise ValueError(
                f"The value for {site!r} has shape {list(array.shape)}, which is not for "
                f"{len(tokens)} prompts: give one for each, or one for all."
            )
    return Fill(arrays, {"value": "array", "array": fingerprint(arrays)})


def _means(
    model: Model, tokens: Tokens, sites: Sequence[str], means: Any, by: Any,
    roles: Mapping[str, Any] | None, size: int,
) -> Fill:  # fmt: skip
    """Means that are given, or those of the prompts themselves."""
    n = len(tokens)
    said: dict[str, Any] = {"value": "mean"}
    if means is None:
        what = By.of(_resolved(by, tokens, roles))
        given: Any = what.where if what.labels is None else (what.where, what.labels)
        chunks = [tokens[begin : begin + size] for begin in range(0, n, size)]
        arrays = mean_activations(model, chunks, sites, by=given)
        said |= {"means": "of the prompts themselves", "by": what.describe()}
    else:
        what = By.of(None if isinstance(by, str) and by == "auto" else by)
        arrays = _chosen(means, sites)
        if what.labels is not None and any("group" not in mean.dims for mean in arrays.values()):
            raise ValueError("by= gives labels, but the means have no groups: leave it out.")
        said |= {"means": fingerprint({s: m.values for s, m in arrays.items()})}
        if (about := next(iter(arrays.values())).attrs.get("by")) is not None:
            said["by"] = about
    if what.labels is not None and len(what.labels) != n:
        raise ValueError(f"by has {len(what.labels)} labels for {n} prompts: give one for each.")
    named = [_roles_of(mean) for mean in arrays.values()]
    if any(named) and (len(set(map(tuple, named))) > 1 or named[0] != list(roles or ())):
        raise ValueError(
            f"The means are of roles {named[0]}, the grid's positions are {list(roles or ())}: "
            "take means by the same roles, or by position."
        )
    return Means(arrays, said, tokens, what.labels, bool(named[0]))


def _resolved(by: Any, tokens: Tokens, roles: Mapping[str, Any] | None) -> Any:
    """``by`` with "auto" made plain: roles, positions where lengths are equal, or all alike."""
    equal = bool((np.asarray(tokens.lengths) == tokens.shape[1]).all())
    auto: Any = "position" if equal else None
    if roles is not None:
        lengths = np.asarray(tokens.lengths)
        auto = {role: np.broadcast_to(np.asarray(at), lengths.shape) for role, at in roles.items()}
    if isinstance(by, str) and by == "auto":
        return auto
    if isinstance(by, tuple) and len(by) == 2 and isinstance(by[0], str) and by[0] == "auto":
        return auto, by[1]
    return by


def _chosen(means: Any, sites: Sequence[str]) -> dict[str, xr.DataArray]:
    """The means of the sites, from what `mean_activations` returned."""
    if not isinstance(means, Mapping):
        means = {getattr(means, "attrs", {}).get("site", sites[0]): means}
    missing = [site for site in sites if site not in means]
    if missing:
        raise ValueError(f"The means are of {', '.join(means)}: take one of {missing[0]!r}.")
    if not all(hasattr(means[site], "dims") for site in sites):
        raise ValueError("means= takes what mean_activations returns; for a bare array use value=.")
    return {site: means[site] for site in sites}


def _roles_of(mean: xr.DataArray) -> list[str]:
    """The roles that a mean stands at, if it does."""
    at = mean.coords.get("position")
    return [] if at is None or at.dtype.kind != "U" else at.values.tolist()


def _donors(
    model: Model, tokens: Tokens, sites: Sequence[str], donors: Any, draws: int | None, seed: int,
    roles: Mapping[str, Any] | None,
) -> Fill:  # fmt: skip
    """A donor for every prompt and draw: given, drawn from a pool, or another of the prompts."""
    whole_number("draws", draws, 1, MANY, optional=True)
    rng, n = np.random.default_rng(seed), len(tokens)
    at: tuple[np.ndarray, ...] | None = None
    if donors is None:
        one = np.zeros(n, int)
        alike = _alike(tokens, tokens)[0] if roles is None else one
        picks = [deranged(alike, rng) for _ in range(draws or 1)]
        given = tuple(tokens[pick] for pick in picks)
        if roles is not None:
            places = np.stack([np.broadcast_to(np.asarray(a), one.shape) for a in roles.values()])
            at = tuple(places[:, pick] for pick in picks)
        said = {"donors": "other prompts of the batch", "seed": seed}
    else:
        pool = as_tokens(donors)
        said = {"donors": fingerprint(pool)}
        if draws is None:
            given = (pool,)
        else:
            own, theirs = _alike(tokens, pool)
            given = tuple(pool[_drawn(own, theirs, rng)] for _ in range(draws))
            said["seed"] = seed
        for each in given:
            check_pair(model, tokens, each, names=("own", "donor"))
    return Donors(
        dict.fromkeys(sites), {"value": "resample", "draws": len(given), **said}, given, at
    )


def _alike(tokens: Tokens, others: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [n], [m] that are equal for prompts of one length and padding."""
    a, b = np.asarray(tokens.positions), np.asarray(others.positions)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"The prompts are {a.shape[1]} tokens wide, the donors {b.shape[1]}: pad them alike."
        )
    _, kinds = np.unique(np.concatenate([a, b]), axis=0, return_inverse=True)
    return kinds[: len(a)], kinds[len(a) :]


def deranged(kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another prompt for each [n], of its own kind; nobody gives twice."""
    out = np.empty(len(kinds), int)
    for kind in np.unique(kinds):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        if len(members) == 1:
            raise ValueError(
                f"Prompt {members[0]} is the only one of its length (and padding), so no other "
                "can stand in for it: pass donors=, or prompts of equal lengths."
            )
        out[members] = np.roll(members, 1)  # a cycle: none is its own
    return out


def _drawn(own: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each prompt [n] one of the pool, of its kind."""
    for number, kind in enumerate(own):
        if kind not in theirs:
            raise ValueError(f"No donor has the length (and padding) of prompt {number}.")
    return np.array([rng.choice(np.flatnonzero(theirs == kind)) for kind in own])


def _prompt_axis(site: str, array: Any) -> int | None:
    """The prompt axis of an array that `replace` takes, if it has one."""
    rank = 1 + len(SITES[site].axes)
    stacked = SITES[site].layered and np.ndim(array) == rank + 1
    return 1 if stacked else 0 if np.ndim(array) == rank else None


def _of_rows(site: str, array: Any, rows: np.ndarray) -> Any:
    """A batch's part of an array that may hold all prompts."""
    axis = _prompt_axis(site, array)
    return array if axis is None or array.shape[axis] == 1 else np.take(array, rows, axis)


def _at_columns(site: str, values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Recorded values [(L) B P ...] at some columns [B R] of each prompt: [(L) B R ...]."""
    batch = int(SITES[site].layered)
    place = batch + 1 + SITES[site].axes.index("position")
    shape = [1] * values.ndim
    shape[batch], shape[place] = columns.shape
    return np.take_along_axis(values, columns.reshape(shape), place)


def at_role(site: str, value: Any, role: int) -> Any:
    """One role's part of a value whose position axis holds roles; the axis stays, of length 1."""
    place = int(SITES[site].layered) + 1 + SITES[site].axes.index("position")
    return jax.lax.slice_in_dim(value, role, role + 1, axis=place)


def in_full(model: Model, site: str, value: Any, tokens: Tokens) -> Shared:
    """A fill's value for a batch, as a leaf of a grid.

    In full [L B P ...] where that is small, so that all kinds of values share a program.
    """
    c, (batch, length) = model.config, tokens.shape
    sizes = [axis_size(c, SITES[site], axis) or length for axis in SITES[site].axes]
    shape = (*([c.n_layers] if SITES[site].layered else []), batch, *sizes)
    value = jnp.asarray(value, model.params.embed.W_E.dtype)
    try:
        small = np.prod(shape) <= FULL and np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:  # the edit says what is wrong
        small = False
    return Shared(jnp.broadcast_to(value, shape) if small else value)
