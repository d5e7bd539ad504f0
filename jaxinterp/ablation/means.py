"""Means of activations over any corpus, in one streaming pass.

What mean ablation puts in place of a value: over all positions, of each position (or role),
of each group of prompts (a template), or of each position in each group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model import SITES, Model, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.record import whole_sites
from jaxinterp.numerics import wide
from jaxinterp.results import claim

if TYPE_CHECKING:
    import xarray as xr


def mean_activations(
    model: Model,
    batches: Iterable[Any],
    sites: Sequence[str],
    *,
    by: Any = None,
    second: bool = False,
    record: Mapping[str, Any] | None = None,
) -> dict[str, xr.DataArray]:
    """The mean of every site's values over the real tokens of all prompts, by site.

    batches: any iterable of `Tokens` (or ids [B P]), read once, held one at a time; batches of
    few different shapes compile few programs. sites: our names or TransformerLens's (a hook's
    layer is not looked at: every layer is returned).

    by: what has a mean of its own. None: nothing, all positions count alike. ``"position"``:
    each position, counted within the prompt from 0, over the prompts that reach it. A mapping
    from role names to one position per prompt ([n] over the whole stream). Labels [n], one per
    prompt of the stream: each group of equal labels. A pair of one of the first three and
    labels: both (``("position", templates)``). second: also the variance.

    Batches are summed in float32 (or wider, as the model is) and put together in float64 (mean
    and centred squares: Chan, Golub & LeVeque 1979), so that long streams lose nothing.

    Returns float64 arrays with dims (group, layer, position, and the site's other axes), as
    far as they apply. The coordinate ``count`` says over how many tokens a mean was taken (NaN
    where none), ``variance`` holds the population variance.

    Raises ``ValueError`` for an empty stream, labels or roles that do not match its prompts,
    and for sites with a source axis (patterns) unless ``by`` is ``"position"``: the mean over
    positions of what stands at a source has no meaning.
    """
    sites = whole_sites(model.config, sites)
    what = By.of(by)
    for site in sites:
        if "source" in SITES[site].axes and what.where != "position":
            raise ValueError(
                f"The mean of {site!r} over positions mixes sources: pass by='position'."
            )
    if isinstance(batches, Tokens):
        batches = [batches]
    seen, total = 0, dict.fromkeys(sites, _Moments())
    for given in batches:
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        columns, real, group = what.of_batch(tokens, seen)
        found = _of_batch(
            model, tokens, columns, real, group, sites=sites, groups=what.n_groups,
            pooled=what.where is None, second=second,
        )  # fmt: skip
        for site, moments in found.items():
            total[site] = total[site].merged(*moments, _growing(site, what))
        seen += len(tokens)
    what.check_end(seen)
    attrs = claim(
        model, intervention="none", by=what.describe(), n_prompts=seen, **dict(record or {})
    )
    return {site: _labelled(site, total[site], what, second, attrs) for site in sites}


@dataclasses.dataclass(frozen=True)
class By:
    """What has a mean of its own: ``where`` it stands, and each group of prompts."""

    where: Any = None  # None, "position", or roles: {name: [n]}
    labels: np.ndarray | None = None  # [n]

    @classmethod
    def of(cls, by: Any) -> By:
        """From the argument ``by`` of `mean_activations`."""
        where, labels = by, None
        if isinstance(by, tuple) and len(by) == 2 and _is_where(by[0]) and np.ndim(by[1]) == 1:
            where, labels = by
        elif not _is_where(by):
            where, labels = None, by
        if isinstance(where, Mapping):
            where = {role: np.asarray(at) for role, at in where.items()}
            shapes = {role: list(at.shape) for role, at in where.items()}
            if not where or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in where.values()):
                raise ValueError(f"by has roles {shapes}, expected one position per prompt each.")
        if labels is not None:
            labels = np.asarray(labels)
            if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuUb":
                raise ValueError(
                    f"by={by!r}, expected None, 'position', roles, labels (one integer or text "
                    "per prompt), or a pair of one of the first three and labels."
                )
        return cls(where, labels)

    @functools.cached_property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct labels, and which of them each prompt has."""
        assert self.labels is not None
        return np.unique(self.labels, return_inverse=True)

    @property
    def n_groups(self) -> int:
        return 1 if self.labels is None else len(self.groups[0])

    def describe(self) -> Any:
        """For the claim."""
        where = list(self.where) if isinstance(self.where, Mapping) else self.where
        groups = None if self.labels is None else self.groups[0].tolist()
        return {"position": where, "groups": groups}

    def rows(self, per_prompt: np.ndarray, seen: int, n: int) -> np.ndarray:
        """The part of an array [n] over the stream that is one batch's."""
        if len(per_prompt) < seen + n:
            raise ValueError(
                f"by has {len(per_prompt)} entries, the stream has at least {seen + n} prompts: "
                "give one for each."
            )
        return per_prompt[seen : seen + n]

    def of_batch(self, tokens: Tokens, seen: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns [B Q] in the order of positions (or roles), which are real, and groups [B]."""
        lengths = np.asarray(tokens.lengths)
        if isinstance(self.where, Mapping):
            at = np.stack([self.rows(a, seen, len(tokens)) for a in self.where.values()], -1)
            if (at < 0).any() or (at >= lengths[:, None]).any():
                raise ValueError(f"by has a role outside its prompt: positions {at.tolist()}.")
        else:
            at = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        real = at < lengths[:, None]
        columns = np.asarray(tokens.columns(np.where(real, at, 0)))
        group = np.zeros(len(tokens), int)
        if self.labels is not None:
            group = self.rows(self.groups[1], seen, len(tokens))
        return columns, real, group

    def check_end(self, seen: int) -> None:
        """Refuse an empty stream, and one that is shorter than what describes it."""
        if not seen:
            raise ValueError("There are no prompts to take a mean of: is the stream used up?")
        given = [] if self.labels is None else [self.labels]
        given += list(self.where.values()) if isinstance(self.where, Mapping) else []
        for each in given:
            if len(each) != seen:
                raise ValueError(f"by has {len(each)} entries for {seen} prompts.")


def _is_where(by: Any) -> bool:
    return by is None or isinstance(by, Mapping) or (isinstance(by, str) and by == "position")


@functools.partial(jit, static=("sites", "groups", "pooled", "second"))
def _of_batch(
    model: Model, tokens: Tokens, columns: Any, real: Any, group: Any,
    *, sites: tuple[str, ...], groups: int, pooled: bool, second: bool,
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:  # fmt: skip
    """By site: mean and centred squares [G L (Q) ...] of one batch, and counts that broadcast."""
    activations = forward(model, tokens, record=sites).activations

    def summed(x: jax.Array) -> jax.Array:  # in two stages, so that rounding stays small
        x = jax.ops.segment_sum(x, group, num_segments=groups)
        return x.sum(2, keepdims=True) if pooled else x

    def one(site: str, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        axes = SITES[site].axes
        x = wide(x if SITES[site].layered else x[None])
        x = jnp.moveaxis(x, (1, 2 + axes.index("position")), (0, 2))  # [B L P ...]
        rest = (1,) * (x.ndim - 3)
        x = jnp.take_along_axis(x, columns.reshape(len(columns), 1, -1, *rest), 2)
        held = real.reshape(len(columns), 1, -1, *rest)
        if "source" in axes:
            others = (len(columns), *(1,) * (x.ndim - 2), columns.shape[1])
            x = jnp.take_along_axis(x, columns.reshape(others), -1)
            held = held & real.reshape(others)
        count = summed(held.astype(x.dtype))
        mean = summed(jnp.where(held, x, 0)) / jnp.maximum(count, 1)
        squares = jnp.zeros_like(mean)
        if second:
            squares = summed(jnp.square(jnp.where(held, x - mean[group], 0)))
        return mean, squares, count

    return {site: one(site, activations[site]) for site in sites}


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Mean, centred squares and count of what has been seen, in float64."""

    mean: Any = 0.0
    squares: Any = 0.0
    count: Any = 0.0

    def merged(self, mean: Any, squares: Any, count: Any, growing: tuple[int, ...]) -> _Moments:
        """Together with another batch's, whose axes ``growing`` may be longer or shorter."""
        a = [np.asarray(x, np.float64) for x in (self.mean, self.squares, self.count)]
        b = [np.asarray(x, np.float64) for x in (mean, squares, count)]
        if growing and a[0].ndim:
            length = max(a[0].shape[2], b[0].shape[2])
            a, b = ([_grown(x, growing, length) for x in each] for each in (a, b))
        total = a[2] + b[2]
        part = b[2] / np.maximum(total, 1)
        gap = b[0] - a[0]
        return _Moments(a[0] + gap * part, a[1] + b[1] + gap**2 * a[2] * part, total)


def _growing(site: str, by: By) -> tuple[int, ...]:
    """The axes of [G L Q ...] that are as long as the longest prompt."""
    if by.where != "position":
        return ()
    return (2, len(SITES[site].axes) + 1) if "source" in SITES[site].axes else (2,)


def _grown(x: np.ndarray, axes: tuple[int, ...], length: int) -> np.ndarray:
    """Zeros for positions that were not seen."""
    return np.pad(x, [(0, length - n if i in axes else 0) for i, n in enumerate(x.shape)])


def _labelled(
    site: str, found: _Moments, by: By, second: bool, attrs: dict[str, Any]
) -> xr.DataArray:
    """Named dims, in the site's own order: [G L Q ...] to (group, layer, ..., position, ...)."""
    import xarray as xr

    axes, layered = SITES[site].axes, SITES[site].layered
    place = 2 + axes.index("position")
    names = ("group", "layer", *axes)
    gone = {"group": by.labels is None, "layer": not layered, "position": by.where is None}
    kept = tuple(name for name in names if not gone.get(name))

    def arrange(x: np.ndarray) -> xr.DataArray:
        x = np.moveaxis(x, 2, place)
        return xr.DataArray(x, dims=names).isel({name: 0 for name in names if name not in kept})

    mean, count = arrange(found.mean), arrange(found.count)
    count = count.isel({d: 0 for d in kept if d not in ("group", "position", "source")})
    mean = mean.where(count > 0)
    coords: dict[str, Any] = {"count": count.astype(int)}
    if second:
        coords["variance"] = (arrange(found.squares) / count.where(count > 0)).transpose(*kept)
    if by.labels is not None:
        coords["group"] = by.groups[0]
    if isinstance(by.where, Mapping):
        coords["position"] = list(by.where)
    mean = mean.transpose(*kept).assign_coords(coords)
    return mean.rename(site).assign_attrs({**attrs, "site": site})


def as_value(
    mean: xr.DataArray, site: str, tokens: Tokens, labels: Sequence[Any] | None = None
) -> np.ndarray:
    """A mean as `replace` takes it for these prompts: float32 [L B P ...], 1 where it is shared.

    mean: from `mean_activations`. labels: the prompts' groups, where the mean has groups.

    Raises ``ValueError`` for a group or a position that the mean does not cover.
    """
    axes = SITES[site].axes
    names = tuple(n for n in ("group", "layer", *axes) if n in mean.dims)
    unknown = set(mean.dims) - set(names)
    if unknown or (SITES[site].layered != ("layer" in names)):
        raise ValueError(
            f"The mean has dims {list(mean.dims)}, expected some of group, layer, "
            f"{', '.join(axes)}: take it from mean_activations at {site!r}."
        )
    array = mean.transpose(*names).values.astype(np.float32)
    array = _of_groups(array, mean, labels)  # [B|1 (L) ...]
    if "layer" in names:
        array = np.moveaxis(array, 1, 0)
    batch = int("layer" in names)
    for axis in ("position", "source"):
        if axis not in axes:
            continue
        place = batch + 1 + axes.index(axis)
        if axis not in names:
            array = np.expand_dims(array, place)
        elif mean.coords.get(axis) is None or mean.coords[axis].dtype.kind != "U":  # not roles
            array = _at_positions(array, batch, place, tokens)
    if np.isnan(array).any():
        raise ValueError(f"The mean of {site!r} does not cover every position of these prompts.")
    return array


def _of_groups(array: np.ndarray, mean: xr.DataArray, labels: Sequence[Any] | None) -> np.ndarray:
    """Each prompt's group's mean, [B ...], or [1 ...] where there are no groups."""
    if "group" not in mean.dims:
        return array[None]
    known = mean.coords["group"].values.tolist()
    if labels is None:
        raise ValueError("The mean has groups: pass by=, the label of each prompt's group.")
    given = np.asarray(labels).tolist()
    missing = [label for label in given if label not in known]
    if missing:
        raise ValueError(f"Group {missing[0]!r} has no mean; the means are of {known}.")
    return array[[known.index(label) for label in given]]


def _at_positions(array: np.ndarray, batch: int, place: int, tokens: Tokens) -> np.ndarray:
    """From means of positions to those of the prompts' columns."""
    at = np.asarray(tokens.positions)
    if (at == at[:1]).all():
        at = at[:1]
    if at.max() >= array.shape[place]:
        raise ValueError(
            f"The prompts reach position {at.max()}, the means position {array.shape[place] - 1}: "
            "take means over prompts that are as long."
        )
    shape = [1] * array.ndim
    shape[batch], shape[place] = at.shape
    return np.take_along_axis(array, at.clip(0).reshape(shape), place)
