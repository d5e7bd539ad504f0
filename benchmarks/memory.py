"""Peak memory of loading and of sweeps beside what was planned.

Each case runs in a process of its own. Programs are compiled by a first call; of a second one the
peak of the process is read, less what it holds at rest beside arrays: compiled programs and what
the compiler has left, which have a column of their own::

    python benchmarks/memory.py

The table goes to stdout and to ``benchmarks/results/memory.md``. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import page
from peers import peak_rss, reset_peak

MODEL = "smollm2-135m-instruct"
CASES = {  # site, prompts
    "residual": ("resid_pre", 1),
    "residual, 8 prompts": ("resid_pre", 8),
    "residual, 32 prompts": ("resid_pre", 32),
    "heads, 8 prompts": ("z", 8),
    "heads, 32 prompts": ("z", 32),
    "patterns, 8 prompts": ("pattern", 8),
}


def resident() -> int:
    """Bytes the process holds now, after what was freed has gone back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak()
    return peak_rss()


def measure(case: str) -> dict[str, Any]:
    """In this process: bytes planned and used, of loading or of a sweep."""
    import jax
    import jax.numpy as jnp

    import jaxinterp as ji

    for name in ("orbax.checkpoint", "tokenizers", "gguf"):  # what loading imports is not loaded
        importlib.import_module(name)

    path = ji.fetch(MODEL)
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))
    before = resident()
    model, tokenizer = ji.load(str(path))
    jax.block_until_ready(model)
    loaded = peak_rss()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    if case == "loading":
        return {"planned": held, "used": loaded - before, "rest": resident() - before - held}
    site, n = CASES[case]
    assert tokenizer is not None
    task = ji.tasks.ioi(tokenizer, n=n)
    axes = ("layer", "position") if site == "resid_pre" else ("layer", "head")
    recorded = ji.forward(model, task.clean, record=(site,)).activations[site]
    sizes = {"layer": model.config.n_layers, "head": model.config.n_heads,
             "position": task.clean.shape[1]}  # fmt: skip
    cells = ji.product(**{axis: range(sizes[axis]) for axis in axes})
    grid = ji.replace(site, ji.Shared(recorded), **cells)
    arguments = (model, task.corrupted, grid, task.metric)
    plan = ji.plan(*arguments, compile=True)
    ji.sweep(*arguments)
    rest = resident() - sum(array.nbytes for array in jax.live_arrays())
    ji.sweep(*arguments)
    return {"planned": plan.peak_memory, "used": peak_rss() - rest, "rest": rest - before}


def run(case: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    # One arena: what is measured is the sweep, not the allocator's leftovers per thread.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=["loading", *CASES], help="measure one, here")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    rows = []
    head = ("case", "planned MB", "used MB", "used / planned", "at rest beside arrays, MB")
    for case in ("loading", *CASES):
        found = run(case)
        planned, used, rest = (found[name] / 1e6 for name in ("planned", "used", "rest"))
        rows.append([case, f"{planned:.0f}", f"{used:.0f}", f"{used / planned:.3f}", f"{rest:.0f}"])
        print(page.table(head, rows[-1:]), flush=True)
    page.write(
        args.out, "memory.md", f"Peak memory on {MODEL}", page.stamp({}),
        "Float32, IOI prompts. Loading: the peak, less what the process held before, beside the "
        "bytes of the parameters. Sweeps: the peak of a call whose programs are compiled, less "
        "what the process holds at rest beside arrays (the last column: compiled programs and "
        "what the compiler has left), beside `ji.plan(..., compile=True).peak_memory`.",
        page.table(head, rows), "",
    )  # fmt: skip


if __name__ == "__main__":
    main()
