"""Causal models: their counterfactuals, and the tasks that are made of them."""

import numpy as np
import pytest
from two_codes import ASK, FIRST, MODEL, F, task_of

from jaxinterp.interchange import causal_model, counterfactual, interchange_task
from jaxinterp.model import forward


def test_a_counterfactual_by_hand():
    f = causal_model(left=lambda a, b: a + b, output=lambda left, c: left * c)
    base, source = {"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 5, "c": 7}
    assert f(base) == {"a": 1, "b": 2, "c": 3, "left": 3, "output": 9}
    assert counterfactual(f, base, source, "left") == 10 * 3
    assert counterfactual(f, base, source, "c") == 3 * 7
    assert counterfactual(f, base, source, ("left", "c")) == 10 * 7
    assert counterfactual(f, base, source, "a", output="left") == 5 + 2


def test_a_causal_model_may_be_any_function():
    def f(inputs, **fixed):
        left = fixed.get("left", inputs["a"] + inputs["b"])
        return {**inputs, "left": left, "output": left > inputs["c"]}

    base, source = {"a": 1, "b": 2, "c": 5}, {"a": 5, "b": 5, "c": 70}
    assert [f(base)["output"], counterfactual(f, base, source, "left")] == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_model(a=lambda b: b, b=lambda: 1)({}), "'a' reads 'b', which is neither"),
        (lambda: causal_model(a=lambda: 1)({}, c=2), "no variable 'c': it has a"),
        (
            lambda: counterfactual(
                lambda inputs, **fixed: {"v": inputs["a"], "output": 0}, {"a": 1}, {"a": 2}, "v"
            ),
            "was given v=2 and returned 1",
        ),
    ],
)
def test_causal_models_that_do_not_work_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_model_computes_what_its_causal_model_says():
    task = task_of("left")
    top = np.asarray(forward(MODEL, task.base).logits[:, -1].argmax(-1))
    np.testing.assert_array_equal(top, task.base_labels)


def test_a_task_holds_the_counterfactual_of_every_pair():
    task = task_of("left", roles=lambda inputs: {"A": 0, "END": 2})
    ids = np.asarray(task.base.ids), np.asarray(task.source.ids)
    np.testing.assert_array_equal(task.labels, FIRST + 4 * ids[1][:, 0] + ids[0][:, 1])
    np.testing.assert_array_equal(task.source_labels, FIRST + 4 * ids[1][:, 0] + ids[1][:, 1])
    assert task.changed.sum() == 48
    assert task.base_roles["END"].tolist() == [2] * 96
    assert task.choices.tolist() == list(range(5, 21))
    again, other = task_of("left"), task_of("left", seed=1)
    assert again.record()["pairs"] == task.record()["pairs"] != other.record()["pairs"]
    assert 0.6 < task_of("left", changed=None, n=400).changed.mean() < 0.9  # 3 in 4


def test_prompts_of_a_task_may_differ_in_length():
    task = interchange_task(
        F, lambda rng: {"a": int(rng.integers(4)), "b": int(rng.integers(4))}, variable="right",
        n=20, prompt=lambda i: [0] * i["a"] + [i["b"], ASK], answer=lambda o: FIRST + o,
        roles=lambda i: {"b": i["a"]},
    )  # fmt: skip
    for inputs, tokens, at in (
        (task.base_inputs, task.base, task.base_roles["b"]),
        (task.source_inputs, task.source, task.source_roles["b"]),
    ):
        assert np.asarray(tokens.lengths).tolist() == [i["a"] + 2 for i in inputs]
        assert np.asarray(tokens.ids)[np.arange(20), at].tolist() == [i["b"] for i in inputs]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0, expected"),
        ({"changed": 1.5}, "changed=1.5, expected"),
        ({"prompt": lambda i: "text"}, "prompt gives texts: pass tokenizer="),
        ({"answer": lambda o: "text"}, "answer gives 'text'"),
        ({"sample": lambda rng: {"a": 0, "b": 0}, "changed": 1.0}, "that differs from the base's"),
        ({"variable": "middle"}, "returns no variable 'middle'"),
    ],
)
def test_bad_tasks_are_refused(options, message):
    given = {
        "sample": lambda rng: {"a": int(rng.integers(4)), "b": 0}, "variable": "left", "n": 4,
        "prompt": lambda i: [i["a"], i["b"], ASK], "answer": lambda o: FIRST + o, **options,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        interchange_task(F, given.pop("sample"), **given)
