"""The control that most claims need: the same edits at random other components."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from jaxinterp.interventions import Edit, Shared, is_shared, unshare
from jaxinterp.model import SITES, Config
from jaxinterp.model.sites import axis_size

COMPONENT = ("layer", "head", "neuron")  # the axes that name a component


def random_components(
    intervention: Any, config: Config, *, draws: int = 20, seed: int = 0
) -> tuple[Edit, ...]:
    """The same edits at as many random other components: a grid of ``draws`` interventions.

    intervention: one edit or a tuple of them, each at one component, by integers: a layer, or a
    layer and a head (or neuron). In every draw each edit moves to a component of its own site that
    no edit names and no other edit of the draw has; positions and values stay. Values of other
    runs are given for all layers, [L B P ...].

    Raises ``ValueError`` for edits that name no single component, values of one layer only, and
    more components than are left.
    """
    edits = intervention if isinstance(intervention, (tuple, list)) else (intervention,)
    if not edits or draws < 1:
        raise ValueError(f"{len(edits)} edits, draws={draws}: expected at least 1 of each.")
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    named = [_component(edit) for edit in edits]
    for i, (edit, places) in enumerate(zip(edits, named, strict=True)):
        groups.setdefault((edit.site, tuple(places)), []).append(i)
    rng, out = np.random.default_rng(seed), list(edits)
    for (site, axes), members in groups.items():
        sizes = [axis_size(config, SITES[site], axis) or 0 for axis in axes]
        taken = {tuple(named[i].values()) for i in members}
        free = np.array([c for c in itertools.product(*map(range, sizes)) if c not in taken])
        if len(free) < len(members):
            raise ValueError(
                f"{len(members)} random components at {site!r} are asked for; {len(free)} are left "
                f"besides those of the intervention (by {', '.join(axes)})."
            )
        drawn = np.stack([rng.permutation(len(free))[: len(members)] for _ in range(draws)])
        for i, column in zip(members, free[drawn].transpose(1, 2, 0), strict=True):  # [axis draw]
            where = {axis: _shared(index) for axis, index in edits[i].where.items()}
            where |= dict(zip(axes, column, strict=True))
            moved = edits[i].where.replace(**where)
            out[i] = edits[i].replace(where=moved, value=_shared(edits[i].value))
    return tuple(out)


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
