"""Factored matrices against dense ones."""

import numpy as np
import pytest

from jaxinterp.factored import FactoredMatrix

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3, 9, 4)), RNG.normal(size=(2, 3, 4, 9))
M = FactoredMatrix(A.astype(np.float32), B.astype(np.float32))
DENSE = A @ B


def test_products_are_those_of_dense_matrices():
    assert M.shape == (2, 3, 9, 9)
    np.testing.assert_allclose(M.dense(), DENSE, atol=1e-5)
    np.testing.assert_allclose(M.T.dense(), DENSE.swapaxes(-1, -2), atol=1e-5)
    np.testing.assert_allclose(M[1, 2].dense(), DENSE[1, 2], atol=1e-5)
    other = RNG.normal(size=(9, 5)).astype(np.float32)
    np.testing.assert_allclose((M @ other).dense(), DENSE @ other, atol=1e-4)
    np.testing.assert_allclose((other.T @ M).dense(), other.T @ DENSE, atol=1e-4)
    np.testing.assert_allclose((M @ M.T).dense(), DENSE @ DENSE.swapaxes(-1, -2), atol=1e-3)
    assert (M @ M).A.shape == A.shape  # still thin


def test_singular_values_eigenvalues_and_norms_are_those_of_dense_matrices():
    U, S, Vh = M.svd()
    np.testing.assert_allclose(S, np.linalg.svd(DENSE)[1][..., :4], rtol=1e-4)
    np.testing.assert_allclose((U * S[..., None, :]) @ Vh, DENSE, atol=1e-4)
    np.testing.assert_allclose(M.norm(), np.linalg.norm(DENSE, axis=(-1, -2)), rtol=1e-5)
    found, dense = M.eigenvalues(), np.linalg.eigvals(DENSE)
    for one, whole in zip(found.reshape(-1, 4), dense.reshape(-1, 9), strict=True):
        largest = whole[np.argsort(-abs(whole))[:4]]
        assert all(abs(largest - value).min() < 1e-4 for value in one)


def test_only_square_matrices_have_eigenvalues():
    with pytest.raises(ValueError, match=r"\[9, 5\] has no eigenvalues"):
        FactoredMatrix(A, B[..., :5]).eigenvalues()
