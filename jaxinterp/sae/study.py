"""Everything that a page about a feature shows, of many features, in one pass over a corpus."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.examples import Kept, find_examples
from jaxinterp.grid_runs import ignore
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, chosen_features, described
from jaxinterp.sae.features import Features, written_tokens
from jaxinterp.sae.features import nearest as nearest_features
from jaxinterp.stats import bootstrap

if TYPE_CHECKING:
    import xarray as xr

PART = 1024  # features at a time, where each is held against a vocabulary or a dictionary
Examples = dict[str, Any]  # arrays [N K ...] of every feature's tokens


def study_features(
    model: Model,
    d: Dictionary,
    batches: Iterable[Any],
    *,
    features: Sequence[int] | None = None,
    k: int = 5,
    intervals: int = 4,
    sample: int = 100,
    window: tuple[int, int] = (12, 6),
    bins: int = 40,
    nearest: int = 5,
    written: int = 8,
    first: bool = False,
    seed: int = 0,
    tokenizer: Any = None,
    effects: xr.DataArray | None = None,
    on_done: Callable[[int], None] = ignore,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """What features are active on, how often, what they write, and what they cause.

    batches: tokens, read once: any stream will do; each shape compiles anew. features: some only.
    k: examples in each group, the largest activations and ``intervals`` of equally many active
    tokens each. The latter come from ``sample`` active tokens drawn uniformly from the whole
    corpus: the limits are the sample's own quantiles, which are the corpus's where a feature is
    active on no more tokens, and within an interval each token is as likely to be shown. window:
    tokens of context before and after. nearest, written: as many of each, 0 for none (a site that
    is no part of the stream writes to no logits). first: whether a prompt's first token counts.
    effects: of the same features, as `jaxinterp.sae.feature_effects` returns them; kept is the
    change per active token, with a 95% interval over prompts. on_done: called with tokens read.

    Returns a Dataset with the dims feature, group ("top", then the intervals from the highest on),
    rank, offset:

    - ``value``, ``prompt``, ``position`` (feature, group, rank): -inf and -1 where a feature has
      no more; ``lower``, ``upper`` (feature, group): what the values of the group span.
    - ``context``, ``activation`` (feature, group, rank, offset): token ids (-1 outside the prompt)
      and the feature at each of these tokens as it is in the whole prompt, NaN outside.
    - ``count`` (feature, bin), ``width`` (feature): active tokens with values from bin * width on,
      below (bin + 1) * width; ``density`` (feature): the share of tokens that are active.
    - ``written``, ``change`` (feature, end, place): tokens whose logits are raised and lowered
      most; ``other``, ``cosine`` (feature, near): features with the nearest decoder rows.
    - ``effect``, ``effect_low``, ``effect_high`` (feature, factor), and ``effect_active``
      (feature): the active tokens of the prompts of ``effects``. No interval for 1 active prompt.
    - with a tokenizer ``text`` (token): of every token id that occurs.

    Raises ``ValueError`` for an empty stream, a dictionary of several layers or without a site,
    numbers out of range, and effects that lack features.
    """
    import xarray as xr

    c = d.config
    site, layer = c.read_place
    for name, size in (("k", k), ("bins", bins)):
        whole_number(name, size, 1, MANY)
    for name, size in (("intervals", intervals), ("nearest", nearest), ("written", written)):
        whole_number(name, size, 0, MANY)
    whole_number("sample", sample, k * intervals, MANY)
    seed = random_seed(seed)
    chosen = chosen_features(d, features)
    if effects is not None and (lacking := sorted({*chosen} - {*effects.feature.values})):
        raise ValueError(
            f"The effects lack feature {lacking[0]} and {len(lacking) - 1} more: give "
            "feature_effects the same features."
        )
    seen = _read(
        model, Features(d, jnp.asarray(chosen), True), len(chosen), batches,
        {"top": k, "random": sample} if intervals else {"top": k}, window, bins, first, seed,
        on_done,
    )  # fmt: skip
    data, groups = _examples(seen, k, intervals)
    data["count"] = (("feature", "bin"), seen.histogram.counts)
    data["width"] = ("feature", seen.histogram.width)
    data["density"] = ("feature", seen.histogram.counts.sum(1) / max(seen.counted, 1))
    if written:
        parts = [written_tokens(model, d, part, k=written) for part in _parts(chosen)]
        for name, of in (("written", "token"), ("change", "change")):
            data[name] = (("feature", "end", "place"), np.concatenate([p[of] for p in parts]))
    if nearest:
        parts = [nearest_features(d, part, k=nearest) for part in _parts(chosen)]
        for name in ("other", "cosine"):
            data[name] = (("feature", "near"), np.concatenate([p[name] for p in parts]))
    coords: dict[str, Any] = {
        "feature": chosen, "group": groups, "offset": np.arange(-window[0], window[1] + 1),
        **({"end": ["raised", "lowered"]} if written else {}),
    }  # fmt: skip
    if tokenizer is not None:
        ids = [np.unique(data[name][1]) for name in ("context", "written") if name in data]
        coords["token"] = np.unique(np.concatenate([[-1], *ids]))[1:]
        data["text"] = ("token", tokenizer.token_texts(coords["token"]).astype(object))
    attrs = claim(
        model, method="features studied", site=site, layer=layer, dictionary=described(d),
        intervention="none", n_prompts=seen.prompts, n_tokens=seen.tokens, n_counted=seen.counted,
        n_features=c.n_features, sample=sample, first=first, seed=seed, **dict(record or {}),
    )  # fmt: skip
    found = xr.Dataset(data, coords, attrs)
    return found if effects is None else found.assign(_per_token(effects, chosen, seed))


class Histogram:
    """Counts of positive numbers, each row in bins of its own width, exact in one pass.

    A width is a power of two, so that bins merge in pairs when a larger number comes.
    """

    def __init__(self, rows: int, bins: int):
        self.counts = np.zeros((rows, bins), np.int64)
        self.exponent = np.full(rows, -200)

    @property
    def width(self) -> np.ndarray:
        return np.ldexp(1.0, self.exponent)

    def add(self, values: jax.Array, counted: jax.Array, largest: np.ndarray) -> None:
        """Count values [B P rows] where ``counted`` [B P]; ``largest`` [rows]: of all so far."""
        bins = self.counts.shape[1]
        of_bins, power_of_bins = np.frexp(bins)
        fraction, power = np.frexp(np.maximum(largest.astype(np.float64), 1e-30))
        exponent = np.maximum(self.exponent, power - power_of_bins + (fraction >= of_bins))
        for row in np.flatnonzero(exponent > self.exponent):
            to = np.arange(bins) >> min(exponent[row] - self.exponent[row], 62)
            self.counts[row] = np.bincount(to, self.counts[row], bins)
        self.exponent = exponent
        edges = np.arange(bins)[:, None] * self.width
        above = np.asarray(_above(values, counted, jnp.asarray(edges, jnp.float32)), np.int64)
        self.counts += (above - np.concatenate([above[1:], np.zeros_like(above[:1])])).T


@jax.jit
def _above(values: jax.Array, counted: jax.Array, edges: jax.Array) -> jax.Array:
    """How many counted values are at or above edges [E N]: [E N]."""
    real = counted[:, :, None]
    return jax.lax.map(lambda edge: (real & (values >= edge)).sum((0, 1)), edges)


class Held(struct.PyTreeNode):
    """A reader for `find_examples`: values [B P N] that are there already, where they count."""

    values: jax.Array
    counted: jax.Array

    def __call__(self, model: Model, tokens: Tokens) -> jax.Array:
        return jnp.where(self.counted[:, :, None], self.values, -jnp.inf)[None]


class _Seen(NamedTuple):
    """What one pass has found."""

    kept: dict[str, Examples]
    histogram: Histogram
    prompts: int
    tokens: int
    counted: int


def _read(
    model: Model, reader: Features, n: int, batches: Iterable[Any], sizes: dict[str, int],
    window: tuple[int, int], bins: int, first: bool, seed: int, on_done: Callable[[int], None],
) -> _Seen:  # fmt: skip
    """Examples of every order by ``sizes``, and the histogram; the model runs once a batch."""
    kept: dict[str, Examples] = {}
    histogram, draws = Histogram(n, bins), np.random.default_rng(seed)
    prompts = n_tokens = n_counted = 0
    for given in batches:
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        real = int(np.asarray(tokens.lengths).sum())
        counted = jnp.asarray(tokens.positions) >= (0 if first else 1)
        values = _values(model, tokens, reader)
        for order, size in sizes.items():
            found, _, _ = find_examples(
                model, [tokens], Held(values, counted), (1, n), k=min(size, real), order=order,
                window=window, seed=int(draws.integers(2**31)), on_done=ignore,
            )  # fmt: skip
            new = _around(values, tokens, found, jnp.int32(prompts), window=window)
            kept[order] = _merged(kept[order], new, size=size) if order in kept else new
        histogram.add(values, counted, np.asarray(kept["top"]["value"][:, 0]))
        prompts, n_tokens = prompts + len(tokens), n_tokens + real
        n_counted += int(counted.sum())
        on_done(real)
    if not kept:
        raise ValueError("There are no prompts: is the stream used up?")
    held = {order: jax.tree.map(np.asarray, kept[order]) for order in sizes}
    return _Seen(held, histogram, prompts, n_tokens, n_counted)


@jit
def _values(model: Model, tokens: Tokens, reader: Features) -> jax.Array:
    return reader(model, tokens)[0].astype(jnp.float32)


@functools.partial(jit, static=("window",))
def _around(
    values: jax.Array, tokens: Tokens, found: Kept, prompts: jax.Array, *, window: tuple[int, int]
) -> Examples:
    """A batch's examples with the feature's values [N K W] in their windows.

    prompts: how many came before.
    """
    prompt, position, context = found.prompt[0], found.position[0], found.window[0]
    row = prompt.clip(0)
    column = position + jnp.asarray(tokens.mask).argmax(-1)[row]
    columns = column[..., None] + jnp.arange(-window[0], window[1] + 1)
    columns = columns.clip(0, values.shape[1] - 1)
    near = values[row[..., None], columns, jnp.arange(len(row))[:, None, None]]
    return {
        "key": found.key[0], "value": found.value[0],
        "prompt": jnp.where(prompt >= 0, prompt + prompts, -1), "position": position,
        "context": context,
        "activation": jnp.where(context >= 0, jnp.maximum(near, 0), jnp.nan),
    }  # fmt: skip


@functools.partial(jit, static=("size",))
def _merged(old: Examples, new: Examples, *, size: int) -> Examples:
    """Those with the largest keys; of equal ones, the earlier."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), old, new)
    _, at = jax.lax.top_k(both["key"], min(size, both["key"].shape[1]))
    return jax.tree.map(lambda x: _taken(jnp, x, at), both)


def _taken(xp: Any, x: Any, at: Any) -> Any:
    """Entries [N k] of the second axis of x [N K ...]."""
    return xp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), 1)


def _examples(seen: _Seen, k: int, intervals: int) -> tuple[dict[str, Any], list[str]]:
    """The groups' examples as variables of the Dataset, and the groups' names."""
    groups = []
    for order, held in seen.kept.items():
        held = _padded(held, k)
        value = held["value"]
        chosen = [(np.broadcast_to(np.arange(k), (len(value), k)), value[:, :k])]
        if order == "random":
            chosen = _equal(held["key"], value, k, intervals)
        for at, members in chosen:
            there = members > -np.inf
            low, high = np.where(there, members, np.inf).min(1), members.max(1)
            limits = {"lower": low, "upper": high}
            limits = {end: np.where(there.any(1), x, np.nan) for end, x in limits.items()}
            taken = {name: _taken(np, x, at) for name, x in held.items() if name != "key"}
            groups.append({**taken, **limits})
    dims = ("feature", "group", "rank", "offset")
    stacked = {name: np.stack([one[name] for one in groups], 1) for name in groups[0]}
    data = {name: (dims[: x.ndim], x) for name, x in stacked.items()}
    shares = [f"{100 * i / max(intervals, 1):.3g}" for i in range(intervals, -1, -1)]
    spans = zip(shares[1:], shares[:-1], strict=True)
    return data, ["top", *(f"{low} to {high}%" for low, high in spans)]


def _padded(held: Examples, k: int) -> Examples:
    """With k empty entries at the end, so that there is always something to take."""
    empty = {"key": -np.inf, "value": -np.inf, "activation": np.nan}

    def wide(name: str, x: np.ndarray) -> np.ndarray:
        fill = np.full((len(x), k, *x.shape[2:]), empty.get(name, -1), x.dtype)
        return np.concatenate([x, fill], 1)

    return {name: wide(name, x) for name, x in held.items()}


def _equal(
    key: np.ndarray, value: np.ndarray, k: int, intervals: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each interval, the highest first: k of its entries [N k] by value, and all its values."""
    order = np.argsort(-value, axis=1, kind="stable")  # the last is an empty one
    key, value = (np.take_along_axis(x, order, 1) for x in (key, value))
    active = (value > -np.inf).sum(1, keepdims=True)
    rank = np.arange(value.shape[1])
    interval = np.where(rank < active, rank * intervals // np.maximum(active, 1), -1)
    found = []
    for i in range(intervals):
        inside = interval == i
        drawn = np.argsort(np.where(inside, -key, np.inf), axis=1)[:, :k]
        drawn = np.where(np.take_along_axis(inside, drawn, 1), drawn, rank[-1])
        at = np.take_along_axis(order, np.sort(drawn, axis=1), 1)
        found.append((at, np.where(inside, value, -np.inf)))
    return found


def _per_token(effects: xr.DataArray, chosen: np.ndarray, seed: int) -> dict[str, xr.DataArray]:
    """The change per active token, a ratio of sums over prompts, with its interval.

    Resampled is the ratio's linear form, mean + (change - mean * active) / mean(active), whose mean
    over prompts is the ratio (Cochran 1977, Sampling Techniques, section 6.5).
    """
    some = effects.sel(feature=chosen)
    active = some.coords["active"].reset_coords(drop=True)
    each = active.mean("prompt")
    each = each.where(each > 0)
    change = some.reset_coords(drop=True)
    mean = change.mean("prompt") / each
    found = bootstrap(mean + (change - mean * active) / each, seed=seed)
    several = (active > 0).sum("prompt") > 1
    limits = {end: found[end].where(several) for end in ("low", "high")}
    out = {"effect": mean, **{f"effect_{end}": limit for end, limit in limits.items()}}
    out = {
        name: v.transpose("feature", "factor").assign_attrs(some.attrs) for name, v in out.items()
    }
    return {**out, "effect_active": active.sum("prompt")}


def _parts(chosen: np.ndarray) -> list[list[int]]:
    return [chosen[i : i + PART].tolist() for i in range(0, len(chosen), PART)]
