"""The parts of the programs that need neither weights nor torch."""

import argparse

import capture
import devices
import jax
import make_peer_env
import numpy as np
import page
import peers
import pytest
import roofline
import scaling
import sweeps

import jaxinterp as ji

TINY = ji.Config(
    n_layers=3, d_model=12, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=7, vocab_size=30, n_ctx=8
)


@pytest.fixture(scope="module")
def model():
    return ji.init(TINY, jax.random.key(0))


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    clean = rng.integers(30, size=(2, 6))
    corrupted = clean.copy()
    corrupted[0, 2:] = (clean[0, 2:] + 1) % 30
    corrupted[1, 5:] = (clean[1, 5:] + 1) % 30
    answers, wrong = np.array([1, 2]), np.array([3, 4])
    return ji.Task(
        name="x", clean=ji.model.as_tokens(clean), corrupted=ji.model.as_tokens(corrupted),
        metric=ji.logit_diff(answers, wrong), answers=answers, wrong=wrong, roles={},
        clean_text=("a", "b"), corrupted_text=("c", "d"), corruption="symmetric",
    )  # fmt: skip


def test_the_bound_is_that_of_each_prompt_from_its_first_difference(model, task):
    args = (model, task.clean, task.corrupted, task.metric)
    residual = [roofline.residual_bound(TINY, 6, first) for first in (2, 5)]
    heads = [roofline.head_bound(TINY, 6, first) for first in (2, 5)]
    assert roofline.sweep_bound(*args, "resid_pre", ("layer", "position")) == sum(residual)
    assert roofline.sweep_bound(*args, "z", ("layer", "head")) == sum(heads)


@pytest.mark.parametrize("site", peers.SITES)
def test_cases_run_and_do_at_least_their_bound(model, task, site):
    case, ledger = sweeps.Case(model, task, site), ji.Ledger()
    values = case.ours(ledger)
    heads = 2 if site in ("k", "v") else 4
    places = {"resid_pre": (6,), "z_pos": (4, 6)}.get(site, (heads,))
    assert values.shape == (3, *places, 2)
    assert 0 < case.bound() <= ledger.cost.operations
    assert case.layer_positions() == np.prod(places) * 6 * 2
    assert case.hook_loop() == roofline.hook_loop(TINY, 6, 3 * np.prod(places) * 2)
    assert 2 <= sweeps.layers_timed(case, 0) <= sweeps.layers_timed(case, 10**9) == 3


def test_rows_have_the_columns_of_their_table(model, task):
    args = argparse.Namespace(rounds=1, loop_positions=1, hook_positions=1)
    case = sweeps.Case(model, task, "z")
    measured = sweeps.measure(case, {}, args)
    assert len(sweeps.row(case, measured)) == len(sweeps.HEAD)


def test_tables_are_markdown(tmp_path):
    page.write(tmp_path / "new", "x.md", "Title", page.table(("a", "b"), [("1", "2")]))
    expected = "# Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert (tmp_path / "new" / "x.md").read_text() == expected


def test_recording_asks_for_sites_that_exist(model):
    lists = capture.site_lists(TINY)
    assert set(lists["its sites"]) < set(lists["every site"]) < set(ji.SITES)
    found = capture.record(model, np.arange(5)[None], lists["every site"])
    assert set(found) == set(lists["every site"])
    assert capture.peer_names("transformer_lens", 1)["z"] == "blocks.1.attn.hook_z"
    assert capture.peer_names("torch_hooks", 1)["resid_post"] == "model.layers.1"


def test_generations_may_part_at_a_near_tie_only(model):
    ids = np.arange(4)[None]
    new = np.asarray(ji.generate(model, ids, 3).new)
    assert capture.agreement(model, ids, new, new, ()) == "1 of 1 rows equal"
    other = new.copy()
    other[0, 1] = (new[0, 1] + 1) % 30
    with pytest.raises(SystemExit, match="parts at token 1"):
        capture.agreement(model, ids, new, other, ())


def test_generation_rows_have_the_columns_of_their_table(model):
    for steered in (False, True):
        row = capture.generation_row(model, np.arange(4)[None], steered, 3, None, 1)
        assert len(row) == len(capture.GENERATE_HEAD)


def test_exponents_are_slopes():
    sizes = [2, 4, 8]
    assert scaling.exponent(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)


def test_scaling_writes_rows_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    points = [scaling.Measured(n, 0.1 * n, n**2) for n in (1, 2, 4)]
    found = {axis: dict.fromkeys(scaling.SWEEPS, points) for axis in scaling.AXES}
    rows = scaling.rows(found, 1e3)
    assert all(len(row) == len(scaling.HEAD) for row in rows)
    assert rows[0][5:7] == ["1.00", "2.00"]
    scaling.draw(found, 1e3, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_scaled_prompts_differ_from_the_first_token_on():
    request = scaling.Point(tokens=5, prompts=3).request()
    assert (request["clean"] != request["corrupted"]).all()


def test_errors_are_in_units_of_each_prompts_gap(model, task):
    values, gap = devices.run(model, task)
    assert values.shape == (3, 6, 2)
    assert (gap > 0).all()
    largest, mean = devices.errors(values + 0.5 * gap, values, gap)
    assert (largest, mean) == pytest.approx((0.5, 0.5))


def test_every_device_row_says_how_far_it_is_off(model, task):
    rows = devices.device_rows(task, model, 1)
    assert rows[0][2] == "0e+00"
    assert all(float(row[2]) < 1e-4 for row in rows)


def test_environments_install_torch_first():
    for peer in make_peer_env.PEERS:
        first, *rest = make_peer_env.steps(peer)
        assert first == ("torch==2.13.0",)
        assert any(package.startswith(peer) for step in rest for package in step)
