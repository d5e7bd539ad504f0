"""Every edge of a GPT-2-small-shaped model, exactly, against one whole forward per edge.

Random weights (times depend on shapes only), one prompt of 15 tokens that differs from its twin in
the first::

    python benchmarks/edges.py

The loop is our own compiled forward, whole, with one edge's edit, timed on some edges; its numbers
are checked against the sweep's before anything is timed. The table goes to stdout and to
``benchmarks/results/edges.md``.
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
    "edges", "all of them (least to most)", "TFLOP: loop / done / bound", "done / bound",
    "bound at matmul rate", "time / that", "edges per second", "loop's", "ratio", "max diff",
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

    def loop() -> np.ndarray:
        return np.array([float(ji.evaluate(metric, model, clean, edit)[0]) for edit in edits])

    error = np.abs(loop() - values[some]).max()
    if error > 1e-4:
        raise SystemExit(f"The loop differs by {error:.1e}.")
    seconds: dict[str, list[float]] = {"sweep": [], "loop": []}
    rates = []
    for _ in range(args.rounds):
        rates.append(rate())
        for name, run in (("sweep", lambda: patch_edges(model, **runs)), ("loop", loop)):
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    took, per_loop = statistics.median(seconds["sweep"]), statistics.median(seconds["loop"])
    bound = edge_bound(config, args.length, 0)
    at_bound = bound / statistics.median(rates)
    ours, theirs = graph.n_edges / took, args.loop / per_loop
    whole = graph.n_edges * full_forward(config, args.length, reads=1, columns=2)
    least, most = min(seconds["sweep"]), max(seconds["sweep"])
    operations = ledger.cost.operations
    row = [
        f"{graph.n_edges}", f"{took:.1f} s ({least:.1f} to {most:.1f})",
        f"{whole / 1e12:.3g} / {operations / 1e12:.3g} / {bound / 1e12:.3g}",
        f"{operations / bound:.2f}", f"{at_bound:.1f} s", f"{took / at_bound:.2f}",
        f"{ours:.0f}", f"{theirs:.1f}", f"**{ours / theirs:.1f}x**", f"{error:.0e}",
    ]  # fmt: skip
    print(page.table(HEAD, [row]))
    page.write(
        args.out, "edges.md", f"Every edge of a GPT-2 of {args.layers} layers, exactly",
        page.stamp(),
        f"Float32, random weights, T = {args.length}, the first token exchanged. Median of "
        f"{args.rounds} whole calls, recorded runs included, compilation not. The loop runs one "
        f"compiled whole forward per edge ({args.loop} of them), of which just the two answers' "
        "columns are unembedded.",
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
