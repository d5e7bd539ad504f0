"""A sweep in numbers: the share of the effect, its interval, and the cells that matter most.

The share of a cell is a ratio of means over prompts,
(mean patched - mean corrupted) / (mean clean - mean corrupted): 0 is as corrupted, 1 as
clean, in both directions. A prompt whose value or baseline is NaN is left out of its cell
on both sides of the ratio, so that the same prompts are compared.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.reading import parse_json

if TYPE_CHECKING:
    import xarray as xr

SAMPLES = 1000  # bootstrap resamples
AGREE = 1e-5  # a gap this small, relative to the baselines, is rounding
CHUNK = 4096  # cells bootstrapped at once


@dataclasses.dataclass(frozen=True)
class Axis:
    """One swept axis: a label per index, and its token where the result knows it."""

    name: str
    labels: list[Any]
    tokens: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def wordy(self) -> bool:
        """Whether the labels are names (roles), not numbers."""
        return any(isinstance(label, str) for label in self.labels)

    def text(self, index: int) -> str:
        """The label as a person reads it: ``9``, ``END``, or ``13 to``."""
        label = str(self.labels[index])
        return label if self.tokens is None else f"{label} {visible(self.tokens[index])}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A result read once. Arrays over cells are flat [C], in the order of the axes."""

    axes: list[Axis]
    metric: str
    attrs: dict[str, Any]
    values: np.ndarray  # [C P]
    clean: np.ndarray  # [P]
    corrupted: np.ndarray  # [P]
    n: np.ndarray  # [C] prompts that count
    mean: np.ndarray  # [C] of the metric
    mean_std: np.ndarray
    mean_interval: np.ndarray  # [2 C]
    change: np.ndarray  # [C] from the unpatched run
    share: np.ndarray  # [C]
    share_std: np.ndarray
    share_interval: np.ndarray  # [2 C]
    gap: float  # mean clean - mean corrupted
    defined: bool  # whether that gap is more than rounding
    alone: bool  # whether there is one baseline, the untouched run
    notes: list[str]

    @property
    def noising(self) -> bool:
        return self.attrs.get("direction") == "noise"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def effects(self) -> np.ndarray:
        """[C P]: each prompt's distance from its corrupted run, in units of the mean gap.

        Its mean is the cell's share, and no prompt's own small gap can blow it up.
        """
        return (self.values - self.corrupted) / (self.gap if self.defined else np.nan)

    @property
    def order(self) -> np.ndarray:
        """Cells from the most to the least moved; those without a number are left out."""
        order = np.argsort(-np.abs(self.change), kind="stable")
        return order[np.isfinite(self.change[order])]

    def index(self, cell: int) -> tuple[int, ...]:
        """The index of a flat cell along each axis."""
        return tuple(int(i) for i in np.unravel_index(cell, self.shape))

    def name(self, cell: int) -> str:
        """``layer 9, head 6``: a cell in words."""
        pairs = zip(self.axes, self.index(cell), strict=True)
        return ", ".join(f"{axis.name} {axis.text(i)}" for axis, i in pairs)

    def facts(self) -> list[str]:
        """Model, site, direction, metric and prompts: what a caption must say."""
        given = [self.attrs.get(key) for key in ("model", "task", "site", "direction")]
        given[1] = _name_of(given[1])
        count = self.clean.size
        counted = f"{count} prompt{'s' * (count != 1)}"
        return [visible(str(fact)) for fact in (*given, self.metric, counted) if fact]


def study(result: xr.DataArray, *, samples: int = SAMPLES, seed: int = 0) -> Study:
    """Means, shares, spreads and bootstrap intervals of every cell of a result."""
    dims = _check(result)
    array = result.transpose(*dims, "prompt")
    clean = np.asarray(array.coords["clean"].values, np.float64)
    alone = "corrupted" not in array.coords  # an ablation has one baseline
    corrupted = clean if alone else np.asarray(array.coords["corrupted"].values, np.float64)
    values = np.asarray(array.values, np.float64).reshape(-1, clean.size)
    unpatched = clean if array.attrs.get("direction") == "noise" else corrupted
    twins = np.isfinite(clean) & np.isfinite(corrupted)
    ok = np.isfinite(values) & twins
    n = ok.sum(-1)

    gap = _mean((clean - corrupted)[twins])
    size = np.abs([clean[twins], corrupted[twins]]).max(initial=0.0)
    defined = bool(np.abs(gap) > AGREE * size)

    held = np.where(ok, values, 0.0)
    weights = ok / np.maximum(n, 1)[:, None]
    empty = np.where(n == 0, np.nan, 0.0)
    mean = (weights * held).sum(-1) + empty
    lift, full = ok * (held - _zeroed(corrupted)), ok * _zeroed(clean - corrupted)
    share = _ratio(lift.sum(-1), full.sum(-1)) if defined else np.full(n.shape, np.nan)
    std = _std(held, ok, n)
    share_std = _std(lift, ok, n) / (np.abs(gap) if defined else np.nan)

    draws = np.random.default_rng(seed).multinomial(
        clean.size, np.full(clean.size, 1 / clean.size), size=samples
    )
    mean_interval = _interval(draws, held, ok.astype(float), n)
    share_interval = _interval(draws, lift, full, n if defined else np.zeros_like(n))
    return Study(
        axes=[_axis(array, dim) for dim in dims],
        metric=str(result.name or "metric"),
        attrs=dict(result.attrs),
        values=values, clean=clean, corrupted=corrupted, n=n,
        mean=mean, mean_std=std, mean_interval=mean_interval,
        change=(weights * (held - _zeroed(unpatched))).sum(-1) + empty,
        share=share, share_std=share_std, share_interval=share_interval,
        gap=gap, defined=defined, alone=alone,
        notes=_notes(clean[twins], corrupted[twins], gap, defined or alone, draws, ok),
    )  # fmt: skip


def summarize(
    result: xr.DataArray, k: int = 10, *, samples: int = SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The baselines and the ``k`` cells that move the metric most, as plain values.

    Each cell has its labels, ``share`` with ``low`` and ``high`` (95% bootstrap interval over
    prompts) and ``std`` (of the prompts' effects, in units of the mean gap), and the same
    for the metric itself. Cells are ordered by their distance from the unpatched run. When
    clean and corrupted agree, shares are NaN and ``notes`` says so.
    """
    samples = whole_number("samples", samples, 1, MANY)
    return summary_of(study(result, samples=samples, seed=random_seed(seed)), k)


def summary_of(found: Study, k: int) -> dict[str, Any]:
    """`summarize` for a result that has been read."""
    k, rows = whole_number("k", k), []
    for cell in found.order[:k]:
        row: dict[str, Any] = {}
        for axis, i in zip(found.axes, found.index(int(cell)), strict=True):
            row[axis.name] = axis.labels[i]
            if axis.tokens is not None:
                row[f"{axis.name}_token"] = axis.tokens[i]
        row |= {
            "share": float(found.share[cell]),
            "low": float(found.share_interval[0, cell]),
            "high": float(found.share_interval[1, cell]),
            "std": float(found.share_std[cell]),
            "metric": float(found.mean[cell]),
            "metric_low": float(found.mean_interval[0, cell]),
            "metric_high": float(found.mean_interval[1, cell]),
            "metric_std": float(found.mean_std[cell]),
            "prompts": int(found.n[cell]),
            "cell": int(cell),
        }
        rows.append(row)
    return {
        "metric": found.metric,
        "direction": "noise" if found.noising else "denoise",
        "prompts": int(found.clean.size),
        "clean": _mean_and_std(found.clean),
        "corrupted": _mean_and_std(found.corrupted),
        "gap": found.gap,
        "share_defined": found.defined,
        "notes": list(found.notes),
        "cells": rows,
    }


def summary_table(result: xr.DataArray, k: int = 10) -> str:
    """The summary as aligned text for a terminal."""
    found = study(result)
    summary = summary_of(found, k)
    lines = [" · ".join(found.facts())]
    for name in ("clean",) if found.alone else ("clean", "corrupted"):
        mean, std = summary[name]["mean"], summary[name]["std"]
        spread = "" if np.isnan(std) else f" ± {std:.3g}"
        lines.append(f"{name:<9} {mean:8.3f}{spread}")
    lines += [f"Note: {note}" for note in summary["notes"]]

    kind = ("share", "low", "high", "std") if found.defined else _METRIC
    heads = [axis.name for axis in found.axes]
    heads += [kind[0], "95% interval", "spread"] + ["metric"] * found.defined
    rows = []
    for row in summary["cells"]:
        where = zip(found.axes, found.index(row["cell"]), strict=True)
        value, low, high, std = (row[key] for key in kind)
        cells = [axis.text(i) for axis, i in where]
        cells += [number(value), interval(low, high), number(std)]
        rows.append(cells + [number(row["metric"])] * found.defined)
    left = [axis.tokens is not None or axis.wordy for axis in found.axes]
    return "\n".join([*lines, "", *_aligned([heads, *rows], left)])


_METRIC = ("metric", "metric_low", "metric_high", "metric_std")


def arrange(names: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Which axis goes up, which goes across, and which are left for panels or sliders.

    Attention weights read as query by source; everything else as layer by the unit inside it
    (head or neuron), and only then by position, because few positions matter.
    """
    if "position" in names and "source" in names:
        up, across = "position", "source"
    elif len(names) == 1:
        return None, names[0], []
    else:
        up = "layer" if "layer" in names else names[0]
        others = [name for name in names if name != up]
        across = next((n for n in ("head", "neuron") if n in others), others[-1])
    return up, across, [name for name in names if name not in (up, across)]


def visible(text: str, width: int = 24) -> str:
    """A token or name on one line, with nothing that a terminal would obey."""
    text = text.strip(" ") or "␣" * len(text)
    text = text.replace("\n", "↵").replace("\t", "→")
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= width else text[: width - 1] + "…"


def number(value: float) -> str:
    """Three decimals, or a dash where there is no number."""
    return f"{value:.3f}" if np.isfinite(value) else "-"


def interval(low: float, high: float) -> str:
    """``[low, high]``, or a dash."""
    return f"[{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "-"


def _check(result: xr.DataArray) -> list[str]:
    """The result's cell dims. Raises ``ValueError`` unless it is the result of a sweep."""
    coords = getattr(result, "coords", ())
    if "clean" not in coords or "prompt" not in result.dims:
        what = "prompt" if "clean" in coords else "clean"
        raise ValueError(
            f"This is not the result of a sweep: it has no {what}. Give the DataArray that "
            "`patch` returns, with its prompt dim and its baselines."
        )
    dims = [str(dim) for dim in result.dims if dim != "prompt"]
    if not dims or not result.size:
        raise ValueError(f"The result has no cells to show (its sizes are {dict(result.sizes)}).")
    return dims


def _axis(array: xr.DataArray, dim: str) -> Axis:
    known = array.coords[dim].values if dim in array.coords else np.arange(array.sizes[dim])
    tokens = array.coords.get(f"{dim}_token")
    return Axis(dim, known.tolist(), None if tokens is None else [str(t) for t in tokens.values])


def _interval(draws: np.ndarray, top: np.ndarray, bottom: np.ndarray, n: np.ndarray) -> np.ndarray:
    """[2 C]: the percentile bootstrap of sum(top) / sum(bottom) over prompts; NaN below two."""
    out = np.full((2, len(n)), np.nan)
    cells = np.flatnonzero(n > 1)
    for begin in range(0, len(cells), CHUNK):
        some = cells[begin : begin + CHUNK]
        ratios = _ratio(draws @ top[some].T, draws @ bottom[some].T)
        quantile = np.nanpercentile if np.isnan(ratios).any() else np.percentile
        with np.errstate(invalid="ignore"):
            out[:, some] = quantile(ratios, (2.5, 97.5), axis=0)
    return out


def _notes(
    clean: np.ndarray, corrupted: np.ndarray, gap: float, defined: bool,
    draws: np.ndarray, ok: np.ndarray,
) -> list[str]:  # fmt: skip
    """What a reader must know before trusting the numbers."""
    notes = []
    if not defined:
        notes.append(
            f"clean and corrupted agree on average (they differ by {gap:.2g}), so there is no "
            "effect to take a share of; the metric itself is shown."
        )
    elif clean.size > 1 and gap:
        each = clean - corrupted
        picks = draws[:, : each.size]
        totals = np.maximum(picks.sum(-1), 1)
        low, high = np.percentile(picks @ each / totals, (2.5, 97.5))
        if low <= 0 <= high:
            notes.append(
                "clean and corrupted do not differ reliably over these prompts (95% interval of "
                f"the gap [{low:.3g}, {high:.3g}]); read the shares with care."
            )
    if ok.shape[1] == 1:
        notes.append("one prompt has no interval and no spread.")
    if not ok.all():
        notes.append(f"{(~ok).sum()} of {ok.size} values are not finite and were left out.")
    return notes


def _name_of(task: Any) -> str | None:
    """The name in a task's record, which may be JSON or the name itself."""
    try:
        record = parse_json(task, "The record of a task")
    except (TypeError, ValueError):
        return task
    return record.get("name") if isinstance(record, dict) else task


def _zeroed(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0.0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom == 0, np.nan, top / bottom)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _std(values: np.ndarray, ok: np.ndarray, n: np.ndarray) -> np.ndarray:
    """[C]: the sample deviation over the prompts that count; NaN below two."""
    mean = values.sum(-1, keepdims=True, where=ok) / np.maximum(n, 1)[:, None]
    squares = np.square(values - mean).sum(-1, where=ok)
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def _mean_and_std(values: np.ndarray) -> dict[str, float]:
    values = values[np.isfinite(values)]
    std = float(values.std(ddof=1)) if values.size > 1 else float("nan")
    return {"mean": _mean(values), "std": std}


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[bool]) -> list[str]:
    """Columns of equal width, counting wide characters as two; numbers stand right."""
    sides = [*left, *[False] * (len(rows[0]) - len(left))]
    widths = [max(_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for cell, width, to_left in zip(row, widths, sides, strict=True):
            pad = " " * (width - _width(cell))
            padded.append(cell + pad if to_left else pad + cell)
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
