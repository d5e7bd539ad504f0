"""Probing every layer, with the baselines without which an accuracy says nothing.

A high accuracy says *decodable*: some linear map finds it. It does not say that the model uses it;
for that, erase what was found and measure behaviour (`jaxinterp.probe_and_erase`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, numbers, random_seed, whole_number
from jaxinterp.numerics import wide
from jaxinterp.probes.fit import Probes
from jaxinterp.probes.logistic import fit_logistic
from jaxinterp.probes.splits import Splits, check_labels, make_splits

if TYPE_CHECKING:
    import xarray as xr

PENALTIES = np.geomspace(1e-5, 10, 20)


def probe(
    X: Any,
    labels: Any,
    *,
    points: Any = None,
    groups: Any = None,
    splits: Splits | int = 5,
    penalties: Any = PENALTIES,
    types: Any = None,
    baselines: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_done: Callable[[int], None] = lambda fits: None,
) -> xr.Dataset:
    """Softmax-linear probes of every point of X [L n D], chosen and tested on apart examples.

    labels [n] of classes; or [n K], several labels at once: each has probes of its own, and the
    result a dim ``label``. points: names of the L points (default their numbers). groups [n]: as in
    `make_splits`. splits: `Splits`, or how many to draw. penalties: each is fitted; every split
    takes the one of least validation loss, and is tested once.
    types [n]: what a control task gives random labels to (Hewitt & Liang 2019, arXiv:1909.03368),
    such as the token probed; then ``selectivity`` is accuracy minus the control's. baselines: other
    features [n F] by name (`text_baselines` makes a bag of words and lengths), probed likewise.

    Returns a Dataset: ``accuracy`` (point, split); ``shuffled`` (labels permuted among the training
    examples), ``random_direction`` (one random direction, its threshold fitted), ``control`` and
    ``selectivity`` likewise; ``majority`` (split); ``baseline`` (feature, split); ``penalty``
    (point, split); ``weight`` (point, split, width, output) and ``bias``, logits being x W + b
    of raw activations. ``attrs["says"]`` is "decodable".

    Raises ``ValueError`` for one class, too few examples, values that are not finite (naming the
    example), splits that leak, and types of which no split's test sees one again: a control task
    is then at chance whatever the probe can memorise.
    """
    import xarray as xr

    if np.ndim(labels) == 2:
        each = [
            probe(
                X, column, points=points, groups=groups, splits=splits, penalties=penalties,
                types=types, baselines=baselines, seed=seed, on_done=on_done,
            )
            for column in np.asarray(labels).T
        ]  # fmt: skip
        return xr.concat(each, "label", combine_attrs="drop_conflicts")
    X, targets, classes, splits, names = given(X, labels, points, groups, splits, seed)
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    fits = Fits(splits, np.asarray(penalties, np.float64), len(classes), on_done)
    shuffled = np.stack([_shuffled(targets, train, rng) for train in splits.train])
    control = None
    if types is not None:
        control = _control(np.asarray(types), targets, len(classes), rng)
        _check_seen_again(np.asarray(types), splits)
    found: dict[str, list[np.ndarray]] = {}
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for x in X:
        accuracy, W, b, penalty = fits(x, targets)
        kept.append((W, b, penalty))
        along = x @ rng.normal(size=(x.shape[1], 1)).astype(x.dtype)
        row = {
            "accuracy": accuracy,
            "shuffled": fits(x, shuffled, scored=targets)[0],
            "random_direction": fits(along, targets)[0],
        }
        if control is not None:
            row["control"] = fits(x, control)[0]
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    dims = ("point", "split")
    data: dict[str, Any] = {name: (dims, np.stack(values)) for name, values in found.items()}
    if control is not None:
        data["selectivity"] = (dims, data["accuracy"][1] - data["control"][1])
    data["majority"] = ("split", majority(targets, splits))
    W, b, chosen = (np.stack(each) for each in zip(*kept, strict=True))
    data |= {
        "penalty": (dims, chosen),
        "weight": ((*dims, "width", "output"), W),
        "bias": ((*dims, "output"), b),
    }
    coords: dict[str, Any] = {"point": names, "split": np.arange(len(splits))}
    if baselines:
        for name, features in baselines.items():
            _check_features(np.asarray(features)[None], labels, name)
        rows = [fits(np.asarray(f, np.float32), targets)[0] for f in baselines.values()]
        data["baseline"] = (("feature", "split"), np.stack(rows))
        coords["feature"] = list(baselines)
    attrs = {
        "says": "decodable", "classes": [str(c) for c in classes], "n_examples": len(labels),
        "n_train": int(splits.train[0].sum()), "n_test": int(splits.test[0].sum()),
        "penalties": list(map(float, fits.penalties)), "seed": seed,
        "groups": "kept whole" if groups is not None else "none",
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs)


class Fits:
    """All splits and penalties of one set of features: the chosen probes and their accuracy."""

    def __init__(
        self, splits: Splits, penalties: np.ndarray, n_classes: int, on_done: Callable[[int], None]
    ):
        penalties = numbers("penalties", penalties, above=0)
        self.splits, self.penalties, self.n_classes = splits, penalties, n_classes
        self.on_done = on_done

    def __call__(
        self, x: np.ndarray, targets: np.ndarray, scored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Accuracy [S], W [S D K], b [S K], penalty [S]. scored: the test's labels, if others."""
        s = self.splits
        targets = np.broadcast_to(targets, s.train.shape)
        probes: Probes = fit_logistic(
            jnp.asarray(x, jnp.float32), jnp.asarray(targets), jnp.asarray(s.train, jnp.float32),
            jnp.asarray(self.penalties, jnp.float32), n_classes=self.n_classes,
        )  # fmt: skip
        logits = np.asarray(probes(jnp.asarray(x, jnp.float32)), np.float64)  # S R n K
        if logits.shape[-1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], -1)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        loss = -np.take_along_axis(log_p, targets[:, None, :, None], -1)[..., 0]
        held = s.validation[:, None]
        best = (np.where(held, loss, 0).sum(-1) / held.sum(-1)).argmin(1)
        rows = np.arange(len(s))
        said = logits[rows, best].argmax(-1)
        truth = targets if scored is None else np.broadcast_to(scored, s.train.shape)
        accuracy = np.where(s.test, said == truth, 0).sum(-1) / s.test.sum(-1)
        self.on_done(len(s) * len(self.penalties))
        W, b = (np.asarray(leaf)[rows, best] for leaf in (probes.W, probes.b))
        return accuracy, W, b, self.penalties[best]


def given(
    X: Any, labels: Any, points: Any, groups: Any, splits: Splits | int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Splits, list[Any]]:
    """What probes are asked for, checked: X [L n D], targets [n], classes, splits, points."""
    X, labels, seed = wide(np.asarray(X)), np.asarray(labels), random_seed(seed)
    X = X[None] if X.ndim == 2 else X
    classes = check_labels(labels)
    _check_features(X, labels, "X")
    groups = None if groups is None else np.asarray(groups)
    if not isinstance(splits, Splits):
        whole_number("splits", splits, 1, MANY)
        splits = make_splits(labels, groups=groups, n_splits=splits, seed=seed)
    splits.check(labels, groups)
    names = list(range(len(X))) if points is None else list(points)
    if len(names) != len(X):
        raise ValueError(f"There are {len(names)} names for {len(X)} points.")
    return X, np.searchsorted(classes, labels), classes, splits, names


def text_baselines(tokens: Any, at: Any = None) -> dict[str, np.ndarray]:
    """What can be told from the text alone: a bag of words, and the prompt's length.

    at: a position per prompt; then also the token there, on its own.

    Returns float32 [n F]: ``bag_of_words`` and ``token``, F being the different ids of the batch,
    and ``length``, F = 1, in tokens.
    """
    from jaxinterp.model import as_tokens

    tokens = as_tokens(tokens)
    ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
    kinds, index = np.unique(ids, return_inverse=True)
    one_hot = np.eye(len(kinds), dtype=np.float32)
    bag = (one_hot[index.reshape(ids.shape)] * mask[..., None]).sum(1)
    out = {"bag_of_words": bag, "length": mask.sum(1, keepdims=True).astype(np.float32)}
    if at is not None:
        columns = np.asarray(tokens.columns(np.broadcast_to(np.asarray(at), len(ids))))
        out["token"] = one_hot[index.reshape(ids.shape)[np.arange(len(ids)), columns]]
    return out


def _check_features(X: np.ndarray, labels: np.ndarray, name: str) -> None:
    if X.ndim != 3 or X.shape[1] != len(labels):
        raise ValueError(
            f"{name} has shape {list(X.shape)}, expected [points, {len(labels)} examples, width]."
        )
    finite = np.isfinite(X).all(-1)
    if not finite.all():
        point, example = (int(i[0]) for i in np.nonzero(~finite))
        raise ValueError(
            f"{name} is not finite at point {point}, example {example}: leave that example out."
        )


def _shuffled(targets: np.ndarray, train: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = targets.copy()
    out[train] = rng.permutation(targets[train])
    return out


def _control(
    types: np.ndarray, targets: np.ndarray, n_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """A random label for every type, drawn as often as the real ones."""
    if types.shape != targets.shape:
        raise ValueError(f"There are {len(types)} types for {len(targets)} labels.")
    _, index = np.unique(types, return_inverse=True)
    shares = np.bincount(targets, minlength=n_classes) / len(targets)
    for _ in range(1000):
        drawn = rng.choice(n_classes, index.max() + 1, p=shares)[index]
        if len(np.unique(drawn)) == n_classes:
            return drawn
    raise ValueError(f"A control task needs more types than {index.max() + 1}.")


def _check_seen_again(types: np.ndarray, splits: Splits) -> None:
    for s, (train, test) in enumerate(zip(splits.train, splits.test, strict=True)):
        if not np.isin(types[test], types[train]).any():
            raise ValueError(
                f"In split {s} no type of a test example was trained on, so a control task says "
                "nothing: probe once by groups, and once with types and without groups."
            )


def majority(targets: np.ndarray, splits: Splits) -> np.ndarray:
    """Accuracy [S] of always saying the training part\'s commonest class."""
    out = []
    for train, test in zip(splits.train, splits.test, strict=True):
        top = np.bincount(targets[train]).argmax()
        out.append((targets[test] == top).mean())
    return np.asarray(out)
