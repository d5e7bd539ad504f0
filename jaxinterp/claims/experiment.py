"""One comparison: what an intervention does to a metric, prompt by prompt, with intervals."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import numpy as np

from jaxinterp.checks import real_number
from jaxinterp.claims.plain import held, to_plain
from jaxinterp.metrics import evaluate
from jaxinterp.model import Model, as_tokens
from jaxinterp.stats import bootstrap, holm, paired_permutation
from jaxinterp.sweep import observe, sweep
from jaxinterp.sweep.grids import split_grid

Role = Literal["localization", "effect", "specificity", "control"]
Verdict = Literal["changed", "unchanged", "unclear"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What an experiment of n prompts and E interventions gave; all but the values follows.

    without [n], values [E n]: the metric without and with the interventions, in float64.
    estimate, low, high [E]: the mean difference over prompts and its bootstrap interval (BCa;
    percentile where that is undefined, as for equal differences). average: the three numbers of
    the mean over interventions. p [E]: of sign flips, adjusted for the grid (Holm); None for one
    intervention.
    """

    without: np.ndarray
    values: np.ndarray
    level: float
    resamples: int
    seed: int
    estimate: np.ndarray = dataclasses.field(init=False)
    low: np.ndarray = dataclasses.field(init=False)
    high: np.ndarray = dataclasses.field(init=False)
    average: tuple[float, float, float] = dataclasses.field(init=False)
    p: np.ndarray | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        without, values = (np.array(a, np.float64) for a in (self.without, self.values))
        if without.ndim != 1 or values.ndim != 2 or values.shape[1:] != without.shape:
            raise ValueError(
                f"Values {list(values.shape)} do not fit {list(without.shape)} without an "
                "intervention, expected [E n] and [n]."
            )
        self._set("without", without)
        self._set("values", values)
        difference = values - without
        for name, array in zip(
            ("estimate", "low", "high"), self._intervals(difference), strict=True
        ):
            self._set(name, array)
        mean = self._intervals(difference.mean(0, keepdims=True))
        object.__setattr__(self, "average", tuple(float(x[0]) for x in mean))
        flips = (
            None if len(values) == 1 else paired_permutation(_labelled(difference), seed=self.seed)
        )
        self._set("p", None if flips is None else holm(flips.p.values))

    def _set(self, name: str, array: np.ndarray | None) -> None:
        if array is not None:
            array.flags.writeable = False
        object.__setattr__(self, name, array)

    def _intervals(self, difference: np.ndarray) -> np.ndarray:
        """[3 C]: estimate, low and high of differences [C n]."""
        found = bootstrap(_labelled(difference), level=self.level, n=self.resamples, seed=self.seed)
        return np.asarray(found.to_array().values)

    @property
    def rounding(self) -> float:
        """A difference this small is float32's rounding."""
        from jaxinterp.report.tables import AGREE  # not before it is needed

        return AGREE * float(max(np.abs(self.without).max(), np.abs(self.values).max()))

    def verdict(self, i: int = 0, margin: float | None = None) -> Verdict:
        """Whether the i-th intervention changed the metric.

        "changed": its interval lies beyond 0 by more than the margin (none: than rounding) and,
        in a grid, its p is below 1 - level. "unchanged": the interval lies within the margin
        (none: within rounding). Else "unclear".
        """
        return self._verdict(
            self.low[i], self.high[i], margin, None if self.p is None else self.p[i]
        )

    def verdict_of_average(self, margin: float | None = None) -> Verdict:
        """The same of the mean over all interventions."""
        return self._verdict(*self.average[1:], margin, None)

    def _verdict(self, low: float, high: float, margin: float | None, p: float | None) -> Verdict:
        reach = max(self.rounding, margin or 0.0)
        if (low > reach or high < -reach) and (p is None or p < 1 - self.level):
            return "changed"
        return "unchanged" if -reach <= low and high <= reach else "unclear"


def _labelled(difference: np.ndarray) -> Any:
    import xarray as xr

    return xr.DataArray(difference, dims=("intervention", "prompt"))


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The metric of some prompts without and with an intervention: one piece of evidence.

    name: how the claim refers to it. role: what it is evidence of,

    - "localization": which components, usually a grid over candidates;
    - "effect": that intervening changes the behaviour, the causal test;
    - "specificity": what the same intervention does to behaviour that should be left alone;
    - "control": what another intervention does, such as random components of the same number
      (`random_components`) or random directions (`jaxinterp.directions.random_like`).

    tokens: `Tokens`, or ids [n P], of at least 2 prompts. intervention: a built-in one or a tuple
    of them; with ``grid=True`` a grid of E of them, as for `jaxinterp.sweep`. metric: of
    `jaxinterp.metrics`. margin: the largest change, in the metric's unit, that counts as none.
    note: what a reader should know. texts: the prompts for people to read, [n]. names: of the E
    interventions of a grid, where their places do not tell them apart.

    ``found`` is None until `Claim.run`. Arrays are copied to the host. Raises ``ValueError`` for
    another role, fewer than 2 prompts, no intervention, arguments that do not fit each other, and
    classes that are not jaxinterp's own.
    """

    name: str
    role: Role
    tokens: Any
    intervention: Any
    metric: Any
    grid: bool = False
    margin: float | None = None
    note: str = ""
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    found: Found | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("An experiment has no name: say in a few words what it does.")
        if self.role not in ROLES:
            raise ValueError(f"{self.name!r} has the role {self.role!r}: expected one of {ROLES}.")
        given = self.intervention
        given = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not given:
            raise ValueError(f"{self.name!r} has no intervention: nothing causal is tested.")
        tokens = as_tokens(self.tokens)
        if len(tokens) < 2:
            raise ValueError(f"{self.name!r} has one prompt: an interval needs at least 2.")
        real_number("margin", self.margin, above=0, optional=True)
        if self.texts and len(self.texts) != len(tokens):
            raise ValueError(f"{self.name!r} has {len(self.texts)} texts, {len(tokens)} prompts.")
        for field, value in (("tokens", tokens), ("intervention", given), ("metric", self.metric)):
            try:
                to_plain(value)
            except ValueError as error:
                raise ValueError(f"The {field} of {self.name!r}: {error}") from error
            object.__setattr__(self, field, held(value))
        for field in ("texts", "names"):
            object.__setattr__(self, field, tuple(map(str, getattr(self, field))))
        if self.margin is not None:
            object.__setattr__(self, "margin", float(self.margin))
        self.metric.read(self.tokens)  # refuses values for another number of prompts
        if self.grid and not len(self):
            raise ValueError(f"The grid of {self.name!r} is empty: give one experiment at least.")
        if not self.grid:
            self._refuse_grids()
        if self.names and (not self.grid or len(set(self.names)) != len(self)):
            raise ValueError(
                f"{self.name!r} has the names {self.names[:3]}...: expected one for each of "
                f"{len(self)} interventions of a grid, no two alike."
            )
        if self.found is not None and self.found.values.shape != (len(self), len(tokens)):
            raise ValueError(
                f"The values found by {self.name!r} are {list(self.found.values.shape)}, expected "
                f"{[len(self), len(tokens)]} (interventions, prompts)."
            )

    def _refuse_grids(self) -> None:
        for edit in self.intervention:
            if not hasattr(edit, "check_single"):
                continue
            try:
                edit.check_single()
            except ValueError as error:
                raise ValueError(f"{self.name!r} is no single experiment: {error}") from error

    def __len__(self) -> int:
        """The number of interventions."""
        return split_grid(self.intervention)[2] if self.grid else 1

    @property
    def n_prompts(self) -> int:
        return len(self.tokens)

    def verdicts(self) -> list[Verdict]:
        """Of each intervention; see `Found.verdict`. Raises ``ValueError`` before it is run."""
        found = self.results
        return [found.verdict(i, self.margin) for i in range(len(found.values))]

    @property
    def results(self) -> Found:
        """``found``, or a ``ValueError`` that says how to get there."""
        if self.found is None:
            raise ValueError(f"{self.name!r} has not been run: claim = claim.run(model).")
        return self.found


def measure(
    experiment: Experiment, model: Model, *, level: float, resamples: int, seed: int
) -> Experiment:
    """The experiment with what it gave on a model.

    Raises ``ValueError`` as `jaxinterp.forward` and `jaxinterp.sweep` do, and for metrics that
    are not finite.
    """
    tokens, metric = experiment.tokens, experiment.metric
    if experiment.grid:
        base, _ = observe(model, tokens, metric)
        without = np.asarray(base.metric)
        values = np.asarray(sweep(model, tokens, experiment.intervention, metric, base=base))
    else:
        without = np.asarray(evaluate(metric, model, tokens))
        values = np.asarray(evaluate(metric, model, tokens, experiment.intervention))[None]
    finite = np.isfinite(without) & np.isfinite(values).all(0)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{metric.name} of {experiment.name!r} is not finite for {bad.size} of {finite.size} "
            f"prompts, the first is {bad[0]}: leave them out, or choose a metric they have."
        )
    found = Found(without, values, level, resamples, seed)
    return dataclasses.replace(experiment, found=found)
