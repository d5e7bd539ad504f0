"""The same sweep on 1, 2, 4 and 8 devices, and at every precision.

Without accelerators the devices are simulated, and share the same cores::

    python benchmarks/devices.py

writes ``benchmarks/results/devices.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import page
from peers import timed

import jaxinterp as ji

MODEL = "smollm2-135m-instruct"
SIMULATED = 8


def run(model: ji.Model, task: ji.Task, mesh: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The residual sweep [L P B], and what a patch can restore in each prompt [B]."""
    found = ji.patch(
        model, clean=task.clean, corrupted=task.corrupted, metric=task.metric, mesh=mesh
    )
    ends = (np.asarray(found.coords[name], float) for name in ("clean", "corrupted"))
    return np.asarray(found.values, float), np.abs(np.subtract(*ends))


# Devices


def meshes(available: int) -> dict[str, Any]:
    """No mesh, experiments split over 1, 2, 4, ... devices, and prompts split as well."""
    found: dict[str, Any] = {"no mesh": None}
    for n in (1, 2, 4, 8):
        if n <= available:
            found[f"{n} over experiments"] = _mesh((n,), ("grid",))
    if available >= 4:
        half = min(available, 8) // 2
        found[f"{half} over experiments x 2 over prompts"] = _mesh((half, 2), ("grid", "prompt"))
    return found


def _mesh(shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names)


def device_rows(task: ji.Task, model: ji.Model, rounds: int) -> list[list[str]]:
    """Each mesh's seconds, and how far its values are from those without a mesh."""
    split = meshes(len(jax.devices()))
    values = {name: run(model, task, mesh)[0] for name, mesh in split.items()}
    seconds: dict[str, list[float]] = {name: [] for name in split}
    for _ in range(rounds):
        for name, mesh in split.items():
            seconds[name].append(timed(lambda mesh=mesh: run(model, task, mesh))[1])
    return [
        [name, f"{statistics.median(seconds[name]):.2f} s ({min(seconds[name]):.2f} to "
         f"{max(seconds[name]):.2f})", f"{np.abs(values[name] - values['no mesh']).max():.0e}"]
        for name in split
    ]  # fmt: skip


def in_worker(args: argparse.Namespace) -> dict[str, Any]:
    """`device_rows` in a process that sees simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={SIMULATED}"
    command = [sys.executable, __file__, "--worker", "--rounds", str(args.rounds)]
    out = subprocess.run(
        [*command, "--prompts", str(args.prompts)], env={**os.environ, "XLA_FLAGS": flags.strip()},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(out.stdout.splitlines()[-1])


def worker(args: argparse.Namespace) -> None:
    model, tokenizer = ji.load(MODEL)
    task = ji.tasks.ioi(tokenizer, n=args.prompts, corruption="symmetric")
    rows = device_rows(task, model, args.rounds)
    print(json.dumps({"rows": rows, "platform": jax.default_backend(), "n": len(jax.devices())}))


# Precision


def at_precision(model: ji.Model, precision: str) -> ji.Model:
    return model.replace(config=model.config.replace(precision=precision))


def errors(values: np.ndarray, exact: np.ndarray, gap: np.ndarray) -> tuple[float, float]:
    """(the largest, the mean) difference, in units of each prompt's gap."""
    off = np.abs(values - exact) / gap
    return float(off.max()), float(off.mean())


def precision_rows(task: ji.Task, rounds: int) -> list[list[str]]:
    """Each precision's errors against float32 highest, and seconds."""
    model, _ = ji.load(MODEL)
    models = {f"float32, {p}": at_precision(model, p) for p in ("highest", "high", "default")}
    models["bfloat16 parameters, default"] = at_precision(
        ji.load(MODEL, dtype=jnp.bfloat16)[0], "default"
    )
    exact, gap = run(models["float32, highest"], task)
    rows = []
    for name, each in models.items():
        largest, mean = errors(run(each, task)[0], exact, gap)
        seconds = min(timed(lambda each=each: run(each, task))[1] for _ in range(rounds))
        rows.append([name, f"{largest:.1e}", f"{mean:.1e}", f"{seconds:.2f} s"])
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=2, help="an even number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    _, tokenizer = ji.load(MODEL)
    task = ji.tasks.ioi(tokenizer, n=args.prompts, corruption="symmetric")
    precision = precision_rows(task, args.rounds)
    devices = in_worker(args)
    print(*devices["rows"], sep="\n")
    cpu = jax.default_backend() == "cpu"
    what = (
        f"{devices['n']} simulated devices, which share the same {os.cpu_count()} cores: the times "
        "show what splitting costs, not what it gains."
        if devices["platform"] == "cpu"
        else f"{devices['n']} devices."
    )
    same = "On CPUs `high` and `default` products of float32 are those of `highest`." if cpu else ""
    page.write(
        args.out, "devices.md", f"Devices and precision, residual sweep of {MODEL}", page.stamp(),
        f"{args.prompts} IOI prompts (names swapped). {what} Medians of {args.rounds} interleaved "
        "rounds, without compiling.",
        page.table(("split", "seconds", "max diff from no mesh"), devices["rows"]),
        f"Errors against float32 at highest precision, in units of the prompt's clean-corrupted "
        f"gap. {same} Seconds: the best of {args.rounds}.".replace("  ", " "),
        page.table(("precision", "largest error", "mean error", "seconds"), precision),
    )  # fmt: skip


if __name__ == "__main__":
    main()
