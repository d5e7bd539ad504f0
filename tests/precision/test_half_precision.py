"""Every public function that returns numbers: in bfloat16 and in float16 as in float32.

What holds is declared case by case in the files beside this one; see cases.py.
"""

import functools
import re
from pathlib import Path

import causal  # noqa: F401 (files of entries declare their cases when they are imported)
import dictionaries  # noqa: F401
import edges  # noqa: F401
import learning  # noqa: F401
import pytest
import reading  # noqa: F401
import values  # noqa: F401
import without_numbers  # noqa: F401
from cases import CASES, EXACT, NO_NUMBERS, Given, counted, differences, reached

FROZEN = Path(__file__).parents[1] / "public_api.txt"


def public():
    """The paths of all public functions, methods and properties."""
    lines = FROZEN.read_text(encoding="utf-8").splitlines()
    found = [re.match(r"(function|method|property) ([\w.]+)", line) for line in lines]
    return {each[2] for each in found if each}


def is_long(case, dtype):
    """Whether only the long run has it: of cases with a model the short run has one dtype."""
    return case.long or (dtype == "float16" and case.within is not EXACT)


@functools.cache
def in_float32(name):
    return CASES[name].call(Given("float32"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(case.name, dtype, marks=[pytest.mark.long] if is_long(case, dtype) else [])
        for case in CASES.values()
        for dtype in ("bfloat16", "float16")
    ],
)
def test_half_precision_models_have_the_numbers_of_float32(name, dtype, monkeypatch):
    case = CASES[name]
    expected = in_float32(name)
    used = {path: counted(monkeypatch, path) for path in case.covers}
    found = case.call(Given(dtype))
    assert [path for path, count in used.items() if not count()] == []  # covered, but not called
    wrong = differences(case, dtype, found, expected)
    if wrong:
        pytest.fail("\n".join([f"{dtype}:", *wrong]), pytrace=False)


def test_every_public_function_has_a_case_or_returns_no_numbers():
    covered = {path for case in CASES.values() for path in case.covers}
    missing = sorted(public() - covered - NO_NUMBERS.keys())
    if missing:
        remedy = (
            "These public functions have no case in tests/precision: declare one with `case`, "
            "or say with `no_numbers` why they return none:"
        )
        pytest.fail("\n".join([remedy, *missing]), pytrace=False)
    assert sorted(covered & NO_NUMBERS.keys()) == []
    assert sorted((covered | NO_NUMBERS.keys()) - public()) == []  # gone from the public API


def test_what_is_declared_is_there():
    for path in public():
        reached(path)
