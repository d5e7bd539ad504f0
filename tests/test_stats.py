"""Intervals, tests and corrections: SciPy, hand calculations, and simulated coverage."""

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from jaxinterp.stats import (
    baseline,
    benjamini_hochberg,
    bootstrap,
    effects,
    holm,
    paired_permutation,
)


def grid(values, dims=("layer", "head", "prompt"), **attrs):
    return xr.DataArray(values, dims=dims, name="logit_diff", attrs=attrs)


SKEWED = grid(np.random.default_rng(0).exponential(size=(3, 4, 12)) ** 2)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("statistic", ["mean", np.median, np.std])
def test_the_bootstrap_is_scipys(method, statistic):
    """The same resamples give the same interval, cell by cell."""
    found = bootstrap(SKEWED, statistic=statistic, method=method, n=500, seed=4, level=0.9)
    assert found.low.dims == ("layer", "head")
    of = np.mean if statistic == "mean" else statistic
    for l, h in itertools.product(range(3), range(4)):
        reference = scipy.stats.bootstrap(
            (SKEWED.values[l, h],), of, n_resamples=500, confidence_level=0.9,
            method={"bca": "BCa"}.get(method, method), vectorized=True,
            rng=np.random.default_rng(4),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose(found.low[l, h], reference.low, rtol=1e-10)
        np.testing.assert_allclose(found.high[l, h], reference.high, rtol=1e-10)
        np.testing.assert_allclose(found.estimate[l, h], of(SKEWED.values[l, h]))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover_as_often_as_they_say(method):
    """2000 experiments of 20 prompts, as the cells of one grid."""
    rng = np.random.default_rng(1)
    normal = grid(rng.normal(0.3, 2.0, (2000, 20)), ("cell", "prompt"))
    found = bootstrap(normal, method=method, level=0.9, n=1000)
    covered = ((found.low <= 0.3) & (found.high >= 0.3)).mean()
    assert 0.85 < covered < 0.91  # bootstraps of few prompts are a little short
    assert ((found.low <= found.estimate) & (found.estimate <= found.high)).all()


def test_bca_covers_skewed_values_better_than_percentiles():
    rng = np.random.default_rng(2)
    skewed = grid(rng.exponential(size=(2000, 15)) ** 1.5, ("cell", "prompt"))
    true = scipy.special.gamma(2.5)
    covered = {}
    for method in ("percentile", "bca"):
        found = bootstrap(skewed, method=method, level=0.9, n=1000)
        covered[method] = float(((found.low <= true) & (found.high >= true)).mean())
    assert 0.75 < covered["percentile"] < covered["bca"] < 0.9


def test_cells_in_parts_and_nan(monkeypatch):
    from jaxinterp import stats

    whole = bootstrap(SKEWED, n=100)
    median = bootstrap(SKEWED, statistic=np.median, n=100)
    monkeypatch.setattr(stats, "HELD", 500)
    np.testing.assert_allclose(bootstrap(SKEWED, n=100).high, whole.high, rtol=1e-12)
    np.testing.assert_array_equal(bootstrap(SKEWED, statistic=np.median, n=100).low, median.low)
    holed = SKEWED.copy()
    holed[1, 2, 5] = np.nan
    found = bootstrap(holed, n=100)
    for name in ("estimate", "low", "high"):
        assert np.isnan(found[name][1, 2])
        assert found[name].isnull().sum() == 1
        np.testing.assert_allclose(found[name][0], whole[name][0], rtol=1e-12)


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap(grid(np.full((2, 7), 0.1), ("cell", "prompt")), n=50)
    np.testing.assert_allclose(found.low, 0.1)
    np.testing.assert_allclose(found.high, 0.1)


def test_labels_and_claim_come_along():
    result = SKEWED.assign_attrs(site="z", direction="noise").assign_coords(
        layer=[3, 4, 5], clean=("prompt", np.arange(12.0))
    )
    found = bootstrap(result, n=10, seed=2)
    assert found.coords["layer"].values.tolist() == [3, 4, 5]
    assert "clean" not in found.coords
    said = {"site": "z", "statistic": "mean", "level": 0.95, "seed": 2, "method": "bca"}
    assert {k: found.attrs[k] for k in said} == said
    over = bootstrap(result, dim="head", n=10)
    assert over.low.dims == ("layer", "prompt")


DIFFERENCES = grid(np.random.default_rng(3).normal(0.4, 1.0, (2, 3, 8)))


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_few_prompts_are_tested_exactly(alternative):
    found = paired_permutation(DIFFERENCES, alternative=alternative)
    assert found.attrs["test"] == "sign flips, exact"
    for l, h in itertools.product(range(2), range(3)):
        d = DIFFERENCES.values[l, h]
        means = [np.mean(d * s) for s in itertools.product([1, -1], repeat=8)]
        far = {
            "two-sided": np.abs(means) >= abs(d.mean()) - 1e-12,
            "greater": np.array(means) >= d.mean() - 1e-12,
            "less": np.array(means) <= d.mean() + 1e-12,
        }
        assert found.p[l, h] == np.mean(far[alternative])
        reference = scipy.stats.permutation_test(
            (d, np.zeros(8)), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True,
            permutation_type="samples", alternative=alternative,
        )  # fmt: skip
        np.testing.assert_allclose(found.p[l, h], reference.pvalue, rtol=1e-12)


def test_many_prompts_are_tested_with_random_flips():
    rng = np.random.default_rng(5)
    values = grid(rng.normal(0.3, 1, (4, 40)), ("cell", "prompt"))
    found = paired_permutation(values, n=4000)
    for cell in range(4):
        reference = scipy.stats.permutation_test(
            (values.values[cell], np.zeros(40)), lambda a, b, axis: np.mean(a - b, axis=axis),
            vectorized=True, permutation_type="samples", n_resamples=4000, rng=rng,
        ).pvalue  # fmt: skip
        spread = np.sqrt(reference * (1 - reference) / 4000)
        assert abs(found.p[cell] - reference) < 6 * spread + 1e-3
    sure = paired_permutation(grid(np.full((1, 40), 2.0), ("cell", "prompt")), n=99)
    assert sure.p[0] == 0.01  # never 0


def test_under_the_null_p_values_are_uniform():
    rng = np.random.default_rng(6)
    for size, n in ((10, 9999), (30, 499)):
        p = paired_permutation(grid(rng.normal(size=(3000, size)), ("cell", "prompt")), n=n).p
        for level in (0.05, 0.25, 0.5):
            share = float((p <= level).mean())
            assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 3000)


def test_pairs_of_results_and_baselines():
    rng = np.random.default_rng(7)
    a = grid(rng.normal(size=(2, 9)), ("cell", "prompt")).assign_coords(
        prompt=np.arange(9), clean=("prompt", rng.normal(size=9))
    )
    b = a + 0.5
    np.testing.assert_array_equal(paired_permutation(a, b).p, 2 / 2**9)
    against = paired_permutation(a, a.coords["clean"])
    np.testing.assert_allclose(against.p, paired_permutation(a - a.coords["clean"]).p)
    with pytest.raises(ValueError, match="not over the same prompts"):
        paired_permutation(a, b.assign_coords(prompt=np.arange(1, 10)))
    holed = a.copy()
    holed[0, 0] = np.nan
    assert np.isnan(paired_permutation(holed).p.values).tolist() == [True, False]


P = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.9]])


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 .9, times 5 4 3 2 1, and never smaller than the one before
    hand = [[0.04, 0.09, np.nan], [0.09, 0.025, 0.9]]
    np.testing.assert_allclose(holm(P), hand)
    labelled = holm(xr.DataArray(P, dims=("layer", "head"), attrs={"test": "t"}))
    assert labelled.dims == ("layer", "head")
    assert labelled.attrs == {"test": "t"}
    np.testing.assert_allclose(labelled, hand)


def test_benjamini_hochberg_is_scipys():
    flat = P[~np.isnan(P)]
    np.testing.assert_allclose(
        benjamini_hochberg(P)[~np.isnan(P)], scipy.stats.false_discovery_control(flat)
    )
    many = np.random.default_rng(8).uniform(size=(20, 30)) ** 2
    np.testing.assert_allclose(
        benjamini_hochberg(many).ravel(), scipy.stats.false_discovery_control(many.ravel())
    )
    assert np.isnan(holm(np.array([np.nan]))).all()


def test_corrections_control_what_they_say():
    """1000 grids of 40 tests, 30 of them true nulls."""
    rng = np.random.default_rng(9)
    strength = np.repeat([0.0, 3.0], [30, 10])
    p = 2 * scipy.stats.norm.sf(np.abs(rng.normal(size=(1000, 40)) + strength))
    wrong, discoveries = np.zeros(1000), np.zeros(1000)
    for i, row in enumerate(p):
        wrong[i] = (holm(row)[:30] <= 0.05).any()
        found = benjamini_hochberg(row) <= 0.1
        discoveries[i] = found[:30].sum() / max(found.sum(), 1)
    assert 0.02 < wrong.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert 0.04 < discoveries.mean() < 0.1


def test_effects_are_from_the_run_that_was_changed():
    values = grid(np.ones((2, 3)), ("cell", "prompt"), direction="denoise").assign_coords(
        clean=("prompt", [5.0, 6, 7]), corrupted=("prompt", [0.0, 1, 2])
    )
    np.testing.assert_array_equal(effects(values)[0], [1, 0, -1])
    noised = values.assign_attrs(direction="noise")
    np.testing.assert_array_equal(effects(noised)[0], [-4, -5, -6])
    assert effects(noised).attrs == noised.attrs
    assert effects(noised).name == "logit_diff"
    ablated = values.drop_vars("corrupted").assign_attrs(direction="")
    np.testing.assert_array_equal(baseline(ablated), [5, 6, 7])
    with pytest.raises(ValueError, match="no coordinate 'corrupted'"):
        effects(ablated.assign_attrs(direction="denoise"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(SKEWED, method="basic"), "method is 'basic'"),
        (lambda: bootstrap(SKEWED, level=95), "level=95, expected .* less than 1"),
        (lambda: bootstrap(SKEWED, statistic="median"), "expected 'mean' or a function"),
        (lambda: bootstrap(SKEWED, dim="draw"), "no dim 'draw' to go over; the result has layer"),
        (lambda: bootstrap(SKEWED[..., :1]), "1 value along 'prompt': a bootstrap needs at least"),
        (lambda: bootstrap(np.ones(3)), "the result has ndarray"),
        (lambda: paired_permutation(SKEWED, alternative="both"), "alternative is 'both'"),
        (lambda: paired_permutation(SKEWED, n=0), "n=0, expected"),
        (lambda: holm([0.5, 1.5]), "run from 0.5 to 1.5, expected 0 to 1"),
        (lambda: benjamini_hochberg([-0.1]), "expected 0 to 1"),
    ],
)
def test_bad_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bca_falls_back_to_percentiles_where_it_is_undefined():
    same = bootstrap(grid(np.full((1, 1, 8), 2.0)), n=100)
    assert same.to_array().values.ravel().tolist() == [2.0, 2.0, 2.0]

    def distinct(x, axis):  # a resample has never as many different values
        return np.apply_along_axis(lambda row: len(np.unique(row)), axis, x)

    values = grid(np.arange(20.0).reshape(1, 1, 20))
    bca, plain = (bootstrap(values, statistic=distinct, n=100, method=m)
                  for m in ("bca", "percentile"))  # fmt: skip
    assert bca.estimate.item() == 20
    assert plain.high.item() < 20
    xr.testing.assert_equal(bca, plain)
