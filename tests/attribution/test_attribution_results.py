"""`attribute` and `interactions`: labels, the claim, batches, and clear errors."""

import numpy as np
import pytest
import slow_patching as slow
from small_models import CORRECT, DIFF, WRONG, ragged, small_model

from jaxinterp.attribution import attribute, interactions, run
from jaxinterp.metrics import logit_diff
from jaxinterp.model import as_tokens
from jaxinterp.patching import patch
from jaxinterp.results import load, save, share

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED


def attributed(name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return attribute(small_model(name), **options)


def patched(name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return patch(small_model(name), **options)


def change(result):
    """The attribution alone."""
    base = "clean" if result.attrs["direction"] == "noise" else "corrupted"
    return result - result.coords[base]


GRIDS = [
    ("blocks.1.attn.hook_z", ("position", "head", "layer"), {"heads": [3, 1]}, "denoise"),
    ("mlp_post", ("layer", "neuron"), {"neurons": 4}, "noise"),
    ("pattern", ("head", "position", "source"), {"positions": [5, 3]}, "noise"),
    ("q", ("layer", "position"), {"positions": {"a": [2, 3], "end": [6, 6]}}, "denoise"),
]


@pytest.mark.parametrize(("site", "over", "chosen", "direction"), GRIDS, ids=[g[0] for g in GRIDS])
def test_results_are_labelled_as_those_of_patch(site, over, chosen, direction):
    options = {"site": site, "over": over, "direction": direction, "record": {"task": "none"}}
    ours, exact = attributed(**options, **chosen), patched(**options, **chosen)
    assert ours.dims == exact.dims
    assert ours.name == exact.name
    assert set(ours.coords) == set(exact.coords)
    for name in exact.coords:
        if name in ("clean", "corrupted"):
            np.testing.assert_allclose(ours.coords[name], exact.coords[name], atol=1e-5)
        else:
            assert ours.coords[name].values.tolist() == exact.coords[name].values.tolist()
    same = {key: value for key, value in ours.attrs.items() if key != "method"}
    assert same == exact.attrs
    assert ours.attrs["method"] == "atp"


def test_shares_and_files_work(tmp_path):
    result = attributed(site="resid_post", layers=[2])
    assert share(result).dims == ("layer", "position")
    assert load(save(result, tmp_path / "a.nc")).identical(result)


@pytest.mark.parametrize("method", ["atp", "atp*", "ig", "relp"])
def test_cells_before_the_first_difference_are_the_baseline_exactly(method):
    result = attributed(site="q" if method == "atp*" else "attn_out", method=method, steps=2)
    for prompt, first in enumerate([2, 3]):
        before = result.isel(prompt=prompt, position=slice(0, first))
        assert (before == result.coords["corrupted"][prompt]).all()


def test_roles_take_each_prompts_own_position():
    whole = attributed(site="attn_out")
    roles = {"a": [2, 3], "end": [6, 5]}
    some = attributed(site="attn_out", positions=roles)
    for role, places in roles.items():
        for prompt, place in enumerate(places):
            np.testing.assert_allclose(
                some.sel(position=role, prompt=prompt),
                whole.sel(position=place, prompt=prompt), rtol=1e-5,
            )  # fmt: skip


@pytest.mark.parametrize("method", ["atp*", "ig"])
def test_padding_moves_nothing(method):
    clean, corrupted = [[3, 1, 4, 1, 5], [6, 5, 3]], [[3, 7, 4, 1, 5], [6, 11, 3]]
    roles = {"subject": [1, 1], "end": [4, 2]}
    found = [
        attributed(
            clean=ragged(clean, side, length), corrupted=ragged(corrupted, side, length),
            positions=roles, site="k", method=method, steps=3,
        )
        for side, length in (("left", 6), ("right", 6))
    ]  # fmt: skip
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_batches_of_prompts_change_nothing():
    done = []
    result = attributed(batch=1, on_done=done.append)
    assert done == [21, 21]
    np.testing.assert_allclose(result, attributed(), rtol=1e-4, atol=1e-5)


def test_a_second_call_of_the_same_shapes_compiles_nothing():
    attributed(site="z", over=("layer", "head"), heads=[0, 1])
    before = run._predicted.compiled._cache_size()
    attributed(
        site="z", over=("layer", "head"), heads=[2, 3], clean=CORRUPTED, corrupted=CLEAN,
        metric=logit_diff(WRONG, CORRECT),
    )  # fmt: skip
    assert run._predicted.compiled._cache_size() == before


def test_runs_that_agree_have_zero_attribution_and_no_error():
    result = attributed(corrupted=CLEAN)
    assert (result == result.coords["corrupted"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "atp2"}, "method is 'atp2', expected one of atp"),
        ({"method": "ig", "over": ("position",)}, "add 'layer' to over"),
        ({"method": "ig", "steps": 0}, "steps=0"),
        ({"method": "relp", "rules": ("norms",)}, "'norms' is not a rule"),
        ({"method": "relp", "rules": ("attention",), "site": "q"}, "holds the pattern"),
        ({"method": "relp", "site": "q_input"}, "no coefficients at 'q_input'"),
        ({"direction": "up"}, "'up', expected 'denoise'"),
        ({"batch": 0}, "batch=0"),
        ({"clean": CLEAN[:1]}, "1 clean and 2 corrupted"),
        ({"site": "blocks.1.hook_resid_pre", "layers": [2]}, "names layer 1"),
        ({"heads": [0]}, "does not sweep the head axis"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        attributed(**options)


def test_a_metric_of_other_tokens_is_an_error():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        attributed(metric=logit_diff([40, 40], WRONG))


def test_interactions_are_labelled():
    result = interactions(
        small_model("llama"), clean=CLEAN, corrupted=CORRUPTED, metric=DIFF, site="z",
        layers=[0, 2], heads=[1, 3],
    )  # fmt: skip
    assert result.dims == ("layer", "head", "other_layer", "other_head", "prompt")
    assert result.coords["other_layer"].values.tolist() == [0, 2]
    assert result.attrs["method"] == "interactions"
    np.testing.assert_allclose(
        result, result.transpose("other_layer", "other_head", "layer", "head", "prompt"),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip
    exact = patched(site="z", over=("layer", "head"))
    for end in ("clean", "corrupted"):
        np.testing.assert_allclose(result.coords[end], exact.coords[end], rtol=1e-5)


def test_tokens_may_come_as_tokens():
    same = attributed(clean=as_tokens(CLEAN), corrupted=as_tokens(CORRUPTED))
    np.testing.assert_array_equal(same, attributed())
