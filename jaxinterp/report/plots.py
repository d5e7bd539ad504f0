"""Pictures for a paper: a heat map of a sweep, and the prompts behind its strongest cells.

Figures are plain matplotlib ``Figure`` objects: no window, no backend, no global state.
Colours follow RdBu, which people with any kind of colour blindness can tell apart; white is
always the unpatched run.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.files import whole
from jaxinterp.report.tables import Axis, Study, arrange, study, visible

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE = "#1f2328", "#6b7280", "#d5d9de"
BLUE, ORANGE = "#2166ac", "#b35806"
PANELS = 6  # small multiples, at most
DPI = 200


def heatmap(
    result: xr.DataArray, path: str | os.PathLike[str] | None = None, title: str | None = None
) -> Figure:
    """The share of the effect over the grid, layer 0 at the bottom; written to ``path`` if given.

    The colour scale is symmetric around the unpatched run: 0 when denoising, 1 when noising.
    A grid with more than two axes becomes small multiples of its most moved slices, all on
    one scale. When clean and corrupted agree, the change in the metric is shown instead.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from jaxinterp.report.picture import Picture

    found = study(result)
    view = _view(found)
    up, across = view.up, view.across
    rows, columns = 1 if up is None else len(up), len(across)
    across_wide = max(len(_tick(across, i)) for i in range(columns)) <= 3
    per_column, least = (0.26, 2.2) if len(view.panels) > 1 else (0.34, 3.2)
    width = float(np.clip(columns * per_column, least, 9.0))
    height = float(np.clip(rows * 0.2, 0.45, 6.2)) + (0.35 if across_wide else 0.75)
    count = len(view.panels)
    grid_rows = -(-count // max(1, int(13 // (width + 0.3))))
    grid = (grid_rows, -(-count // grid_rows))

    # Long captions wrap: a narrow figure still shows the whole claim.
    around = 1.5 if up is None else 1.0
    size = (max(width * grid[1] + 1.5, 4.6), (height + 0.3) * grid[0] + around)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.04)
    figure = Picture(size, layout)
    panels = figure.subplots(*grid, squeeze=False).ravel()
    for axes, (name, values) in zip(panels, view.panels, strict=False):
        mesh = _draw(axes, values, up, across, view)
        if name:
            plain(axes.set_title(name, fontsize=9, color=INK, loc="left", pad=4))
    for number, axes in enumerate(panels):
        axes.set_visible(number < count)
        if number % grid[1]:
            axes.set_ylabel("")
            axes.set_yticklabels([])

    beside = {"shrink": 0.75, "aspect": 26 * grid_rows, "pad": 0.015}
    below = {"location": "bottom", "shrink": 0.5, "aspect": 36, "pad": 0.08}
    bar = figure.colorbar(mesh, ax=list(panels), **(below if up is None else beside))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=SOFT)
    bar.set_label(view.meaning, fontsize=8, color=SOFT)
    _headings(figure, title or _title(found), found, view.remark)
    return written(figure, path)


def spread(
    result: xr.DataArray,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    k: int = 8,
) -> Figure:
    """Every prompt's effect at the ``k`` strongest cells: mean, 95% interval, baselines.

    A dot is a prompt's distance from its own corrupted run, in units of the mean gap between
    clean and corrupted; the mean of the dots is the cell's share.
    """
    from jaxinterp.report.picture import Picture

    found, k = study(result), whole_number("k", k, 1)
    cells = found.order[:k].tolist()
    labels = ["clean", "corrupted", *(found.name(cell) for cell in cells)]
    if found.defined:
        zero, unit = found.corrupted, found.gap
        means, bounds = found.share[cells], found.share_interval[:, cells]
    else:
        zero, unit = np.zeros_like(found.clean), 1.0
        means, bounds = found.mean[cells], found.mean_interval[:, cells]
    clean, corrupted = (found.clean - zero) / unit, (found.corrupted - zero) / unit
    rows = [clean, corrupted, *((found.values[cell] - zero) / unit for cell in cells)]

    figure = Picture((7.2, 0.36 * len(rows) + 1.25))
    axes = figure.subplots()
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, found.clean.size)
    for y, row in enumerate(rows):
        colour = SOFT if y < 2 else BLUE
        axes.scatter(row, y + jitter, s=13, color=colour, alpha=0.45, linewidths=0, zorder=2)
    for y, (mean, low, high) in enumerate(zip(means, *bounds, strict=True), start=2):
        axes.plot([low, high], [y, y], color=INK, linewidth=1.8, solid_capstyle="butt", zorder=3)
        axes.plot(mean, y, "D", color="white", markeredgecolor=INK, markersize=5, zorder=4)
    for base in (0, 1) if found.defined else ():
        axes.axvline(base, color=RULE, linewidth=1, zorder=1)
    axes.axhline(1.5, color=RULE, linewidth=0.6)
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5, color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    meaning = "effect on each prompt, in mean gaps: 0 corrupted, 1 clean"
    axes.set_xlabel(meaning if found.defined else _short(found.metric), fontsize=8, color=SOFT)
    bare(axes)
    axes.tick_params(axis="x", labelsize=7.5, colors=SOFT)
    for text in axes.get_yticklabels():
        plain(text)
    _headings(figure, title or f"{_title(found)}: prompts behind the strongest cells", found, "")
    return written(figure, path)


@dataclasses.dataclass(frozen=True)
class _View:
    """What a heat map shows: named slices [up across] on one symmetric scale."""

    up: Axis | None
    across: Axis
    panels: list[tuple[str, np.ndarray]]
    centre: float
    limit: float
    meaning: str
    remark: str


def _view(found: Study) -> _View:
    """Choose the slices to show, and the scale that holds all of them."""
    axes = {axis.name: axis for axis in found.axes}
    up, across, rest = arrange(list(axes))
    order = [list(axes).index(name) for name in (*rest, *([up] if up else []), across)]
    centre = float(found.noising) if found.defined else 0.0
    shown = found.share if found.defined else found.change
    cube = shown.reshape(found.shape).transpose(order)
    cube = cube.reshape(-1, 1 if up is None else len(axes[up]), len(axes[across]))

    moved = np.abs(np.where(np.isfinite(cube), cube - centre, 0.0))
    strongest = np.argsort(-moved.max((1, 2)), kind="stable")[:PANELS]
    sizes = [len(axes[name]) for name in rest]
    panels = []
    for at in sorted(strongest.tolist()):
        index = np.unravel_index(at, sizes) if rest else ()
        pairs = zip(rest, index, strict=True)
        panels.append((", ".join(f"{n} {axes[n].text(int(i))}" for n, i in pairs), cube[at]))
    left_out = len(cube) - len(panels)
    return _View(
        up=axes[up] if up else None,
        across=axes[across],
        panels=panels,
        centre=centre,
        limit=float(moved.max()) or 1.0,
        meaning="share of effect: 0 corrupted, 1 clean"
        if found.defined
        else f"change in {_short(found.metric)}",
        remark=f"The {len(panels)} most moved of {len(cube)} slices." if left_out else "",
    )


def _draw(axes: Axes, values: np.ndarray, up: Axis | None, across: Axis, view: _View) -> Any:
    """One panel of cells; grey where there is no number."""
    rows, columns = values.shape
    fine = values.size <= 3000
    axes.set_facecolor("#e3e5e8")
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(values),
        cmap="RdBu_r", vmin=view.centre - view.limit, vmax=view.centre + view.limit,
        edgecolors="white" if fine else "none", linewidth=0.6 if fine else 0,
        rasterized=not fine,
    )  # fmt: skip
    _ticks(axes.set_xticks, across, 40)
    if up is None:
        axes.set_yticks([])
    else:
        _ticks(axes.set_yticks, up, 16)
        axes.set_ylabel(up.name, fontsize=8.5, color=SOFT)
        if up.name == "position":  # attention reads from the top
            axes.invert_yaxis()
    if any(len(text.get_text()) > 3 for text in axes.get_xticklabels()):
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        plain(text)
        text.set(fontsize=7.5, color=INK)
    axes.set_xlabel(across.name, fontsize=8.5, color=SOFT)
    bare(axes)
    return mesh


def _ticks(setter: Any, axis: Axis, most: int) -> None:
    """Every token or name; of many numbers, a round step."""
    step = 1
    if len(axis) > most:
        wanted = len(axis) / most * 2 if not axis.tokens else len(axis) / most
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 250, 500, 10**6) if s >= wanted)
    at = range(0, len(axis), step)
    setter(list(at), [_tick(axis, i) for i in at])


def _tick(axis: Axis, index: int) -> str:
    text = str(axis.labels[index]) if axis.tokens is None else axis.tokens[index]
    return visible(text, 14)


def _headings(figure: Figure, title: str, found: Study, remark: str) -> None:
    """The title above and, below, the claim in one line."""
    import textwrap

    width = int(figure.get_figwidth() * 16)
    heading = figure.suptitle(
        textwrap.fill(title, int(width * 0.62)), x=0.012, ha="left", fontsize=11.5,
        fontweight="bold", color=INK,
    )  # fmt: skip
    lines = textwrap.wrap(" · ".join(found.facts()), width)
    lines += [line for text in (remark, *found.notes) for line in textwrap.wrap(text, width)]
    caption = figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=7.5, color=SOFT)
    plain(heading)
    plain(caption)


def _title(found: Study) -> str:
    site = visible(str(found.attrs.get("site", found.metric)))
    return f"{site} by {' and '.join(axis.name for axis in found.axes)}"


def _short(metric: str) -> str:
    return visible(metric).replace("$", r"\$")


def plain(text: Any) -> None:
    """Show a token's dollar signs as they are."""
    text.set_parse_math(False)


def bare(axes: Axes) -> None:
    """Take away the frame and the ticks' marks."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


def written(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write the figure whole, in the format that the path's ending names (PNG without one)."""
    if path is None:
        return figure
    kind = Path(path).suffix.lstrip(".") or "png"
    with warnings.catch_warnings():
        # A token in a script that the font lacks is drawn as a box, which is enough.
        warnings.filterwarnings("ignore", message="Glyph")
        with whole(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI)
    return figure
