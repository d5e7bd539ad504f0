"""How a claim looks: as text for a terminal, and as one offline page."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.claims.experiment import Experiment
from jaxinterp.claims.words import (
    as_far,
    averaged,
    beside,
    compared,
    heading,
    interval,
    labels,
    measured,
    short,
    verdict_of,
)
from jaxinterp.report.html import record_rows, render
from jaxinterp.report.tables import visible

if TYPE_CHECKING:
    from jaxinterp.claims.claim import Claim

WIDTH = 98
TOP = 10  # interventions of a grid that are shown
DOTS = 400  # prompts drawn one by one
CHANCE = 0.05  # controls this often as far as the effect are worth a warning
SECTIONS = {
    "effect": "Causal effect", "control": "Controls", "specificity": "Specificity",
    "localization": "Localization",
}  # fmt: skip


def text_of(claim: Claim) -> str:
    """The claim in lines of at most 98 characters, but for words that are longer."""
    lines = _wrapped(_title(claim), "")
    lines += [""]
    width = max(len(name) for name, _ in facts(claim)) + 2
    for name, said in facts(claim):
        lines += _wrapped(said, f"{name:<{width}}", " " * width)
    for role, title in SECTIONS.items():
        experiments = claim.of_role(role)
        lines += ["", title.upper()] if experiments else []
        for experiment in experiments:
            lines += _wrapped(_headline(experiment), "  ", "    ")
            for said in (*_results(experiment), *_beside(claim, experiment)):
                lines += _wrapped(said, "    ", "      ")
    lines += ["", "NOT SHOWN"]
    for said in (*claim.limits, *caveats(claim)):
        lines += _wrapped(said, "  - ", "    ")
    return "\n".join(lines)


def page_of(claim: Claim) -> str:
    """The claim as a page: every interval on the axis of its metric, the controls beside it."""
    facts_of = [list(pair) for pair in facts(claim)]
    data = {
        "title": _title(claim),
        "facts": facts_of,
        "sections": [
            {"title": title, "experiments": [_block(claim, e) for e in claim.of_role(role)]}
            for role, title in SECTIONS.items()
            if claim.of_role(role)
        ],
        "limits": list(claim.limits),
        "caveats": caveats(claim),
        "record": record_rows({**claim.model, "task": claim.task}),
    }
    return render(
        "claim.html", title=_title(claim), data=data, style=("page.css", "claim.css"),
        script=("draw.js", "claim.js"), plain=text_of(claim),
    )  # fmt: skip


def facts(claim: Claim) -> list[tuple[str, str]]:
    """What a reader must know of how it was measured, by name."""
    said, task = claim.model, claim.task
    revision = f", revision {said['revision']}" if said["revision"] else ""
    if isinstance(task, dict):
        known = [
            f"{key} {task[key]}"
            for key in ("seed", "corruption")
            if task.get(key) not in (None, "")
        ]
        task = ", ".join([str(task.get("name", "")), *known])
    out = [
        ("model", f"{said['model']}{revision}, weights {said['weights']}, {said['dtype']}"),
        ("task", str(task)),
        ("dataset", claim.dataset),
        ("components", "; ".join(claim.components)),
        ("baseline", "the same prompts, the model as it is"),
        (
            "intervals",
            f"{short(100 * claim.level)}% bootstrap of the mean change over prompts, "
            f"{claim.resamples} resamples, seed {claim.seed}; in grids also p by sign flips (Holm)",
        ),
        ("made by", claim.recipe),
        ("made with", f"jaxinterp {said['jaxinterp']}, jax {said['jax']}, {said['platform']}"),
    ]
    if claim.agreement is not None:
        far = max(claim.agreement.values(), default=0.0)
        out.append(("run again", f"the largest difference between the two runs is {short(far)}"))
    return [(name, visible(text, 10_000)) for name, text in out if text]


def caveats(claim: Claim) -> list[str]:
    """What the experiments themselves leave open or speak against."""
    out = []
    if not claim.of_role("localization"):
        out.append("Where it happens: no other components were searched.")
    if not claim.of_role("specificity"):
        out.append("Specificity: nothing was measured that should be left alone.")
    if not claim.of_role("control"):
        out.append("Controls: no other intervention of the kind was tried.")
    for experiment in claim.of_role("specificity"):
        verdicts = experiment.verdicts()
        if "changed" in verdicts:
            out.append(f"Specificity: {experiment.name!r} is not left alone, it changes too.")
        elif "unclear" in verdicts:
            out.append(f"Specificity: {experiment.name!r} {_undecided(experiment)}.")
    for effect in claim.of_role("effect"):
        for control in _controls_of(claim, effect) if "changed" in effect.verdicts() else ():
            count = as_far(control, effect)
            if count > CHANCE * len(control):
                out.append(
                    f"Controls: {count} of {len(control)} of {control.name!r} move the metric as "
                    f"far as {effect.name!r}."
                )
    for experiment in claim.of_role("effect"):
        if "changed" not in experiment.verdicts() and not claim.absent:
            out.append(f"Effect: {experiment.name!r} shows none.")
    return out


def _undecided(experiment: Experiment) -> str:
    """Why it is not known to be left alone."""
    found, margin = experiment.results, experiment.margin
    words = {
        verdict_of(found.verdict(i, margin), found.low[i], found.high[i], margin)
        for i in range(len(experiment))
    }
    if "undecided" in words and margin is not None:
        return f"changes; whether by more than the margin of {short(margin)} is undecided"
    return "shows no change, but is not shown to be left alone"


def _title(claim: Claim) -> str:
    return f"{'Absent: ' if claim.absent else ''}{visible(claim.statement, 10_000)}"


def _wrapped(text: str, first: str, rest: str = "") -> list[str]:
    return textwrap.wrap(
        visible(text, 100_000), WIDTH, initial_indent=first, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _headline(experiment: Experiment) -> str:
    unit = getattr(experiment.metric, "unit", "")
    of = experiment.metric.name + (f" in {unit}" if unit else "")
    note = f" {experiment.note}" if experiment.note else ""
    return f"{experiment.name} ({experiment.n_prompts} prompts; {of}): {heading(experiment)}.{note}"


def _is_average(experiment: Experiment) -> bool:
    """Whether its interventions are draws of one kind, of which the mean is of interest."""
    return len(experiment) > 1 and experiment.role in ("control", "specificity")


def _results(experiment: Experiment) -> list[str]:
    """What it gave, a sentence for a line, the first of which stands for all."""
    if len(experiment) == 1:
        return [measured(experiment)]
    if _is_average(experiment):
        return [averaged(experiment)]
    names, some = labels(experiment), 0 < experiment.verdicts().count("changed") < len(experiment)
    out = [_counted(experiment) + ("; these first, the furthest:" if some else "; the furthest:")]
    return out + [f"{names[i]}: {measured(experiment, i)}" for i in _strongest(experiment)]


def _counted(experiment: Experiment) -> str:
    return f"{experiment.verdicts().count('changed')} of {len(experiment)} change it"


def _beside(claim: Claim, experiment: Experiment) -> list[str]:
    """What controls of the same measurement did, if it is of an effect."""
    return [
        f"beside it, {control.name}: {compared(control, experiment)}"
        for control in _controls_of(claim, experiment)
    ]


def _controls_of(claim: Claim, experiment: Experiment) -> list[Experiment]:
    if experiment.role != "effect":
        return []
    return [c for c in claim.of_role("control") if beside(c, [experiment]) is not None]


def _strongest(experiment: Experiment) -> list[int]:
    changed = np.array(experiment.verdicts()) == "changed"
    if _is_average(experiment):
        changed[:] = False  # draws of one kind: by size alone
    order = np.lexsort((-np.abs(experiment.results.estimate), ~changed))
    return [int(i) for i in order[:TOP]]


def _block(claim: Claim, experiment: Experiment) -> dict[str, Any]:
    """What the page knows of one experiment."""
    rows, said = _rows(experiment), _results(experiment)[0]
    if len(experiment) > 1 and not _is_average(experiment):
        said = _counted(experiment)  # the rows say which
    for control in _controls_of(claim, experiment):
        first, *more = _rows(control)[:2]
        rows.append({**first, "beside": True})
        rows += [{**row, "label": f"the furthest: {row['label']}", "beside": True} for row in more]
    found = experiment.results
    prompts = None
    if experiment.texts and len(experiment) == 1:
        columns = (experiment.texts, found.without.tolist(), found.values[0].tolist())
        prompts = [list(row) for row in zip(*columns, strict=True)]
    return {
        "name": experiment.name,
        "said": [said, *_beside(claim, experiment)],
        "heading": heading(experiment),
        "note": experiment.note,
        "facts": [f"{experiment.n_prompts} prompts", experiment.metric.name,
                  getattr(experiment.metric, "unit", "")],
        "axis": f"{experiment.metric.name} {getattr(experiment.metric, 'unit', '')}",
        "margin": experiment.margin,
        "rows": rows,
        "left_out": max(0, len(experiment) - TOP),
        "prompts": prompts,
    }  # fmt: skip


def _rows(experiment: Experiment) -> list[dict[str, Any]]:
    """A row of the page for each intervention that is shown, the mean of draws first."""
    found, names, margin = experiment.results, labels(experiment), experiment.margin
    out = []
    if _is_average(experiment):
        mean = f"{experiment.name}: mean of {len(experiment)}"
        said = verdict_of(found.verdict_of_average(margin), *found.average[1:], margin)
        out.append(_row(mean, *found.average, None, said))
    for i in _strongest(experiment):
        estimate, low, high = found.estimate[i], found.low[i], found.high[i]
        said = verdict_of(found.verdict(i, margin), low, high, margin)
        p = None if found.p is None else float(found.p[i])
        row = _row(names[i], estimate, low, high, p, said)
        if len(experiment) == 1:
            row["dots"] = [float(f"{x:.4g}") for x in (found.values[0] - found.without)[:DOTS]]
        out.append(row)
    return out


def _row(
    label: str, estimate: float, low: float, high: float, p: float | None, verdict: str
) -> dict[str, Any]:
    return {
        "label": label, "estimate": float(estimate), "low": float(low), "high": float(high),
        "said": interval(estimate, low, high), "p": None if p is None else short(p),
        "verdict": verdict, "changed": verdict == "changed",
    }  # fmt: skip
