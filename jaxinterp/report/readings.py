"""Pictures of readings: what lenses say, what probes find, what steering does.

Figures are plain matplotlib ``Figure`` objects, as in `jaxinterp.report.plots`.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.report.plots import BLUE, INK, ORANGE, RULE, SOFT, bare, plain, written
from jaxinterp.report.tables import visible

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = {
    "probability": ("probability of the top token", "Blues"),
    "kl": ("KL(model || lens), nats", "Purples"),
    "entropy": ("entropy, nats", "Greens"),
}


def lens_table(
    reading: xr.Dataset,
    path: str | os.PathLike[str] | None = None,
    *,
    prompt: int = 0,
    colour: str = "probability",
    title: str = "",
) -> Figure:
    """Layers up, positions across: the top token as text, a reading as colour.

    reading: of `jaxinterp.lens.read`, with a tokenizer. colour: "probability", "kl" or "entropy".

    Raises ``ValueError`` for another colour, and a reading without texts or with a head axis.
    """
    from jaxinterp.report.picture import Picture

    if colour not in SHADES:
        raise ValueError(f"colour={colour!r}, expected one of {', '.join(SHADES)}.")
    if "top_text" not in reading or "head" in reading.dims:
        raise ValueError("A lens table needs texts and no head axis: read with tokenizer=.")
    if prompt not in reading.prompt.values:
        held = ", ".join(map(str, reading.prompt.values[:8]))
        raise ValueError(f"prompt={prompt!r}, expected one that the reading holds: {held}.")
    one = reading.sel(prompt=prompt)
    one = one.isel(position=np.flatnonzero(np.isfinite(one.kl.values).all(0)))
    values = one[colour].values if colour in one else np.exp(one.top_log_prob.values[..., 0])
    texts, tokens = one.top_text.values[..., 0], one.token.values
    rows, columns = values.shape
    size = (max(4.0, 0.82 * columns + 1.8), max(2.5, 0.24 * rows + 1.3))
    figure = Picture(size)
    axes = figure.subplots()
    meaning, shade = SHADES[colour]
    top = 1.0 if colour == "probability" else float(values.max()) or 1.0
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values, cmap=shade, vmin=0,
        vmax=top, edgecolors="white", linewidth=0.6,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 * top else INK
        text = axes.text(
            column, row, visible(str(texts[row, column]), 11), ha="center", va="center",
            fontsize=6.5, color=ink,
        )  # fmt: skip
        plain(text)
    axes.set_xticks(range(columns), [visible(str(t), 12) for t in tokens])
    step = 1 if rows <= 16 else 5
    axes.set_yticks(range(0, rows, step), [str(i) for i in one.layer.values[::step]])
    for label in axes.get_xticklabels():
        plain(label)
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    _dress(axes, "position", "stream before layer", title)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=26, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=SOFT)
    bar.set_label(meaning, fontsize=8, color=SOFT)
    return written(figure, path)


def lens_curves(
    readings: dict[str, xr.Dataset],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Mean KL(model || lens) by layer, a curve for each lens, on a logarithmic scale."""
    from jaxinterp.report.picture import Picture

    figure = Picture((6.4, 3.8))
    axes = figure.subplots()
    for (name, reading), colour in zip(readings.items(), _colours(len(readings)), strict=True):
        mean = reading.kl.mean([d for d in reading.kl.dims if d != "layer"])
        shown = mean.where(mean > 0)
        axes.plot(mean.layer, shown, "o-", ms=3, lw=1.4, color=colour, label=name)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _dress(axes, "stream before layer", "KL(model || lens), nats", title)
    return written(figure, path)


def probe_curves(
    found: xr.Dataset, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Accuracy by point with its baselines: means over splits, and the splits' range."""
    from jaxinterp.report.picture import Picture

    figure = Picture((6.8, 4.0))
    axes = figure.subplots()
    x = np.arange(found.sizes["point"])
    styles = {
        "accuracy": (BLUE, "probe"), "control": (ORANGE, "control task"),
        "shuffled": ("#8c8c8c", "shuffled labels"),
        "random_direction": ("#5aae61", "random direction"),
    }  # fmt: skip
    for name, (colour, label) in styles.items():
        if name not in found:
            continue
        values = found[name]
        axes.fill_between(x, values.min("split"), values.max("split"), color=colour, alpha=0.15,
                          linewidth=0)  # fmt: skip
        axes.plot(x, values.mean("split"), "o-", ms=3, lw=1.4, color=colour, label=label)
    lines = {"majority": float(found.majority.mean())}
    if "baseline" in found:
        mean = found.baseline.mean("split")
        lines |= {str(f).replace("_", " "): float(mean.sel(feature=f)) for f in mean.feature.values}
    for i, (name, value) in enumerate(lines.items()):
        axes.axhline(value, color=SOFT, lw=0.9, ls=(0, (1 + i, 2)), zorder=1, label=name)
    step = 1 if len(x) <= 16 else 5
    axes.set_xticks(x[::step], [str(p) for p in found.point.values[::step]])
    axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, ncols=2, loc="lower right")
    _dress(axes, "stream before layer", "accuracy on test examples (decodable)", title)
    return written(figure, path)


def component_bars(
    shares: xr.DataArray, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Components (component, prompt) as bars, in the order given: means and prompts' deviation."""
    from jaxinterp.report.picture import Picture

    n = shares.sizes["component"]
    figure = Picture((5.6, 0.24 * n + 1.1))
    axes = figure.subplots()
    mean, deviation = (getattr(shares, name)("prompt").values for name in ("mean", "std"))
    colours = [BLUE if m >= 0 else ORANGE for m in mean]
    axes.barh(range(n), mean, color=colours, height=0.7)
    axes.errorbar(mean, range(n), xerr=deviation, fmt="none", ecolor=SOFT, lw=0.8)
    axes.axvline(0, color=RULE, lw=0.8)
    axes.set_yticks(range(n), [str(c) for c in shares.component.values])
    axes.invert_yaxis()
    _dress(axes, f"share of the {shares.attrs.get('reads', 'value')}", "", title)
    return written(figure, path)


def score_map(
    scores: xr.DataArray, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Scores of heads (layer, head, and prompts, which are averaged), layer 0 at the bottom."""
    from jaxinterp.report.picture import Picture

    mean = scores.mean("prompt") if "prompt" in scores.dims else scores
    values = mean.transpose("layer", "head").values
    rows, columns = values.shape
    size = (max(3.2, 0.34 * columns + 1.6), max(2.2, 0.2 * rows + 1.0))
    figure = Picture(size)
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values, cmap="Blues",
        vmin=min(0.0, float(np.nanmin(values))), vmax=max(1e-9, float(np.nanmax(values))),
        edgecolors="white", linewidth=0.6,
    )  # fmt: skip
    step = 1 if rows <= 16 else 5
    axes.set_yticks(range(0, rows, step), [str(v) for v in mean.layer.values[::step]])
    axes.set_xticks(range(columns), [str(v) for v in mean["head"].values])
    _dress(axes, "head", "layer", title)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=26, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=SOFT)
    return written(figure, path)


def steering_curves(
    result: xr.DataArray, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """The metric by coefficient, a panel per layer: directions as lines, placebos as a band.

    Lines are means over prompts with their 95% bootstrap interval; the band is the range of the
    random directions' means; the dashed line is the metric without steering.
    """
    from jaxinterp.report.picture import Picture

    layers = result.layer.values[:6]
    names = [d for d in result.direction.values if not str(d).startswith("random ")]
    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Picture((2.7 * columns + 0.8, 2.7 * rows + 0.6))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for spare in grid.flat[len(layers) :]:
        spare.set_axis_off()
    panels = grid.flat[: len(layers)]
    x = result.coefficient.values
    rng = np.random.default_rng(0)
    for axes, layer in zip(panels, layers, strict=True):
        one = result.sel(layer=layer)
        placebo = one.sel(direction=[d for d in one.direction.values if d not in names])
        if placebo.sizes["direction"]:
            mean = placebo.mean("prompt")
            axes.fill_between(x, mean.min("direction"), mean.max("direction"), color=RULE,
                              linewidth=0, label="random directions")  # fmt: skip
        for name, colour in zip(names, _colours(len(names)), strict=True):
            values = one.sel(direction=name).transpose("coefficient", "prompt").values
            drawn = values[:, rng.integers(0, values.shape[1], (1000, values.shape[1]))].mean(-1)
            low, high = np.percentile(drawn, (2.5, 97.5), axis=1)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, values.mean(1), "o-", ms=3, lw=1.4, color=colour, label=str(name))
        axes.axhline(float(result.clean.mean()), color=INK, lw=0.8, ls="--", zorder=1)
        _dress(axes, "coefficient, in mean norms", "", f"layer {layer}")
    for first in grid[:, 0]:
        first.set_ylabel(visible(str(result.name)), fontsize=8.5, color=SOFT)
    panels[0].legend(frameon=False, fontsize=7.5, labelcolor=INK)
    if title:
        plain(figure.suptitle(title, x=0.012, ha="left", fontsize=10.5, color=INK))
    return written(figure, path)


def projections(
    along: Any, labels: Any, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Histograms of coordinates along a direction by label, with the area under the ROC curve.

    along [n] (`Direction.project`), labels [n]. Of two labels the AUC says how often an example of
    the second (in sorted order) lies above one of the first.

    Raises ``ValueError`` for other shapes, and for no examples.
    """
    from jaxinterp.report.picture import Picture

    along, labels = np.asarray(along, float), np.asarray(labels)
    kinds = np.unique(labels)
    if along.ndim != 1 or labels.shape != along.shape or not len(kinds):
        raise ValueError(
            f"Coordinates {list(along.shape)} and labels {list(labels.shape)}, expected [n] each."
        )
    figure = Picture((5.6, 3.2))
    axes = figure.subplots()
    bins = np.histogram_bin_edges(along, bins=40).tolist()
    for kind, colour in zip(kinds, _colours(len(kinds)), strict=True):
        axes.hist(along[labels == kind], bins, color=colour, alpha=0.55, label=str(kind))
    across = "coordinate along the direction"
    if len(kinds) == 2:
        low, high = (along[labels == kind] for kind in kinds)
        gap = high[:, None] - low
        across += f" (AUC {((gap > 0) + 0.5 * (gap == 0)).mean():.3f})"
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _dress(axes, across, "examples", title)
    return written(figure, path)


def phase_map(
    found: xr.Dataset, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """The toy model's phase diagram: what becomes of the last feature, by density and importance.

    White: it is ignored; red: it has a dimension of its own; blue: it shares one.
    """
    from jaxinterp.report.picture import Picture

    figure = Picture((5.6, 4.6))
    axes = figure.subplots()
    norm = found.norm.isel(feature=-1).transpose("importance", "density").values.clip(0, 1)
    shared = found.interference.isel(feature=-1).transpose("importance", "density")
    shared = (shared.values / np.maximum(norm**2, 1e-9)).clip(0, 1)
    white, red, blue = (np.array(c) for c in ((1, 1, 1), (0.70, 0.09, 0.17), (0.13, 0.40, 0.67)))
    kind = red + shared[..., None] * (blue - red)
    colours = white + norm[..., None] * (kind - white)
    axes.pcolormesh(
        np.arange(found.sizes["density"] + 1), np.arange(found.sizes["importance"] + 1), colours
    )
    for setter, values in (
        (axes.set_xticks, found.density.values), (axes.set_yticks, found.importance.values),
    ):  # fmt: skip
        step = max(1, len(values) // 8)
        setter(np.arange(0, len(values), step) + 0.5, [f"{v:.2g}" for v in values[::step]])
    _dress(axes, "density of features", "importance of the last feature", title)
    for colour, name in ((white, "ignored"), (red, "a dimension of its own"), (blue, "superposed")):
        axes.scatter([], [], marker="s", s=60, color=[colour], edgecolors=SOFT, label=name)
    figure.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="outside lower center")
    return written(figure, path)


def _colours(n: int) -> list[Any]:
    known = [BLUE, ORANGE, "#1b7837", "#762a83", "#8c510a", "#01665e"]
    return [known[i % len(known)] for i in range(n)]


def _dress(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, fontsize=8.5, color=SOFT)
    axes.set_ylabel(up, fontsize=8.5, color=SOFT)
    axes.tick_params(labelsize=7.5, colors=SOFT)
    bare(axes)
    if title:
        plain(axes.set_title(title, fontsize=10, color=INK, loc="left"))
