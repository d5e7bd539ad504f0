"""Distributed alignment search finds the subspace in which a model holds a variable."""

import functools

import numpy as np
import pytest
from small_models import DIFF, OTHER, PROMPTS, small_model
from two_codes import MODEL, PLANES, task_of

from jaxinterp.interchange import (
    principal_angles,
    replace_component,
    sweep_das,
    train_das,
)
from jaxinterp.metrics import evaluate, log_prob
from jaxinterp.model import forward
from jaxinterp.results import load, save


@functools.cache
def found_plane():
    """A search for ``left`` where the first layer has written it, and the steps it reported."""
    steps = []
    found = train_das(
        MODEL, site="resid_pre", layer=1, position=2, rank=2, **task_of("left").arguments,
        on_step=lambda step, loss: steps.append(step),
    )  # fmt: skip
    return found, steps


def test_the_search_finds_the_plane():
    (found, steps), task = found_plane(), task_of("left")
    assert found.accuracy == 1
    assert found.basis.shape == (24, 2)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(2), atol=1e-5)
    assert np.degrees(principal_angles(found.basis, PLANES["left"])).max() < 15
    assert np.degrees(principal_angles(found.basis, PLANES["right"])).min() > 80
    assert steps == list(range(300))
    assert found.losses[-10:].mean() < 0.05 < found.losses[0]
    assert len(found.result) == 24  # a quarter is held out
    edit = found.interchange(MODEL, task.source)
    top = forward(MODEL, task.base, edit).logits[:, -1].argmax(-1)
    np.testing.assert_array_equal(top, task.labels)


@pytest.mark.parametrize(
    ("variable", "rank", "planes"),
    [("high", 1, ["left"]), ("left", 2, ["left"]), (("left", "right"), 4, ["left", "right"])],
)
def test_boundless_search_finds_the_number_of_directions(variable, rank, planes):
    task = task_of(variable)
    found = train_das(MODEL, layer=0, position=2, rank="boundless", **task.arguments)
    assert found.rank == rank
    assert found.accuracy == 1
    inside = np.hstack([PLANES[name] for name in planes])
    assert np.degrees(principal_angles(found.basis, inside)).max() < 15


def test_a_sweep_finds_where_the_variable_is_and_agrees_with_single_searches():
    task = task_of("left")
    done = []
    accuracy, basis = sweep_das(
        MODEL, site="resid_pre", rank=2, on_done=done.append, **task.arguments
    )
    assert accuracy.dims == ("layer", "position", "prompt")
    assert basis.dims == ("layer", "position", "d_model", "direction")
    assert sum(done) == 6
    mean, unchanged = accuracy.mean("prompt"), float(accuracy.coords["base"].mean())
    holds = np.zeros((2, 3), bool)
    holds[0, 0] = holds[1, 2] = True  # the token itself, and what the head wrote
    assert (mean.values[holds] == 1).all()
    assert (mean.values[~holds] <= unchanged).all()
    assert accuracy.coords["full"].mean("prompt").values[0, 0] == 1
    one, _ = found_plane()
    np.testing.assert_array_equal(one.result.coords["prompt"], accuracy.coords["prompt"])
    np.testing.assert_array_equal(one.result, accuracy[1, 2])
    np.testing.assert_array_equal(one.result.coords["full"], accuracy.coords["full"][1, 2])
    assert principal_angles(one.basis, basis[1, 2].values).max() < 1e-2


def test_a_sweep_over_heads_and_roles_in_small_memory():
    task = task_of("left", roles=lambda inputs: {"END": 2})
    options = {
        "site": "z", "over": ("layer", "head", "position"), "layers": [0], "rank": 2, "steps": 60,
        "positions": task.base_roles, "source_positions": task.source_roles, **task.arguments,
    }  # fmt: skip
    whole, bases = sweep_das(MODEL, memory=1, **options)  # cell by cell
    assert whole.dims == ("layer", "head", "position", "prompt")
    assert whole.coords["position"].values.tolist() == ["END"]
    assert bases.dims[-2:] == ("d_head", "direction")
    assert (whole.sel(head=0) == 1).all()
    assert whole.sel(head=1).mean() <= whole.coords["base"].mean()


def test_a_boundless_sweep_gives_each_cell_its_rank():
    task = task_of("high")
    accuracy, basis = sweep_das(
        MODEL, rank="boundless", layers=[0], positions=[2], **task.arguments
    )
    assert accuracy.coords["rank"].values.tolist() == [[1]]
    assert (accuracy == 1).all()
    assert (np.abs(basis.values[0, 0]).sum(0) > 0).tolist() == [True] + [False] * 23


@pytest.mark.parametrize(
    ("name", "site", "head", "width", "asked"),
    [
        ("neox", "mlp_out", None, 8, {"metric": DIFF}),
        ("gemma2", "z", 2, 6, {"labels": np.array([4, 9])}),
    ],
    ids=["neox-metric", "gemma2-labels"],
)
def test_training_starts_from_the_value_of_a_plain_forward_and_raises_it(
    name, site, head, width, asked
):
    place = {"layer": 1, "position": np.array([3, 4]), "head": head}
    found = train_das(
        small_model(name), base=PROMPTS, source=OTHER, site=site, rank=2, steps=40, held_out=0,
        seed=5, **place, **asked,
    )  # fmt: skip
    start = np.linalg.qr(np.random.default_rng(5).standard_normal((width, 2)))[0]
    values = forward(small_model(name), OTHER, record=(site,)).activations[site]
    edit = replace_component(site, values, start, **place)
    metric = asked.get("metric", log_prob([4, 9]))
    value = np.mean(evaluate(metric, small_model(name), PROMPTS, edit))
    np.testing.assert_allclose(found.losses[0], -value, rtol=1e-5)
    assert found.losses[-1] < found.losses[0] - 1e-3
    if "metric" in asked:
        assert found.result.name == "logit_diff"
        assert found.accuracy == pytest.approx(-found.losses[-1], abs=1e-3)


def test_the_claim_survives_a_file(tmp_path):
    task = task_of("left")
    found = train_das(
        MODEL, layer=0, position=2, rank="boundless", steps=2, **task.arguments,
        record=task.record(),
    )  # fmt: skip
    again = load(save(found.result, tmp_path / "das.nc"))
    assert again.identical(found.result)
    for key in ("method", "site", "layer", "position", "steps", "seed", "held_out", "variable"):
        assert key in again.attrs
    assert again.attrs["method"].startswith("boundless")


TASK = task_of("left", n=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 25}, "rank=25, expected .* from 1 to 24"),
        ({"rank": "wide"}, "rank='wide', expected a number"),
        ({"layer": 2}, "layer=2, expected .* from 0 to 1"),
        ({"layer": None}, "layer=None, expected"),
        ({"position": 3}, "position is 3 in pair 0, whose prompt has 3 tokens"),
        ({"position": [0, 1]}, r"expected a position from 0, or one for each of the 8 pairs"),
        ({"source_position": -1}, "source_position is -1 in pair 0"),
        ({"position": None, "source_position": 1}, "without position"),
        ({"head": 2, "site": "z"}, "head=2, expected .* from 0 to 1"),
        ({"head": 0}, "'resid_post' has no heads"),
        ({"site": "pattern"}, "'pattern' ends in an axis of 'source'"),
        ({"site": "embed"}, "'embed' occurs once"),
        ({"site": "mlp_out"}, "no site 'mlp_out'"),
        ({"labels": None}, "Give labels= "),
        ({"labels": [5, 6]}, "There are 2 labels for 8 pairs"),
        ({"choices": [5, 6]}, "which is none of its choices"),
        ({"labels": [99] * 8, "choices": None}, "99 .* is outside the vocabulary"),
        ({"source": np.array([[0, 1, 4]])}, "8 base and 1 source prompts"),
        ({"held_out": 0.01}, "leaves none on one side"),
        ({"held_out": 1.0}, "held_out=1.0, expected"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_requests_are_refused(options, message):
    given = {"layer": 0, "position": 2, **TASK.arguments, **options}
    with pytest.raises(ValueError, match=message):
        train_das(MODEL, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": ("position",)}, "a search runs over 'layer'"),
        ({"over": ("layer", "neuron"), "site": "mlp_post"}, "a search runs over 'layer'"),
        ({"source_positions": {"END": [2] * 8}}, "give positions= with the same roles"),
    ],
)
def test_bad_grids_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sweep_das(MODEL, **TASK.arguments, **options)
