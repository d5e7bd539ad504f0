"""Slow oracles: derivatives along a patch by finite differences of the NumPy transformer."""

import functools

import numpy as np
import oracle
from small_models import CORRECT, OTHER, PROMPTS, WRONG, small_model

from jaxinterp.model import SITES

CLEAN, CORRUPTED = PROMPTS, OTHER
STEP = 1e-4


@functools.cache
def run_of(name, prompt, clean):
    """(logits, sites) of one prompt of one side."""
    return oracle.forward(small_model(name), (CLEAN if clean else CORRUPTED)[prompt])


def metric_of(logits, prompt):
    return logits[-1, CORRECT[prompt]] - logits[-1, WRONG[prompt]]


def ends(name, prompt, direction):
    """The sites of the base run and of the donor."""
    clean, corrupted = (run_of(name, prompt, side)[1] for side in (True, False))
    return (corrupted, clean) if direction == "denoise" else (clean, corrupted)


def entries(site, value, cell):
    """A bool mask over a site's value of one layer [P ...] (no batch axis) for a cell."""
    mask = np.ones(value.shape, bool)
    for axis, index in cell.items():
        if axis != "layer":
            place = SITES[site].axes.index(axis)
            line = np.isin(np.arange(value.shape[place]), index)
            mask &= line.reshape([-1 if i == place else 1 for i in range(value.ndim)])
    return mask


def moved(name, prompt, site, cells, amounts, direction="denoise", others=None):
    """The oracle's run with each cell moved by an amount of the way to the donor's value.

    others(site, layer, value): a further edit, after this one.
    """
    _, donor = ends(name, prompt, direction)
    ids = (CORRUPTED if direction == "denoise" else CLEAN)[prompt]

    def edit(at, layer, value):
        if at == site:
            to = donor[site] if layer is None else donor[site][layer]
            start, value = value, value.copy()
            for cell, amount in zip(cells, amounts, strict=True):
                if layer is None or cell.get("layer", layer) == layer:
                    way = np.where(entries(site, value, cell), to - start, 0)
                    value = value + amount * np.where(np.isfinite(way), way, 0)
        return value if others is None else others(at, layer, value)

    logits, sites = oracle.forward(small_model(name), ids, edit=edit)
    return metric_of(logits, prompt), sites


def slope(name, prompt, site, cell, direction="denoise", others=None, at=0.0):
    """d metric / d amount, by a central difference in float64."""
    up, down = (
        moved(name, prompt, site, [cell], [at + step], direction, others)[0]
        for step in (STEP, -STEP)
    )
    return (up - down) / (2 * STEP)


def held_layer(name, prompt, direction, dropped):
    """An edit that holds what one layer writes to the stream as in the base run."""
    base, _ = ends(name, prompt, direction)

    def edit(at, layer, value):
        return base[at][layer] if at in ("attn_out", "mlp_out") and layer == dropped else value

    return edit
