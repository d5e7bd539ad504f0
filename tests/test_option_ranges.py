"""Every numeric option of every public function is checked where it comes in."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from option_calls import WITH, M
from option_table import EXEMPT, TABLE
from small_models import DIFF, PROMPTS
from test_public_api import reached

import jaxinterp as ji
from jaxinterp import checks
from jaxinterp.model import Tokens

CASES = [
    pytest.param(path, option, id=f"{path}-{option}")
    for path, (_, options) in TABLE.items()
    for option in options
]
NAMED = {"start": "layers", "stop": "stop|layers", "scaling": "scaling|factor"}


def said(option, bad, message):
    """Whether an error names the option (or its one: layers, layer) and the value."""
    inner = bad if isinstance(bad, (list, tuple)) else [bad]
    values = {repr(bad), *map(repr, inner), *map(str, inner)}
    named = re.search(NAMED.get(option, rf"\b{option.rstrip('s')}s?\b"), message)
    return named is not None and any(value in message for value in values)


@pytest.mark.parametrize(("path", "option"), CASES)
def test_numbers_out_of_range_are_refused(path, option):
    call, options = TABLE[path]
    for bad in options[option]:
        with pytest.raises((ValueError, TypeError)) as error:
            call(**WITH.get(option, {}) if "over" in parameters(path) else {}, **{option: bad})
        assert said(option, bad, str(error.value)), (bad, str(error.value))


def parameters(path):
    """The parameters of a public thing, by name; none where Python does not tell."""
    thing = reached(f"jaxinterp.{path}")
    return inspect.signature(thing).parameters if callable(thing) else {}


def numeric(parameter):
    """Whether a parameter is annotated with, or defaults to, a number."""
    annotation = re.sub(r"Callable\[\[.*?\], \w+\]", "", str(parameter.annotation))
    default = parameter.default
    by_default = isinstance(default, (int, float)) and not isinstance(default, bool)
    return by_default or re.search(r"\b(int|float)\b", annotation) is not None


def test_every_numeric_option_is_in_the_table():
    text = (Path(__file__).parent / "public_api.txt").read_text(encoding="utf-8")
    paths = re.findall(r"^(?:function|class|method) jaxinterp\.([\w.]+)\(", text, re.MULTILINE)
    wanted = {f"{p}.{n}" for p in paths for n, found in parameters(p).items() if numeric(found)}
    held = {f"{path}.{option}" for path, (_, options) in TABLE.items() for option in options}
    exempt = {name for name in wanted if any(f"{name}.".startswith(f"{e}.") for e in EXEMPT)}
    assert len(wanted) > 400
    assert sorted(wanted - held - exempt) == []
    assert [e for e in EXEMPT if not any(f"{n}.".startswith(f"{e}.") for n in wanted)] == []


@pytest.mark.parametrize("bad", [0, 8, 2.0, True, "3", None, [3]])
def test_whole_numbers(bad):
    assert checks.whole_number("n", 3, 1, 7) == 3
    assert checks.whole_number("n", None, 1, optional=True) is None
    with pytest.raises(ValueError, match=r"n=.*, expected a whole number from 1 to 7"):
        checks.whole_number("n", bad, 1, 7)


def test_a_float_that_is_whole_is_told_how_to_be_one():
    with pytest.raises(ValueError, match=r"memory=4000000000\.0, .*, as an int \(4000000000\)"):
        checks.whole_number("memory", 4e9, 1)


def test_numpy_s_own_choices_are_choices():
    assert checks.one_of("gated", np.bool_(True), (True, False)) is True
    assert checks.one_of("bits", np.int64(8), (4, 8)) == 8
    with pytest.raises(ValueError, match="bits=7, expected one of 4, 8"):
        checks.one_of("bits", np.int64(7), (4, 8))


MASKED = Tokens(PROMPTS, np.ones_like(PROMPTS))  # an attention mask where positions belong
SHIFTED = Tokens(PROMPTS, np.broadcast_to(np.arange(7) + 1, PROMPTS.shape))
WRAPPED = PROMPTS + 2**32
GIVEN = ("tokens", "clean", "corrupted", "base", "source", "target", "batches")
# Where these words mean something else than prompts.
OTHERWISE = {
    "Claim", "batches_of", "patch_stream", "sae.DictionaryConfig", "sae.train", "sweep",
}  # fmt: skip
MORE = {
    "evaluate": lambda tokens: ji.evaluate(DIFF, M, tokens),
    "observe": lambda tokens: ji.observe(M, tokens, DIFF),
    "heads.attention": lambda tokens: ji.heads.attention(M, tokens),
    "mean_activations": lambda tokens: ji.mean_activations(M, [tokens], ("z",)),
    "sweep": lambda tokens: ji.sweep(M, tokens, ji.zero("z", layer=np.arange(2)), DIFF),
    "sweep_plain": lambda tokens: ji.sweep_plain(M, tokens, ji.zero("z", layer=np.arange(2)), DIFF),
    "plan": lambda tokens: ji.plan(M, tokens, ji.zero("z", layer=np.arange(2)), DIFF),
    "run_layers": lambda tokens: ji.run_layers(M, np.zeros((2, 7, 8), np.float32), tokens),
    "embed": lambda tokens: ji.embed(M, tokens),
}


@pytest.mark.parametrize(
    ("bad", "message"),
    [(MASKED, r"Tokens\.of\(ids, mask\)"), (SHIFTED, "expected 0, 1, 2"), (WRAPPED, "Token id")],
    ids=["mask", "shifted", "wrapped"],
)
def test_tokens_of_the_wrong_form_are_refused_everywhere(bad, message):
    tried = 0
    uses = {**{path: call for path, (call, _) in TABLE.items() if path not in OTHERWISE}, **MORE}
    for path, call in uses.items():
        for name in GIVEN if path not in MORE else ("tokens",):
            if path not in MORE and name not in parameters(path):
                continue
            if bad is SHIFTED and path in ("run_layers", "embed"):  # some columns of prompts pass
                continue
            try:
                with pytest.raises(ValueError, match=message):
                    call(**{name: [bad] if name == "batches" else bad})
            except TypeError as error:  # the table gives it by position
                if "multiple values" not in str(error):
                    raise
            else:
                tried += 1
    assert tried > 40
