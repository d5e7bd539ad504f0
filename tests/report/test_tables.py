"""The numbers, against plain loops."""

import numpy as np
import pytest
import xarray as xr

from jaxinterp import results
from jaxinterp.report import summarize, summary_table
from jaxinterp.report.tables import arrange, study, visible


def slow_cell(values, clean, corrupted):
    """Share, spread and metric of one cell, prompt by prompt."""
    kept = [
        (v, a, b)
        for v, a, b in zip(values, clean, corrupted, strict=True)
        if np.isfinite([v, a, b]).all()
    ]
    lift = [float(v) - float(b) for v, _, b in kept]
    gap = [float(a) - float(b) for _, a, b in kept]
    metric = sum(float(v) for v, _, _ in kept) / len(kept)
    mean_gap = np.nanmean(np.asarray(clean, float) - np.asarray(corrupted, float))
    return sum(lift) / sum(gap), np.std(lift, ddof=1) / abs(mean_gap), metric


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("broken", [False, True])
def test_summary_is_the_ratio_of_means(sweep, direction, broken):
    result = sweep(("layer", "head"), n=12, direction=direction)
    if broken:
        result[18, 3, 4] = np.nan
        result.coords["clean"][7] = np.nan
    summary = summarize(result, k=20)
    base = 1.0 if direction == "noise" else 0.0
    slow = {
        (layer, head): slow_cell(result.values[layer, head], result.clean, result.corrupted)
        for layer in range(30)
        for head in range(9)
    }
    strongest = sorted(slow, key=lambda at: -abs(slow[at][0] - base))[:6]
    assert [(row["layer"], row["head"]) for row in summary["cells"][:6]] == strongest
    for row in summary["cells"]:
        got = row["share"], row["std"], row["metric"]
        np.testing.assert_allclose(got, slow[row["layer"], row["head"]], rtol=1e-9)
        assert row["low"] < row["share"] < row["high"]
    assert bool(summary["notes"]) == broken


def test_shares_agree_with_the_library(sweep):
    result = sweep(n=5).astype(np.float64)
    np.testing.assert_allclose(
        study(result).share.reshape(30, -1), results.share(result), atol=1e-6
    )


def test_interval_covers_as_a_bootstrap_by_hand_does(sweep):
    result = sweep(("layer", "head"), n=24)
    low, high = study(result, samples=4000).share_interval
    rng = np.random.default_rng(5)
    values, clean, corrupted = result.values[18, 3], result.clean.values, result.corrupted.values
    ratios = []
    for _ in range(4000):
        at = rng.integers(0, 24, 24)
        base = corrupted[at].mean()
        ratios.append((values[at].mean() - base) / (clean[at].mean() - base))
    found = (low.reshape(30, 9)[18, 3], high.reshape(30, 9)[18, 3])
    np.testing.assert_allclose(found, np.percentile(ratios, (2.5, 97.5)), atol=3e-3)


def test_the_same_seed_gives_the_same_summary(sweep):
    result = sweep(n=7)
    assert summarize(result, seed=3) == summarize(result, seed=3)
    assert summarize(result, seed=3) != summarize(result, seed=4)


def test_effects_average_to_the_share(sweep):
    found = study(sweep(("layer", "head"), n=9))
    np.testing.assert_allclose(found.effects.mean(-1), found.share, atol=1e-12)


def test_no_gap_is_said_not_divided(sweep):
    result = sweep(n=6)
    result = result.assign_coords(clean=result.corrupted)
    summary = summarize(result, k=3)
    assert not summary["share_defined"]
    assert "agree" in summary["notes"][0]
    assert all(np.isnan(row["share"]) and np.isnan(row["low"]) for row in summary["cells"])
    assert all(np.isfinite(row["metric_low"]) for row in summary["cells"])
    assert "share" not in summary_table(result).splitlines()[-11]


def test_an_unreliable_gap_is_said(sweep):
    result = sweep(n=8)
    noise = np.random.default_rng(0).normal(size=8)
    summary = summarize(result.assign_coords(clean=("prompt", result.corrupted.values + noise)))
    assert "care" in summary["notes"][0]


def test_one_prompt_has_no_interval(sweep):
    result = sweep(n=1)
    row = summarize(result)["cells"][0]
    assert np.isfinite(row["share"])
    assert np.isnan([row["low"], row["high"], row["std"]]).all()
    assert summary_table(result).splitlines()[-1].split()[-3:-1] == ["-", "-"]


def test_all_nan_is_no_row(sweep):
    result = sweep(n=3) * np.nan
    assert summarize(result)["cells"] == []
    assert "not finite" in summary_table(result)


def test_table_lines_up_and_names_tokens(sweep):
    result = sweep(n=4)
    tokens = ["名字" if t == " to" else t for t in result.position_token.values]
    result = result.assign_coords(position_token=("position", tokens))
    lines = summary_table(result, k=30).splitlines()[4:]
    wide = [len(line) + 2 * line.count("名字") for line in lines]
    assert len(set(wide)) == 1
    assert any("14 名字" in line for line in lines)
    assert any("10 John…" in line for line in lines)


def test_tokens_cannot_command_a_terminal():
    assert visible("\x1b[31mred\r") == "\\x1b[31mred\\x0d"
    assert visible(" a\nb") == "a↵b"
    assert visible("  ") == "␣␣"


def test_axes_find_their_place():
    assert arrange(["layer"]) == (None, "layer", [])
    assert arrange(["layer", "position"]) == ("layer", "position", [])
    assert arrange(["layer", "head", "position"]) == ("layer", "head", ["position"])
    assert arrange(["position", "head"]) == ("position", "head", [])
    five = arrange(["layer", "head", "position", "source"])
    assert five == ("position", "source", ["layer", "head"])


def test_what_is_no_sweep_is_refused(sweep):
    with pytest.raises(ValueError, match="no clean"):
        summarize(xr.DataArray(np.zeros((2, 3)), dims=("layer", "prompt")))
    with pytest.raises(ValueError, match="no prompt"):
        summarize(sweep(n=2).isel(prompt=0))
    with pytest.raises(ValueError, match="no cells"):
        summarize(sweep(n=2).isel(layer=[]))
