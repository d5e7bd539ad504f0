"""Interventions and what they did, in plain words that say no more than was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxinterp.claims.experiment import Experiment
from jaxinterp.interventions import Edit, Where, unshare
from jaxinterp.sweep.grids import take_experiments

MOST = 8  # indices listed one by one
VERBS = {
    "replace": "set {site} to {value}", "add": "add {value} to {site}",
    "scale": "multiply {site} by {value}", "project_out": "project {value} out of {site}",
    "apply": "apply {value} to {site}",
}  # fmt: skip


def in_words(intervention: Any) -> str:
    """What one intervention (no grid) does and where: "zero z at layer 1, head 4"."""
    return _sentence(_edits(intervention), with_places=True)


def heading(experiment: Experiment) -> str:
    """The intervention of an experiment; of a grid what all have in common, and how many."""
    if not experiment.grid:
        return in_words(experiment.intervention)
    said = _sentence(_nth(experiment, 0), with_places=False)
    shared = ", ".join(_shared(_each(experiment)))
    return f"{len(experiment)} interventions: {said}" + (f" at {shared}" if shared else "")


def labels(experiment: Experiment) -> list[str]:
    """A name for each intervention: where it is, if that tells them apart."""
    if not experiment.grid:
        return [experiment.name]
    if experiment.names:
        return list(experiment.names)
    each = _each(experiment)
    shared = _shared(each)
    places = [_places(edits, without=shared) for edits in each]
    for out in (places, [_sentence(edits, with_places=True) for edits in each]):
        if len(set(out)) == len(out) and all(out):
            return out
    return [f"no. {i}" + (f", {place}" if place else "") for i, place in enumerate(places)]


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def interval(estimate: float, low: float, high: float) -> str:
    """A change and its interval: ``-4.89 [-5.2, -4.5]``."""
    far = max(map(abs, (estimate, low, high)))
    estimate, low, high = (x if abs(x) > 1e-9 * far else 0.0 for x in (estimate, low, high))
    return f"{estimate:+.3g} [{low:+.3g}, {high:+.3g}]"


def measured(experiment: Experiment, i: int = 0) -> str:
    """What the i-th intervention did to the metric. An interval over 0 is no effect."""
    found, name = experiment.results, experiment.metric.name
    change = interval(found.estimate[i], found.low[i], found.high[i])
    before, after = found.without.mean(), found.values[i].mean()
    verdict = found.verdict(i, experiment.margin)
    p = None if found.p is None else float(found.p[i])
    if verdict == "changed":
        said = f"changes {name} by {change}, from {short(before)} to {short(after)}"
    else:
        said = f"{_reason(experiment, verdict, found.low[i], found.high[i], p)}: {name} {change}"
        said += f", from {short(before)} to {short(after)}"
    return said if p is None else f"{said}, p = {short(p)}"


def averaged(experiment: Experiment) -> str:
    """The mean over a grid's interventions, and the one that changes most."""
    found = experiment.results
    verdict = found.verdict_of_average(experiment.margin)
    change = interval(*found.average)
    if verdict == "changed":
        said = f"changes {experiment.metric.name} on average by {change}"
    else:
        said = f"{_reason(experiment, verdict, *found.average[1:])}: on average {change}"
    far = int(np.abs(found.estimate).argmax())
    return f"{said}; the furthest of {len(experiment)} is {labels(experiment)[far]}: " + interval(
        found.estimate[far], found.low[far], found.high[far]
    )


def compared(control: Experiment, effect: Experiment) -> str:
    """What a control does to the same metric, and how often it moves it as far as an effect."""
    said = f"on average {interval(*control.results.average)}"
    if "changed" not in effect.verdicts():
        return said
    return f"{said}; {as_far(control, effect)} of {len(control)} as far as {effect.name!r}"


def as_far(control: Experiment, effect: Experiment) -> int:
    """How many interventions of a control move the metric as far as the largest effect."""
    reach = np.abs(effect.results.estimate).max()
    return int((np.abs(control.results.estimate) >= reach).sum())


def beside(control: Experiment, effects: Iterable[Experiment]) -> Experiment | None:
    """The effect that a control may be held against: the same metric of the same prompts."""

    def alike(a: Any, b: Any) -> bool:
        if type(a) is not type(b):
            return False
        (own, shape), (others, its) = jax.tree.flatten(a), jax.tree.flatten(b)
        return str(shape) == str(its) and all(map(np.array_equal, own, others))

    for effect in effects:
        if alike(effect.metric, control.metric) and alike(effect.tokens, control.tokens):
            return effect
    return None


def verdict_of(verdict: str, low: float, high: float, margin: float | None) -> str:
    """A verdict in a word or two."""
    if verdict != "unclear":
        return verdict
    return "undecided" if margin is not None and not low <= 0 <= high else "no effect shown"


def _reason(
    experiment: Experiment, verdict: str, low: float, high: float, p: float | None = None
) -> str:
    """Why a change is not called one."""
    margin, found = experiment.margin, experiment.results
    if verdict == "unchanged":
        return "unchanged" if margin is None else f"unchanged within {short(margin)}"
    if low <= 0 <= high:
        return "no effect shown, the interval covers 0"
    if margin is not None:
        return f"undecided, the interval reaches across the margin of {short(margin)}"
    if p is not None and not p < 1 - found.level:
        return f"no effect shown, chance among {len(experiment)} is not ruled out"
    return "no effect shown, the interval reaches into rounding"


def _each(experiment: Experiment) -> list[list[Any]]:
    return [_nth(experiment, i) for i in range(len(experiment))]


def _shared(each: list[list[Any]]) -> list[str]:
    """The places that all edits of all interventions have in common, if there are several."""
    parts = [_parts(edit) for edits in each for edit in edits]
    return [part for part in parts[0] if len(each) > 1 and all(part in other for other in parts)]


def _nth(experiment: Experiment, i: int) -> list[Any]:
    """The edits of one intervention of a grid."""
    return _edits(take_experiments(experiment.intervention, np.asarray(i)))


def _edits(intervention: Any) -> list[Any]:
    if isinstance(intervention, (tuple, list)):
        return [edit for each in intervention for edit in _edits(each)]
    return [intervention]


def _sentence(edits: list[Any], with_places: bool) -> str:
    """Edits that do the same are named once, with all their places."""
    grouped: dict[str, list[str]] = {}
    for edit in edits:
        grouped.setdefault(_verb(edit), []).append(_place(edit))
    parts = []
    for verb, places in grouped.items():
        named = list(dict.fromkeys(place for place in places if place)) if with_places else []
        parts.append(f"{verb} at {' and '.join(_few(named, 'places'))}" if named else verb)
    return "; ".join(parts)


def _places(edits: list[Any], without: list[str]) -> str:
    several = len({getattr(edit, "site", "") for edit in edits}) > 1
    own = [", ".join(part for part in _parts(edit) if part not in without) for edit in edits]
    heads = [re.fullmatch(r"layer (\d+), head (\d+)", at) for at in own]
    if len(own) > 1 and not several and all(heads):
        return "heads " + ", ".join(f"{head[1]}.{head[2]}" for head in heads if head)
    named = [f"{edit.site} {at}" if several else at for edit, at in zip(edits, own, strict=True)]
    return " and ".join(dict.fromkeys(place for place in named if place))


def _verb(edit: Any) -> str:
    if not isinstance(edit, Edit):
        return f"{type(edit).__name__} at {', '.join(edit.sites)}"
    value = unshare(edit.value)
    if edit.operation == "apply":
        text = type(value).__name__
    elif np.ndim(value) == 0:
        number = float(np.asarray(value))
        if edit.operation == "replace" and number == 0:
            return f"zero {edit.site}"
        text = short(number)
    elif edit.operation == "replace":
        text = "given values"
    elif np.ndim(value) == 1:
        text = "a direction"
        if edit.operation == "add":
            length = float(np.linalg.norm(np.asarray(value, np.float64)))
            text = f"a vector of length {short(length)}"
    else:
        text = "given directions" if edit.operation == "project_out" else "given vectors"
    return VERBS[edit.operation].format(site=edit.site, value=text)


def _place(edit: Any) -> str:
    """ "layer 1, head 4"; "" for everywhere."""
    return ", ".join(_parts(edit))


def _parts(edit: Any) -> list[str]:
    where = getattr(edit, "where", None)
    if not isinstance(where, Where):
        return []
    return [_along(axis, np.asarray(unshare(index))) for axis, index in where.items()]


def _along(axis: str, index: np.ndarray) -> str:
    if index.dtype == bool:
        if index.ndim > 1:
            return f"{axis}s chosen for each prompt"
        chosen = np.flatnonzero(index).tolist()
        if len(chosen) == 1:
            return f"{axis} {chosen[0]}"
        return f"{axis}s {', '.join(_few(list(map(str, chosen)), f'of {index.size}'))}"
    if index.ndim and len(set(index.tolist())) > 1:
        return f"a {axis} of each prompt's own"
    return f"{axis} {index.reshape(-1)[0]}"


def _few(items: list[str], what: str) -> list[str]:
    """The items, or the first of them and how many there are."""
    return items if len(items) <= MOST else [*items[:3], f"... ({len(items)} {what})"]
