"""Probes of every residual point, penalty and split in one call, against a scikit-learn loop.

Real activations of SmolLM2-135M at positions of WikiText-2; the label: whether the token there
begins a capitalised word. Both sides minimise the same loss to the same optimum, which is checked
first; the loop is timed on some of the fits and extrapolated::

    python benchmarks/probing.py

The table goes to stdout and to ``benchmarks/results/probing.md``.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import page
import sklearn
from sklearn.linear_model import LogisticRegression

import jaxinterp as ji
from jaxinterp import corpora, probes

HEAD = (
    "fits", "one call (least to most)", "with compiling", "scikit-learn, one fit", "all of them",
    "ratio", "largest difference of the loss", "accuracy by point: first / best / last",
)  # fmt: skip


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

    def ours() -> list[probes.Probes]:
        found = [probes.fit_logistic(jnp.asarray(x), y, train, penalties, n_classes=2) for x in X]
        return jax.block_until_ready(found)

    began = time.perf_counter()
    found = ours()
    first = time.perf_counter() - began
    chosen = np.linspace(0, len(X) - 1, args.points).round().astype(int)
    apart = max(
        float(found[p].loss[s, r]) - loss(X[p], y, splits.train[s], penalty)
        for p in chosen for s in (0,) for r, penalty in enumerate(penalties)
    )  # fmt: skip
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(args.rounds):
        began = time.perf_counter()
        ours()
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for p in chosen:
            for penalty in penalties:
                fit(X[p], y, splits.train[0], penalty)
        fits = len(chosen) * len(penalties)
        seconds["theirs"].append((time.perf_counter() - began) / fits)
    n_fits = len(X) * len(splits) * len(penalties)
    took, each = (statistics.median(seconds[name]) for name in ("ours", "theirs"))
    accuracy = [
        float(((np.asarray(f(jnp.asarray(x)))[..., 0] > 0) == y)[:, 10][splits.test].mean())
        for f, x in zip(found, X, strict=True)
    ]
    row = [
        f"{len(X)} points x {len(penalties)} penalties x {len(splits)} splits = {n_fits}",
        f"{took:.1f} s ({min(seconds['ours']):.1f} to {max(seconds['ours']):.1f})",
        f"{first:.1f} s", f"{each * 1e3:.0f} ms", f"{each * n_fits:.0f} s",
        f"**{each * n_fits / took:.1f}x**", f"{apart:.1e}",
        f"{accuracy[0]:.3f} / {max(accuracy):.3f} / {accuracy[-1]:.3f}",
    ]  # fmt: skip
    print(page.table(HEAD, [row]))
    page.write(
        args.out, "probing.md", "Logistic probes of every residual point", page.stamp(
            {"scikit-learn": sklearn.__version__}
        ),
        f"{args.model}, {args.n} tokens of WikiText-2 ({y.mean():.0%} begin a capitalised word), "
        f"width {X.shape[2]}, 60% to train on, scaled by them. Both minimise the same loss; ours "
        "minus scikit-learn's is at most as said (float32 against float64, which stops at a "
        "gradient of 1e-6). Medians of interleaved rounds; the loop runs "
        f"{fits} of the fits per round, penalties alike, and is extrapolated.",
        page.table(HEAD, [row]), "Recipe: `python benchmarks/probing.py`.",
    )  # fmt: skip


def examples(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations [L+1 n D] at one position of each block, and the labels [n]."""
    model, tokenizer = ji.load(name)
    with gzip.open(ji.fetch("wikitext-2") / "valid.raw.gz", "rt") as lines:
        rows = [line.strip() for line in lines if line.strip()]
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


def fit(x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / (train.sum() * float(penalty)), tol=1e-6, max_iter=5000)
    return model.fit(scaled(x, train), y[train])


def loss(x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float) -> float:
    """scikit-learn's optimum, as we count it."""
    model = fit(x, y, train, penalty)
    log_p = model.predict_log_proba(scaled(x, train))
    entropy = -log_p[np.arange(len(log_p)), y[train]].mean()
    return float(entropy + penalty / 2 * np.square(model.coef_).sum())


if __name__ == "__main__":
    main()
