"""`ablate`: every cell equals a run of the oracle with the values put in by hand."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import (
    CONFIGS,
    DIFF,
    OTHER,
    PROMPTS,
    diff,
    ragged,
    sizes_of,
    small_model,
    with_long,
)

from jaxinterp.ablation.fills import deranged
from jaxinterp.ablation.means import mean_activations
from jaxinterp.ablation.sweep import Along, ablate, check_along
from jaxinterp.interventions import Where, project_out
from jaxinterp.metrics import logit_diff
from jaxinterp.model import At, Frame, as_tokens
from jaxinterp.results import load, save
from jaxinterp.stats import effects
from jaxinterp.sweep import Ledger

FAMILIES = with_long("gpt2")
HEADS = {"layer": [0, 2], "head": [0, 3]}
SOME = {"layers": [0, 2], "heads": [0, 3]}
DONORS = np.concatenate([[[7], [4]], OTHER[:, 1:]], axis=1)  # other from the first token on


@functools.cache
def recorded(name, which="own"):
    """The oracle's sites, prompt by prompt."""
    return [sites for _, sites in batch(small_model(name), as_tokens({"own": PROMPTS,
            "other": DONORS}[which]))]  # fmt: skip


def expected(name, site, axes, given, tokens=PROMPTS, score=diff):
    """[*axes, B]: the oracle with ``given(b, layer, array)`` in each cell's part of the site."""
    out = []
    places = list(sizes_of(CONFIGS[name], site, 7))
    for cell in itertools.product(*axes.values()):
        where = dict(zip(axes, cell, strict=True))

        def edit_of(b, where=where):
            def edit(at, layer, array):
                if at != site or where.get("layer", layer) != layer:
                    return array
                own = {a: i[b] if np.ndim(i) == 1 and a == "position" else i
                       for a, i in where.items()}  # fmt: skip
                entry = tuple(own.get(axis, slice(None)) for axis in places)
                array[entry] = given(b, layer, array)[entry]
                return array

            return edit

        out.append(score(batch(small_model(name), as_tokens(tokens), edit_of)))
    return np.array(out).reshape(*map(len, axes.values()), -1)


def zeros(b, layer, array):
    return np.zeros_like(array)


def run(value, name="llama", **options):
    return ablate(
        small_model(name), **{"tokens": PROMPTS, "metric": DIFF, "value": value, **options}
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_every_family_equal_the_oracle(name):
    own, other = recorded(name), recorded(name, "other")

    def mean(b, layer, array):
        return np.mean([sites["z"][layer] for sites in own], 0)

    def resampled(b, layer, array):
        return other[b]["z"][layer]

    assert_near(run("zero", name, **SOME), expected(name, "z", HEADS, zeros), 1e-5)
    assert_near(run("mean", name, **SOME), expected(name, "z", HEADS, mean), 1e-5)
    result = run("resample", name, donors=DONORS, **SOME)
    assert_near(result, expected(name, "z", HEADS, resampled), 1e-5)
    assert_near(result.coords["clean"], diff(batch(small_model(name), as_tokens(PROMPTS))), 1e-5)
    assert np.abs(effects(result)).min() > 1e-4


BLOCKS = list(np.arange(10)[None] // 5 == np.arange(2)[:, None])
SITES = [
    ("resid_post", {"layer": [0, 1], "position": [2, 6]}, {"layers": [0, 1], "positions": [2, 6]}),
    ("k", {"layer": range(3), "head": range(2)}, {}),
    ("mlp_post", {"layer": [1, 2], "neuron": BLOCKS}, {"layers": [1, 2], "neurons": 5}),
    ("attn_out", {"layer": range(3)}, {}),
    ("embed", {"position": [0, 3]}, {"positions": [0, 3]}),
]


@pytest.mark.parametrize(("site", "axes", "options"), SITES, ids=[s[0] for s in SITES])
def test_other_sites_and_granularities(site, axes, options):
    result = run("mean", site=site, over=tuple(axes), by=None, **options)
    assert result.dims == (*axes, "prompt")

    def mean(b, layer, array):
        sites = [s[site] if layer is None else s[site][layer] for s in recorded("llama")]
        return np.broadcast_to(np.mean(sites, (0, 1)), array.shape)  # over prompts and positions

    assert_near(result, expected("llama", site, axes, mean), 1e-5)
    zero = run("zero", site=site, over=tuple(axes), **options)
    assert_near(zero, expected("llama", site, axes, zeros), 1e-5)


LONG = [[3, 1, 4, 1, 5, 2], [6, 5, 3, 8], [2, 9, 7, 7, 1]]
ROLES = {"subject": [1, 2, 1], "end": [5, 3, 4]}
THREE = logit_diff([4, 9, 1], [8, 2, 3])


def score_three(runs):
    pairs = zip(runs, [4, 9, 1], [8, 2, 3], strict=True)
    return np.array([run[0][-1, c] - run[0][-1, w] for run, c, w in pairs])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("value", ["mean", "resample"])
def test_roles_of_prompts_of_unequal_length(value, side):
    tokens = ragged(LONG, side, 7)
    result = run(
        value, tokens=tokens, metric=THREE, site="resid_mid", over=("layer", "position"),
        positions=ROLES, layers=[1], seed=3,
    )  # fmt: skip
    sites = [s for _, s in batch(small_model("llama"), tokens)]
    donor = deranged(np.zeros(3, int), np.random.default_rng(3))
    for role, at in ROLES.items():
        values = np.stack([s["resid_mid"][1, p] for s, p in zip(sites, at, strict=True)])

        def put(b, layer, array, values=values):
            own = values.mean(0) if value == "mean" else values[donor[b]]
            return np.broadcast_to(own, array.shape)

        axes = {"layer": [1], "position": [np.array(at)]}
        reference = expected("llama", "resid_mid", axes, put, tokens, score_three)
        assert_near(result.sel(position=[role]), reference, 1e-5, role)
    assert result.attrs["value"] == value


def test_the_mean_of_each_prompts_group():
    templates, ids = ["a", "b", "a", "b"], np.concatenate([PROMPTS, DONORS])
    metric = logit_diff([4, 9, 4, 9], [8, 2, 8, 2])
    result = run("mean", tokens=ids, metric=metric, by=("auto", templates), layers=[1], heads=[2])
    own = recorded("llama") + recorded("llama", "other")

    def mean(b, layer, array):
        return np.mean([own[i]["z"][layer] for i in (b % 2, b % 2 + 2)], 0)

    def score(runs):
        return np.concatenate([diff(runs[:2]), diff(runs[2:])])

    reference = expected("llama", "z", {"layer": [1], "head": [2]}, mean, ids, score)
    assert_near(result, reference, 1e-5)


def test_means_of_a_corpus():
    model = small_model("llama")
    means = mean_activations(model, [DONORS, DONORS[::-1].copy()], ["z"], by="position")
    result = run("mean", means=means, **SOME)

    def mean(b, layer, array):
        return np.mean([sites["z"][layer] for sites in recorded("llama", "other")], 0)

    assert_near(result, expected("llama", "z", HEADS, mean), 1e-5)
    np.testing.assert_array_equal(result, run("mean", means=means["z"], **SOME))
    assert "means" in result.attrs


def test_arrays_of_ones_own():
    shared = np.random.default_rng(0).normal(size=(4, 6))
    per_prompt = np.random.default_rng(1).normal(size=(3, 2, 7, 4, 6))
    first = expected("llama", "z", HEADS, lambda b, layer, array: array * 0 + shared)
    assert_near(run(shared, **SOME), first, 1e-5)
    second = expected("llama", "z", HEADS, lambda b, layer, array: per_prompt[layer, b])
    assert_near(run(per_prompt, **SOME), second, 1e-5)


DIRECTION = np.random.default_rng(2).normal(size=(3, 4, 6))


def test_nothing_but_a_direction():
    """Zero projects out; a mean replaces the component by the mean's."""
    name = "llama"

    def along(put):
        def given(b, layer, array):
            u = DIRECTION[layer] / np.linalg.norm(DIRECTION[layer], axis=-1, keepdims=True)
            change = put(b, layer, array) - array
            return array + (change * u).sum(-1, keepdims=True) * u

        return given

    def mean(b, layer, array):
        return np.mean([sites["z"][layer] for sites in recorded(name)], 0)

    zero = run("zero", name, direction=DIRECTION, **SOME)
    assert_near(zero, expected(name, "z", HEADS, along(zeros)), 1e-5)
    means = run("mean", name, direction=DIRECTION, **SOME)
    assert_near(means, expected(name, "z", HEADS, along(mean)), 1e-5)


def test_one_direction_is_project_out_and_twice_is_once():
    model, u = small_model("llama"), DIRECTION[0, 0].astype(np.float32)
    positions = as_tokens(PROMPTS).positions
    at = At("z", model.config, jnp.int32(1), Frame(positions), positions)
    value = jnp.asarray(recorded("llama")[0]["z"][:2], jnp.float32)  # [B P H K]
    where = {"layer": np.array(1), "head": np.array(2)}
    along = Along("z", "replace", Where(**where), np.float32(0), u)
    once = along(value, at)
    np.testing.assert_allclose(once, project_out("z", u, **where)(value, at), atol=1e-6)
    np.testing.assert_allclose(along(once, at), once, atol=1e-6)
    assert (once[:, :, [0, 1, 3]] == value[:, :, [0, 1, 3]]).all()
    assert np.abs(once[:, :, 2] @ u).max() < 1e-5 < np.abs(value[:, :, 2] @ u).max()


def test_what_must_change_nothing():
    same = run("resample", donors=PROMPTS)
    assert (same == same.coords["clean"]).all()
    alone = run("mean", tokens=PROMPTS[[0, 0]], **SOME)  # of one prompt, twice
    assert np.abs(effects(alone)).max() < 1e-6
    late = OTHER.copy()
    late[:, :5] = PROMPTS[:, :5]
    axes = {"site": "resid_pre", "over": ("layer", "position"), "layers": [0, 2]}
    result = run("resample", donors=late, positions=[0, 4, 5], **axes)
    assert (result.isel(position=slice(2)) == result.coords["clean"]).all()
    assert (result.isel(position=2, prompt=1) != result.coords["clean"][1]).all()


def test_draws_take_other_prompts_each_time():
    tokens = np.concatenate([PROMPTS, OTHER, PROMPTS[:, ::-1]])
    metric = logit_diff([4, 9] * 3, [8, 2] * 3)
    options = {"tokens": tokens, "metric": metric, "layers": [1], "heads": [0, 2]}
    result = run("resample", draws=3, seed=5, **options)
    assert result.dims == ("layer", "head", "draw", "prompt")
    rng = np.random.default_rng(5)
    for draw in range(3):
        donor = deranged(np.zeros(6, int), rng)
        assert sorted(donor) == list(range(6))
        assert (donor != np.arange(6)).all()
        one = run("resample", donors=tokens[donor], **options)
        np.testing.assert_allclose(result.isel(draw=draw), one, rtol=1e-4, atol=1e-5)
    pool = run("resample", donors=OTHER, draws=2, seed=1, **options)
    ends = [run("resample", donors=OTHER[[i] * 6], **options) for i in (0, 1)]
    for draw, prompt in itertools.product(range(2), range(6)):
        found = pool.isel(draw=draw, prompt=prompt)
        gaps = [np.abs(found - end.isel(prompt=prompt)).max() for end in ends]
        assert min(gaps) < 1e-5
    assert result.attrs["draws"] == 3


def test_donors_have_the_prompts_length():
    kinds = np.array([0, 1, 0, 1, 1, 0])
    for seed in range(5):
        donor = deranged(kinds, np.random.default_rng(seed))
        assert (kinds[donor] == kinds).all()
        assert (donor != np.arange(6)).all()
        assert sorted(donor) == list(range(6))


def test_batches_parts_and_the_ledger(tmp_path):
    done, ledger = [], Ledger()
    whole = run("mean", **SOME)
    parts = run("mean", batch=1, parts=tmp_path, ledger=ledger, on_done=done.append, **SOME)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert done == [4, 4]
    assert ledger.experiments == 8
    assert len(list(tmp_path.glob("*.npz"))) == 2
    again = run("mean", batch=1, parts=tmp_path, ledger=ledger, **SOME)
    assert ledger.experiments == 8  # nothing ran
    np.testing.assert_array_equal(again, parts)
    others = [run("zero", batch=1, parts=tmp_path, **SOME)]
    others.append(run("mean", by=None, batch=1, parts=tmp_path, **SOME))
    others.append(run(np.ones(6), batch=1, parts=tmp_path, **SOME))
    assert all((other != parts).any() for other in others)
    assert len(list(tmp_path.glob("*.npz"))) == 8


def test_labels_claim_and_saving(tmp_path):
    result = run("resample", donors=DONORS, record={"task": "none"}, **SOME)
    assert result.name == "logit_diff"
    wanted = {"site": "z", "intervention": "ablate", "value": "resample", "task": "none"}
    assert {k: result.attrs[k] for k in wanted} == wanted
    assert result.coords["layer"].values.tolist() == [0, 2]
    assert load(save(result, tmp_path / "a.nc")).identical(result)
    again = run("resample", donors=DONORS, record={"task": "none"}, **SOME)
    assert again.attrs == result.attrs


def test_a_second_ablation_of_the_same_shapes_compiles_nothing():
    from jaxinterp.sweep.run import run_chunk

    run("mean", **SOME)
    before = run_chunk.compiled._cache_size()
    run("resample", tokens=DONORS, donors=PROMPTS, **SOME)
    run("zero", layers=[1, 2], heads=[1, 2])
    assert run_chunk.compiled._cache_size() == before


ONE_LONG = ragged([[6, 5, 3], [3, 1, 4, 1]], "right", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "median"}, "value is 'median', expected an array or one of zero, mean"),
        ({"value": "zero", "donors": OTHER}, "donors= is given, but value='zero'"),
        ({"value": "mean", "draws": 2}, "draws= is given, but value='mean'"),
        ({"value": "resample", "by": None}, "by= is given, but value='resample'"),
        ({"value": "zero", "means": {}}, "means= is given, but value='zero'"),
        ({"value": "resample", "draws": 0}, "draws=0, expected"),
        ({"value": "resample", "tokens": ONE_LONG}, "Prompt 0 is the only one of its length"),
        ({"value": "resample", "donors": OTHER[:1]}, "2 own and 1 donor prompts"),
        ({"value": "resample", "donors": OTHER[:, :5]}, "7 tokens own and 5 donor"),
        ({"value": "resample", "donors": OTHER[:, :5], "draws": 1}, "the donors 5: pad them alike"),
        ({"value": "mean", "by": ["a"]}, "by has 1 entries"),
        ({"value": "mean", "means": {"q": 0}}, "take one of 'z'"),
        ({"value": "mean", "means": np.zeros(6)}, "for a bare array use value="),
        ({"value": np.zeros((3, 5, 7, 4, 6))}, "which is not for 2 prompts"),
        ({"value": np.zeros(5)}, "does not broadcast to"),
        ({"value": {"z": np.zeros(6)}}, "expected one array for one site"),
        ({"value": "zero", "direction": np.zeros(6)}, "a vector of length 0"),
        ({"value": "zero", "direction": np.ones(5)}, r"shape \[5\] at 'z', expected \[6\] or"),
        ({"value": "zero", "layers": [3]}, "layer 3 is out of range"),
        ({"value": "zero", "batch": 0}, "batch=0, expected"),
        ({"value": "zero", "tokens": PROMPTS + 20}, "outside the vocabulary"),
        ({"value": "zero", "site": "blocks.1.attn.hook_z", "layers": [0]}, "names layer 1"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_sites_with_sources_have_no_direction_and_no_mean_over_positions():
    with pytest.raises(ValueError, match="a site with vectors"):
        check_along(CONFIGS["llama"], "pattern", np.ones(7))
    with pytest.raises(ValueError, match="mixes sources"):
        run("mean", site="pattern", by=None)


def test_means_of_other_roles_are_an_error():
    means = mean_activations(small_model("llama"), [PROMPTS], ["z"], by={"end": [6, 6]})
    with pytest.raises(ValueError, match=r"of roles \['end'\], the grid's positions are \[\]"):
        run("mean", means=means)
