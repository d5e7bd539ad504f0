"""Probing: splits that do not leak, choices on validation only, baselines that are baselines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from jaxinterp import probes
from jaxinterp.model import Tokens

RNG = np.random.default_rng(0)
N, D = 240, 6
Y = RNG.integers(0, 2, N)
TYPES = RNG.integers(0, 40, N)
INFORMED = RNG.normal(size=(N, D)) + 1.5 * (2 * Y[:, None] - 1) * np.eye(D)[2]
NOISE = RNG.normal(size=(N, D))
TYPED = np.eye(40)[TYPES] @ RNG.normal(size=(40, D))  # tells the type, and nothing of Y
X = np.stack([NOISE, INFORMED, TYPED]).astype(np.float32)


@given(
    st.integers(9, 60), st.integers(2, 3), st.booleans(), st.integers(0, 5),
    st.sampled_from([(0.6, 0.2, 0.2), (0.1, 0.1, 0.8), (5, 1, 1)]),
)  # fmt: skip
def test_splits_do_not_overlap_leak_or_lose_a_class(n, n_classes, grouped, seed, shares):
    labels = np.arange(n) % n_classes
    groups = np.arange(n) // 6 if grouped else None
    if grouped and len(np.unique(groups)) < 3:
        return
    splits = probes.make_splits(labels, groups=groups, n_splits=3, shares=shares, seed=seed)
    splits.check(labels, groups)
    assert (splits.train.astype(int) + splits.validation + splits.test == 1).all()
    assert not np.array_equal(splits.train[0], splits.train[1]) or grouped or n < 12


def test_the_penalty_is_chosen_on_validation_and_the_test_is_counted():
    penalties = [1e-4, 1e-2, 1.0]
    splits = probes.make_splits(Y, n_splits=3, seed=1)
    found = probes.probe(X, Y, splits=splits, penalties=penalties, points=["a", "b", "c"])
    assert found.accuracy.dims == ("point", "split")
    x = X[1].astype(np.float64)
    for s in range(3):
        train, held, test = splits.train[s], splits.validation[s], splits.test[s]
        mean, scale = x[train].mean(0), x[train].std(0)
        fits = []
        for penalty in penalties:
            model = LogisticRegression(C=1 / (train.sum() * penalty), tol=1e-8, max_iter=1000)
            model.fit((x[train] - mean) / scale, Y[train])
            log_p = model.predict_log_proba((x[held] - mean) / scale)
            fits.append((-log_p[np.arange(held.sum()), Y[held]].mean(), penalty, model))
        _, penalty, model = min(fits, key=lambda fit: fit[0])
        assert found.penalty.sel(point="b")[s] == pytest.approx(penalty)
        expected = model.score((x[test] - mean) / scale, Y[test])
        assert float(found.accuracy.sel(point="b")[s]) == pytest.approx(expected, abs=1e-9)
        logits = x @ found.weight.sel(point="b")[s, :, 0].values
        logits = logits + float(found.bias.sel(point="b")[s, 0])
        expected = model.decision_function((x - mean) / scale)
        np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_accuracy_beside_its_baselines():
    found = probes.probe(
        X, Y, points=["noise", "informed", "typed"], types=TYPES, splits=6,
        baselines={"answer": Y[:, None].astype(float), "constant": np.ones((N, 1))},
    ).mean("split")  # fmt: skip
    majority = float(found.majority)
    assert found.attrs["says"] == "decodable"
    assert float(found.accuracy.sel(point="informed")) > 0.85
    assert abs(float(found.accuracy.sel(point="noise")) - majority) < 0.12
    assert abs(float(found.shuffled.sel(point="informed")) - 0.5) < 0.15
    assert float(found.random_direction.sel(point="informed")) < 0.8
    # Where the type can be read, a probe learns random labels too: it is not selective.
    assert float(found.control.sel(point="typed")) > float(found.control.sel(point="informed"))
    assert float(found.selectivity.sel(point="informed")) > 0.25
    assert float(found.selectivity.sel(point="typed")) < 0.05
    assert float(found.baseline.sel(feature="answer")) == 1
    assert float(found.baseline.sel(feature="constant")) == pytest.approx(majority, abs=0.02)


def test_many_classes_and_text_labels():
    labels = np.array(["red", "green", "blue"])[RNG.integers(0, 3, N)]
    x = 3 * np.eye(3)[np.unique(labels, return_inverse=True)[1]] + RNG.normal(size=(N, 3))
    found = probes.probe(x, labels, splits=3)
    assert found.accuracy.shape == (1, 3)
    assert found.weight.shape == (1, 3, 3, 3)
    assert float(found.accuracy.mean()) > 0.85
    assert found.attrs["classes"] == ["blue", "green", "red"]


def test_baselines_of_text():
    ids = np.array([[3, 5, 3, 0], [5, 7, 0, 0]])
    positions = np.array([[0, 1, 2, 3], [0, 1, -1, -1]])
    found = probes.text_baselines(Tokens(ids, positions), at=1)
    np.testing.assert_array_equal(found["bag_of_words"], [[1, 2, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(found["length"], [[4], [2]])
    np.testing.assert_array_equal(found["token"], [[0, 0, 1, 0], [0, 0, 0, 1]])


LEAKY = probes.Splits(*(np.eye(3, dtype=bool)[i][np.arange(N) % 3][None] for i in range(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(N, int)}, "two classes or more"),
        ({"labels": Y + 0.5}, "whole numbers or text"),
        ({"labels": np.array([0, 1]), "X": X[:, :2]}, "2 examples of 2 classes"),
        ({"labels": Y[:-1]}, "expected .points, 239 examples"),
        ({"X": np.where(np.arange(N)[:, None] == 7, np.nan, NOISE)}, "point 0, example 7"),
        ({"splits": LEAKY, "groups": np.arange(N) // 2}, "leaks: group 0 is in both train and"),
        ({"splits": probes.Splits(LEAKY.train, LEAKY.train, LEAKY.test)}, "must not overlap"),
        ({"splits": probes.Splits(LEAKY.train, LEAKY.validation, LEAKY.test & False)},
         "no test examples"),
        ({"splits": probes.Splits(LEAKY.train & (Y == 0), LEAKY.validation, LEAKY.test)},
         "trains on no example of 1"),
        ({"groups": np.arange(N) % 2}, "2 groups: three parts"),
        ({"penalties": [0.0]}, "penalties=0.0, expected .* more than 0"),
        ({"types": TYPES[:3]}, "3 types"),
        ({"points": ["a"]}, "1 names for 3 points"),
        ({"types": np.arange(N) // 4, "groups": np.arange(N) // 4}, "no type of a test example"),
    ],
)  # fmt: skip
def test_bad_input(change, message):
    given = {"X": X, "labels": Y} | change
    with pytest.raises(ValueError, match=message):
        probes.probe(given.pop("X"), given.pop("labels"), **given)


def test_several_labels_are_as_many_probes():
    other = (NOISE[:, 0] > 0).astype(int)
    both = probes.probe(X[:2], np.stack([Y, other], 1), splits=2, penalties=[1e-2, 1.0])
    assert both.accuracy.dims == ("label", "point", "split")
    for k, labels in enumerate((Y, other)):
        alone = probes.probe(X[:2], labels, splits=2, penalties=[1e-2, 1.0])
        np.testing.assert_allclose(both.accuracy[k], alone.accuracy)
        np.testing.assert_allclose(both.weight[k], alone.weight, atol=1e-6)
    assert both.attrs["says"] == "decodable"


def test_sparse_probes_read_the_units_that_differ_most():
    splits = probes.make_splits(Y, n_splits=2)
    x = INFORMED + 0.7 * (2 * Y[:, None] - 1) * np.eye(D)[4]
    x = x * np.geomspace(1, 50, D)  # the unit of a unit does not matter
    penalties = [1e-3, 1e-1]
    found = probes.sparse_probe(
        np.stack([x, NOISE]), Y, ks=[1, 2, 6], splits=splits, penalties=penalties
    )
    assert found.accuracy.dims == ("point", "split", "k")
    assert found.unit.sel(point=0).isel(rank=slice(0, 2)).values.tolist() == [[2, 4]] * 2
    whole = probes.probe(x, Y, splits=splits, penalties=penalties).accuracy[0]
    np.testing.assert_allclose(found.accuracy.sel(point=0, k=6), whole)
    one = probes.probe(x[:, [2]], Y, splits=splits, penalties=penalties).accuracy[0]
    np.testing.assert_allclose(found.accuracy.sel(point=0, k=1), one)
    assert float(found.accuracy.sel(point=0, k=1).mean()) > 0.85
    assert float(found.accuracy.sel(point=1).mean()) < 0.65
    with pytest.raises(ValueError, match=r"ks=7, expected .* from 1 to 6"):
        probes.sparse_probe(X, Y, ks=[1, 7])
