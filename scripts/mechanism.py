"""What the scripts of mechanisms share: arguments, and how a claim is written down."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

import jaxinterp as ji
from jaxinterp import heads

BEGAN = time.perf_counter()


def parser(doc: str, name: str, model: str, *, n: int) -> argparse.ArgumentParser:
    """The arguments of every such script; ``name`` is the mechanism's folder."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--model", default=model)
    parser.add_argument("--n", type=int, default=n, help="prompts of an experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/mechanisms") / name)
    return parser


def state(args: argparse.Namespace, claim: ji.Claim, more: Sequence[str] = ()) -> None:
    """Write the claim as a page and as JSON, and a report: what else was measured, then its text.

    more: lines of Markdown about what is no part of the claim itself.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    claim = dataclasses.replace(claim, recipe=recipe(args))
    claim.save(args.out / "claim.json")
    claim.save(args.out / "claim.html")
    lines = [f"# {claim.statement}", "", *more, "", "## The claim", "", "```", claim.text(), "```"]
    (args.out / "README.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


def recipe(args: argparse.Namespace) -> str:
    """The command, how long it has run, where and when."""
    options = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in vars(args).items() if name != "out"
    )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {jax.default_backend()}"
    seconds = time.perf_counter() - BEGAN
    return (
        f"python scripts/{Path(sys.argv[0]).name} {options} ({seconds:.0f} s on {machine}, "
        f"{datetime.date.today().isoformat()})"
    )


def named(places: Sequence[Sequence[int]]) -> str:
    """Heads by layer and number: "head 1.3", "heads 0.1 and 0.2"."""
    names = [f"{layer}.{head}" for layer, head in places]
    if len(names) == 1:
        return f"head {names[0]}"
    return f"heads {', '.join(names[:-1])} and {names[-1]}"


def attention(model: ji.Model, task: ji.Task, query: str, source: str) -> xr.DataArray:
    """Of every head, between two roles: (layer, head, prompt)."""
    places = np.zeros((len(task), *[task.clean.shape[1]] * 2), bool)
    places[np.arange(len(task)), task.roles[query], task.roles[source]] = True
    return heads.pattern_scores(model, task.clean, places)


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays, such as erasers, as a grid of experiments."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def strongest_edges(patched: xr.DataArray, what: str, k: int = 10) -> list[str]:
    """The edges whose exchange does most, as shares of the way from clean to corrupted."""
    clean, corrupted = (patched[name].mean("prompt") for name in ("clean", "corrupted"))
    share = ((patched.mean("prompt") - clean) / (corrupted - clean)).values
    rows = [[f"`{patched.edge.values[i]}`", f"{share[i]:.3f}"] for i in np.argsort(-share)[:k]]
    return [
        f"All {patched.sizes['edge']} edges, each alone exchanged for what it carries {what}; the "
        "share of the metric's fall that this gives:", "", *table(["edge", "share"], rows),
    ]  # fmt: skip
