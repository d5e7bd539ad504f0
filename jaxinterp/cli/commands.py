"""The commands: each is thin over the library."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

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
    model: str = "smollm2-135m-instruct",
    task: str = "ioi",
    site: tuple[str, ...] = ("resid_pre", "z"),
    over: tuple[str, ...] = (),
    n: int = 32,
    seed: int = 0,
    corruption: str = "swap_subject",
    direction: Literal["denoise", "noise"] = "denoise",
    at: Literal["positions", "roles"] = "positions",
    batch: int = 8,
    out: Path = Path("runs/patch"),
) -> None:
    """Sweep exact activation patching over a task and write results, pictures and a report.

    Interrupted runs resume when the same command is given again.

    Args:
        model: A built-in name, hub id, local folder, .gguf file or checkpoint.
        task: The task's name.
        site: The sites to patch.
        over: The axes to sweep, for every site; by default what suits the site.
        n: Number of prompts.
        seed: Seed of the prompts.
        corruption: How the corrupted prompts differ.
        direction: Denoise: clean values into the corrupted run; noise: the reverse.
        at: Sweep absolute positions, or the task's named roles.
        batch: Prompts per program call.
        out: Output folder.
    """
    from jaxinterp import cells, loading, patching, report, results, tasks
    from jaxinterp.files import writable_folder
    from jaxinterp.model import sites as sites_of

    if batch < 1 or n < 1:
        raise ValueError(f"--n {n} --batch {batch}: both must be at least 1.")
    if seed < 0:
        raise ValueError(f"--seed {seed}: a seed is 0 or more.")
    if not site:
        raise ValueError("--site names no site: give at least one, such as resid_pre.")
    parsed = {name: sites_of.parse(name) for name in site}
    started = time.perf_counter()
    writable_folder(out)
    _say(f"Loading {model}")
    net, tokenizer = loading.load(model)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: a task needs one to make its prompts.")
    job = tasks.make(task, tokenizer, n=n, seed=seed, corruption=corruption)
    ability = tasks.check(net, job)
    _say(f"{job.name}: {_describe(ability)}")

    positions = job.roles if at == "roles" else None
    axes, experiments = {}, 0
    for name, (own, layer) in parsed.items():
        axes[name] = over or OVER.get(own, ("layer", "position"))
        if layer is not None and "layer" not in axes[name]:  # else it would be patched in all
            axes[name] = ("layer", *axes[name])
        layers = None if layer is None else [layer]
        grid = cells.make_cells(net, own, axes[name], job.clean, layers=layers, positions=positions)
        experiments += len(grid) * len(job)
    parts, found = out / ".parts", {}
    with _bar(experiments, "experiments") as bar:
        for name in parsed:
            bar.set_description(name)
            found[name] = patching.patch(
                net, clean=job.clean, corrupted=job.corrupted, metric=job.metric, site=name,
                over=axes[name], direction=direction, positions=positions, tokenizer=tokenizer,
                names=job.labels() if job.equal_length else None, batch=batch,
                record={"task": job.record(), "ability": ability}, parts=str(parts),
                on_done=bar.update,
            )  # fmt: skip
    written = [results.save(result, out / f"{name}.nc") for name, result in found.items()]
    for result in found.values():
        print(report.summary_table(result))
        print()
    title = f"{job.name}: activation patching of {net.name}"
    written.append(report.write_report(found, out / "report.html", title=title))
    if importlib.util.find_spec("matplotlib"):
        for name, result in found.items():
            report.heatmap(result, out / f"{name}.png")
            written.append(out / f"{name}.png")
    else:
        _say("No pictures: they need matplotlib (pip install 'jaxinterp[report]').")
    shutil.rmtree(parts, ignore_errors=True)
    _say(f"Wrote {', '.join(path.name for path in written)} to {out}")
    _say(f"Done in {time.perf_counter() - started:.0f} s")


def models() -> None:
    """List the models that are known by name."""
    from jaxinterp import loading

    for name, description in loading.models().items():
        print(f"{name}: {description}")


def fetch(name: Annotated[str, tyro.conf.Positional]) -> None:
    """Fetch a built-in model into the cache, verified; prints where it lies."""
    from jaxinterp import loading

    print(loading.fetch(name))


def _describe(ability: dict[str, Any]) -> str:
    return ", ".join(f"{k} {np.round(v, 3)}" for k, v in ability.items())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bar(total: int, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, smoothing=0.1)
