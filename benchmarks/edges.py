"""Every edge of a GPT-2-small-shaped model, exactly, against one whole forward per edge.

Random weights (times depend on shapes only), one prompt of 15 tokens that differs from its twin in
the first::

    python benchmarks/edges.py

The loop is our own compiled forward with one edge's edit, timed on some edges: whole (the logits
of every position, as hooks run it), and lean (the two answers' logits at the last position only).
Their numbers are checked against the sweep's before anything is timed. The table goes to stdout and
to ``benchmarks/results/edges.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import page
from roofline import rate

import jaxinterp as ji
from jaxinterp.circuits import Graph, patch_edges
from jaxinterp.circuits.edges import grids
from jaxinterp.circuits.runs import prepare
from jaxinterp.interventions import is_shared
from jaxinterp.sweep.flops import edge_bound, full_forward
from jaxinterp.sweep.grids import take_experiments

GPT2 = ji.Config(
    family="gpt2", n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, vocab_size=50257,
    n_ctx=1024, positions="learned", norm="layer", act="gelu_tanh", gated=False, bias_qkv=True,
    bias_o=True, bias_mlp=True, head="tied",
)  # fmt: skip
HEAD = (
    "edges", "all of them (least to most)", "TFLOP: whole loop / lean loop / done / bound",
    "done / bound", "bound at matmul rate", "time / that", "edges per second", "whole loop's",
    "ratio", "lean loop's", "ratio", "max diff",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", type=int, default=60, help="edges the loop is timed on")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    config = GPT2.replace(n_layers=args.layers)
    model, graph = ji.init(config, jax.random.key(0)), Graph(config)
    rng = np.random.default_rng(0)
    clean = rng.integers(0, config.vocab_size, (1, args.length))
    corrupted = clean.copy()
    corrupted[0, 0] = (clean[0, 0] + 1) % config.vocab_size
    metric = ji.logit_diff([1], [2])
    runs = {"clean": clean, "corrupted": corrupted, "metric": metric}

    ledger = ji.Ledger()
    values = patch_edges(model, ledger=ledger, **runs).values[:, 0]
    some = np.sort(rng.choice(graph.n_edges, args.loop, replace=False))
    edits = one_by_one(model, runs, np.argwhere(graph.exists)[some])

    def whole() -> np.ndarray:
        logits = [ji.forward(model, clean, edit).logits for edit in edits]
        return np.array([float(x[0, -1, 1] - x[0, -1, 2]) for x in logits])

    def lean() -> np.ndarray:
        return np.array([float(ji.evaluate(metric, model, clean, edit)[0]) for edit in edits])

    error = max(np.abs(loop() - values[some]).max() for loop in (whole, lean))
    if error > 1e-4:
        raise SystemExit(f"A loop differs by {error:.1e}.")
    ways = {"sweep": lambda: patch_edges(model, **runs), "whole": whole, "lean": lean}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    rates = []
    for _ in range(args.rounds):
        rates.append(rate())
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - began)
    took = statistics.median(seconds["sweep"])
    bound = edge_bound(config, args.length, 0)
    at_bound = bound / statistics.median(rates)
    ours = graph.n_edges / took
    theirs = [args.loop / statistics.median(seconds[way]) for way in ("whole", "lean")]
    done = [
        graph.n_edges * full_forward(config, args.length, reads=reads, columns=columns)
        for reads, columns in ((args.length, config.vocab_size), (1, 2))
    ]
    operations = ledger.cost.operations
    tera = " / ".join(f"{x / 1e12:.3g}" for x in (*done, operations, bound))
    least, most = min(seconds["sweep"]), max(seconds["sweep"])
    row = [
        f"{graph.n_edges}", f"{took:.1f} s ({least:.1f} to {most:.1f})", tera,
        f"{operations / bound:.2f}", f"{at_bound:.1f} s", f"{took / at_bound:.2f}", f"{ours:.0f}",
        *(cell for x in theirs for cell in (f"{x:.1f}", f"**{ours / x:.1f}x**")), f"{error:.0e}",
    ]  # fmt: skip
    print(page.table(HEAD, [row]))
    page.write(
        args.out, "edges.md", f"Every edge of a GPT-2 of {args.layers} layers, exactly",
        page.stamp(),
        f"Float32, random weights, T = {args.length}, the first token exchanged. Median of "
        f"{args.rounds} whole calls, recorded runs included, compilation not. The loops run one "
        f"compiled forward per edge ({args.loop} of them): whole, with the logits of every "
        "position, as hooks run it; and lean, with the two answers' logits at the last position.",
        page.table(HEAD, [row]), str(ledger),
    )  # fmt: skip


def one_by_one(model: ji.Model, runs: dict[str, Any], places: np.ndarray) -> list[Any]:
    """Each edge's edit by itself, in the order of ``places`` [n 2]."""
    chosen = np.zeros(Graph(model.config).exists.shape, bool)
    chosen[tuple(places.T)] = True
    prepared = prepare(model, **runs, direction="noise", alternative="run", batch=None)
    part = prepared.part(np.arange(1))
    found = {}
    for held, grid in grids(part, chosen, 1 << 30):
        for i, place in enumerate(held.tolist()):
            one = take_experiments(grid, np.array([i]))
            found[tuple(place)] = jax.tree.map(
                lambda leaf: leaf.value if is_shared(leaf) else leaf[0], one, is_leaf=is_shared
            )
    return [found[tuple(place)] for place in places.tolist()]


if __name__ == "__main__":
    main()
