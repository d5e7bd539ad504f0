"""Probes of every residual point, penalty and split in one call, against a scikit-learn loop.

Real activations of SmolLM2-135M at positions of WikiText-2; the label: whether the token there
begins a capitalised word. Both sides minimise the same loss; how far each side's tolerances stay
above its least is in the table. The loop is timed on some of the fits and
extrapolated::

    OPENBLAS_NUM_THREADS=1 python benchmarks/probing.py

One thread: the library behind factorizations otherwise spins on the cores that products use. The
table goes to stdout and to ``benchmarks/results/probing.md``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import page
import sklearn
from sklearn.linear_model import LogisticRegression

import jaxinterp as ji
from jaxinterp import corpora, probes

HEAD = (
    "fits", "our tolerance", "one call (least to most)", "with compiling", "its tolerance",
    "one fit", "all of them", "ratio", "above the least loss, at most: ours", "its",
)  # fmt: skip
# Ours, scikit-learn's: the loosest of its that reach 1e-4 and its default, then close to the least.
PAIRS = ((1e-5, 1e-4), (1e-5, 3e-5), (1e-8, 1e-6))
LEAST = 1e-9  # scikit-learn's tolerance where the least loss is looked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n", type=int, default=1000, help="examples")
    parser.add_argument("--points", type=int, default=2, help="that the loop is timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    args = parser.parse_args()
    X, y = examples(args.model, args.n)
    splits = probes.make_splits(y, n_splits=5)
    train = splits.train.astype(np.float32)
    penalties = np.geomspace(1e-4, 1, 20).astype(np.float32)

    def ours(tolerance: float) -> probes.Probes:
        return jax.block_until_ready(
            probes.fit_logistic(X, y, train, penalties, n_classes=2, tolerance=tolerance)
        )

    began = time.perf_counter()
    found = {tolerance: ours(tolerance) for tolerance in dict.fromkeys(pair[0] for pair in PAIRS)}
    first = time.perf_counter() - began
    began = time.perf_counter()
    for tolerance in found:
        ours(tolerance)
    compiling = first - (time.perf_counter() - began)  # one program serves all tolerances
    chosen = np.linspace(0, len(X) - 1, args.points).round().astype(int)
    fits = [(p, r) for p in chosen for r in range(len(penalties))]
    seconds: dict[Any, list[float]] = {}
    for _ in range(args.rounds):
        for tolerance in found:
            began = time.perf_counter()
            ours(tolerance)
            seconds.setdefault(("ours", tolerance), []).append(time.perf_counter() - began)
        for tolerance in dict.fromkeys(pair[1] for pair in PAIRS):
            began = time.perf_counter()
            for p, r in fits:
                fit(X[p], y, splits.train[0], penalties[r], tolerance)
            each = (time.perf_counter() - began) / len(fits)
            seconds.setdefault(("its", tolerance), []).append(each)

    def losses(tolerance: float) -> np.ndarray:
        return np.array([loss(X[p], y, splits.train[0], penalties[r], tolerance) for p, r in fits])

    least, rows = losses(LEAST), []
    for own, its in PAIRS:
        n_fits = found[own].loss.size
        runs, each = seconds["ours", own], statistics.median(seconds["its", its])
        took = statistics.median(runs)
        above = np.array([float(found[own].loss[p, 0, r]) for p, r in fits]) - least
        rows.append([
            f"{len(X)} points x {len(penalties)} penalties x {len(splits)} splits = {n_fits}",
            f"{own:g}", f"{took:.1f} s ({min(runs):.1f} to {max(runs):.1f})",
            f"{took + compiling:.1f} s", f"{its:g}", f"{each * 1e3:.0f} ms",
            f"{each * n_fits:.0f} s", f"**{each * n_fits / took:.1f}x**", f"{above.max():.1e}",
            f"{(losses(its) - least).max():.1e}",
        ])  # fmt: skip
    print(page.table(HEAD, rows))
    tight = found[min(found)]
    said = (np.asarray(tight(jnp.asarray(X)[:, None, None]))[..., 0] > 0) == y  # L S R n
    tested = np.broadcast_to(splits.test[:, None], said.shape[1:])
    accuracy = [float(each[tested].mean()) for each in said]
    page.write(
        args.out, "probing.md", "Logistic probes of every residual point", page.stamp(
            {"scikit-learn": sklearn.__version__}
        ),
        f"{args.model}, {args.n} tokens of WikiText-2 ({y.mean():.0%} begin a capitalised word), "
        f"width {X.shape[2]}, 60% to train on, scaled by them. Ours is float32 and stops within "
        "its tolerance of the least loss by its own estimate; scikit-learn's lbfgs is float64, and "
        f"tells the least (at a tolerance of {LEAST:g}). "
        f"Medians of interleaved rounds; the loop runs {len(fits)} of the fits per round, "
        "penalties alike, and is extrapolated; `OPENBLAS_NUM_THREADS` is "
        f"{os.environ.get('OPENBLAS_NUM_THREADS', 'not set')}. Accuracy on "
        f"test examples, over penalties and splits: {accuracy[0]:.3f} before layer 0, "
        f"{max(accuracy):.3f} at best, {accuracy[-1]:.3f} after the last.",
        page.table(HEAD, rows), "Recipe: `OPENBLAS_NUM_THREADS=1 python benchmarks/probing.py`.",
    )  # fmt: skip


def examples(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations [L+1 n D] at one position of each block, and the labels [n]."""
    model, tokenizer = ji.load(name)
    rows = corpora.read_lines(ji.fetch("wikitext-2") / "valid.raw.gz")
    ids = np.concatenate([
        np.asarray(t.ids) for t, _ in zip(
            corpora.packed(rows, tokenizer, 32, 20), range(n // 20), strict=False
        )
    ])  # fmt: skip
    at = np.random.default_rng(0).integers(8, 32, len(ids))
    texts = [tokenizer.str_tokens([int(ids[i, p])])[0] for i, p in enumerate(at)]
    y = np.array([text.strip()[:1].isupper() for text in texts]).astype(int)
    return ji.collect(model, ids, at).astype(np.float32), y


def scaled(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    own = x[train].astype(np.float64)
    return (own - own.mean(0)) / own.std(0)


def fit(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float, tolerance: float
) -> LogisticRegression:
    C = 1 / (train.sum() * float(penalty))
    model = LogisticRegression(C=C, tol=tolerance, max_iter=5000)
    return model.fit(scaled(x, train), y[train])


def loss(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float, tolerance: float
) -> float:
    """Where scikit-learn ends, as we count it."""
    model = fit(x, y, train, penalty, tolerance)
    z = model.decision_function(scaled(x, train))
    entropy = np.logaddexp(0, np.where(y[train] == 1, -z, z)).mean()
    return float(entropy + penalty / 2 * np.square(model.coef_).sum())


if __name__ == "__main__":
    main()
