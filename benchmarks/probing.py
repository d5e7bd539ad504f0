"""Probes of every residual point, penalty and split in one call, against a scikit-learn loop.

Real activations of SmolLM2-135M at positions of WikiText-2; the label: whether the token there
begins a capitalised word. Both sides minimise the same loss; how far each of scikit-learn's
tolerances stays above our optimum is in the table. The loop is timed on some of the fits and
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
    "fits", "one call (least to most)", "with compiling", "scikit-learn's tolerance", "one fit",
    "all of them", "ratio", "its loss above ours, at most", "ours above its",
)  # fmt: skip
WITHIN = 1e-6  # of the least loss: where our fits stop
TOLERANCES = (1e-4, 3e-5, 1e-5, 1e-6)


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

    def ours() -> probes.Probes:
        return jax.block_until_ready(probes.fit_logistic(X, y, train, penalties, n_classes=2))

    began = time.perf_counter()
    found = ours()
    first = time.perf_counter() - began
    chosen = np.linspace(0, len(X) - 1, args.points).round().astype(int)
    fits = [(p, r) for p in chosen for r in range(len(penalties))]
    seconds: dict[Any, list[float]] = {"ours": [], **{tol: [] for tol in TOLERANCES}}
    for _ in range(args.rounds):
        began = time.perf_counter()
        ours()
        seconds["ours"].append(time.perf_counter() - began)
        for tol in TOLERANCES:
            began = time.perf_counter()
            for p, r in fits:
                fit(X[p], y, splits.train[0], penalties[r], tol)
            seconds[tol].append((time.perf_counter() - began) / len(fits))
    n_fits = found.loss.size
    took = statistics.median(seconds["ours"])
    rows = []
    for tol in TOLERANCES:
        each = statistics.median(seconds[tol])
        above = [
            loss(X[p], y, splits.train[0], penalties[r], tol) - float(found.loss[p, 0, r])
            for p, r in fits
        ]
        rows.append([
            f"{len(X)} points x {len(penalties)} penalties x {len(splits)} splits = {n_fits}",
            f"{took:.1f} s ({min(seconds['ours']):.1f} to {max(seconds['ours']):.1f})",
            f"{first:.1f} s", f"{tol:g}", f"{each * 1e3:.0f} ms", f"{each * n_fits:.0f} s",
            f"**{each * n_fits / took:.1f}x**", f"{max(above):.1e}", f"{-min(above):.1e}",
        ])  # fmt: skip
    print(page.table(HEAD, rows))
    said = (np.asarray(found(jnp.asarray(X)[:, None, None]))[..., 0] > 0) == y  # L S R n
    tested = np.broadcast_to(splits.test[:, None], said.shape[1:])
    accuracy = [float(each[tested].mean()) for each in said]
    page.write(
        args.out, "probing.md", "Logistic probes of every residual point", page.stamp(
            {"scikit-learn": sklearn.__version__}
        ),
        f"{args.model}, {args.n} tokens of WikiText-2 ({y.mean():.0%} begin a capitalised word), "
        f"width {X.shape[2]}, 60% to train on, scaled by them. Ours is float32 and stops within "
        f"{WITHIN:g} of the least loss by its own estimate; scikit-learn's lbfgs is float64. "
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
