"""How a sweep is batched never shows: chunks, padding, companions, and donors not asked for."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import oracle
import pytest
from oracle import assert_near
from small_models import (
    CONFIGS,
    DIFF,
    OTHER,
    PROMPTS,
    donor,
    ragged,
    small_model,
)

from jaxinterp.interventions import Shared, product, replace, zero
from jaxinterp.metrics import log_prob, logit_diff
from jaxinterp.model import SITES, compiled, forward
from jaxinterp.sweep import base as observing
from jaxinterp.sweep import plan, run, schedule, steps, sweep, walk


def residual_grid(name, positions):
    cells = product(layer=range(CONFIGS[name].n_layers), position=positions)
    return replace("resid_pre", Shared(donor(name)["resid_pre"]), **cells)


@pytest.fixture(params=["quick", "optimized"])
def compiler(request):
    """Tiny models compile quickly without optimizations, but what users run has them."""
    jax.config.update("jax_disable_most_optimizations", request.param == "quick")
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.mark.usefixtures("compiler")
def test_chunk_size_changes_no_bit(monkeypatch):
    monkeypatch.setattr(steps, "ROWS", 16)  # few lanes, so that chunks can be small
    model, grid = small_model("gemma2"), residual_grid("gemma2", positions=(3, 4))
    whole = sweep(model, PROMPTS, grid, DIFF)
    for options, calls in (
        ({"chunk": 1}, [2, 2, 2]),
        ({"chunk": 3}, [4, 2]),
        ({"memory": 1}, [2, 2, 2]),
    ):
        done = []
        small = sweep(model, PROMPTS, grid, DIFF, on_chunk=done.append, **options)
        np.testing.assert_array_equal(small, whole)
        assert done == calls


@pytest.mark.parametrize("room", [3, 1])
def test_out_of_memory_goes_on_with_smaller_chunks(room, monkeypatch):
    model, grid = small_model("gemma2"), residual_grid("gemma2", positions=(3, 4))
    whole, done, original = sweep(model, PROMPTS, grid, DIFF), [], run.run_chunk

    def crowded(*args, **options):
        if len(args[5]) > room:  # starts: one per lane
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return original(*args, **options)

    monkeypatch.setattr(run, "run_chunk", crowded)
    with pytest.warns(UserWarning, match="Out of memory with"):
        small = sweep(model, PROMPTS, grid, DIFF, on_chunk=done.append)
    np.testing.assert_allclose(small, whole, rtol=1e-5, atol=1e-6)
    assert sum(done) == 6
    assert max(done) <= room


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_other_failures_and_too_little_memory_for_one_are_errors(monkeypatch):
    model, grid = small_model("gemma2"), residual_grid("gemma2", positions=(3, 4))
    for message in ("RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: something else"):

        def fails(*args, message=message, **options):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(run, "run_chunk", fails)
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            sweep(model, PROMPTS, grid, DIFF)


def test_a_given_base_changes_no_bit():
    model, grid = small_model("gemma2"), residual_grid("gemma2", positions=(3, 4))
    base, _ = run.observe(model, PROMPTS_AS_TOKENS, DIFF)
    np.testing.assert_array_equal(
        sweep(model, PROMPTS, grid, DIFF, base=base), sweep(model, PROMPTS, grid, DIFF)
    )


def test_observe_records_what_forward_records():
    model = small_model("gemma2")
    sites = ("embed", "z", "pattern", "ln_final_normalized")
    _, recorded = run.observe(model, PROMPTS_AS_TOKENS, DIFF, record=sites)
    expected = forward(model, PROMPTS, record=sites).activations
    for site in sites:
        assert_near(recorded[site], expected[site], 1e-6, site)


PROMPTS_AS_TOKENS = ragged(PROMPTS.tolist(), "right", 7)
UNEQUAL = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5], [8, 9, 7, 9, 3]]
TWINS = [[3, 7, 4, 1, 5, 9, 2], [6, 11, 3, 5], [8, 2, 7, 9, 3]]
ROLES = np.array([[1, 1, 1], [4, 2, 3], [6, 3, 4]])  # [role, prompt]
ANSWERS, OTHERS = [4, 9, 0], [8, 2, 6]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "site"), [("gemma2", "resid_pre"), ("bert", "v")])
def test_roles_in_prompts_of_unequal_length_equal_each_prompt_alone(name, site, side):
    model = small_model(name)
    tokens, twins = ragged(UNEQUAL, side, 8), ragged(TWINS, side, 8)
    values = forward(model, twins, record=[site]).activations[site]
    cells = product(layer=range(3), role=range(len(ROLES)))
    grid = replace(site, Shared(values), layer=cells["layer"], position=ROLES[cells["role"]])
    together = sweep(model, tokens, grid, logit_diff(ANSWERS, OTHERS))
    for b, (prompt, twin) in enumerate(zip(UNEQUAL, TWINS, strict=True)):  # alone, unpadded
        given = oracle.forward(model, twin)[1][site]
        for e, (layer, role) in enumerate(zip(*cells.values(), strict=True)):
            where = (layer, ROLES[role, b])

            def edit(at, at_layer, array, where=where, given=given):
                if (at, at_layer) == (site, where[0]):
                    array[where[1]] = given[where]
                return array

            logits = oracle.forward(model, prompt, edit=edit)[0][-1]
            alone = logits[ANSWERS[b]] - logits[OTHERS[b]]
            np.testing.assert_allclose(together[e, b], alone, rtol=1e-4, atol=1e-4)
    assert (np.ptp(together, axis=0) > 1e-2).all()


@hypothesis.given(companions=st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=8),
                                      min_size=2, max_size=2),
                  side=st.sampled_from(["left", "right"]), row=st.integers(0, 2))  # fmt: skip
def test_companions_in_a_batch_change_nothing(companions, side, row):
    model, prompts = small_model("llama"), list(companions)
    prompts.insert(row, UNEQUAL[0])
    grid = zero("attn_out", layer=np.arange(3), position=np.zeros(3, int))
    together = sweep(model, ragged(prompts, side, 8), grid, log_prob([4, 4, 4]))
    alone = zero_attn_out_alone()
    np.testing.assert_allclose(together[:, row], alone, rtol=1e-4)


@functools.cache
def zero_attn_out_alone():
    """[layer]: log-probability of token 4 after the first of `UNEQUAL`, from the oracle."""
    out = []
    for zeroed in range(3):

        def edit(site, layer, array, zeroed=zeroed):
            if (site, layer) == ("attn_out", zeroed):
                array[0] = 0
            return array

        logits = oracle.forward(small_model("llama"), UNEQUAL[0], edit=edit)[0][-1]
        out.append(np.log(oracle.softmax(logits))[4])
    return np.array(out)


@hypothesis.settings(max_examples=10)
@hypothesis.given(layer=st.integers(0, 2), position=st.integers(0, 6), head=st.integers(0, 1),
                  site=st.sampled_from(["resid_pre", "k"]))  # fmt: skip
def test_nan_in_what_is_not_asked_for_never_leaks(layer, position, head, site):
    model, values = small_model("llama"), donor("llama")[site]
    where = {"layer": layer, "position": position, "head": head}
    where = {axis: where[axis] for axis in ("layer", *SITES[site].axes) if axis in where}
    kept = np.full_like(values, np.nan)
    entry = (layer, slice(None), position) + ((head,) if site == "k" else ())
    kept[entry] = values[entry]
    indices = {axis: np.array([index]) for axis, index in where.items()}
    clean = sweep(model, PROMPTS, replace(site, Shared(values), **indices), DIFF)
    dirty = sweep(model, PROMPTS, replace(site, Shared(kept), **indices), DIFF)
    np.testing.assert_array_equal(dirty, clean)
    assert np.isfinite(dirty).all()


def test_nan_in_one_experiment_stays_there():
    model = small_model("llama")
    values = np.stack([donor("llama")["resid_pre"][1], np.full((2, 7, 8), np.nan)])
    out = sweep(model, PROMPTS, replace("resid_pre", values, layer=np.array([1, 1])), DIFF)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def cache_size():
    return walk.run_chunk.compiled._cache_size(), observing.observed.compiled._cache_size()


def test_one_program_per_grid_and_no_more(monkeypatch):
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(run.run_chunk.__wrapped__, n=1)
    monkeypatch.setattr(
        run, "run_chunk", compiled.jit(counted, static=("width", "prefix", "lanes"))
    )
    model, rng = small_model("llama"), np.random.default_rng(0)
    values = forward(model, OTHER, record=["attn_out"]).activations["attn_out"]
    cells = product(layer=range(3), position=range(7))
    sweep(model, PROMPTS, replace("attn_out", Shared(values), **cells), DIFF)
    observed = cache_size()[1]
    # Another order of cells, donor, prompts and answers, of the same shapes.
    order = rng.permutation(21)
    shuffled = {axis: index[order] for axis, index in cells.items()}
    grid = replace("attn_out", Shared(values * 2 + 1), **shuffled)
    sweep(model, OTHER, grid, logit_diff([1, 2], [3, 5]))
    assert cache_size()[1] == observed
    with pytest.raises(AssertionError, match="traced"):
        sweep(model, PROMPTS[:1], zero("attn_out", layer=np.arange(3)), logit_diff([1], [3]))


def test_another_layer_position_or_head_compiles_nothing():
    model, values = small_model("llama"), donor("llama")["z"]

    def effect(layer, position, head):
        where = {"layer": layer, "position": position, "head": head}
        grid = replace("z", Shared(values), **{a: np.array([i]) for a, i in where.items()})
        return sweep(model, PROMPTS, grid, DIFF)

    first = effect(0, 2, 3)
    before = cache_size()
    others = [effect(2, 2, 3), effect(0, 1, 3), effect(0, 2, 0)]  # all of one bucket
    assert cache_size() == before
    assert all((other != first).any() for other in others)


@hypothesis.given(length=st.integers(1, 300), part=st.floats(0, 1), k=st.integers(1, 4),
                  n=st.sampled_from([1, 1000]))  # fmt: skip
def test_widths_hold_every_suffix_and_are_at_most_four(length, part, k, n):
    longest = max(1, round(part * length))
    widths = steps.widths(length, longest, k, n)
    assert 1 <= len(widths) <= k
    assert (np.diff(widths) > 0).all()
    assert widths[0] >= 1
    assert longest <= widths[-1] <= length
    if n > steps.SMALL and length <= 16:
        assert widths[-1] == longest


def test_prompts_of_one_shape_share_a_ladder_of_widths():
    found = [steps.widths(128, n, 4, 1000) for n in range(1, 129)]
    assert len(np.unique(np.concatenate(found))) == 16


@hypothesis.given(cells=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1),
                  places=st.integers(1, 2))  # fmt: skip
def test_every_experiment_has_one_place_in_a_lane_of_its_layer(cells, places):
    held, starts = np.array(cells).T
    lanes = steps.pack(held, starts, 9, places)
    real = lanes >= 0
    assert sorted(lanes[real].tolist()) == list(range(len(cells)))
    assert real[:, 0].all()
    assert (np.where(real, held[lanes], 0).sum(-1) <= 9).all()
    assert (starts[lanes] == starts[lanes[:, :1]])[real].all()
    assert (np.diff(starts[lanes[:, 0]]) >= 0).all()


def test_a_whole_grid_of_positions_fills_its_lanes():
    cells = product(layer=range(5), position=range(12))
    lanes = steps.pack(12 - cells["position"], cells["layer"], 12, 2)
    held = np.where(lanes < 0, 0, 12 - cells["position"][lanes]).sum(-1)
    assert len(lanes) == 5 * 7
    assert (held == 12).sum() == 5 * 6  # and one lane a layer is half full


@hypothesis.given(active=st.lists(st.integers(0, 400), min_size=1, max_size=12),
                  rows=st.integers(1, 600))  # fmt: skip
def test_steps_hold_all_lanes_and_stay_small(active, rows):
    lanes, cost = steps.best_lanes(np.sort(active), rows)
    assert lanes == 1 or lanes * rows <= steps.ROWS
    full, half = steps.steps_of(np.array(active), lanes)
    assert (full * lanes + half * (lanes // 2) >= active).all()
    assert cost >= rows * sum(active)


def test_experiments_that_share_a_lane_are_blind_to_each_other(monkeypatch):
    """NaN in one member of every pair leaves the other as it is when alone."""
    model, values = small_model("llama"), donor("llama")["attn_out"]
    cells = product(layer=range(3), position=range(7))
    grid = replace("attn_out", Shared(values), **cells)
    (group,) = plan(model, PROMPTS, grid, DIFF).groups
    assert group.members.shape[1] == 2
    first, second = group.members[(group.members >= 0).all(-1)].T
    assert len(second) == 9
    together = sweep(model, PROMPTS, grid, DIFF)
    for spoilt, kept in ((first, second), (second, first)):
        each = np.asarray(values)[cells["layer"]]
        each[spoilt] = np.nan
        found = sweep(model, PROMPTS, replace("attn_out", each, **cells), DIFF)
        np.testing.assert_allclose(found[kept], together[kept], rtol=1e-5, atol=1e-6)
        felt = (cells["layer"] < 2) | (cells["position"] == 6)  # the last layer is read at the end
        np.testing.assert_array_equal(np.isnan(found[spoilt]).all(-1), felt[spoilt])
    monkeypatch.setattr(schedule, "PLACES", 1)
    alone = sweep(model, PROMPTS, grid, DIFF)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
