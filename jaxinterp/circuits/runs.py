"""What every method over edges starts from: two runs, batch by batch, and labelled results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.circuits.circuit import graph_of
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import Pass, masked_metric, measure, walk, written_by
from jaxinterp.grid_runs import Driver, check_pair, first_difference
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.sweep import observe
from jaxinterp.sweep.base import Base
from jaxinterp.sweep.devices import to_host

if TYPE_CHECKING:
    import xarray as xr

Direction = Literal["denoise", "noise"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One batch: the run that is changed, and what its senders might write instead.

    run: the pass of ``tokens``. other [S B P D]: the alternatives. changes [P]: the positions at
    which the two can differ (None: all). baselines [2 B]: the metric of ``tokens``, and with
    every edge exchanged.
    """

    driver: Driver
    tokens: Tokens
    metric: Metric
    run: Pass
    other: jax.Array
    changes: np.ndarray | None
    baselines: np.ndarray

    @property
    def model(self) -> Model:
        return self.driver.model

    @property
    def graph(self) -> Graph:
        return graph_of(self.model)

    def sweep(self, grid: Any) -> np.ndarray:
        """The metric [E B] under every experiment of a grid."""
        return self.driver.sweep(self.tokens, grid, self.metric, self.base)

    @functools.cached_property
    def gap(self) -> jax.Array:
        """[S B P D]: what each sender's other value adds, in float32 or wider."""
        return wide(self.other) - wide(self.run.written)

    @functools.cached_property
    def base(self) -> Base:
        """For the sweep engine."""
        return observe(self.model, self.tokens, self.metric)[0]


@dataclasses.dataclass(frozen=True)
class Runs:
    """A pair of runs to be taken batch by batch, by ``driver``."""

    tokens: Tokens  # of the run that is changed
    donors: Tokens | None  # of the run that alternatives come from
    metric: Metric
    direction: Direction
    alternative: Any
    driver: Driver

    @property
    def model(self) -> Model:
        return self.driver.model

    @property
    def graph(self) -> Graph:
        return graph_of(self.model)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def changes(self) -> np.ndarray | None:
        """bool [P]: the positions at which the runs can differ; None where that is not known."""
        if self.donors is None or not self.model.config.causal:
            return None
        first = first_difference(self.tokens, self.donors).min()
        return np.asarray(np.arange(self.tokens.shape[1]) >= first)

    def batches(self, run: Callable[[Part], Any], each: int) -> tuple[np.ndarray, np.ndarray]:
        """``run(part)`` [N B] of all batches, [N prompts], and the baselines [2 prompts].

        each: experiments per prompt, for the progress bar. Baselines: clean, then corrupted.
        """

        def one(rows: np.ndarray) -> np.ndarray:
            part = self.part(rows)
            return np.concatenate([np.asarray(run(part)), part.baselines])

        found = self.driver.batches(one, each)
        ends = found[-2:]
        return found[:-2], ends if self.direction == "noise" else ends[::-1]

    def part(self, rows: np.ndarray) -> Part:
        """Some of the prompts, by number."""
        tokens, metric = self.driver.place(self.tokens[rows]), of_prompts(self.metric, rows)
        run, value = _observed(self.model, tokens, metric)
        other = self._alternative(rows, run.written.shape)
        every = jnp.asarray(self.graph.exists)
        ends = jnp.stack([value, masked_metric(self.model, tokens, metric, every, other)])
        return Part(self.driver, tokens, metric, run, other, self.changes, to_host(ends))

    def _alternative(self, rows: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
        if self.donors is not None:
            return written_by(self.model, self.driver.place(self.donors[rows]))
        if isinstance(self.alternative, str):
            return jnp.zeros(shape, self.model.params.embed.W_E.dtype)
        given = jnp.asarray(self.alternative)
        if given.ndim == 4 and given.shape[1] > 1:
            given = given[:, rows]
        try:
            return jnp.broadcast_to(given, shape)
        except ValueError:
            raise ValueError(
                f"alternative has shape {list(np.shape(self.alternative))}, which does not "
                f"broadcast to {list(shape)} (senders, prompts, positions, d_model)."
            ) from None

    def claim(self, **fields: Any) -> dict[str, Any]:
        """The record of a result."""
        kind = self.alternative if isinstance(self.alternative, str) else "given"
        return claim(
            self.model, direction=self.direction, alternative=kind,
            metric=self.metric.describe(), n_prompts=len(self), **fields,
        )  # fmt: skip


@jit
def _observed(model: Model, tokens: Tokens, metric: Metric) -> tuple[Pass, jax.Array]:
    run = walk(model, tokens)
    return run, measure(model, tokens, metric, run.stream)


def prepare(
    model: Model, clean: Any, corrupted: Any, metric: Metric, direction: Direction,
    alternative: Any, batch: int | None, identity: tuple[Any, ...] = (), **options: Any,
) -> Runs:  # fmt: skip
    """Check what a method over edges is given. ``corrupted`` is needed for "run" only.

    identity: what tells the call from others (for ``parts``). options: as `Driver.of` takes them.

    Raises ``ValueError`` for prompts that do not match, and for choices that do not go together.
    """
    graph = graph_of(model)
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction is {direction!r}, expected 'denoise' or 'noise'.")
    if isinstance(alternative, str) and alternative not in ("run", "zero"):
        raise ValueError(
            f"alternative={alternative!r}, expected 'run' (the other run's values), 'zero', or an "
            "array of what senders write instead."
        )
    batch = whole_number("batch", batch, 1, optional=True)
    whole_number("memory", options.get("memory", 1), 1)
    clean = as_tokens(clean)
    check_tokens(model.config, clean)
    own = isinstance(alternative, str) and alternative == "run"
    if own:
        if corrupted is None:
            raise ValueError("alternative='run' needs corrupted= prompts to take values from.")
        corrupted = as_tokens(corrupted)
        check_pair(model, clean, corrupted)
    elif direction == "denoise":
        raise ValueError(
            "direction='denoise' puts the clean run's values back: it needs alternative='run'."
        )
    check_metric(metric, model, clean)
    tokens, donors = (clean, corrupted) if direction == "noise" else (corrupted, clean)
    # Every sender's value at every position of so many prompts is held twice.
    of_prompt = 4 * graph.n_senders * clean.shape[1] * model.config.d_model
    size = min(batch or max(1, min(8, (256 << 20) // of_prompt)), len(clean))
    given = alternative if isinstance(alternative, str) else np.asarray(alternative)
    identity = (clean, corrupted, metric.describe(), metric, direction, given, *identity)
    driver = Driver.of(model, clean, identity, batch=size, **options)
    return Runs(tokens, donors if own else None, metric, direction, alternative, driver)


def edge_result(
    runs: Runs, names: Sequence[str], values: np.ndarray, ends: np.ndarray,
    tokenizer: Any = None, **fields: Any,
) -> xr.DataArray:  # fmt: skip
    """The labelled result of a method over edges, from values [E B]."""
    import xarray as xr

    sides = [name.split("->") for name in names]
    coords: dict[str, Any] = {
        "edge": list(names),
        "sender": ("edge", [s for s, _ in sides]),
        "receiver": ("edge", [r for _, r in sides]),
        "prompt": np.arange(len(runs)),
        "clean": ("prompt", ends[0]),
        "corrupted": ("prompt", ends[1]),
    }
    if tokenizer is not None:
        mask = np.asarray(runs.tokens.mask)
        texts = [
            tokenizer.decode(row[keep].tolist())
            for row, keep in zip(np.asarray(runs.tokens.ids), mask, strict=True)
        ]
        coords["text"] = ("prompt", texts)
    return xr.DataArray(values, coords, ("edge", "prompt"), runs.metric.name, runs.claim(**fields))
