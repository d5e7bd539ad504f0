"""Feature absorption: a general feature is silent where a more special one writes its direction.

Chanin et al. 2024 (arXiv:2409.14507). What absorbs is told by projections on a probe, as in
SAEBench (Karvonen et al. 2025, arXiv:2503.09532), not by ablation, so that it can be measured at
any layer. Letters C, words n, features F, width D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import real_number, whole_number
from jaxinterp.numerics import wide
from jaxinterp.probes import fit_logistic
from jaxinterp.sae.dictionary import Dictionary, chosen_features, described

if TYPE_CHECKING:
    import xarray as xr

ROWS = 512  # words whose features are held at once


def absorption_rates(
    d: Dictionary, x: Any, labels: Any, probe_rows: Any, split: Sequence[Any], *,
    probe_bias: Any = None, about: Any = None, letters: Sequence[Any] | None = None,
    cosine: float = 0.025, share: float = 0.4, part_cosine: float = 0.1, most: int | None = 3,
) -> xr.Dataset:  # fmt: skip
    """Where features that stand for a letter are silent, and others write the letter instead.

    x [n D]: activations of words; labels [n]: their letters, 0 to C - 1; probe_rows [C D],
    probe_bias [C] (default 0): probes of the letters; split: for each letter the features that
    stand for it (`split_features`). Only words count that their own letter's probe gets right.

    Of a word, w_f is what feature f writes along its letter's unit probe, and t = (x - about) .
    probe (about [D], default 0; b_dec makes it what all features together have to write).
    *Fully absorbed*: all split features are 0, t > 0, and the feature of the largest w_f has w_f >=
    share * t and a decoder row whose cosine with the probe is at least ``cosine``. *Absorbed in
    part*, by a fraction: of features not in the split with cosine >= ``part_cosine`` and w_f > 0,
    A is the sum of the ``most`` largest w_f (None: of all), M the sum over the split; then the
    fraction is a / (a + M) with a = min(A, t - M), 1 if M <= 0, and 0 where M >= t or A < share *
    t. The defaults are those of SAEBench's code, 0.025 also Chanin et al.'s; SAEBench's paper has
    part_cosine=-1, share=0, most=None for the fraction.

    Returns a Dataset. By ``letter``: ``full``, the rate of full absorption, ``fraction``, the mean
    fraction, ``silent``, the rate of words whose split is silent, all over ``words`` (their
    number; NaN for none); ``split``, how many features; ``f1`` of saying the letter where any of
    them is active, over all n words. By ``word``: ``label``, ``right``, ``absorbed``, ``part``
    (the fraction), and ``absorber``, the feature of the largest w_f (-1: none above 0).

    Raises ``ValueError`` for other kinds than SAEs, shapes and numbers that do not fit, and a probe
    of no length.
    """
    import xarray as xr

    x, labels, rows = wide(np.asarray(x)), np.asarray(labels), np.asarray(probe_rows, np.float64)
    main = _main(d, x, labels, rows, split)
    n, C = len(x), len(rows)
    bias = np.broadcast_to(0.0 if probe_bias is None else np.asarray(probe_bias, np.float64), C)
    whole_number("most", most, 1, optional=True)
    for name, value in (("cosine", cosine), ("part_cosine", part_cosine)):
        real_number(name, value, least=-1, most=1)
    real_number("share", share, least=0, most=1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError(f"The probe of letter {int(lengths[:, 0].argmin())} has no length.")
    W = np.asarray(d.params.W_dec, np.float64)
    along = rows / lengths @ W.T
    cosines = along / np.maximum(np.linalg.norm(W, axis=1), 1e-30)
    own = (x * rows[labels]).sum(1)
    right = own + bias[labels] > 0
    start = 0.0 if about is None else (wide(np.asarray(about)) * rows[labels]).sum(1)
    total = (own - start) / lengths[labels, 0]
    silent, full, part = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n)
    absorber, said = np.zeros(n, int), np.zeros((n, C), bool)
    for at, f in _features(d, x):
        y, t = labels[at], total[at]
        written, mine, fires = f * along[y], main[y], f != 0
        said[at] = fires.astype(np.float32) @ main.T.astype(np.float32) > 0
        silent[at] = ~said[at][np.arange(len(y)), y]
        top = written.argmax(1)
        best, aligned = written[np.arange(len(y)), top], cosines[y, top] >= cosine
        full[at] = silent[at] & aligned & (t > 0) & (best > 0) & (best >= share * t)
        absorber[at] = np.where(best > 0, top, -1)
        others = np.where(~mine & (cosines[y] >= part_cosine), np.maximum(written, 0), 0)
        taken = np.sort(others, 1)[:, -min(most or len(W), len(W)) :].sum(1)
        M = np.where(mine, written, 0).sum(1)
        enough = (t > 0) & (t > M) & (taken > 0) & (taken >= share * t)
        a = np.where(enough, np.minimum(taken, t - M), 0)
        part[at] = a / np.where(enough, a + np.maximum(M, 0), 1)
    words = np.bincount(labels[right], minlength=C)
    names = np.arange(C) if letters is None else np.asarray(letters)

    def rate(values: np.ndarray) -> tuple[str, np.ndarray]:
        sums = np.bincount(labels, values * right, C)
        return "letter", np.where(words > 0, sums / np.maximum(words, 1), np.nan)

    data = {
        "full": rate(full), "fraction": rate(part), "silent": rate(silent),
        "words": ("letter", words), "split": ("letter", main.sum(1)),
        "f1": ("letter", f1_of(said, labels[:, None] == np.arange(C))),
        "label": ("word", names[labels]), "right": ("word", right),
        "absorbed": ("word", full & right), "part": ("word", np.where(right, part, 0)),
        "absorber": ("word", absorber),
    }  # fmt: skip
    attrs = {
        "cosine": cosine, "share": share, "part_cosine": part_cosine,
        "most": "all" if most is None else most, "about": "0" if about is None else "given",
        "dictionary": described(d),
    }  # fmt: skip
    return xr.Dataset(data, {"letter": names, "word": np.arange(n)}, attrs)


def _main(d: Dictionary, x: Any, labels: Any, rows: Any, split: Sequence[Any]) -> np.ndarray:
    """Which features stand for which letter, bool [C F]; everything given is checked."""
    D, F = d.config.d_in, d.config.n_features
    _check_words(d, x, labels)
    if rows.ndim != 2 or rows.shape[1] != D or len(rows) != len(split):
        raise ValueError(
            f"Probes {list(rows.shape)} for {len(split)} splits, expected [{len(split)}, {D}]."
        )
    if labels.max() >= len(rows):
        raise ValueError(f"labels go up to {labels.max()}; there are {len(rows)} probes.")
    main = np.zeros((len(rows), F), bool)
    for letter, features in enumerate(split):
        chosen = chosen_features(d, np.asarray(features, int))
        if not len(chosen):
            raise ValueError(f"No feature stands for letter {letter}: give one or more.")
        main[letter, chosen] = True
    return main


def _check_words(d: Dictionary, x: np.ndarray, labels: np.ndarray) -> None:
    if d.config.kind != "sae":
        raise ValueError(f"A probe lies where an SAE writes; this is a {d.config.kind}.")
    if x.ndim != 2 or x.shape[1] != d.config.d_in or not len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"x is {list(x.shape)}, expected finite activations [words, {d.config.d_in}]."
        )
    if labels.shape != x.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}, expected a whole number from 0 on "
            f"for each of {len(x)} words."
        )


def _features(d: Dictionary, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Features [b F] of a few words at a time, and which words they are."""
    for begin in range(0, len(x), ROWS):
        at = slice(begin, begin + ROWS)
        yield at, np.asarray(_encode(d, jnp.asarray(x[at])), np.float64)


@jax.jit
def _encode(d: Dictionary, x: jax.Array) -> jax.Array:
    return d.encode(x)


def f1_of(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 [C] of what is said [n C]; 0 where nothing is said and nothing is true."""
    return 2 * (said & true).sum(0) / np.maximum(said.sum(0) + true.sum(0), 1)


class Split(NamedTuple):
    """features: by letter, those that stand for it; ranked [C K]; f1 [C K] of the first 1 to K."""

    features: list[np.ndarray]
    ranked: np.ndarray
    f1: np.ndarray


def check_probing(n_features: int, tau: float, max_k: int, penalty: float) -> None:
    """Refuse options that `split_features` cannot use."""
    whole_number("max_k", max_k, 1, n_features)
    real_number("tau", tau, least=0)
    real_number("penalty", penalty, above=0)


def split_features(
    d: Dictionary, x: Any, labels: Any, train: Any, held: Any, *, tau: float = 0.03,
    max_k: int = 10, penalty: float = 1e-3,
) -> Split:  # fmt: skip
    """The features that stand for each letter, by k-sparse probing (Gurnee et al. 2023).

    On the words in train [n], features are ranked by how much higher their mean is on the letter's
    words than on others, in deviations (Gurnee et al., arXiv:2305.01610; Chanin et al. rank by the
    weights of a probe with an L1 penalty), and logistic regressions, both classes of equal weight
    (penalty: of scaled features), are fitted to the first 1 to max_k. One feature is taken, and the
    next as long as it raises F1 on the words in held [n] by more than tau: the letter's feature is
    split into that many.

    Raises ``ValueError`` for a letter without words to train on, and max_k above the features.
    """
    x, labels = wide(np.asarray(x)), np.asarray(labels)
    train, held = (np.asarray(part, bool) for part in (train, held))
    _check_words(d, x, labels)
    C, F = int(labels.max()) + 1, d.config.n_features
    counts = np.bincount(labels[train], minlength=C)
    if not counts.all() or C < 2 or not held.any():
        raise ValueError(
            f"Words to train on by letter: {counts.tolist()}, {held.sum()} held out; expected some "
            "of two letters or more."
        )
    check_probing(F, tau, max_k, penalty)
    there = labels[:, None] == np.arange(C)
    sums, squares = np.zeros((C, F)), np.zeros(F)
    for at, f in _features(d, x[train]):
        sums += there[train][at].T.astype(float) @ f
        squares += np.square(f).sum(0)
    n, all_of = counts.sum(), sums.sum(0)
    deviation = np.sqrt(np.maximum(squares / n - np.square(all_of / n), 0))
    apart = sums / counts[:, None] - (all_of - sums) / (n - counts)[:, None]
    score = apart / np.where(deviation > 0, deviation, 1)
    ranked = np.argsort(-score, axis=1, kind="stable")[:, :max_k]
    best = np.concatenate([f[:, ranked] for _, f in _features(d, x)]).astype(np.float32)
    f1 = np.zeros((C, max_k))
    for c in range(C):
        # The first 1 to K, each of one shape: one program.
        first = np.where(np.tri(max_k, dtype=bool)[:, None], best[:, c], 0)
        share = np.where(there[:, c], n / counts[c], n / (n - counts[c])) / 2
        found = fit_logistic(
            first, there[:, c].astype(int), (train * share).astype(np.float32)[None],
            np.asarray([penalty], np.float32), n_classes=2,
        )  # fmt: skip
        logits = np.asarray(found(jnp.asarray(first)[:, None, None]))[:, 0, 0, :, 0]
        f1[c] = f1_of((logits > 0).T[held], there[held][:, [c]])
    rises = np.diff(f1, axis=1) > tau
    taken = 1 + np.cumprod(rises, axis=1).sum(1)
    return Split([row[:k] for row, k in zip(ranked, taken, strict=True)], ranked, f1)
