"""Every public function under ``jax.enable_x64``: it runs, and its numbers are the same.

A loop whose carry begins in one dtype and goes on in another cannot be compiled; so every case of
the half-precision matrix runs once more with 64-bit numbers at hand. Random draws name their dtype:
the same seed gives the same numbers there, too.
"""

import dataclasses

import jax
import pytest
from cases import CASES, Given, differences
from test_half_precision import in_float32

DEFAULT = {  # those with loops of their own: over a vocabulary, a descent, a training
    ("lens_of_every_point", "float32"), ("what_neurons_write", "float64"),
    ("logistic_probes", "float32"), ("logistic_probes", "float64"), ("trained_toys", "float32"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in DEFAULT else [pytest.mark.long])
        for name in CASES
        for dtype in ("float32", "float64")
    ],
)
def test_numbers_are_the_same_with_64_bits_at_hand(name, dtype):
    expected = in_float32(name)
    with jax.enable_x64(True):
        found = CASES[name].call(Given(dtype))
    case = dataclasses.replace(CASES[name], within={dtype: 2e-3})
    wrong = differences(case, dtype, found, expected)
    if wrong:
        pytest.fail("\n".join([f"{dtype}:", *wrong]), pytrace=False)


def test_what_is_named_here_is_there():
    assert {name for name, _ in DEFAULT} <= CASES.keys()
