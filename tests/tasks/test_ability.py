"""What SmolLM2-135M can do, measured. It cannot bind an answer to its letter."""

import pytest

import jaxinterp as ji
from jaxinterp import tasks

UNABLE = ("multiple_choice",)


@pytest.fixture(scope="module")
def smollm2():
    return ji.load("smollm2-135m-instruct")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_what_smollm2_can_do(smollm2, name, record_property):
    model, tokenizer = smollm2
    task = tasks.make(name, tokenizer, n=8)
    found = tasks.check(model, task)
    record_property("ability", found)
    print(name, {key: round(value, 3) for key, value in found.items()})
    clean, corrupted = (found[f"{side}_{task.metric.name}"] for side in ("clean", "corrupted"))
    if name in UNABLE:
        assert found["clean_accuracy"] < 0.5
        assert abs(clean - corrupted) < 0.5
        return
    assert found["clean_preferred"] >= 0.85
    assert found["clean_accuracy"] >= 0.6
    assert clean > 2 * max(corrupted, 0.3)
    assert found["corrupted_accuracy"] == 0
    assert found["corrupted_preferred"] <= 0.75
