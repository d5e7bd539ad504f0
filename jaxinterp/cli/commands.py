"""The commands about nodes: each is thin over the library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxinterp.cli.job import Job, Setting, bar, pictures

if TYPE_CHECKING:
    import xarray as xr

OfJob = Annotated[Job, tyro.conf.arg(name="")]

# How each site is swept unless --over says otherwise.
OVER = {
    "q": ("layer", "head"),
    "k": ("layer", "head"),
    "v": ("layer", "head"),
    "z": ("layer", "head"),
    "result": ("layer", "head"),
    "pattern": ("layer", "head"),
    "mlp_post": ("layer", "neuron"),
}


def patch(
    job: OfJob = Job(),
    site: tuple[str, ...] = ("resid_pre", "z"),
    over: tuple[str, ...] = (),
    direction: Literal["denoise", "noise"] = "denoise",
    at: Literal["positions", "roles"] = "positions",
) -> None:
    """Sweep exact activation patching over a task and write results, pictures and a report.

    Interrupted runs resume when the same command is given again.

    Args:
        job: The prompts, the model, and where results go.
        site: The sites to patch.
        over: The axes to sweep, for every site; by default what suits the site.
        direction: Denoise: clean values into the corrupted run; noise: the reverse.
        at: Sweep absolute positions, or the task's named roles.
    """
    given = locals()
    from jaxinterp import patching

    with _sites(given, "patch", at) as (setting, axes, total):
        found = {}
        with bar(total, "experiments") as progress:
            for name in axes:
                progress.set_description(name)
                found[name] = patching.patch(
                    setting.model, **setting.twins, site=name, over=axes[name], direction=direction,
                    **_labels(setting, at), on_done=progress.update,
                )  # fmt: skip
        _report(setting, found, "activation patching")


def ablate(
    job: OfJob = Job(),
    site: tuple[str, ...] = ("z", "mlp_out"),
    over: tuple[str, ...] = (),
    value: Literal["zero", "mean", "resample"] = "mean",
    at: Literal["positions", "roles"] = "positions",
) -> None:
    """Sweep exact ablation over a task's clean prompts and write results and pictures.

    Args:
        job: The prompts, the model, and where results go.
        site: The sites to ablate.
        over: The axes to sweep, for every site; by default what suits the site.
        value: What is put in place: zero, the prompts' mean, or another prompt's value.
        at: Sweep absolute positions, or the task's named roles.
    """
    given = locals()
    from jaxinterp import ablation

    with _sites(given, "ablate", at) as (setting, axes, total):
        found = {}
        with bar(total, "experiments") as progress:
            for name in axes:
                progress.set_description(name)
                found[name] = ablation.ablate(
                    setting.model, tokens=setting.task.clean, metric=setting.task.metric, site=name,
                    over=axes[name], value=value, seed=job.seed, **_labels(setting, at),
                    on_done=progress.update,
                )  # fmt: skip
        _report(setting, found, f"{value} ablation")


def attribute(
    job: OfJob = Job(),
    site: tuple[str, ...] = ("resid_pre", "z"),
    over: tuple[str, ...] = (),
    method: tuple[str, ...] = ("atp", "ig"),
    direction: Literal["denoise", "noise"] = "denoise",
    exact: bool = True,
) -> None:
    """Estimate patching by gradients, beside the exact sweep unless --no-exact.

    Args:
        job: The prompts, the model, and where results go.
        site: The sites to attribute to.
        over: The axes to sweep, for every site; by default what suits the site.
        method: The methods, such as atp, atp*, ig, relp.
        direction: Denoise: clean values into the corrupted run; noise: the reverse.
        exact: Patch exactly as well, and compare.
    """
    given = locals()
    from jaxinterp import attribution, comparison, patching, report

    with _sites(given, "attribute", "positions") as (setting, axes, total):
        found: dict[str, Any] = {}
        written, said = [], []
        with bar(total * (len(method) + exact), "experiments") as progress:
            for name in axes:
                options = {
                    **setting.twins, "site": name, "over": axes[name], "direction": direction,
                    "tokenizer": setting.tokenizer, "batch": setting.batch,
                    "record": setting.record, "on_done": progress.update,
                }  # fmt: skip
                guesses = {}
                kind: Any
                for kind in method:
                    progress.set_description(f"{name} {kind}")
                    guesses[kind] = attribution.attribute(setting.model, **options, method=kind)
                    found[f"{name}.{kind.replace('*', '_star')}"] = guesses[kind]
                if exact:
                    progress.set_description(f"{name} exact")
                    true = patching.patch(setting.model, parts=setting.parts, **options)
                    found[f"{name}.exact"] = true
                    for kind, guess in guesses.items():
                        said.append(f"{name} {kind}: {comparison.compare(true, guess)}")
                    if pictures():
                        path = setting.out / f"{name}.scatter.png"
                        report.scatter(true, guesses, path, f"{setting.task.name}: {name}")
                        written.append(path)
        _report(setting, found, "attribution", written)
        print("\n".join(said))


def models() -> None:
    """List the models that are known by name."""
    from jaxinterp import loading

    for name, description in loading.models().items():
        print(f"{name}: {description}")


def fetch(name: Annotated[str, tyro.conf.Positional]) -> None:
    """Fetch a built-in model into the cache, verified; prints where it lies."""
    from jaxinterp import loading

    print(loading.fetch(name))


@contextlib.contextmanager
def _sites(
    given: Mapping[str, Any], command: str, at: str
) -> Iterator[tuple[Setting, dict[str, tuple[str, ...]], int]]:
    """Start; the axes of each site's sweep; and how many experiments that is, times prompts."""
    from jaxinterp import cells
    from jaxinterp.model import sites as sites_of

    if not given["site"]:
        raise ValueError("--site names no site: give at least one, such as resid_pre.")
    parsed = {name: sites_of.parse(name) for name in given["site"]}
    with given["job"].start(command, given) as setting:
        tokens = setting.task.clean
        positions = setting.task.roles if at == "roles" else None
        axes, total = {}, 0
        for name, (own, layer) in parsed.items():
            axes[name] = given["over"] or OVER.get(own, ("layer", "position"))
            if layer is not None and "layer" not in axes[name]:  # else it would be all layers
                axes[name] = ("layer", *axes[name])
            layers = None if layer is None else [layer]
            grid = cells.make_cells(
                setting.model, own, axes[name], tokens, layers=layers, positions=positions
            )
            total += len(grid) * len(tokens)
        yield setting, axes, total


def _labels(setting: Setting, at: str) -> dict[str, Any]:
    """What the sweeps of a job share."""
    task = setting.task
    return {
        "positions": task.roles if at == "roles" else None, "tokenizer": setting.tokenizer,
        "names": task.labels() if task.equal_length else None, "batch": setting.batch,
        "record": setting.record, "parts": setting.parts,
    }  # fmt: skip


def _report(
    setting: Setting, found: Mapping[str, xr.DataArray], what: str, extra: list[Path] | None = None
) -> None:
    """Results, a page and pictures."""
    from jaxinterp import report

    written = setting.save(found)
    title = f"{setting.task.name}: {what} of {setting.model.name}"
    written.append(report.write_report(found, setting.out / "report.html", title=title))
    if pictures():
        for name, result in found.items():
            report.heatmap(result, setting.out / f"{name}.png")
            written.append(setting.out / f"{name}.png")
    setting.finish([*written, *(extra or [])])
