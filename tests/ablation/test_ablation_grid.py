"""`ablation_grid`: each way to ablate a set equals the oracle with it done by hand."""

import functools

import jax
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import DIFF, PROMPTS, diff, in_float64, ragged, small_model, with_long

from jaxinterp.ablation.choices import ablation_grid
from jaxinterp.metrics import logit_diff
from jaxinterp.model import as_tokens
from jaxinterp.results import load, save

OTHER = np.array([[7, 1, 7, 1, 5, 9, 2], [4, 5, 3, 11, 8, 10, 7]])
SET = {"z": [(0, 1), (0, 2), (2, 3)], "mlp_out": [1]}
POSITIONS = {"S": [2, 3], "late": [[5, 6], [6, -1]]}
AT = {"all": (range(7), range(7)), "S": ([2], [3]), "late": ([5, 6], [6])}


def run(name="llama", model=None, **options):
    options = {"tokens": PROMPTS, "metric": DIFF, "components": SET, "donors": OTHER, **options}
    return ablation_grid(model or small_model(name), **options)


@functools.cache
def sites_of(name, which):
    ids = {"own": PROMPTS, "donors": OTHER}[which]
    return [sites for _, sites in batch(small_model(name), as_tokens(ids))]


def units(granularity, complement, site, layer):
    """Which heads (or whether all of a layer) are ablated: bool [H], or a bool."""
    if granularity == "component" and site == "z":
        held = np.array([(layer, h) in SET["z"] for h in range(4)])
    elif granularity == "layer" and site == "attn_out":
        held = np.array(layer in (0, 2))
    elif site == "mlp_out":
        held = np.array(layer == 1)
    else:
        return np.array(False)
    return held ^ complement


def expected(name, choice):
    own, donors = (sites_of(name, which) for which in ("own", "donors"))
    level, others = str(choice.granularity.values), str(choice.set.values) == "complement"

    def put(b, site, layer, array):
        value = str(choice.value.values)
        if value == "zero":
            return np.zeros_like(array)
        if value == "mean":
            return np.mean([sites[site][layer] for sites in own], 0)
        return (own if choice.direction == "denoise" else donors)[b][site][layer]

    def edit_of(b):
        def edit(site, layer, array):
            chosen = units(level, others, site, layer)
            if chosen.any():
                new = put(b, site, layer, array)
                for p in AT[str(choice.positions.values)][b]:
                    entry = (p, chosen) if chosen.ndim else p
                    array[entry] = new[entry]
            return array

        return edit

    ids = OTHER if choice.direction == "denoise" else PROMPTS
    return diff(batch(small_model(name), as_tokens(ids), edit_of))


@pytest.mark.parametrize("name", with_long("gpt2", "neox", "gemma2", core=["llama"]))
def test_every_choice_equals_the_oracle(name):
    positions = {"S": POSITIONS["S"]} if name != "llama" else POSITIONS
    levels = ("component", "layer") if name == "llama" else ("component",)
    with jax.enable_x64(True):
        model = in_float64(name)
        result = run(name, model=model, positions=positions, granularities=levels)
    assert result.dims == ("choice", "prompt")
    n = len(levels) * 4 * (1 + len(positions)) * 2  # zero, mean, resample, and resample denoised
    assert result.sizes["choice"] == n
    fields = ["granularity", "value", "positions", "direction", "set"]
    assert len({tuple(str(c[f].values) for f in fields) for c in result}) == n
    for choice in result:
        assert_near(
            choice, expected(name, choice), 1e-6, str([str(choice[f].values) for f in fields])
        )
    for run_, ids in {"clean": PROMPTS, "corrupted": OTHER}.items():
        assert_near(result.coords[run_], diff(batch(small_model(name), as_tokens(ids))), 1e-5)


def test_a_table_and_a_file(tmp_path):
    result = run(granularities=["component"], sets=["components"], record={"task": "none"})
    table = result.mean("prompt").to_dataframe()
    assert list(table["value"]) == ["zero", "mean", "resample", "resample"]
    assert list(table["direction"]) == ["noise", "noise", "noise", "denoise"]
    assert result.attrs["task"] == "none"
    again = load(save(result, tmp_path / "grid.nc"))
    np.testing.assert_array_equal(again, result)
    assert again.coords["set"].values.tolist() == ["components"] * 4


def test_values_by_ones_own_names():
    values = {
        "by position": {"value": "mean"},
        "over positions": {"value": "mean", "by": None},
        "constant": {"value": {"z": np.ones(6), "mlp_out": np.zeros(8)}},
    }
    result = run(values=values, granularities=["component"], sets=["components"], donors=None)
    assert result.coords["value"].values.tolist() == list(values)
    assert "corrupted" not in result.coords
    plain = run(values=["mean"], granularities=["component"], sets=["components"])
    np.testing.assert_allclose(result[0], plain[0], rtol=1e-5)
    assert (np.abs(np.diff(result, axis=0)) > 1e-3).all()


def test_padded_prompts_and_batches():
    tokens = {side: ragged([[3, 1, 4, 1, 5], [6, 5, 3]], side, 6) for side in ("left", "right")}
    donors = {side: ragged([[7, 1, 4, 8, 5], [4, 5, 2]], side, 6) for side in ("left", "right")}
    options = {"granularities": ["component"], "positions": {"end": [4, 2]}, "batch": 1}
    left, right = (
        run(tokens=tokens[side], donors=donors[side], metric=logit_diff([4, 9], [8, 2]), **options)
        for side in tokens
    )
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_levels_that_are_alike_are_left_out():
    result = run(components={"mlp_out": [1]}, values=["zero"], sets=["components"])
    assert result.coords["granularity"].values.tolist() == ["component"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": {}}, "There are no components"),
        ({"components": {"z": [(0, 9)]}}, "head 9 is out of range"),
        ({"granularities": ["edge"]}, "granularities are"),
        ({"directions": ["both"]}, "directions are"),
        ({"sets": []}, "sets are"),
        ({"directions": ["denoise"], "values": ["zero"]}, "No choice is left"),
        ({"positions": {"S": [7, 1]}}, "S reaches outside some prompts"),
        ({"values": {"r": {"value": "resample", "draws": 2}}}, "'r' asks for draws"),
        ({"values": ["median"]}, "value is 'median'"),
        ({"donors": OTHER[:1]}, "2 own and 1 donor prompts"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
