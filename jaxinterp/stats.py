"""Statistics over prompts: intervals, paired tests, and corrections for whole grids.

Everything works on all cells of a result at once; prompts are the only thing resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from jaxinterp.checks import MANY, random_seed, real_number, whole_number
from jaxinterp.numerics import wide

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["baseline", "benjamini_hochberg", "bootstrap", "effects", "holm", "paired_permutation"]

Method = Literal["percentile", "bca"]
Alternative = Literal["two-sided", "greater", "less"]
HELD = 1 << 22  # numbers held at once


def baseline(result: xr.DataArray) -> xr.DataArray:
    """The run a result's interventions start from: its coordinate ``clean`` or ``corrupted``.

    Returns dims (prompt), or (sample, prompt) of a run with noise.

    Raises ``ValueError`` for an array that has no baseline.
    """
    name = "corrupted" if result.attrs.get("direction") == "denoise" else "clean"
    if name not in result.coords:
        raise ValueError(
            f"The array has no coordinate {name!r}: give what patch, ablate or the like returned."
        )
    return wide(result.coords[name].reset_coords(drop=True))


def effects(result: xr.DataArray) -> xr.DataArray:
    """What each intervention changed: the metric minus the run it starts from, per prompt.

    The start is the corrupted run where ``attrs["direction"]`` is "denoise", else the clean one.
    """
    return (wide(result) - baseline(result)).rename(result.name).assign_attrs(result.attrs)


def bootstrap(
    result: xr.DataArray,
    dim: str = "prompt",
    statistic: Literal["mean"] | Callable[..., Any] = "mean",
    *,
    level: float = 0.95,
    n: int = 2000,
    seed: int = 0,
    method: Method = "bca",
) -> xr.Dataset:
    """Bootstrap intervals of a statistic over prompts, for all cells at once.

    statistic: "mean", or a function ``statistic(values, axis)`` like ``numpy.median``. The same
    resamples of prompts serve every cell, so that cells may be compared. method: "percentile",
    or "bca" (bias-corrected and accelerated: Efron 1987), whose coverage is nearer to ``level``
    for skewed values and few prompts; where it is undefined (all resamples lie on one side of the
    estimate) the limits are the percentiles. A cell with a NaN gets NaN.

    Average over other draws first (``result.mean("draw")``): they are not prompts of their own.

    Returns a dataset with ``estimate``, ``low`` and ``high`` over the other dims. Raises
    ``ValueError`` for fewer than 2 prompts, and for a level or method that does not exist.
    """
    if method not in ("percentile", "bca"):
        raise ValueError(f"method is {method!r}, expected 'percentile' or 'bca'.")
    level = real_number("level", level, above=0, below=1)
    n, seed = whole_number("n", n, 1, MANY), random_seed(seed)
    cells, shape, dims = _flat(result, dim)
    size = cells.shape[1]
    if size < 2:
        raise ValueError(f"There is {size} value along {dim!r}: a bootstrap needs at least 2.")
    if isinstance(statistic, str) and statistic != "mean":
        raise ValueError(f"statistic is {statistic!r}, expected 'mean' or a function.")
    take = np.random.default_rng(seed).integers(0, size, (n, size))
    of = _MeanOfResamples(take) if isinstance(statistic, str) else _Resamples(statistic, take)
    out = np.full((3, len(cells)), np.nan)
    whole = np.flatnonzero(np.isfinite(cells).all(-1))
    per = max(1, HELD // of.held)
    for begin in range(0, len(whole), per):
        some = whole[begin : begin + per]
        out[:, some] = _intervals(cells[some], of, level, method)
    name = "mean" if isinstance(statistic, str) else getattr(statistic, "__name__", "statistic")
    said = {"statistic": name, "level": level, "resamples": n, "seed": seed, "method": method}
    values = dict(zip(("estimate", "low", "high"), out.reshape(3, *shape), strict=True))
    return _dataset(result, dims, values, said)


class _Resamples:
    """A statistic of values [C P], of their resamples ``take`` [n P], and without each prompt."""

    def __init__(self, statistic: Callable[..., Any], take: np.ndarray):
        self.statistic, self.take = statistic, take
        self.held = take.size  # numbers held for each cell

    def whole(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.statistic(x, axis=-1))

    def drawn(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.statistic(x[:, self.take], axis=-1))

    def left_out(self, x: np.ndarray) -> np.ndarray:
        return np.stack([self.whole(np.delete(x, i, -1)) for i in range(x.shape[1])], -1)


class _MeanOfResamples(_Resamples):
    """The mean, as matrix products."""

    def __init__(self, take: np.ndarray):
        super().__init__(np.mean, take)
        self.held, size = sum(take.shape), take.shape[1]
        self.share = np.stack([np.bincount(row, minlength=size) for row in take], -1) / size

    def drawn(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.share)

    def left_out(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((x.sum(-1, keepdims=True) - x) / (x.shape[1] - 1))


def _intervals(x: np.ndarray, of: _Resamples, level: float, method: Method) -> np.ndarray:
    """Estimate, low and high [3 C] of values [C P]."""
    found, drawn = of.whole(x), of.drawn(x)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "percentile":
        return np.stack([found, *np.percentile(drawn, 100 * tails, axis=-1)])
    left_out = of.left_out(x)
    gap = left_out.mean(-1, keepdims=True) - left_out
    spread = (gap**2).sum(-1)
    acceleration = (gap**3).sum(-1) / np.where(spread == 0, 1, 6 * spread**1.5)
    slack = 1e-12 * np.abs(x).max(-1)  # a tie is a tie, whatever the order of the sum
    below, above = ((drawn < (found + s)[:, None]).mean(-1) for s in (-slack, slack))
    bias = ndtri((below + above) / 2)[:, None]
    with np.errstate(invalid="ignore"):  # all resamples on one side: an infinite bias
        moved = bias + ndtri(tails)
        moved = ndtr(bias + moved / (1 - acceleration[:, None] * moved))
    moved = np.where(np.isfinite(bias) & np.isfinite(moved), moved, tails)
    return np.concatenate([found[None], _quantiles(drawn, moved).T])


def _quantiles(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Each row's own quantiles [C k] of x [C n], between neighbours as NumPy does."""
    x = np.sort(x, -1)
    place = at * (x.shape[1] - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, x.shape[1] - 1)
    below, above = (np.take_along_axis(x, i, -1) for i in (low, high))
    return below + (above - below) * (place - low)


def paired_permutation(
    a: xr.DataArray,
    b: Any = 0.0,
    dim: str = "prompt",
    *,
    alternative: Alternative = "two-sided",
    n: int = 9999,
    seed: int = 0,
) -> xr.Dataset:
    """A sign-flip test, in every cell, of whether a and b differ on average over prompts.

    Under the null each prompt's difference a - b is as likely as its negative. With few prompts
    (2^prompts <= n) all sign flips are counted, and the p-value is exact; else n random ones,
    and it is (k + 1) / (n + 1), for k as far out as what was seen (Phipson & Smyth 2010): never
    0. Correct the p-values of a whole grid with `holm` or `benjamini_hochberg`.

    b: another result over the same prompts, a number, or a coordinate such as
    ``result.clean``. A cell with a NaN gets NaN.

    Returns a dataset with ``estimate`` (the mean difference) and ``p`` over the other dims.
    Raises ``ValueError`` for a and b over different prompts.
    """
    import xarray as xr

    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(
            f"alternative is {alternative!r}, expected 'two-sided', 'greater' or 'less'."
        )
    n, seed = whole_number("n", n, 1, MANY), random_seed(seed)
    if isinstance(b, xr.DataArray):
        try:
            a, b = xr.align(a, b, join="exact")
        except ValueError as error:
            raise ValueError(f"a and b are not over the same prompts and cells: {error}") from None
    b = wide(b) if hasattr(b, "dtype") else b
    differences = (wide(a) - b).transpose(..., dim) if dim in getattr(a, "dims", ()) else a
    cells, shape, dims = _flat(differences, dim)
    size = cells.shape[1]
    exact = size < 60 and 2**size <= n
    seen = cells.mean(-1)
    slack = 1e-12 * np.abs(cells).mean(-1)  # a tie is a tie, whatever the order of the sum
    far = np.zeros(len(cells))
    for signs in _sign_flips(size, n, exact, seed, max(1, HELD // max(size, len(cells), 1))):
        flipped = signs @ cells.T / size  # [n C]
        if alternative == "two-sided":
            far += (np.abs(flipped) >= np.abs(seen) - slack).sum(0)
        else:
            sign = 1 if alternative == "greater" else -1
            far += (sign * flipped >= sign * seen - slack).sum(0)
    p = far / 2**size if exact else (far + 1) / (n + 1)
    p[np.isnan(seen)] = np.nan
    said = {
        "test": "sign flips, exact" if exact else "sign flips",
        "alternative": alternative, "permutations": 2**size if exact else n, "seed": seed,
    }  # fmt: skip
    values = {"estimate": seen.reshape(shape), "p": p.reshape(shape)}
    return _dataset(differences, dims, values, {**a.attrs, **said})


def _sign_flips(size: int, n: int, exact: bool, seed: int, per: int) -> Iterator[np.ndarray]:
    """Signs [per size] until all of them, or n random ones, are given."""
    rng, total = np.random.default_rng(seed), 2**size if exact else n
    for begin in range(0, total, per):
        count = min(per, total - begin)
        if exact:
            bits = (np.arange(begin, begin + count)[:, None] >> np.arange(size)) & 1
        else:
            bits = rng.integers(0, 2, (count, size))
        yield 1.0 - 2.0 * bits


def holm(p: Any) -> Any:
    """Adjusted p-values that bound the chance of any false finding in a grid (Holm 1979).

    Of the m numbers that are not NaN the k-th smallest is multiplied by m - k + 1, and none is
    smaller than the one before. Returns an array like p. Raises ``ValueError`` outside 0 to 1.
    """
    return _adjusted(p, lambda q: np.maximum.accumulate(q * np.arange(q.size, 0, -1)))


def benjamini_hochberg(p: Any) -> Any:
    """Adjusted p-values that bound the share of false findings (Benjamini & Hochberg 1995).

    Of the m numbers that are not NaN the k-th smallest is multiplied by m / k, and none is
    larger than the one after. Valid for independent or positively dependent tests. Returns an
    array like p. Raises ``ValueError`` outside 0 to 1.
    """

    def adjust(q: np.ndarray) -> np.ndarray:
        scaled = q * q.size / np.arange(1, q.size + 1)
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p, adjust)


def _adjusted(p: Any, adjust: Callable[[np.ndarray], np.ndarray]) -> Any:
    values = np.asarray(p, np.float64)
    real = ~np.isnan(values)
    given = values[real]
    if given.size and (given.min() < 0 or given.max() > 1):
        raise ValueError(f"p-values run from {given.min()} to {given.max()}, expected 0 to 1.")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = adjust(given[order]).clip(max=1)
    out = np.full(values.shape, np.nan)
    out[real] = adjusted
    return p.copy(data=out) if hasattr(p, "dims") else out


def _flat(result: Any, dim: str) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
    """Values [C P] in float64, and the shape and dims that C stands for."""
    if dim not in getattr(result, "dims", ()):
        found = ", ".join(map(str, getattr(result, "dims", ()))) or type(result).__name__
        raise ValueError(f"There is no dim {dim!r} to go over; the result has {found}.")
    array = result.transpose(..., dim)
    shape = array.shape[:-1]
    values = np.asarray(array.values, np.float64).reshape(-1, array.shape[-1])
    return values, shape, tuple(map(str, array.dims[:-1]))


def _dataset(
    result: xr.DataArray, dims: tuple[str, ...], values: dict[str, np.ndarray], said: dict[str, Any]
) -> xr.Dataset:
    """Values over the cells of a result, with its labels and its claim."""
    import xarray as xr

    coords = {name: c for name, c in result.coords.items() if set(c.dims) <= set(dims)}
    arrays = {name: (dims, value) for name, value in values.items()}
    return xr.Dataset(arrays, coords, {**result.attrs, **said})
