"""Approximate patching beside exact patching on a real model, site by site and edge by edge.

    python benchmarks/attribution.py

The tables go to stdout and to ``benchmarks/results/attribution.md``, a scatter plot per grid beside
it. All cells of every grid are patched exactly; of the edges a uniform random sample is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import page
import xarray as xr

import jaxinterp as ji
from jaxinterp import circuits, report

SITES = {
    "resid_pre": ("layer", "position"), "z": ("layer", "head"), "mlp_out": ("layer",),
    "q": ("layer", "head"), "k": ("layer", "head"), "v": ("layer", "head"),
}  # fmt: skip
METHODS = {
    "AtP": {"method": "atp"},
    "AtP*": {"method": "atp*"},
    "IG": {"method": "ig"},
    "IG over inputs": {"method": "ig_inputs"},
    "RelP": {"method": "relp"},
}
EDGES = {
    "EAP": {"method": "eap"},
    "EAP-IG (inputs)": {"method": "eap-ig-inputs"},
    "EAP-IG (activations)": {"method": "eap-ig-activations"},
}
HEAD = (
    "site", "method", "Pearson", "Spearman", "Spearman of sizes", "top 10 found",
    "sign flips of the top 10", "largest error", "seconds (exact)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--edges", type=int, default=2000, help="a sample; 0 leaves edges out")
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    model, tokenizer = ji.load(args.model)
    task = ji.tasks.make(args.task, tokenizer, n=args.n, seed=0)
    runs = {
        "clean": task.clean, "corrupted": task.corrupted, "metric": task.metric,
        "direction": args.direction,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    pictures: list[str] = []
    for site, over in SITES.items():
        cells = {"site": site, "over": over}
        rows += compared(
            site, lambda cells=cells: ji.patch(model, **runs, **cells),
            {
                name: lambda cells=cells, how=how: ji.attribute(model, **runs, **cells, **how)
                for name, how in METHODS.items()
            }, args.out, pictures,
        )  # fmt: skip
    if args.edges:
        every = circuits.Graph(model.config).edges
        rng = np.random.default_rng(0)
        some = [every[i] for i in np.sort(rng.choice(len(every), args.edges, replace=False))]
        rows += compared(
            f"{len(some)} of {len(every)} edges",
            lambda: circuits.patch_edges(model, **runs, edges=some),
            {
                name: lambda how=how: circuits.attribute_edges(model, **runs, edges=some, **how)
                for name, how in EDGES.items()
            }, args.out, pictures,
        )  # fmt: skip
    print(page.table(HEAD, rows))
    record = task.record()
    page.write(
        args.out, "attribution.md", "Attribution beside exact patching", page.stamp(),
        f"{model.name}, {len(task)} prompts of {args.task} (seed 0, corruption "
        f"{record['corruption']!r}, sha256 {record['sha256'][:12]}), metric {task.metric.name}, "
        f"{args.direction}. Effects are means over prompts, in the metric's unit. Largest error: "
        "that of the worst cell, and which it is. Sign flips and recall are of the ten cells of "
        "largest exact effect. Seconds are of one call with compilation, once: an impression.",
        page.table(HEAD, rows),
        *(f"![{name}]({name}.png)" for name in pictures),
        "Recipe: `python benchmarks/attribution.py`.",
    )  # fmt: skip


def compared(
    name: str, exact: Callable[[], Any], methods: dict[str, Callable[[], Any]], out: Path,
    pictures: list[str],
) -> list[list[str]]:  # fmt: skip
    """The table's rows of one grid; draws its scatter plot."""
    truth, took = timed(exact)
    found: dict[str, xr.DataArray] = {}
    rows = []
    for method, run in methods.items():
        found[method], seconds = timed(run)
        c = ji.compare(truth, found[method], worst=1)
        cell = ", ".join(
            str(c[column].values[0]) for column in c.data_vars
            if str(column).startswith("worst_")
            and column not in ("worst_exact", "worst_approximate")
        )  # fmt: skip
        rows.append([
            name, method, *(f"{float(c[x]):.3f}" for x in ("pearson", "spearman", "spearman_size")),
            f"{float(c['recall'][0]):.0%}", f"{int(c['flips_on_top'][0])}",
            f"{float(c['max_error']):.3f} at {cell} ({float(c['worst_exact'][0]):+.3f} exact)",
            f"{seconds:.1f} ({took:.1f})",
        ])  # fmt: skip
        print(" | ".join(rows[-1]), flush=True)
    picture = f"attribution_{name.split()[-1]}"
    report.scatter(truth, found, out / f"{picture}.png", f"{name}: exact and approximate effects")
    pictures.append(picture)
    return rows


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


if __name__ == "__main__":
    main()
