"""Dictionaries of every variant on activations whose features are known, at one L0, with seeds.

    python scripts/sae_truth.py --out runs/sae-truth

The activations are a small SynthSAEBench's (hierarchy, exclusion, correlation, Zipf's law); a
dictionary is narrower than the truth, as a real one is. Variants without a knob for L0 are first
trained at several penalties, of which the one that meets it is found by interpolation. Ends with a
table: reconstruction is not recovery. A killed run keeps the variants that were done.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxinterp import sae
from jaxinterp.cli.output import begin
from jaxinterp.files import whole

PENALTIES = np.geomspace(0.1, 20.0, 8)
ROWS = ("f1", "mcc", "mmcs", "uniqueness", "explained", "shrinkage", "dead", "l0")


@dataclasses.dataclass(frozen=True)
class Variant:
    """fields: of the config; training: of the training; knob: what sets its L0; held: how hard."""

    knob: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    held: float = 0.0


def variants(width: int) -> dict[str, Variant]:
    prefixes = tuple(width // n for n in (16, 8, 4, 2, 1))
    unit = {"unit_norm": True}
    return {
        "L1": Variant("sparsity", {}, unit),
        "p-annealed": Variant("sparsity", {}, {**unit, "exponent": 0.5}),
        "Gated": Variant("sparsity", {"activation": "gated"}, unit),
        "TopK": Variant("k", {"activation": "topk"}),
        "BatchTopK": Variant("k", {"activation": "batch_topk"}),
        "JumpReLU": Variant("target_l0", {"activation": "jumprelu", "bandwidth": 0.05}, held=10.0),
        "Matryoshka": Variant("k", {"activation": "batch_topk", "prefixes": prefixes}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=512, help="true ones")
    parser.add_argument("--dimensions", type=int, default=96)
    parser.add_argument("--width", type=int, default=256, help="features of a dictionary")
    parser.add_argument("--l0", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=700, help="seen again and again")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/sae-truth"))
    args = parser.parse_args()
    begin(args.out, "sae_truth", vars(args))
    make = sae.synthetic(args.features, args.dimensions)
    x, true = jax.jit(lambda key: make(key, 20_000))(jax.random.key(10**6))
    x, true = np.asarray(x), np.asarray(true)
    drawn = itertools.islice(sae.batches(make, args.batch), args.batches)
    stream = list(tqdm(drawn, desc="examples", total=args.batches, unit=" batches"))
    lines = [
        "# Dictionaries against known features", "",
        f"{args.features} true features in {args.dimensions} dimensions, "
        f"{(true > 0).sum(1).mean():.1f} active per example ({(true > 0).any(0).sum()} of them "
        f"ever in 20,000 held-out examples). Dictionaries of {args.width}, L0 = {args.l0:g}, "
        f"{args.steps} steps of {args.batch} examples (of {args.batches * args.batch:,} different "
        f"ones), {args.seeds} seeds: mean and standard "
        "deviation. F1 and MCC match each dictionary feature with one true feature.", "",
        "| | " + " | ".join(ROWS) + " | penalty | seconds |",
        "| --- |" + " --- |" * (len(ROWS) + 2),
    ]  # fmt: skip
    done = rows_of(args.out / "rows.json")
    for name, variant in variants(args.width).items():
        key = json.dumps([{k: v for k, v in vars(args).items() if k != "out"}, repr(variant)])
        if key in done:
            lines.append(done[key])
            continue
        began = time.perf_counter()
        knob = args.l0 if variant.knob != "sparsity" else penalty(args, stream, variant, x)
        found = trained(args, stream, variant, np.full(args.seeds, knob), name)
        scores = [scored(d, x, true, make) for d in found]
        cells = [
            f"{np.mean(values):.3f} ({np.std(values):.3f})"
            for values in ([score[row] for score in scores] for row in ROWS)
        ]
        said = f"{knob:.3g}" if variant.knob == "sparsity" else ""
        took = time.perf_counter() - began
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {said} | {took:.0f} |")
        print(lines[-1], flush=True)
        done[key] = lines[-1]
        with whole(args.out / "rows.json") as temporary:
            temporary.write_text(json.dumps(done, indent=1))
    (args.out / "report.md").write_text("\n".join([*lines, ""]))


def rows_of(path: Path) -> dict[str, str]:
    """The table's lines by variant and settings, of earlier runs."""
    return json.loads(path.read_text()) if path.exists() else {}


def trained(
    args: argparse.Namespace, stream: list[Any], variant: Variant, knob: np.ndarray, name: str
) -> tuple[sae.Dictionary, ...]:
    """One front: a member for each value of the knob, each of its own seed."""
    config = sae.DictionaryConfig(args.dimensions, args.width, **variant.fields)
    training = sae.TrainingConfig(
        args.steps, dead_after=100 * args.batch, k_aux=args.dimensions // 2, **variant.training
    )
    member = sae.Hyperparameters(
        learning_rate=args.learning_rate, seed=np.arange(len(knob)),
        **({"sparsity": variant.held} if variant.held else {}) | {variant.knob: knob},
    )  # fmt: skip
    sample = np.concatenate(stream[:8])
    with tqdm(total=args.steps, desc=name, unit=" steps") as bar:
        found = sae.train(
            config, itertools.cycle(stream), training, member,
            scaling=sae.measure_scaling(sample, sample),
            on_step=lambda step, seen: bar.update(step + 1 - bar.n),
        )  # fmt: skip
    return found.dictionaries


def penalty(args: argparse.Namespace, stream: list[Any], variant: Variant, x: np.ndarray) -> float:
    """The penalty that gives the L0 asked for, between two of `PENALTIES`."""
    found = trained(args, stream, variant, PENALTIES, "penalties")
    l0 = np.array([float(sae.reconstruction(d, [x]).l0) for d in found])
    order = np.argsort(l0)
    if not l0.min() <= args.l0 <= l0.max():
        raise SystemExit(
            f"No penalty gives L0 = {args.l0:g}: they give {np.round(l0, 1).tolist()}."
        )
    at = np.interp(np.log(args.l0), np.log(l0[order]), np.log(PENALTIES[order]))
    return float(np.exp(at))


def scored(
    d: sae.Dictionary, x: np.ndarray, true: np.ndarray, make: sae.Synthetic
) -> dict[str, float]:
    own = sae.reconstruction(d, [x])
    rows, truth = np.asarray(d.params.W_dec), np.asarray(make.directions)
    scores = sae.recovery(rows, truth) | sae.detection(d.encode(x), true, rows, truth)
    return scores | {n: float(own[n]) for n in ("explained", "shrinkage", "dead", "l0")}


if __name__ == "__main__":
    main()
