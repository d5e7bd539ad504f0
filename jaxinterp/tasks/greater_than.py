"""Greater-than (Hanna et al. 2023, arXiv:2305.00586).

"The war lasted from the year 1732 to the year 17" -> a year above 32. The roles: the noun, XX
(the century of the start year), YY (its last two digits) and END, which predicts the end year.
"""

from __future__ import annotations

import contextlib

import numpy as np

from jaxinterp.metrics import prob_diff
from jaxinterp.tasks.task import Task
from jaxinterp.tasks.twins import Twins, build, check_request, distinct, fitting
from jaxinterp.tasks.words import Span, fill, following, single_kinds
from jaxinterp.tokens import Tokenizer

TEMPLATE = "The {noun} lasted from the year {XX}{tens}{units} to the year {century}"
CENTURIES = range(11, 18)
_NOUNS = """
    war conflict battle campaign expedition journey voyage siege dispute trial project program
    reign contract drought plague investigation struggle rebellion revolution crisis famine
    treaty alliance occupation attack tour marriage friendship affair construction
    exhibition festival tradition custom boycott ban blockade invasion mission search
    migration pilgrimage truce peace partnership rivalry debate experiment
"""
NOUNS = tuple(_NOUNS.split())
_CORRUPTED = "01"


def greater_than(
    tokenizer: Tokenizer,
    n: int = 32,
    seed: int = 0,
    *,
    prepend_bos: bool | None = None,
    equal_length: bool = True,
) -> Task:
    """n distinct greater-than prompts; in the corrupted twins the start year ends in 01.

    The metric is `prob_diff`: the probability of the later end years minus that of the others,
    as the tokenizer writes them (``meta["scheme"]``):

    - "two digits": 1732 is 17 and 32, as in GPT-2. The answers are the two-digit tokens above
      YY, the wrong ones the others. Start years run from 02 to 98, and only those count that
      are cut so. Roles: noun, XX, YY, END.
    - "tens digit": each digit is a token. Start years end in 9, such as 1739, so that an end
      year is later exactly when its tens digit is above 3: the answers are these digits, the
      wrong ones the others. Roles: noun, XX (its last digit), tens, units, END.

    ``answers`` and ``wrong`` are sets [n k], filled up with -1. prepend_bos: None follows the
    tokenizer's policy. equal_length: use only the years of the commonest token length.
    ``meta["dropped"]`` holds the nouns that are not one token and the years that cannot be used,
    with their pieces.

    Raises ``ValueError`` when the tokenizer cuts years in another way (three digits to a token),
    when n is more than half of the distinct prompts there are, and for tokenizers that end a
    prompt with a token of their own.
    """
    check_request(tokenizer, n, seed, prepend_bos)
    words, dropped = single_kinds(tokenizer, "greater-than", {"nouns": NOUNS})
    nouns = words["nouns"]
    for two_digits in (True, False):
        years, unfit = _years(tokenizer, nouns[0], two_digits)
        if years:
            break
    else:
        raise ValueError(
            f"{tokenizer!r} cuts years neither into century and two digits nor into single "
            f"digits (1732 is {tokenizer.str_tokens(' 1732', add_bos=False)}): greater-than "
            "cannot be measured with this tokenizer."
        )

    samples = {year: _pair(nouns[0], year, ends, two_digits) for year, ends in years.items()}
    kept, left_out = fitting(tokenizer, "greater-than", samples, equal_length, "year")
    rng = np.random.default_rng(seed)

    def make(_: int) -> Twins:
        noun, year = nouns[rng.integers(len(nouns))], kept[rng.integers(len(kept))]
        return _pair(noun, year, years[year], two_digits)

    return build(
        "greater_than", tokenizer, distinct(n, len(nouns) * len(kept), make), seed=seed,
        corruption=_CORRUPTED, prepend_bos=prepend_bos, metric=prob_diff,
        meta={
            "scheme": "two digits" if two_digits else "tens digit",
            "dropped": {**dropped, "years": {**unfit, **left_out}},
        },
    )  # fmt: skip


def _years(
    tokenizer: Tokenizer, noun: str, two_digits: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The start years to use, each with the ends of one token; and the pieces of the others."""
    years, unfit = {}, {}
    for century in CENTURIES:
        ends = _ends(tokenizer, noun, century, two_digits)
        # A tens digit belongs to later years alone, or to none, only if the start ends in 9.
        for start in range(2, 99) if two_digits else range(19, 99, 10):
            year = f"{century}{start:02d}"
            if two_digits:
                usable = {year[2:], _CORRUPTED} <= set(ends) and max(ends) > year[2:]
            else:
                usable = len(ends) == 10
            if usable:
                years[year] = ends
            else:
                unfit[year] = tokenizer.str_tokens(f" {year}", add_bos=False)
    return years, unfit


def _ends(tokenizer: Tokenizer, noun: str, century: int, two_digits: bool) -> list[str]:
    """The texts that are one token of their own after "to the year 17"."""
    text, _ = _text(noun, f"{century}{_CORRUPTED}")
    ids = tokenizer.encode(text, add_bos=False)
    found: dict[int, str] = {}
    for end in range(100 if two_digits else 10):
        digits = f"{end:02d}" if two_digits else str(end)
        with contextlib.suppress(ValueError):
            found.setdefault(following(tokenizer, text, ids, digits, False), digits)
    return list(found.values())


def _text(noun: str, year: str) -> tuple[str, dict[str, Span]]:
    words = {"noun": noun, "XX": year[:2], "tens": year[2], "units": year[3]}
    return fill(TEMPLATE, {**words, "century": year[:2]})


def _pair(noun: str, year: str, ends: list[str], two_digits: bool) -> Twins:
    clean, at = _text(noun, year)
    corrupted, _ = _text(noun, year[:2] + _CORRUPTED)
    spans = {"noun": at["noun"], "XX": (at["XX"][1] - 1, at["XX"][1])}
    if two_digits:
        start, spans["YY"] = year[2:], (at["tens"][0], at["units"][1])
    else:
        start = year[2]
        spans |= {digit: at[digit] for digit in ("tens", "units")}
    return Twins(
        clean,
        corrupted,
        spans,
        answers=[end for end in ends if end > start],  # texts of one length compare as numbers
        wrong=[end for end in ends if end <= start],
        about={"noun": noun, "year": int(year)},
    )
