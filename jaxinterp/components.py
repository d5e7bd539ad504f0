"""Components: chosen places of a model that are no whole grid, such as ten heads of a circuit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.cells import Cells
from jaxinterp.interventions import axes_of
from jaxinterp.model import SITES, Config, Model, Tokens
from jaxinterp.model.sites import axis_size, parse


@dataclasses.dataclass(frozen=True)
class Places:
    """Places at one site. where: the arguments of `replace`, [n] (masks [n M], roles [n B])."""

    site: str
    where: dict[str, np.ndarray]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def at(self, picked: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """``where`` of some of them, for some of the prompts."""
        out = {axis: index[picked] for axis, index in self.where.items()}
        if "position" in out and out["position"].ndim == 2:
            out["position"] = out["position"][:, rows]
        return out

    def mask(self, config: Config) -> np.ndarray:
        """bool [L], or [L H] (heads) or [L M] (neurons): which of all these places they are."""
        axes = tuple(self.where)
        sizes = [axis_size(config, SITES[self.site], axis) or 0 for axis in axes]
        out = np.zeros(sizes, bool)
        out[tuple(self.where[axis] for axis in axes)] = True
        return out


def of_cells(site: str, cells: Cells) -> Places:
    """The cells of a grid."""
    entries = [np.asarray(cells.labels[axis], object)[cells.along(axis)] for axis in cells.labels]
    return Places(site, cells.where, [_name(entry) for entry in zip(*entries, strict=True)])


def of_list(
    model: Model, site: str, over: Sequence[str], chosen: Sequence[Any], tokens: Tokens
) -> Places:
    """Places given as tuples of indices along ``over`` (a bare integer where that is one axis).

    Raises ``ValueError`` for an empty list, for what is not such a tuple, and for places that
    are out of range or named twice.
    """
    available = axes_of(model.config, site)
    for axis in over:
        if axis not in available:
            raise ValueError(f"Site {site!r} has no axis {axis!r}; it has {', '.join(available)}.")
    entries = [tuple(np.atleast_1d(entry).tolist()) for entry in chosen]
    if not entries:
        raise ValueError(f"There are no components at {site!r}: name at least one.")
    for entry in entries:
        if len(entry) != len(over) or not all(isinstance(i, int) for i in entry):
            raise ValueError(
                f"{entry} is not a place at {site!r}: expected ({', '.join(over)}), integers."
            )
        for axis, i in zip(over, entry, strict=True):
            size = axis_size(model.config, SITES[site], axis) or tokens.shape[1]
            if not 0 <= i < size:
                raise ValueError(
                    f"{axis} {i} is out of range at {site!r}: expected 0 to {size - 1}."
                )
    if len(set(entries)) < len(entries):
        twice = next(e for e in entries if entries.count(e) > 1)
        raise ValueError(f"{twice} at {site!r} is named twice: name each component once.")
    columns = np.array(entries).T
    return Places(site, dict(zip(over, columns, strict=True)), [_name(e) for e in entries])


def of_sites(model: Model, chosen: Mapping[str, Sequence[Any]], tokens: Tokens) -> list[Places]:
    """Places at several sites, {"z": [(9, 6), (9, 9)], "mlp_out": [3]}.

    An integer is a layer; a pair is a layer and a head, or neuron. Raises as `of_list`.
    """
    if not chosen:
        raise ValueError("There are no components: name at least one.")
    out = []
    for given, entries in chosen.items():
        site, layer = parse(given)
        if layer is not None or not SITES[site].layered:
            raise ValueError(f"{given!r} is no site that every layer has: name it without a layer.")
        units = [axis for axis in ("head", "neuron") if axis in axes_of(model.config, site)]
        deep = any(np.ndim(entry) for entry in entries)
        places = of_list(model, site, ("layer", *units) if deep else ("layer",), entries, tokens)
        out.append(dataclasses.replace(places, names=[f"{site} {n}" for n in places.names]))
    return out


def _name(entry: Sequence[Any]) -> str:
    """``9.6`` for (9, 6); with words, ``9 END``."""
    words = any(isinstance(part, str) for part in entry)
    return (" " if words else ".").join(map(str, entry))


def position_mask(tokens: Tokens, given: Any, name: str) -> np.ndarray:
    """bool [B P]: positions within each prompt, from one per prompt [B], several [B n] or a mask.

    -1 fills shorter rows. Raises ``ValueError``, naming ``name``, for positions outside a
    prompt, and for a prompt without any.
    """
    given, lengths = np.asarray(given), np.asarray(tokens.lengths)
    positions = np.arange(tokens.shape[1])
    if given.dtype == bool and given.shape == tokens.shape:
        mask = given
    elif given.dtype.kind in "iu" and given.ndim in (1, 2) and len(given) == len(tokens):
        rows = given.reshape(len(tokens), -1)
        if (rows >= lengths[:, None]).any() or (rows < -1).any():
            raise ValueError(f"{name} reaches outside some prompts: positions {given.tolist()}.")
        mask = (rows[:, :, None] == positions).any(1)
    else:
        raise ValueError(
            f"{name} is {given.dtype}{list(given.shape)}, expected positions [B] or [B n] or a "
            f"mask [B P] for {len(tokens)} prompts of up to {tokens.shape[1]} tokens."
        )
    if (mask & (positions >= lengths[:, None])).any() or not mask.any(-1).all():
        raise ValueError(f"{name} has no token in some prompt, or one beyond its end.")
    return mask
