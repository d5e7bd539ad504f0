"""Pictures of fronts of dictionaries: what sparsity costs.

Figures are plain matplotlib ``Figure`` objects, as in `jaxinterp.report.plots`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from jaxinterp.report.plots import BLUE, INK, ORANGE, SOFT, bare, plain, written

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, "#1b7837", "#762a83", "#8c510a", "#01665e")
KNOBS = {"k": "k", "sparsity": "λ", "target_l0": "L0*"}  # what makes members sparse, as shown


def front_curves(
    history: xr.Dataset, path: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Explained variance by L0 at the last step, a curve for each learning rate.

    history: of `jaxinterp.sae.train`. A point is a mean over members that differ in their seed
    only, with their range in both directions.
    """
    from jaxinterp.report.picture import Picture

    last = history.isel(step=-1)
    groups: dict[tuple[float, ...], list[int]] = {}
    for member in range(last.sizes["member"]):
        setting = tuple(float(last[name][member]) for name in ("learning_rate", *KNOBS))
        groups.setdefault(setting, []).append(member)
    figure = Picture((6.0, 4.0))
    axes = figure.subplots()
    rates = sorted({setting[0] for setting in groups})
    for number, rate in enumerate(rates):
        own = [setting for setting in groups if setting[0] == rate]
        l0, explained = (
            np.array([[f(last[name].values[groups[s]]) for f in (np.mean, np.min, np.max)]
                      for s in own])
            for name in ("l0", "explained")
        )  # fmt: skip
        order = np.argsort(l0[:, 0], kind="stable")
        l0, explained = l0[order], explained[order]
        axes.errorbar(
            l0[:, 0], explained[:, 0], xerr=_beyond(l0), yerr=_beyond(explained), fmt="o-", ms=3.5,
            lw=1.4, elinewidth=1, color=COLOURS[number % len(COLOURS)],
            label=f"learning rate {rate:.2g}",
        )  # fmt: skip
        for i, x, y in zip(order, l0[:, 0], explained[:, 0], strict=True):
            axes.annotate(
                _named(own[i]), (x, y), (4, -9), textcoords="offset points", fontsize=7, color=SOFT
            )
    means = last.l0.values
    if means.min() > 0 and means.max() > 4 * means.min():
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if len(rates) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_xlabel("L0: features active per example", fontsize=8.5, color=SOFT)
    axes.set_ylabel("explained variance, last batch", fontsize=8.5, color=SOFT)
    axes.tick_params(labelsize=7.5, colors=SOFT)
    bare(axes)
    if title:
        plain(axes.set_title(title, fontsize=10, color=INK, loc="left"))
    return written(figure, path)


def _beyond(values: np.ndarray) -> np.ndarray:
    """Rows of (mean, least, most) as errorbar's [below, above]."""
    mean, least, most = values.T
    return np.maximum([mean - least, most - mean], 0)


def _named(setting: tuple[float, ...]) -> str:
    """The knobs that are not 0."""
    knobs = zip(KNOBS.values(), setting[1:], strict=True)
    return ", ".join(f"{name} {value:g}" for name, value in knobs if value)
