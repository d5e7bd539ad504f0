"""The choices behind an ablation, all in one call.

What a set of components does depends on how it is taken out: Miller et al. 2024
(arXiv:2407.08734) found that faithfulness moves more with such choices than between methods.
A number that is reported should therefore carry what it is under the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.ablation.fills import Fill, fill_of, in_full
from jaxinterp.checks import random_seed
from jaxinterp.components import Places, of_sites, position_mask
from jaxinterp.grid_runs import Driver, batch_size, check_pair, ignore
from jaxinterp.interventions import Edit, Where, unshare
from jaxinterp.metrics import Metric, check_metric, evaluate, of_prompts
from jaxinterp.model import At, Config, Model, Tokens, as_tokens
from jaxinterp.model.inputs import check_tokens
from jaxinterp.results import claim
from jaxinterp.sweep import Ledger, observe
from jaxinterp.sweep.devices import checked, place_model, to_host
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh

WRITES = {"head": "attn_out", "neuron": "mlp_out"}  # where a layer writes what its units do


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One way to ablate the set; its fields are the table's columns, but for the last two."""

    granularity: str
    value: str
    positions: str
    direction: str
    set: str

    @property
    def program(self) -> tuple[str, str, str]:
        """Choices that are alike in these run together."""
        return self.granularity, self.value, self.direction


def ablation_grid(
    model: Model,
    *,
    tokens: Any,
    metric: Metric,
    components: Mapping[str, Sequence[Any]],
    donors: Any = None,
    values: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("zero", "mean", "resample"),
    granularities: Sequence[str] = ("component", "layer"),
    positions: Mapping[str, Any] | None = None,
    directions: Sequence[str] = ("noise", "denoise"),
    sets: Sequence[str] = ("components", "complement"),
    seed: int = 0,
    record: Mapping[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """The metric under every way to ablate one set of components, per prompt.

    components: by site, {"z": [(9, 6), (9, 9)], "mlp_out": [3]}: a layer, or a layer and a
    head (or neuron). They are ablated all at once. The choices, all combined:

    - granularities: "component": as given; "layer": the whole ``attn_out`` (``mlp_out``) of
      every layer that holds one of the given heads (neurons).
    - values: as in `ablate`; or a mapping from any names to arguments of it,
      {"by template": {"value": "mean", "by": ("position", templates)}}.
    - positions: all of them, and each of these by name: one per prompt [B], several [B n], or a
      mask [B P].
    - directions: "noise" puts the values into the run on ``tokens``; "denoise" puts what the
      components hold on ``tokens`` into the run on ``donors``. The latter exists only for the
      value "resample" with ``donors`` (each of its prompt's length) and is left out otherwise.
    - sets: the "components", or their "complement": all others at the same sites.

    Returns an ``xarray.DataArray`` with dims ("choice", "prompt"); the coordinates
    ``granularity``, ``value``, ``positions``, ``direction`` and ``set`` say which choice it is
    (``result.mean("prompt").to_dataframe()`` is a table). ``clean`` and (with donors)
    ``corrupted`` hold the baselines. Other arguments and errors are as in `ablate`.
    """
    tokens, seed = as_tokens(tokens), random_seed(seed)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    if donors is not None:
        donors = as_tokens(donors)
        check_pair(model, tokens, donors, names=("own", "donor"))
    model = model if mesh is None else place_model(checked(mesh), model)
    masks = {"all": np.arange(tokens.shape[1]) < np.asarray(tokens.lengths)[:, None]}  # [B P]
    for name, given in (positions or {}).items():
        masks[name] = position_mask(tokens, given, name)
    options = dict(values) if isinstance(values, Mapping) else {v: {"value": v} for v in values}
    drawn = [name for name, given in options.items() if "draws" in given]
    if drawn:
        raise ValueError(f"{drawn[0]!r} asks for draws, here each value is one: leave it out.")
    levels = _levels(model, components, tokens, granularities)
    choices = _choices(levels, options, masks, directions, sets, donors)
    size = batch_size(model, tokens, batch, memory)
    fills: dict[tuple[str, str, str], Fill] = {}
    for choice in choices:
        if choice.program not in fills:
            sites = [places.site for places in levels[choice.granularity]]
            given = {"seed": seed, **options[choice.value]}
            if given.get("value") == "resample":
                given.setdefault("donors", donors)
            base = tokens
            if choice.direction == "denoise":
                assert donors is not None
                base, given = donors, {"value": "resample", "donors": tokens}
            fills[choice.program] = fill_of(model, base, sites, **given, size=size)
    driver = Driver.of(
        model, tokens, (), batch=batch, memory=memory, mesh=mesh, ledger=ledger, on_done=on_done
    )
    found = _run(driver, tokens, donors, metric, levels, choices, masks, fills)
    said = {f"{c.value}": fills[c.program].said for c in choices if c.direction == "noise"}
    attrs = claim(
        model, intervention="ablate", components={k: list(v) for k, v in components.items()},
        values=said, seed=seed, metric=metric.describe(), n_prompts=len(tokens),
        **dict(record or {}),
    )  # fmt: skip
    return _labelled(metric.name, found, choices, donors is not None, attrs)


def _labelled(
    name: str, found: np.ndarray, choices: list[_Choice], twins: bool, attrs: dict[str, Any]
) -> xr.DataArray:
    import xarray as xr

    fields = [field.name for field in dataclasses.fields(_Choice)]
    coords: dict[str, Any] = {f: ("choice", [getattr(c, f) for c in choices]) for f in fields}
    coords |= {"prompt": np.arange(found.shape[1]), "clean": ("prompt", found[-2])}
    if twins:
        coords["corrupted"] = ("prompt", found[-1])
    return xr.DataArray(found[:-2], coords, ("choice", "prompt"), name, attrs)


def _levels(
    model: Model, components: Mapping[str, Sequence[Any]], tokens: Tokens, wanted: Sequence[str]
) -> dict[str, list[Places]]:
    """The components at each granularity; a level that is like the one before is left out."""
    given = of_sites(model, components, tokens)
    levels = {"component": given, "layer": []}
    by_site: dict[str, set[int]] = {}
    for places in given:
        unit = next((axis for axis in WRITES if axis in places.where), None)
        site = places.site if unit is None else WRITES[unit]
        by_site.setdefault(site, set()).update(places.where["layer"].tolist())
    for site, layers in by_site.items():
        where = {"layer": np.array(sorted(layers))}
        levels["layer"].append(Places(site, where, [f"{site} {i}" for i in sorted(layers)]))
    unknown = [name for name in wanted if name not in levels]
    if unknown or not wanted:
        raise ValueError(f"granularities are {list(wanted)}, expected some of {list(levels)}.")
    coarse = {p.site: list(p.where) for p in given} == {p.site: ["layer"] for p in levels["layer"]}
    return {name: levels[name] for name in wanted if name != "layer" or not coarse or
            "component" not in wanted}  # fmt: skip


def _choices(
    levels: Mapping[str, Any], options: Mapping[str, Any], masks: Mapping[str, Any],
    directions: Sequence[str], sets: Sequence[str], donors: Tokens | None,
) -> list[_Choice]:  # fmt: skip
    """All combinations that exist, those of one program together."""
    for what, given, known in (
        ("directions", directions, ("noise", "denoise")),
        ("sets", sets, ("components", "complement")),
    ):
        if not given or not set(given) <= set(known):
            raise ValueError(f"{what} are {list(given)}, expected some of {list(known)}.")
    out = []
    for level, value, direction in itertools.product(levels, options, directions):
        resampled = options[value].get("value") == "resample" and "donors" not in options[value]
        if direction == "denoise" and (donors is None or not resampled):
            continue
        out += [_Choice(level, value, p, direction, s) for p in masks for s in sets]
    if not out:
        raise ValueError(
            "No choice is left: the direction 'denoise' needs donors= and the value 'resample'."
        )
    return out


class InSet(Edit):
    """An edit at chosen places only: mask [L], or [L n] along the site's heads or neurons."""

    mask: Any

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        changed = super().__call__(value, at)
        chosen = jnp.asarray(unshare(self.mask))[at.layer]
        if chosen.ndim:
            shape = [1] * value.ndim
            shape[at.axes.index("head" if "head" in at.axes else "neuron")] = -1
            chosen = chosen.reshape(shape)
        return jnp.where(chosen, changed, value)

    def begins(self, config: Config) -> tuple[Any, Any]:
        mask = np.asarray(unshare(self.mask))  # [E L (n)]
        layers = mask if mask.ndim == 2 else mask.any(-1)
        first = np.where(layers.any(-1), layers.argmax(-1), config.n_layers - 1)
        return first, super().begins(config)[1]


def _run(
    driver: Driver, tokens: Tokens, donors: Tokens | None, metric: Metric,
    levels: Mapping[str, list[Places]], choices: list[_Choice], masks: Mapping[str, np.ndarray],
    fills: Mapping[tuple[str, str, str], Fill],
) -> np.ndarray:  # fmt: skip
    """[choices + 2, n]: the metric under every choice, on the prompts, and on the donors."""
    programs = np.array([list(fills).index(choice.program) for choice in choices])

    def run(rows: np.ndarray) -> np.ndarray:
        each = of_prompts(metric, rows)
        runs = {"noise": driver.place(tokens[rows])}
        if donors is not None:
            runs["denoise"] = driver.place(donors[rows])
        used = {direction for _, _, direction in fills}
        bases = {d: observe(driver.model, runs[d], each)[0] for d in runs if d in used}
        ends = [to_host(evaluate(each, driver.model, own)) for own in runs.values()]
        out = np.empty((len(choices) + 2, len(rows)), ends[0].dtype)
        out[-2:] = ends[0], ends[-1]
        for number, ((level, _, direction), fill) in enumerate(fills.items()):
            values, some = fill.values(driver, rows, 0), np.flatnonzero(programs == number)
            at = np.stack([masks[choices[i].positions][rows] for i in some])  # [E B P]
            inverse = np.array([choices[i].set == "complement" for i in some])
            grid = tuple(
                _edit(driver.model, places, values[places.site], runs[direction], at, inverse)
                for places in levels[level]
            )
            out[some] = driver.sweep(runs[direction], grid, each, bases[direction])
        return out

    return driver.batches(run, len(choices))


def _edit(
    model: Model, places: Places, value: Any, tokens: Tokens, at: np.ndarray, inverse: np.ndarray
) -> InSet:  # fmt: skip
    """A grid [E] of edits at the places, ``at`` positions [E B P], or (``inverse``) all others."""
    held = places.mask(model.config)
    mask = held[None] ^ inverse.reshape(-1, *[1] * held.ndim)
    value = in_full(model, places.site, value, tokens)
    return InSet(places.site, "replace", Where(position=at), value, mask)
