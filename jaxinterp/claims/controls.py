"""The control that most claims need: the same edits at random other components."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.interventions import Edit, Shared, is_shared, unshare
from jaxinterp.model import SITES, Config
from jaxinterp.model.sites import axis_size

COMPONENT = ("layer", "head", "neuron")  # the axes that name a component


def random_components(
    intervention: Any, config: Config, *, draws: int = 20, seed: int = 0, sparing: Any = ()
) -> tuple[Edit, ...]:
    """The same edits at as many random other components: a grid of interventions.

    intervention: one edit or a tuple of them, each at one component, by integers: a layer, or a
    layer and a head (or neuron). In every draw each component moves to one of its own site that no
    edit names and no other of the draw has, with all edits there; positions and values stay. No
    two draws have the same components: there are fewer than ``draws`` where there are no more.
    Values of other runs are given for all layers, [L B P ...]. sparing: edits at other components
    that no draw has either, such as those of the same claim; a head is one at whatever site.

    Raises ``ValueError`` for edits that name no single component, values of one layer only, and
    more components than are left.
    """
    edits, seed = _edits(intervention), random_seed(seed)
    whole_number("draws", draws, 1, MANY)
    if not edits:
        raise ValueError("There are no edits to move: give an intervention at a component.")
    groups: dict[tuple[str, tuple[str, ...]], dict[tuple[int, ...], list[int]]] = {}
    for i, edit in enumerate(edits):
        axes, component = zip(*_component(edit).items(), strict=True)
        groups.setdefault((edit.site, axes), {}).setdefault(component, []).append(i)
    spared = [_component(edit) for edit in _edits(sparing)]
    free = {}
    for (site, axes), members in groups.items():
        taken = {*members, *(tuple(at.values()) for at in spared if tuple(at) == axes)}
        free[site, axes] = _others(config, site, axes, len(members), taken)
    rng, out = np.random.default_rng(seed), list(edits)
    count = math.prod(math.comb(len(free[group]), len(groups[group])) for group in groups)
    picks: dict[Any, list[np.ndarray]] = {}
    while len(picks) < min(draws, count):
        pick = [rng.permutation(len(free[g]))[: len(members)] for g, members in groups.items()]
        picks.setdefault(tuple(frozenset(rows.tolist()) for rows in pick), pick)
    for number, (group, members) in enumerate(groups.items()):
        drawn = free[group][np.stack([pick[number] for pick in picks.values()])]  # [draw edit axis]
        for at_one, columns in zip(members.values(), drawn.transpose(1, 2, 0), strict=True):
            for i in at_one:
                where = {axis: _shared(index) for axis, index in edits[i].where.items()}
                where |= dict(zip(group[1], columns, strict=True))
                moved = edits[i].where.replace(**where)
                out[i] = edits[i].replace(where=moved, value=_shared(edits[i].value))
    return tuple(out)


def _edits(given: Any) -> tuple[Edit, ...]:
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


def _others(
    config: Config, site: str, axes: tuple[str, ...], n: int, taken: set[tuple[int, ...]]
) -> np.ndarray:
    """The components of a site that are not taken, [m axis], n at least."""
    sizes = [axis_size(config, SITES[site], axis) or 0 for axis in axes]
    others = [cell for cell in itertools.product(*map(range, sizes)) if cell not in taken]
    if len(others) < n:
        raise ValueError(
            f"{n} random components at {site!r} are asked for; {len(others)} are left "
            f"besides those of the intervention (by {', '.join(axes)})."
        )
    return np.array(others)


def _component(edit: Any) -> dict[str, int]:
    """The component that an edit is at: its index along each axis that names it."""
    hint = "expected an edit such as zero('z', layer=1, head=4), one for each component"
    if not isinstance(edit, Edit):
        raise ValueError(f"{type(edit).__name__} cannot be moved to other components: {hint}.")
    out = {}
    for axis, index in edit.where.items():
        index = np.asarray(unshare(index))
        if axis in COMPONENT:
            if index.ndim or index.dtype == bool:
                raise ValueError(
                    f"{axis} at {edit.site!r} is {index.dtype}{list(index.shape)}: {hint}."
                )
            out[axis] = int(index)
    if "layer" not in out:
        raise ValueError(f"The edit at {edit.site!r} names no layer: {hint}.")
    of_one_layer = len(SITES[edit.site].axes) + 1
    if edit.operation != "apply" and np.ndim(unshare(edit.value)) == of_one_layer:
        raise ValueError(
            f"The value for {edit.site!r} is of one layer, {list(np.shape(unshare(edit.value)))}: "
            "give it stacked over all layers, as `forward` records it."
        )
    return out


def _shared(value: Any) -> Any:
    """Marked as shared by all draws, whole trees too."""
    if value is None or is_shared(value):
        return value
    return Shared(value)
