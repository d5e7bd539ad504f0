"""How a sweep's time grows with layers, tokens, heads and prompts, beside its bound.

Random Llama-like models::

    python benchmarks/scaling.py

writes ``benchmarks/results/scaling.png`` and ``scaling.md``: seconds measured, the bound at
this machine's matrix-product rate, and the exponents of both (fits in log-log).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import page
from roofline import rate, sweep_bound

import jaxinterp as ji

SWEEPS = {"residual": ("resid_pre", ("layer", "position")), "heads": ("z", ("layer", "head"))}
AXES = {
    "layers": (4, 8, 16, 32), "tokens": (16, 32, 64, 128), "heads": (4, 8, 16),
    "prompts": (1, 4, 16),
}  # fmt: skip
D_MODEL, D_MLP, VOCABULARY = 256, 768, 4096


@dataclasses.dataclass(frozen=True)
class Point:
    """One size of the model and its prompts."""

    layers: int = 8
    tokens: int = 32
    heads: int = 8
    prompts: int = 1

    @property
    def config(self) -> ji.Config:
        return ji.Config(
            n_layers=self.layers, d_model=D_MODEL, n_heads=self.heads,
            d_head=D_MODEL // self.heads, d_mlp=D_MLP, vocab_size=VOCABULARY, n_ctx=self.tokens,
            head="tied", family="llama",
        )  # fmt: skip

    def request(self) -> dict[str, Any]:
        """Twins that differ from the first token on, and what is measured."""
        rng = np.random.default_rng(0)
        clean = rng.integers(VOCABULARY, size=(self.prompts, self.tokens))
        corrupted = (clean + rng.integers(1, VOCABULARY, size=clean.shape)) % VOCABULARY
        answers, wrong = np.split(rng.permutation(VOCABULARY)[: 2 * self.prompts], 2)
        return {"clean": clean, "corrupted": corrupted, "metric": ji.logit_diff(answers, wrong)}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One point of one curve."""

    size: int
    seconds: float
    bound: int


def measure(point: Point, site: str, over: tuple[str, ...], budget: float) -> tuple[float, int]:
    """(the median of up to three calls' seconds, the bound's operations), after compiling."""
    model = ji.init(point.config, jax.random.key(0))
    request = point.request()

    def run() -> float:
        began = time.perf_counter()
        ji.patch(model, site=site, over=over, **request)
        return time.perf_counter() - began

    run()
    seconds = [run()]
    while len(seconds) < 3 and sum(seconds) + seconds[0] < budget:
        seconds.append(run())
    tokens = {name: ji.model.as_tokens(request[name]) for name in ("clean", "corrupted")}
    return float(np.median(seconds)), sweep_bound(
        model, **tokens, metric=request["metric"], site=site, over=over
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through points in log-log."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def curves(axes: dict[str, tuple[int, ...]], budget: float) -> dict[str, dict[str, list[Measured]]]:
    """By axis and sweep; the point that axes share is measured once."""
    known: dict[tuple[Point, str], tuple[float, int]] = {}
    found: dict[str, dict[str, list[Measured]]] = {}
    for axis, sizes in axes.items():
        found[axis] = {name: [] for name in SWEEPS}
        for size in sizes:
            for name, (site, over) in SWEEPS.items():
                point = dataclasses.replace(Point(), **{axis: size})
                if (point, name) not in known:
                    known[point, name] = measure(point, site, over, budget)
                found[axis][name].append(Measured(size, *known[point, name]))
                print(axis, size, name, f"{known[point, name][0]:.3f} s", flush=True)
    return found


def rows(found: dict[str, dict[str, list[Measured]]], speed: float) -> list[list[str]]:
    out = []
    for axis, by_sweep in found.items():
        for name, points in by_sweep.items():
            sizes = [p.size for p in points]
            seconds, bounds = [p.seconds for p in points], [p.bound for p in points]
            ratios = [f"{p.seconds * speed / p.bound:.2f}" for p in points]
            out.append([
                axis, name, ", ".join(map(str, sizes)),
                ", ".join(f"{s:.3g}" for s in seconds), ", ".join(ratios),
                f"{exponent(sizes, seconds):.2f}", f"{exponent(sizes, bounds):.2f}",
                f"{exponent(sizes[-2:], seconds[-2:]):.2f}",
                f"{exponent(sizes[-2:], bounds[-2:]):.2f}",
            ])  # fmt: skip
    return out


HEAD = (
    "axis", "sweep", "sizes", "seconds", "times the bound's", "exponent", "the bound's",
    "exponent, last two", "the bound's, last two",
)  # fmt: skip


def draw(found: dict[str, dict[str, list[Measured]]], speed: float, path: Path) -> None:
    """Four panels: points measured, lines predicted by the bound."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axes, (axis, by_sweep) in zip(panels.flat, found.items(), strict=False):
        for number, (name, points) in enumerate(by_sweep.items()):
            sizes = [p.size for p in points]
            color = f"C{number}"
            axes.plot(sizes, [p.bound / speed for p in points], "-", color=color,
                      label=f"{name}, bound")  # fmt: skip
            axes.plot(sizes, [p.seconds for p in points], "o", color=color,
                      label=f"{name}, measured")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels.flat[0].legend(fontsize=8)
    figure.suptitle("Exact sweeps: measured, and the fewest operations at matrix-product rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=2.5, help="seconds to time a point")
    parser.add_argument("--sizes", type=int, default=4, help="of each axis, the smallest")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    found = curves({axis: sizes[: args.sizes] for axis, sizes in AXES.items()}, args.budget)
    speed, base = rate(), Point()
    draw(found, speed, args.out / "scaling.png")
    page.write(
        args.out, "scaling.md", "How the cost of exact sweeps grows", page.stamp(),
        f"Random Llama-like models, D = {D_MODEL}, MLP {D_MLP}; where an axis is not varied: "
        f"{base.layers} layers, {base.tokens} tokens, {base.heads} heads, {base.prompts} prompt; "
        "the prompts differ from their first token on. Medians of up to three calls, without "
        "compiling. Heads share D, so that only the grid grows with them. What a call and its "
        "steps cost by themselves makes small points dear and exponents low: hence the last two.",
        page.table(HEAD, rows(found, speed)), "![measured and predicted](scaling.png)",
    )  # fmt: skip


if __name__ == "__main__":
    main()
