"""Fits of probes against scikit-learn, one fit at a time."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from jaxinterp import probes

N, D, S = 120, 9, 3
PENALTIES = np.array([1.0, 0.05, 0.002], np.float32)


def data(n_classes, seed=0):
    """Activations of unlike sizes, labels that depend on them, weights of three splits."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)) * np.geomspace(0.1, 30, D) + 5 * rng.normal(size=D)
    logits = ((X - X.mean(0)) / X.std(0)) @ rng.normal(size=(D, n_classes))
    y = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(1)
    weights = (rng.random((S, N)) < 0.7).astype(np.float32)
    return X.astype(np.float32), y, weights


def objective(X, y, W, b, scale, penalty):
    """scikit-learn's, divided by n, in float64."""
    z = X.astype(np.float64) @ W + b
    z = np.concatenate([np.zeros_like(z), z], 1) if z.shape[1] == 1 else z
    log_p = (
        z
        - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        - z.max(1, keepdims=True)
    )
    return -log_p[np.arange(len(y)), y].mean() + penalty / 2 * np.square(W * scale[:, None]).sum()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_regression_finds_scikit_learns_optimum(n_classes):
    X, y, weights = data(n_classes)
    found = probes.fit_logistic(X, y, weights, PENALTIES, n_classes=n_classes)
    assert found.W.shape == (S, 3, D, 1 if n_classes == 2 else 4)
    assert (np.asarray(found.gap) <= 1e-6).all()
    for s, train in enumerate(weights > 0):
        scaler = StandardScaler().fit(X[train])
        for r, penalty in enumerate(PENALTIES):
            model = LogisticRegression(C=1 / (train.sum() * penalty), tol=1e-8, max_iter=10_000)
            model.fit(scaler.transform(X[train].astype(np.float64)), y[train])
            W = (model.coef_ / scaler.scale_).T
            b = model.intercept_ - scaler.mean_ @ W
            args = scaler.scale_, penalty
            best = objective(X[train], y[train], W, b, *args)
            ours = objective(
                X[train], y[train], np.asarray(found.W[s, r]), np.asarray(found.b[s, r]), *args
            )
            assert ours == pytest.approx(best, abs=1e-5)
            assert float(found.loss[s, r]) == pytest.approx(best, abs=1e-4)
            expected = model.predict_proba(scaler.transform(X))[:, 1:]
            logits = np.asarray(found(X)[s, r], np.float64)
            p = (
                1 / (1 + np.exp(-logits))
                if n_classes == 2
                else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            )
            np.testing.assert_allclose(p[:, -expected.shape[1] :], expected, atol=2e-3)


def test_weights_are_counts_and_labels_may_differ_by_split():
    X, y, _ = data(2)
    counts = np.random.default_rng(1).integers(0, 4, (2, N)).astype(np.float32)
    labels = np.stack([y, 1 - y])
    found = probes.fit_logistic(X, labels, counts, PENALTIES, n_classes=2)
    for s in range(2):
        rows = np.repeat(np.arange(N), counts[s].astype(int))
        alone = probes.fit_logistic(
            X[rows], labels[s][rows], np.ones((1, len(rows)), np.float32), PENALTIES, n_classes=2
        )
        np.testing.assert_allclose(found.loss[s], alone.loss[0], atol=1e-5)


def test_ridge_is_scikit_learns():
    X, y, weights = data(3)
    targets = np.eye(3, dtype=np.float32)[y]
    found = probes.fit_ridge(X, targets, weights, PENALTIES)
    for s, train in enumerate(weights > 0):
        scaler = StandardScaler().fit(X[train])
        for r, penalty in enumerate(PENALTIES):
            model = Ridge(alpha=train.sum() * penalty)
            model.fit(scaler.transform(X[train].astype(np.float64)), targets[train])
            expected = model.predict(scaler.transform(X.astype(np.float64)))
            np.testing.assert_allclose(found(X)[s, r], expected, atol=1e-3)


def test_differences_of_means_and_mass_means():
    X, y, weights = data(2)
    plain = probes.fit_means(X, y, weights)
    mass = probes.fit_means(X, y, weights, whitened=True)
    for s, train in enumerate(weights > 0):
        high, low = X[train & (y == 1)].mean(0), X[train & (y == 0)].mean(0)
        np.testing.assert_allclose(plain.W[s, :, 0], high - low, rtol=1e-3, atol=1e-3)
        middle = np.asarray((high + low) / 2 @ plain.W[s] + plain.b[s])
        assert abs(middle).max() < 1e-2 * np.abs(plain.W[s]).max()
        lda = LinearDiscriminantAnalysis(solver="lsqr").fit(X[train].astype(np.float64), y[train])
        ours, theirs = np.asarray(mass.W[s, :, 0]), lda.coef_[0]
        scale = np.abs(X[train]).std(0)
        cosine = (ours * scale) @ (theirs * scale)
        cosine /= np.linalg.norm(ours * scale) * np.linalg.norm(theirs * scale)
        assert cosine > 0.9999


@pytest.mark.parametrize("n_classes", [2, 3])
def test_more_units_than_examples_and_several_points(n_classes):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(2, 40, 70)) * np.geomspace(0.3, 3, 70) + 1
    y = (X[0] @ rng.normal(size=(70, n_classes)) + rng.gumbel(size=(40, n_classes))).argmax(1)
    weights = np.ones((2, 40), np.float32)
    weights[0, :5] = 0
    found = probes.fit_logistic(X.astype(np.float32), y, weights, PENALTIES, n_classes=n_classes)
    assert found.loss.shape == (2, 2, 3)
    for (point, s, r), loss in np.ndenumerate(np.asarray(found.loss)):
        train = weights[s] > 0
        x = StandardScaler().fit(X[point][train])
        model = LogisticRegression(C=1 / (train.sum() * PENALTIES[r]), tol=1e-8, max_iter=10_000)
        model.fit(x.transform(X[point][train]), y[train])
        W = (model.coef_ / x.scale_).T
        best = objective(
            X[point][train], y[train], W, model.intercept_ - x.mean_ @ W, x.scale_, PENALTIES[r]
        )
        assert loss == pytest.approx(best, abs=1e-5)
        ours = np.asarray(found.W[point, s, r])
        if n_classes == 2:
            np.testing.assert_allclose(ours * x.scale_[:, None], model.coef_.T, atol=2e-3)
    alone = probes.fit_logistic(
        X[1].astype(np.float32), y, weights, PENALTIES, n_classes=n_classes, scaled=False
    )
    assert alone.loss.shape == (2, 3)
    raw = LogisticRegression(C=1 / (40 * PENALTIES[0]), tol=1e-8, max_iter=10_000).fit(X[1], y)
    best = objective(X[1], y, raw.coef_.T, raw.intercept_, np.ones(70), PENALTIES[0])
    assert float(alone.loss[1, 0]) == pytest.approx(best, abs=1e-5)
