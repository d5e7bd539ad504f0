"""Cells: the grid of a sweep with its labels, before it meets what is put into it.

Every method that runs over layers, positions, heads or neurons makes its grid here, so that
all results are labelled alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.interventions import axes_of, product
from jaxinterp.model import SITES, Model, Tokens
from jaxinterp.model.sites import axis_size

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Cells:
    """The grid of a sweep before it meets its donor: labelled axes and flat indices.

    labels: by dimension, in order. where: the arguments of `replace`, each [E] (or [E B]).
    """

    labels: dict[str, list[Any]]
    where: dict[str, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(v) for v in self.labels.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def along(self, axis: str) -> np.ndarray:
        """Which entry of ``labels[axis]`` each cell stands at: [E]."""
        place = list(self.labels).index(axis)
        return np.indices(self.shape)[place].reshape(-1)

    def indices(self, keep: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """``where`` of some of the cells (bool [E]), for some of the prompts."""
        kept = {axis: index[keep] for axis, index in self.where.items()}
        if "position" in kept and kept["position"].ndim == 2:  # roles: one per prompt
            kept["position"] = kept["position"][:, rows]
        return kept


def make_cells(
    model: Model,
    site: str,
    over: Sequence[str],
    tokens: Tokens,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
) -> Cells:
    """The grid over a site's axes.

    Raises ``ValueError`` for axes the site does not have, and for a choice of layers,
    positions, heads or neurons that is empty, not of integers, or along an axis that is not
    swept.
    """
    config = model.config
    available = axes_of(config, site)
    over = (over,) if isinstance(over, str) else tuple(over)
    for axis in over:
        if axis not in available:
            raise ValueError(
                f"Site {site!r} cannot be swept over {axis!r}; its axes are {', '.join(available)}."
            )
    if len(set(over)) < len(over) or not over:
        raise ValueError(f"over={over} names no axis or one of them twice.")
    equal = bool((np.asarray(tokens.lengths) == tokens.shape[1]).all())
    needs_equal = "source" in over or ("position" in over and not isinstance(positions, Mapping))
    if needs_equal and not equal:
        lengths = np.asarray(tokens.lengths)
        if (lengths == lengths[0]).all():
            raise ValueError(
                f"All prompts have {lengths[0]} tokens, and {tokens.shape[1]} columns with padding "
                "among them: absolute positions need prompts without padding. Leave it out, or "
                "give positions={'role': one position per prompt, ...}."
            )
        raise ValueError(
            f"The prompts have {lengths.min()} to {lengths.max()} tokens: absolute positions "
            "need equal lengths. Give positions={'role': one position per prompt, ...}."
        )
    choices = {"layer": layers, "position": positions, "head": heads, "neuron": neurons}
    for axis, chosen in choices.items():
        if chosen is not None and axis not in over:
            raise ValueError(
                f"{axis}s={chosen} is given, but over={over} does not sweep the {axis} axis: "
                f"add {axis!r} to over."
            )
    labels: dict[str, list[Any]] = {}
    values: dict[str, np.ndarray] = {}
    for axis in over:
        size = axis_size(config, SITES[site], axis) or tokens.shape[1]
        chosen = choices.get(axis)
        if isinstance(chosen, Mapping):
            labels[axis], values[axis] = _role_axis(chosen, np.asarray(tokens.lengths))
        elif axis == "neuron" and (chosen is None or isinstance(chosen, (int, np.integer))):
            labels[axis], values[axis] = _neuron_blocks(64 if chosen is None else chosen, size)
        else:
            picked = np.arange(size) if chosen is None else _chosen(site, axis, chosen, size)
            labels[axis], values[axis] = picked.tolist(), picked
    index = product(**{axis: range(len(v)) for axis, v in labels.items()})
    where = {axis: values[axis][index[axis]] for axis in over}
    return Cells(labels, where)


def _chosen(site: str, axis: str, chosen: Any, size: int) -> np.ndarray:
    """Chosen indices along an axis, [n]."""
    picked = np.atleast_1d(np.asarray(chosen))
    if picked.ndim != 1 or not picked.size or picked.dtype.kind not in "iu":
        raise ValueError(f"{axis}s={chosen} is not a list of {axis} indices (integers from 0).")
    outside = picked[(picked < 0) | (picked >= size)]
    if outside.size:
        raise ValueError(
            f"{axis} {outside[0]} is out of range at {site!r}: expected 0 to {size - 1}."
        )
    return picked


def _role_axis(roles: Mapping[str, Any], lengths: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Role names, and their positions [role B]."""
    rows = {name: np.asarray(at) for name, at in roles.items()}
    for name, at in rows.items():
        fits = at.shape in ((), lengths.shape) and at.dtype.kind in "iu"
        if not fits or (at < 0).any() or (at >= lengths).any():
            raise ValueError(
                f"Role {name!r} is {at.dtype}{list(at.shape)}, expected a position within each "
                f"of the {len(lengths)} prompts, from 0."
            )
    if not rows:
        raise ValueError("positions is an empty mapping: name at least one role.")
    return list(rows), np.stack([np.broadcast_to(at, lengths.shape) for at in rows.values()])


def _neuron_blocks(block: int, size: int) -> tuple[list[Any], np.ndarray]:
    """Masks [n size] of blocks of neurons, labelled by their first."""
    block = whole_number("neurons", block, 1)
    starts = np.arange(0, size, block)
    offset = np.arange(size)[None] - starts[:, None]
    return starts.tolist(), (offset >= 0) & (offset < block)


def coordinates(
    cells: Cells,
    clean: Tokens,
    corrupted: Tokens | None,
    tokenizer: Any,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    """The labels of a result's dims, and texts beside them where there is a tokenizer."""
    coords: dict[str, Any] = {k: (k, v) for k, v in cells.labels.items()}
    coords["prompt"] = ("prompt", np.arange(len(clean)))
    if tokenizer is not None:
        coords["clean_text"] = ("prompt", _texts(tokenizer, clean))
        if corrupted is not None:
            coords["corrupted_text"] = ("prompt", _texts(tokenizer, corrupted))
        texts = _column_tokens(tokenizer, clean, names)
        for axis in {"position", "source"} & cells.where.keys():
            if cells.where[axis].ndim == 1:
                coords[f"{axis}_token"] = (axis, [texts[p] for p in cells.labels[axis]])
    return coords


def label(
    cells: Cells,
    values: np.ndarray,
    name: str,
    coords: dict[str, Any],
    attrs: dict[str, Any],
    baselines: Mapping[str, np.ndarray],
    *,
    extra: tuple[str, ...] = (),
) -> xr.DataArray:
    """The labelled result of a sweep; values [E ... B], ``extra`` naming what is between.

    baselines: the metric without the cells' interventions, by name: [B], or [... B] in full.
    """
    import xarray as xr

    for run, value in baselines.items():
        coords = {**coords, run: ((*extra, "prompt")[-value.ndim :], value)}
    shaped = values.reshape(*cells.shape, *values.shape[1:])
    return xr.DataArray(shaped, coords, (*cells.labels, *extra, "prompt"), name, attrs)


def _texts(tokenizer: Any, tokens: Tokens) -> list[str]:
    ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]


def _column_tokens(tokenizer: Any, tokens: Tokens, names: Sequence[str] | None) -> list[str]:
    """Each position's token (with … where prompts differ: the first one's), and its name."""
    ids = np.asarray(tokens.ids)
    texts = tokenizer.str_tokens(ids[0].tolist())
    same = (ids == ids[:1]).all(0)
    names = [""] * len(texts) if names is None else names
    if len(names) != len(texts):
        raise ValueError(f"There are {len(names)} names for {len(texts)} positions.")
    marked = [text if same[p] else f"{text}…" for p, text in enumerate(texts)]
    return [f"{t} [{name}]" if name else t for t, name in zip(marked, names, strict=True)]
