"""Comparing approximate with exact patching, and bounding what was not verified."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from small_models import DIFF, OTHER, PROMPTS, small_model

from jaxinterp.attribution import attribute
from jaxinterp.comparison import compare, effects, exact_cells, missed_bound, verify
from jaxinterp.patching import patch

TWINS = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}


def result(values, direction="denoise", base=(1.0, 3.0), **attrs):
    """A sweep [layer, head] whose effects are ``values``, on two prompts that disagree."""
    values = np.asarray(values, float)
    spread = np.array([-0.5, 0.5])
    shape = values.shape
    names = ("layer", "head")[: values.ndim]
    start, other = np.array(base), np.array(base) + 7
    ends = (other, start) if direction == "denoise" else (start, other)
    return xr.DataArray(
        values[..., None] + start + spread,
        {
            **{name: np.arange(n) * 10 for name, n in zip(names, shape, strict=True)},
            "clean": ("prompt", ends[0]),
            "corrupted": ("prompt", ends[1]),
        },
        (*names, "prompt"),
        "logit_diff",
        {"direction": direction, **attrs},
    )


RNG = np.random.default_rng(0)
EXACT = RNG.normal(size=(4, 5)).round(3)
GUESS = EXACT + RNG.normal(size=(4, 5)).round(3)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_effects_are_changes_from_the_unpatched_run(direction):
    np.testing.assert_allclose(effects(result(EXACT, direction)), EXACT, atol=1e-12)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_measures_equal_their_definitions(direction):
    found = compare(result(EXACT, direction), result(GUESS, direction), k=(1, 3, 20), worst=4)
    x, y = EXACT.ravel(), GUESS.ravel()
    np.testing.assert_allclose(found.pearson, stats.pearsonr(x, y)[0])
    np.testing.assert_allclose(found.spearman, stats.spearmanr(x, y)[0])
    np.testing.assert_allclose(found.spearman_size, stats.spearmanr(abs(x), abs(y))[0])
    np.testing.assert_allclose(found.max_error, abs(x - y).max())
    np.testing.assert_allclose(found.median_error, np.median(abs(x - y)))
    assert found.n_cells == 20
    assert found.sign_flips == sum(a * b < 0 for a, b in zip(x, y, strict=True))
    by_size = sorted(range(20), key=lambda i: -abs(x[i]))
    guesses = sorted(range(20), key=lambda i: -abs(y[i]))
    for k, recall, flips in zip((1, 3, 20), found.recall, found.flips_on_top, strict=True):
        assert recall == len(set(by_size[:k]) & set(guesses[:k])) / k
        assert flips == sum(x[i] * y[i] < 0 for i in by_size[:k])
    largest = next(i for i in by_size if x[i] * y[i] < 0)
    assert found.flip_cell == f"layer {largest // 5 * 10}, head {largest % 5 * 10}"
    np.testing.assert_allclose([found.flip_exact, found.flip_approximate], [x[largest], y[largest]])
    worst = sorted(range(20), key=lambda i: -abs(x[i] - y[i]))[:4]
    assert found.worst_layer.values.tolist() == [i // 5 * 10 for i in worst]
    assert found.worst_head.values.tolist() == [i % 5 * 10 for i in worst]
    np.testing.assert_allclose(found.worst_exact, x[worst])
    np.testing.assert_allclose(found.worst_approximate, y[worst])


def test_several_approximations_make_one_table():
    several = {"close": result(EXACT * 0.9), "far": result(-GUESS)}
    found = compare(result(EXACT), several, k=(2,))
    assert found.sizes["approximation"] == 2
    close, far = found.sel(approximation="close"), found.sel(approximation="far")
    np.testing.assert_allclose(close.pearson, 1)
    assert close.recall.item() == 1
    assert close.sign_flips == 0
    assert close.flip_cell == ""
    assert far.sign_flips > 10
    alone = compare(result(EXACT), result(-GUESS), k=(2,))
    assert far.worst_head.values.tolist() == alone.worst_head.values.tolist()
    frame = found.pearson.to_pandas()
    assert list(frame.index) == ["close", "far"]


def test_cells_without_a_number_are_left_out_and_counted():
    holes = GUESS.copy()
    holes[0, :2] = np.nan
    found = compare(result(EXACT), result(holes), k=(18,))
    kept = np.isfinite(holes.ravel())
    np.testing.assert_allclose(
        found.pearson, stats.pearsonr(EXACT.ravel()[kept], GUESS.ravel()[kept])[0]
    )
    assert (found.n_cells, found.n_left_out) == (18, 2)


def test_effects_that_do_not_vary_have_no_correlation():
    found = compare(result(EXACT), result(EXACT * 0 + 2))
    assert np.isnan(found.pearson)
    assert np.isnan(found.spearman)


@pytest.mark.parametrize(
    ("exact", "approximate", "options", "message"),
    [
        (result(EXACT), result(GUESS, "noise"), {}, "direction 'denoise', the approximate"),
        (result(EXACT), result(GUESS[:3]), {}, "grids differ"),
        (result(EXACT), result(GUESS).assign_coords(layer=[0, 1, 2, 3]), {}, "grids differ"),
        (result(EXACT, site="z"), result(GUESS, site="q"), {}, "site 'z', the approximate one 'q'"),
        (result(EXACT), result(GUESS), {"k": (21,)}, "k=21, expected .* from 1 to 20"),
        (result(EXACT), result(GUESS), {"k": (0,)}, "k=0, expected"),
        (result(EXACT), {}, {}, "empty mapping"),
        (result(EXACT).drop_vars("corrupted"), result(GUESS), {}, "no coordinate 'corrupted'"),
    ],
)
def test_results_that_do_not_match_are_an_error(exact, approximate, options, message):
    with pytest.raises(ValueError, match=message):
        compare(exact, approximate, **options)


# ---- what was not verified


def test_the_bound_is_the_largest_number_that_is_not_yet_unlikely():
    def at_most(missed, rest, kinds, drawn):  # counted, not looked up
        from math import comb

        ways = sum(comb(kinds, i) * comb(rest - kinds, drawn - i) for i in range(missed + 1))
        return ways / comb(rest, drawn)

    for rest, drawn, missed in ((30, 10, 0), (30, 10, 2), (50, 49, 1), (7, 3, 3)):
        bound = missed_bound(rest, drawn, missed, 0.9)
        assert at_most(missed, rest, bound, drawn) > 0.1
        if bound < rest - drawn + missed:
            assert at_most(missed, rest, bound + 1, drawn) <= 0.1


def test_the_bound_at_its_ends():
    assert missed_bound(40, 40, 3) == 3  # all were looked at
    assert missed_bound(40, 0, 0) == 40  # none was
    assert missed_bound(0, 0, 0) == 0
    share = missed_bound(1_000_000, 59, 0, 0.95) / 1_000_000
    np.testing.assert_allclose(share, 1 - 0.05 ** (1 / 59), rtol=1e-3)


def test_the_bound_covers_as_often_as_it_says():
    rng, rest, kinds, drawn = np.random.default_rng(1), 60, 9, 20
    hits = rng.hypergeometric(kinds, rest - kinds, drawn, size=2000)
    covered = np.mean([missed_bound(rest, drawn, int(h), 0.8) >= kinds for h in hits])
    assert 0.8 <= covered < 0.95


def test_verification_runs_the_top_and_a_random_sample():
    exact, guess = result(EXACT), result(GUESS)
    seen = []

    def run(cells):
        seen.append(np.array(cells))
        return exact.values.reshape(20, 2)[cells]

    found = verify(run, guess, 12, k=2, top=5, seed=3)
    (cells,) = seen
    assert len(set(cells.tolist())) == 12
    order = np.argsort(-abs(GUESS.ravel()))
    assert cells[:5].tolist() == order[:5].tolist()
    assert found.cell_random.values.tolist() == [False] * 5 + [True] * 7
    np.testing.assert_allclose(found.cell_exact, EXACT.ravel()[cells], atol=1e-12)
    np.testing.assert_allclose(found.cell_approximate, GUESS.ravel()[cells], atol=1e-12)
    assert found.cell_layer.values.tolist() == (cells // 5 * 10).tolist()
    threshold = sorted(abs(EXACT.ravel()[cells[:5]]))[-2]
    np.testing.assert_allclose(found.threshold, threshold)
    drawn = abs(EXACT.ravel()[cells[5:]])
    assert found.n_missed == (drawn > threshold).sum()
    assert found.missed_bound == missed_bound(15, 7, int(found.n_missed))
    np.testing.assert_allclose(found.random_max, drawn.max())
    np.testing.assert_allclose(found.above_random_max, 1 - 0.05 ** (1 / 7))
    same = verify(exact, guess, 12, k=2, top=5, seed=3)
    xr.testing.assert_allclose(found, same)
    other = verify(exact, guess, 12, k=2, top=5, seed=4)
    assert other.cell_layer.values.tolist() != found.cell_layer.values.tolist()


def test_verifying_everything_leaves_nothing_open():
    found = verify(result(EXACT), result(GUESS), 20, k=3, top=4)
    order = np.argsort(-abs(GUESS.ravel()))
    rest = abs(EXACT.ravel())[order[4:]]
    assert found.missed_bound == found.n_missed == (rest > found.threshold.item()).sum()


@pytest.mark.parametrize(
    "options",
    [{"budget": 21}, {"budget": 5, "k": 6}, {"budget": 5, "top": 6}],
)
def test_budgets_out_of_range_are_an_error(options):
    with pytest.raises(ValueError, match="expected 1 <= k <= top <= budget"):
        verify(result(EXACT), result(GUESS), **options)


def test_a_level_is_a_probability():
    with pytest.raises(ValueError, match="level=95"):
        verify(result(EXACT), result(GUESS), 12, k=2, level=95)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("site", "options"),
    [
        ("z", {"over": ("layer", "position", "head"), "heads": [2, 0]}),
        ("blocks.1.hook_resid_mid", {"over": ("layer", "position"), "positions": {"a": [2, 4]}}),
        ("mlp_post", {"over": ("layer", "neuron"), "neurons": 4}),
    ],
)
def test_exact_cells_are_those_of_the_sweep(site, options, direction):
    options = {**TWINS, "site": site, "direction": direction, **options}
    whole = patch(small_model("llama"), **options)
    flat = whole.values.reshape(-1, 2)
    chosen = np.random.default_rng(0).permutation(len(flat))[:5]
    run = exact_cells(small_model("llama"), **options)
    np.testing.assert_allclose(run(chosen), flat[chosen], rtol=1e-5, atol=1e-5)


def test_one_comparison_from_end_to_end():
    options = {**TWINS, "site": "attn_out"}
    model = small_model("gpt2")
    exact = patch(model, **options)
    methods = {method: attribute(model, method=method, **options) for method in ("atp", "ig")}
    found = compare(exact, methods, k=(3,))
    cells = [effects(r).values.ravel().astype(np.float64) for r in (exact, methods["atp"])]
    np.testing.assert_allclose(found.sel(approximation="atp").pearson, stats.pearsonr(*cells)[0])
    assert found.attrs["site"] == "attn_out"
    checked = verify(exact_cells(model, **options), methods["atp"], 12, k=3)
    against = verify(exact, methods["atp"], 12, k=3)
    np.testing.assert_allclose(checked.cell_exact, against.cell_exact, rtol=1e-4, atol=1e-5)
    assert checked.missed_bound == against.missed_bound
