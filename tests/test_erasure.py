"""Erasure: what scikit-learn's probes find afterwards, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_models import PROMPTS, in_float64, sites_of, small_model, with_long

import jaxinterp as ji
from jaxinterp import erasure

N, D = 600, 12


def data(n_classes, seed=0):
    """Correlated activations whose mean depends on the class, in a few directions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, N)
    mix = rng.normal(size=(D, D)) * np.geomspace(0.2, 5, D)
    X = rng.normal(size=(N, D)) @ mix + 2 * rng.normal(size=(n_classes, D))[y] + rng.normal(size=D)
    return X, y


def fresh(X, y):
    """The largest coefficient of a fresh, hardly penalised probe, and its accuracy."""
    X = StandardScaler().fit_transform(X)  # without which its solver stops early
    probe = LogisticRegression(C=1e4, tol=1e-10, max_iter=10_000).fit(X, y)
    return abs(probe.coef_).max(), probe.score(X, y)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_after_leace_a_fresh_probe_finds_nothing(n_classes):
    X, y = data(n_classes)
    eraser = erasure.leace(X, y)
    assert eraser.rank == n_classes - 1
    erased = eraser(X)
    inside = np.asarray(eraser(jnp.asarray(X, jnp.float32)))  # as in a run
    np.testing.assert_allclose(inside, erased, atol=1e-4)
    before, after = fresh(X, y), fresh(erased, y)
    assert before[1] > np.bincount(y).max() / N + 0.2
    assert after[0] < 1e-4
    assert after[1] == pytest.approx(np.bincount(y).max() / N, abs=1e-6)
    np.testing.assert_allclose(erased.mean(0), X.mean(0), atol=1e-4)


def test_leace_changes_least_of_all_maps_that_erase():
    X, y = data(3)

    def change(eraser):
        moved = eraser(X) - X
        return np.square(moved).sum(1).mean()

    least = change(erasure.leace(X, y))
    mean = erasure.mean_eraser(X, y)
    assert fresh(mean(X), y)[0] < 1e-3
    assert least < change(mean) * (1 - 1e-3)


def test_leace_of_numbers_leaves_no_correlation():
    X, y = data(2)
    Z = np.stack([X[:, 0] + X[:, 3] ** 2, y + 0.0], 1)
    eraser = erasure.leace(X, Z)
    erased = eraser(X)
    cross = (erased - erased.mean(0)).T @ (Z - Z.mean(0)) / N
    assert abs(cross).max() < 1e-4
    linear = erasure.leace(X, Z, affine=False)
    assert not np.asarray(linear.centre).any()


def test_where_activations_lie_in_a_subspace():
    X, y = data(2)
    X = np.concatenate([X, X[:, :3] @ np.ones((3, 4))], 1)  # 16 wide, of rank 12
    erased = erasure.leace(X, y)(X)
    assert fresh(erased, y)[0] < 1e-3


def test_inlp_projects_out_what_scikit_learns_probes_use():
    X, y = data(2)
    rounds, penalty = 3, 1e-2
    found = erasure.inlp(X, y, rounds, penalty=penalty)
    basis = np.zeros((D, 0))
    for _ in range(rounds):
        left = X - X @ basis @ basis.T
        scale = left.std(0)
        probe = LogisticRegression(C=1 / (N * penalty), tol=1e-10, max_iter=10_000)
        probe.fit((left - left.mean(0)) / scale, y)
        w = (probe.coef_ / scale).T
        basis = np.linalg.qr(np.concatenate([basis, w - basis @ (basis.T @ w)], 1))[0]
    assert found.rank == rounds
    cosines = np.linalg.svd(np.asarray(found.removed).T @ basis)[1]
    assert cosines.min() > 0.9999
    one = erasure.inlp(X, y, 1, penalty=penalty)
    scores = [fresh(e(X), y)[1] for e in (one, found)]
    assert scores[1] <= scores[0]


def test_projections_and_placebos():
    rng = np.random.default_rng(0)
    V, X = rng.normal(size=(2, D)), rng.normal(size=(5, D)).astype(np.float32)
    erased = np.asarray(erasure.direction_eraser(np.concatenate([V, V[:1]]))(X))
    np.testing.assert_allclose(erased @ V.T, 0, atol=1e-5)
    plain = X - X @ np.linalg.pinv(V) @ V
    np.testing.assert_allclose(erased, plain, atol=1e-5)
    placebo = erasure.random_eraser(D, 3, seed=1)
    assert np.linalg.matrix_rank(X - np.asarray(placebo(X)), tol=1e-4) == 3


@pytest.mark.parametrize("stacked", [False, True])
def test_inside_a_run_it_is_the_same_map(stacked):
    model = small_model("llama")
    rng = np.random.default_rng(0)
    erasers = [erasure.direction_eraser(rng.normal(size=(k, 8))) for k in (1, 2, 1)]
    eraser = erasure.stack(erasers) if stacked else erasers[1]
    edit = ji.apply("resid_mid", eraser, layer=1, position=[2, 5])
    found = ji.forward(model, PROMPTS, edit, record=("resid_mid",)).activations["resid_mid"][1]
    plain = np.asarray(ji.forward(model, PROMPTS, record=("resid_mid",)).activations["resid_mid"])[
        1
    ]
    expected = plain.copy()
    for b, p in enumerate((2, 5)):
        expected[b, p] = erasers[1](plain[b, p])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_projecting_a_direction_out_is_the_edit_of_that_name():
    model, v = small_model("gemma2"), np.random.default_rng(0).normal(size=8).astype(np.float32)
    one = ji.forward(model, PROMPTS, ji.project_out("resid_post", v, layer=0)).logits
    other = ji.forward(
        model, PROMPTS, ji.apply("resid_post", erasure.direction_eraser(v), layer=0)
    ).logits
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_sweep_over_erasers():
    model, rng = small_model("llama"), np.random.default_rng(0)
    erasers = [erasure.direction_eraser(rng.normal(size=8)) for _ in range(3)]
    metric = ji.logit_diff([4, 9], [8, 2])
    grid = ji.apply("resid_post", erasure.stack(erasers), layer=np.array([0, 1, 2]))
    found = ji.sweep(model, PROMPTS, grid, metric)
    for e, eraser in enumerate(erasers):
        edit = ji.apply("resid_post", eraser, layer=e)
        alone = ji.evaluate(metric, model, PROMPTS, edit)
        np.testing.assert_allclose(found[e], alone, atol=1e-5)


@pytest.mark.parametrize(
    "name", with_long("gpt2", "gptj", "qwen3", "attention_only", core=["llama", "neox", "gpt2"])
)
def test_orthogonalized_weights_are_the_ablation_at_run_time(name):
    with jax.enable_x64():
        model = in_float64(name)
        V = np.random.default_rng(0).normal(size=(2, 8))
        eraser = erasure.direction_eraser(V)
        writers = ["embed", "pos_embed", "attn_out", "mlp_out"]
        edits = [ji.apply(site, eraser) for site in writers if site in sites_of(model.config)]
        expected = ji.forward(model, PROMPTS, edits).logits
        found = ji.forward(erasure.orthogonalize(model, V), PROMPTS, record=("resid_post",))
        np.testing.assert_allclose(found.logits, expected, atol=1e-9)
        np.testing.assert_allclose(found.activations["resid_post"] @ V.T, 0, atol=1e-9)
        assert abs(ji.forward(model, PROMPTS).logits - expected).max() > 1e-2
        direction = ji.Direction(V[0])  # which holds float32
        one = erasure.orthogonalize(model, direction)
        stream = set(sites_of(model.config)) & {"resid_pre", "resid_mid", "resid_post"}
        along = [ji.project_out(site, direction.vector) for site in sorted(stream)]
        np.testing.assert_allclose(
            ji.forward(one, PROMPTS).logits, ji.forward(model, PROMPTS, along).logits, atol=1e-9
        )


X4, Y4 = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: erasure.leace(X4, np.zeros(4, int)), "two classes or more"),
        (lambda: erasure.leace(X4, Y4[:3]), "3 labels for 4 examples"),
        (lambda: erasure.leace(np.where(X4 > 1, np.nan, X4 * [1, 1, np.inf]), Y4), "not finite"),
        (lambda: erasure.leace(X4[0], Y4), "expected"),
        (lambda: erasure.leace(X4, np.ones((4, 2))), "constant"),
        (lambda: erasure.inlp(X4, Y4 + 0.5, 1), "needs classes"),
        (lambda: erasure.inlp(X4, Y4, 0), "rounds=0, expected"),
        (lambda: erasure.direction_eraser(np.zeros(3)), "length 0"),
        (lambda: erasure.random_eraser(3, 4), "1 to 3"),
        (lambda: erasure.leace(X4, Y4)(np.ones(4)), "width 3 cannot act on values of width 4"),
        (lambda: erasure.stack([erasure.leace(X4, Y4)])(np.ones(3)), "for each layer"),
        (lambda: ji.project_out("resid_post", np.zeros(8)), "length 0"),
        (lambda: erasure.orthogonalize(small_model("llama"), np.ones(3)), "have width 3"),
        (lambda: erasure.orthogonalize(small_model("llama"), np.zeros(8)), "length 0"),
        (lambda: erasure.orthogonalize(small_model("gemma2"), np.ones(8)), "norm_output"),
        (lambda: erasure.orthogonalize(small_model("bert"), np.ones(8)), "norm_embed"),
    ],
)  # fmt: skip
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_any_shrinkage_erases_and_none_changes_least():
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 2
    X = rng.normal(size=(40, 12)) @ rng.normal(size=(12, 12))
    X = X + np.outer(labels, rng.normal(size=12))
    Z, moved = labels - labels.mean(), {}
    for shrinkage in (0.0, 0.3, 1.0, "optimal"):
        out = np.asarray(erasure.leace(X, labels, shrinkage=shrinkage)(X), np.float64)
        assert np.abs(Z @ out).max() < 1e-4 * np.abs(Z @ X).max()
        moved[shrinkage] = np.square(out - X).sum()
    assert moved[0.0] < moved["optimal"] < moved[1.0]
    # Bodnar et al.'s share, written out with matrices.
    S = np.cov(X.T, bias=True)
    target = np.eye(12) * np.trace(S) / 12
    top = np.trace(S) ** 2 * np.square(target).sum() / 40
    share = top / (np.square(S).sum() * np.square(target).sum() - np.trace(S @ target) ** 2)
    given = erasure.leace(X, labels, shrinkage=share)
    np.testing.assert_allclose(given.removed, erasure.leace(X, labels, shrinkage="optimal").removed)
