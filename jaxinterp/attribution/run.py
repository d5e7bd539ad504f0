"""`attribute` and `interactions`: from prompts to labelled results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.attribution import atp_star, hessian, integrated, relp
from jaxinterp.attribution.gradients import Pair
from jaxinterp.cells import Cells, coordinates, label, make_cells
from jaxinterp.checks import MANY, whole_number
from jaxinterp.grid_runs import Driver, check_pair, site_and_layers
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import SITES, Config, Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.patching import Direction, check_direction
from jaxinterp.results import claim
from jaxinterp.sweep import observe

if TYPE_CHECKING:
    import xarray as xr

Method = Literal["atp", "atp_qk", "atp_drop", "atp*", "ig", "ig_inputs", "relp", "hvp"]
METHODS: tuple[Method, ...] = (
    "atp", "atp_qk", "atp_drop", "atp*", "ig", "ig_inputs", "relp", "hvp",
)  # fmt: skip
AT_ONE_POINT = ("atp", "atp_qk", "atp_drop", "atp*", "relp")  # they need a gradient there
BATCH = 32  # prompts per program, at most
KEEP = 2 << 30  # bytes that a backward pass may keep


def attribute(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "position"),
    method: Method = "atp",
    direction: Direction = "denoise",
    steps: int = 8,
    rules: Sequence[str] = relp.DEFAULT,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    tokenizer: Any = None,
    names: Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
    batch: int | None = None,
    on_done: Callable[[int], None] = lambda experiments: None,
) -> xr.DataArray:
    """The metric under every patch of a grid as a method predicts it, per prompt.

    The grid and its labels are those of `jaxinterp.patch` with the same arguments; values are
    the base run's metric plus the attribution, so that `jaxinterp.share` and the report read
    them alike. Denoising has the corrupted run for a base, noising the clean one.

    method:

    - ``"atp"``: attribution patching, (donor - base) . gradient at the base run, for all cells
      from two forward passes and one backward (Nanda 2023; Syed et al. 2023, arXiv:2310.10348);
    - ``"atp_qk"``: with the softmax recomputed for queries and keys; ``"atp_drop"``: with
      GradDrop; ``"atp*"``: both (Kramar et al. 2024, arXiv:2403.00745). GradDrop gives sizes;
      their sign is that of the attribution without it;
    - ``"ig"``: integrated gradients at the site, each layer's values along their own line
      (``steps`` passes per layer); ``"ig_inputs"``: along the token embeddings (``steps``);
    - ``"relp"``: relevance patching (Jafari et al. 2025, arXiv:2508.21258) under ``rules``,
      some of "norm", "activation", "gate", "attention" (see `jaxinterp.attribution.relp`);
    - ``"hvp"``: with half the curvature along each patch, at more than a sweep's price.

    batch: prompts per program. Other arguments as in `jaxinterp.patch`.

    Returns an ``xarray.DataArray`` with dims (*over, "prompt"), coordinates ``clean`` and
    ``corrupted``, and the claim in ``attrs``.

    Raises ``ValueError`` as `jaxinterp.patch` does, for a method that does not cover the site,
    and where the metric has no gradient at the base run though the two runs differ.
    """
    task = _Task.of(
        model, clean, corrupted, metric, site, over, direction, batch, on_done,
        layers=layers, positions=positions, heads=heads, neurons=neurons,
    )  # fmt: skip
    settings: dict[str, Any] = {"site": task.site, "over": tuple(task.cells.labels)}
    _check_method(task, method, steps, tuple(rules))
    settings |= {
        "method": method,
        "steps": steps if method in ("ig", "ig_inputs") else 0,
        "rules": tuple(rules) if method == "relp" else (),
    }

    def run(rows: np.ndarray) -> np.ndarray:
        args = task.of_rows(rows)
        found = jax.device_get(_predicted(model, *args, **settings))
        if method in AT_ONE_POINT:
            _check_gradient(model, *args[:3], found, method, direction)
        return np.concatenate(found)

    found = task.driver.batches(run, len(task.cells))
    said = {key: settings[key] for key in ("method", "steps", "rules") if settings[key]}
    attrs = task.claim(**said, **dict(record or {}))
    coords = coordinates(task.cells, task.clean, task.corrupted, tokenizer, names)
    return label(task.cells, found[:-2], metric.name, coords, attrs, task.baselines(found))


def interactions(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    site: str = "z",
    over: Sequence[str] = ("layer", "head"),
    direction: Direction = "denoise",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | Mapping[str, Any] | None = None,
    heads: Sequence[int] | None = None,
    neurons: int | Sequence[int] | None = None,
    record: Mapping[str, Any] | None = None,
    batch: int | None = None,
    on_done: Callable[[int], None] = lambda experiments: None,
) -> xr.DataArray:
    """How the patches of each two cells act on each other, to second order, per prompt.

    An entry is the metric's mixed second derivative at the base run: an estimate of
    m(both patched) - m(first) - m(second) + m(neither), from one Hessian-vector product per
    cell. It is positive where two patches do more together than apart; backup components show
    as negative entries. On the diagonal stands a cell's curvature.

    Arguments and errors as in `attribute`. Returns dims (*over, *("other_" + axis), "prompt"),
    in the metric's unit, with the baselines and the claim as `attribute` has them.
    """
    import xarray as xr

    task = _Task.of(
        model, clean, corrupted, metric, site, over, direction, batch, on_done,
        layers=layers, positions=positions, heads=heads, neurons=neurons,
    )  # fmt: skip
    settings: dict[str, Any] = {"site": task.site, "over": tuple(task.cells.labels)}

    def run(rows: np.ndarray) -> np.ndarray:
        found = jax.device_get(_interactions(model, *task.of_rows(rows), **settings))
        return np.concatenate(found)

    found = task.driver.batches(run, len(task.cells) ** 2)
    labels = task.cells.labels
    pairs = {**labels, **{f"other_{axis}": values for axis, values in labels.items()}}
    coords: dict[str, Any] = {axis: (axis, values) for axis, values in pairs.items()}
    coords["prompt"] = ("prompt", np.arange(found.shape[-1]))
    coords |= {run: ("prompt", value) for run, value in task.baselines(found).items()}
    return xr.DataArray(
        found[:-2].reshape(*task.cells.shape, *task.cells.shape, -1), coords, (*pairs, "prompt"),
        f"{metric.name}_interaction", task.claim(method="interactions", **dict(record or {})),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Task:
    """What to attribute, checked as `jaxinterp.patch` checks it."""

    model: Model
    clean: Tokens
    corrupted: Tokens
    metric: Metric
    site: str
    direction: Direction
    cells: Cells
    driver: Driver

    @classmethod
    def of(
        cls, model: Model, clean: Any, corrupted: Any, metric: Metric, site: str,
        over: Sequence[str], direction: Direction, batch: int | None,
        on_done: Callable[[int], None], *, layers: Sequence[int] | None, **chosen: Any,
    ) -> _Task:  # fmt: skip
        clean, corrupted = as_tokens(clean), as_tokens(corrupted)
        check_pair(model, clean, corrupted)
        check_metric(metric, model, clean)
        check_direction(direction)
        name, layers = site_and_layers(site, layers)
        cells = make_cells(model, name, over, clean, layers=layers, **chosen)
        whole_number("batch", batch, 1, optional=True)
        size = _fitting(model.config, clean) if batch is None else batch
        driver = Driver.of(model, clean, (), batch=size, on_done=on_done)
        return cls(model, clean, corrupted, metric, name, direction, cells, driver)

    def of_rows(self, rows: np.ndarray) -> tuple[Tokens, Tokens, Metric, dict[str, np.ndarray]]:
        """Base, donor, metric and the index along each axis, of some prompts."""
        base, donor = self.corrupted[rows], self.clean[rows]
        if self.direction == "noise":
            base, donor = donor, base
        return base, donor, of_prompts(self.metric, rows), _axes(self.cells, rows)

    def baselines(self, found: np.ndarray) -> dict[str, np.ndarray]:
        """The metric of both runs, from values that end with the base's and the donor's."""
        ends = ("corrupted", "clean") if self.direction == "denoise" else ("clean", "corrupted")
        return {name: found[at] for name, at in sorted(zip(ends, (-2, -1), strict=True))}

    def claim(self, **more: Any) -> dict[str, Any]:
        return claim(
            self.model, site=self.site, over=list(self.cells.labels), direction=self.direction,
            intervention="replace", metric=self.metric.describe(), n_prompts=len(self.clean),
            **more,
        )  # fmt: skip


def _check_method(task: _Task, method: str, steps: int, rules: tuple[str, ...]) -> None:
    """Refuse a method that does not exist, or does not cover what is asked."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}.")
    site, over = task.site, tuple(task.cells.labels)
    if method.startswith("atp"):
        parts = _parts(method)
        atp_star.check(task.model, site, over, fix="qk" in parts, drop="drop" in parts)
    if method == "relp":
        relp.check(task.model, site, rules)
    whole_number("steps", steps, 1, MANY)
    if method == "ig" and SITES[site].layered and "layer" not in over:
        raise ValueError(f"method='ig' integrates layer by layer: add 'layer' to over={over}.")
    types, others = task.clean.types, task.corrupted.types
    if method == "ig_inputs" and types is not None and (types != others).any():
        raise ValueError(
            "method='ig_inputs' moves the token embeddings, but the token types of clean and "
            "corrupted differ too: use method='ig'."
        )


def _parts(method: str) -> tuple[str, ...]:
    """The repairs of AtP that a method has: "qk", "drop"."""
    known = {"atp_qk": ("qk",), "atp_drop": ("drop",), "atp*": ("qk", "drop")}
    return known.get(method, ())


def _axes(cells: Cells, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The index along each axis of the grid: int [n], roles int [n B], masks bool [n M]."""
    flat = cells.indices(np.ones(len(cells), bool), rows)
    out = {}
    for place, axis in enumerate(cells.labels):
        grid = flat[axis].reshape(*cells.shape, *flat[axis].shape[1:])
        out[axis] = np.moveaxis(grid, place, 0).reshape(
            cells.shape[place], -1, *flat[axis].shape[1:]
        )[:, 0]
    return out


def _fitting(c: Config, tokens: Tokens) -> int:
    """Prompts per program: those whose values the backward pass can keep."""
    kept = 12 * c.d_model + 8 * c.n_heads * c.d_head + 6 * c.d_mlp + 4 * c.n_heads * tokens.shape[1]
    return int(np.clip(KEEP // (4 * c.n_layers * tokens.shape[1] * kept), 1, BATCH))


@functools.partial(jit, static=("site", "over", "method", "steps", "rules"))
def _predicted(
    model: Model, base: Tokens, donor: Tokens, metric: Metric, axes: dict[str, Any], *,
    site: str, over: tuple[str, ...], method: Method, steps: int, rules: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """The predicted metric [E B], and that of the base run and of the donor, each [1 B]."""
    more = ("embed",) if method == "ig_inputs" else ()
    end, recorded = observe(model, donor, metric, record=tuple(dict.fromkeys((site, *more))))
    pair = Pair(model, base, donor, metric, site, over, axes, recorded[site])
    if method == "ig":
        start, change = integrated.activations(pair, steps)
    elif method == "ig_inputs":
        start, change = integrated.inputs(pair, steps, recorded["embed"])
    elif method == "relp":
        start, change = relp.attribution(pair, rules)
    elif method == "hvp":
        start, change = hessian.attribution(pair)
    else:
        parts = _parts(method)
        start, change = atp_star.attribution(pair, "qk" in parts, "drop" in parts)
    return (start + change).reshape(-1, len(base)), start[None], end.metric[None]


@functools.partial(jit, static=("site", "over"))
def _interactions(
    model: Model, base: Tokens, donor: Tokens, metric: Metric, axes: dict[str, Any], *,
    site: str, over: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Second derivatives [E*E B], and the metric of the base run and the donor, each [1 B]."""
    end, recorded = observe(model, donor, metric, record=(site,))
    pair = Pair(model, base, donor, metric, site, over, axes, recorded[site])
    start, found = hessian.interactions(pair)
    return found.reshape(-1, len(base)), start[None], end.metric[None]


def _check_gradient(
    model: Model, base: Tokens, donor: Tokens, metric: Metric,
    found: tuple[np.ndarray, np.ndarray, np.ndarray], method: str, direction: Direction,
) -> None:  # fmt: skip
    """Refuse a metric without a gradient at the base run though the runs differ."""
    values, (start,), (end,) = found
    gap = np.abs(end - start)
    rounding = float(jnp.finfo(model.params.embed.W_E.dtype).eps)
    nothing = min(1000 * rounding, 0.02) * gap
    rounded = min(1000 * rounding, 0.05) * np.abs([start, end]).max()
    differ = np.asarray(base.differ(donor).any(-1)) & (gap > rounded)
    if not differ.any() or (np.abs(values - start).max(0) > nothing)[differ].any():
        return
    # No cell moves: is it this site, or does the metric not feel its last stream at all?
    last = {"layer": np.array([model.config.n_layers - 1])}
    whole, *_ = jax.device_get(
        _predicted(
            model, base, donor, metric, last, site="resid_post", over=("layer",),
            method="atp", steps=0, rules=(),
        )
    )  # fmt: skip
    if (np.abs(whole[0] - start) <= nothing)[differ].all():
        run = "corrupted" if direction == "denoise" else "clean"
        raise ValueError(
            f"The gradient of {metric.name!r} is zero at the {run} run, where method={method!r} "
            f"takes it, though the runs differ by up to {gap.max():.3g}. A distance from that "
            "run itself (kl, mse) has its minimum there, and a count (rank, accuracy) is flat: "
            "attribute a logit difference (logit_diff) instead, or integrate (method='ig')."
        )
