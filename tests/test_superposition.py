"""The toy model of superposition: its arithmetic, its losses, its known regimes."""

import jax
import numpy as np
import pytest

from jaxinterp import superposition
from jaxinterp.superposition import Toy

RNG = np.random.default_rng(0)


def test_the_toy_by_hand():
    W, b, x = RNG.normal(size=(2, 5)), RNG.normal(size=5), RNG.random((4, 5))
    toy = Toy(W, b)
    np.testing.assert_allclose(toy(x), np.maximum(x @ W.T @ W + b, 0), atol=1e-5)
    unit = W / np.linalg.norm(W, axis=0)
    for i in range(5):
        others = sum((unit[:, i] @ W[:, j]) ** 2 for j in range(5) if j != i)
        assert float(toy.interference[i]) == pytest.approx(others, rel=1e-5)
        square = np.linalg.norm(W[:, i]) ** 2
        assert float(toy.dimensions[i]) == pytest.approx(square / (square + others), rel=1e-5)
    many = Toy(np.stack([W, 2 * W]), np.stack([b, b]))
    np.testing.assert_allclose(many(np.stack([x, x]))[1], Toy(2 * W, b)(x), atol=1e-5)


def test_the_best_dense_toy_is_the_principal_one():
    """With every feature always there, and as many dimensions as features, nothing is lost."""
    toy, loss = superposition.train(
        jax.random.key(0), np.ones(1, np.float32), np.ones((1, 3), np.float32), n_hidden=3,
        steps=2000, batch=256,
    )  # fmt: skip
    assert float(loss[0]) < 1e-3
    np.testing.assert_allclose(toy.W[0].T @ toy.W[0], np.eye(3), atol=0.1)


def test_known_regimes():
    found = superposition.phase_diagram(
        [0.03, 1.0], [0.1, 1.0, 5.0], seeds=4, steps=2500, batch=512
    )
    phase = found.phase
    assert phase.sel(density=1.0, importance=0.1) == "ignored"
    assert phase.sel(density=1.0, importance=5.0) == "dedicated"
    assert phase.sel(density=0.03, importance=1.0) == "superposed"
    both = found.sel(density=0.03, importance=1.0)
    np.testing.assert_allclose(both.norm, 1, atol=0.15)  # an antipodal pair
    # Dense and alike, one of the two has the dimension; ignoring the other costs its variance
    # (1/12): the bias holds its mean.
    assert float(found.loss.sel(density=1.0, importance=1.0)) == pytest.approx(1 / 12, abs=0.01)


@pytest.mark.parametrize(
    ("densities", "importances", "options", "message"),
    [
        ([0.0], [1.0], {}, "densities=0.0, expected"),
        ([1.5], [1.0], {}, "densities=1.5, expected"),
        ([0.5], [-1.0], {}, "importances=-1.0, expected"),
        ([0.5], [1.0], {"n_features": 1}, "n_features=1, expected .* from 2"),
    ],
)
def test_bad_input(densities, importances, options, message):
    with pytest.raises(ValueError, match=message):
        superposition.phase_diagram(densities, importances, **options)
