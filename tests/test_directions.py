"""Directions: where they come from in NumPy, algebra, and their edits."""

import numpy as np
import pytest
from small_models import PROMPTS, small_model

import jaxinterp as ji
from jaxinterp import directions
from jaxinterp.directions import Direction

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(3, 20, 8)) + 1, RNG.normal(size=(3, 20, 8))
U, V = Direction(RNG.normal(size=8)), Direction(RNG.normal(size=8))


def test_from_labels_and_from_pairs():
    X, y = np.concatenate([A, B], 1), np.repeat([1, 0], 20)
    expected = A.mean(1) - B.mean(1)
    np.testing.assert_allclose(directions.from_means(X, y).vector, expected, atol=1e-6)
    np.testing.assert_allclose(directions.from_means(X[1], y == 1).vector, expected[1], atol=1e-6)
    np.testing.assert_allclose(directions.from_pairs(A, B).vector, expected, atol=1e-6)
    first = directions.from_pairs(A, B, method="pca").vector
    for layer in range(3):
        gram = (A - B)[layer].T @ (A - B)[layer]
        values, vectors = np.linalg.eigh(gram)
        unit = vectors[:, -1] * np.sign(vectors[:, -1] @ expected[layer])
        np.testing.assert_allclose(first[layer], unit * np.sqrt(values[-1] / 20), atol=1e-5)


def test_from_probes():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 2
    X = rng.normal(size=(2, 90, 5)) + 2 * y[:, None] * np.eye(5)[[1, 3]][:, None]
    found = ji.probes.probe(X, y, splits=2, penalties=[0.1])
    direction = directions.from_probe(found)
    np.testing.assert_allclose(direction.vector, found.weight.mean("split")[..., 0], atol=1e-6)
    assert np.abs(direction.vector).argmax(1).tolist() == [1, 3]
    assert (direction.vector.max(1) > 0).all()  # towards the second class
    three = ji.probes.probe(X, np.arange(90) % 3, splits=2, penalties=[0.1])
    with pytest.raises(ValueError, match="one output each"):
        directions.from_probe(three)


def test_principal_components():
    found = directions.principal(A[0], 2)
    values, vectors = np.linalg.eigh(np.cov(A[0].T, bias=True))
    for i, d in enumerate(found):
        assert d.norm == pytest.approx(np.sqrt(values[-1 - i]), rel=1e-5)
        assert abs(d.unit.vector @ vectors[:, -1 - i]) == pytest.approx(1, abs=1e-5)


def test_algebra():
    u, v = U.vector.astype(float), V.vector.astype(float)
    np.testing.assert_allclose((U + V).vector, u + v, rtol=1e-5)
    np.testing.assert_allclose((2 * U - V).vector, 2 * u - v, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((-U).vector, -u)
    assert U.unit.norm == pytest.approx(1)
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    assert U.cosine(V) == pytest.approx(cosine, abs=1e-6)
    assert U.cosine(-U) == pytest.approx(-1, abs=1e-6)
    assert U.without(V).vector @ v == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(U.project(A[0]), A[0] @ (u / np.linalg.norm(u)), atol=1e-5)
    assert "difference of means" in (directions.from_means(A[0], np.arange(20) % 2) + U).source


def test_by_layer():
    assert repr(U + V) == "Direction([8] at 'resid_post': (given + given))"
    D = Direction(RNG.normal(size=(3, 8)))
    np.testing.assert_allclose(D.project(A)[1], D[1].project(A[1]), atol=1e-5)
    np.testing.assert_allclose(D.cosine(2 * D), 1, atol=1e-6)
    placebos = directions.random_like(D, 4, seed=1)
    assert len({p.source for p in placebos}) == 4
    for p in placebos:
        np.testing.assert_allclose(p.norm, D.norm, rtol=1e-5)
    assert abs(placebos[0].unit.vector @ placebos[1].unit.vector.T).max() < 0.95


def test_edits():
    model = small_model("llama")
    D = Direction(RNG.normal(size=(3, 8)), "resid_mid")
    for layer in (0, 2):
        for one, other in (
            (D.add(0.5, layer=layer), ji.add("resid_mid", 0.5 * D.vector[layer], layer=layer)),
            (D.ablate(layer=layer), ji.project_out("resid_mid", D.vector[layer], layer=layer)),
            (
                D[layer].ablate(layer=layer),
                ji.project_out("resid_mid", D.vector[layer], layer=layer),
            ),
        ):
            np.testing.assert_allclose(
                ji.forward(model, PROMPTS, one).logits,
                ji.forward(model, PROMPTS, other).logits, atol=1e-5,
            )  # fmt: skip
    everywhere = ji.forward(model, PROMPTS, D.ablate(), record=("resid_mid",)).activations
    assert abs(D.project(everywhere["resid_mid"])).max() < 1e-5


def test_the_furthest_examples():
    X = np.outer(np.arange(5.0), U.unit.vector)
    texts = list("abcde")
    found = directions.top_examples(U, X, texts, 2)
    assert [text for _, text in found] == ["e", "d"]
    assert found[0][0] == pytest.approx(4, abs=1e-5)


def test_files(tmp_path):
    path = Direction(RNG.normal(size=(3, 8)), "mlp_out", "made").save(tmp_path / "d.npz")
    found = Direction.load(path)
    assert (found.site, found.source, found.vector.shape) == ("mlp_out", "made", (3, 8))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a direction file"):
        Direction.load(path)
    with pytest.raises(FileNotFoundError, match="no direction file"):
        Direction.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Direction(np.zeros(8)), "length 0"),
        (lambda: Direction(np.full(8, np.inf)), "not finite"),
        (lambda: Direction(np.ones((2, 2, 2))), r"expected \[D\]"),
        (lambda: U + Direction(np.ones(7)), "do not belong together"),
        (lambda: U.cosine(Direction(np.ones(8), "mlp_out")), "do not belong together"),
        (lambda: U.project(np.ones((2, 7))), "do not fit"),
        (lambda: directions.from_means(A[0], np.ones(20)), "both 0 and 1"),
        (lambda: directions.from_means(A[0], np.ones(3)), "do not match"),
        (lambda: directions.from_pairs(A[0], B[0][:3]), r"expected \[n D\]"),
        (lambda: directions.from_pairs(A[0], B[0], method="ica"), "'mean' or 'pca'"),
        (lambda: directions.principal(A[0], 9), "k=9"),
        (lambda: directions.top_examples(U, A[0], ["a"]), "1 texts"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()
