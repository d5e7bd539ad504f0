"""Prompts of the benchmarks beside `jaxinterp.tasks`: a repeated random sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxinterp as ji
from jaxinterp.model import as_tokens


def induction(tokenizer: Any, n: int = 1, length: int = 128, seed: int = 0) -> ji.Task:
    """Random tokens whose second half repeats the first, but for its last token: the answer.

    (One more token stands between the halves.) The corrupted prompt has another token at the
    end of the first half, which is then the right answer; the metric is the logit difference
    of the two.
    """
    if length < 4 or length % 2:
        raise ValueError(f"length={length}, expected an even number from 4.")
    half = length // 2
    rng = np.random.default_rng(seed)
    # The first ids are special tokens.
    vocabulary = np.arange(min(256, tokenizer.vocab_size // 2), tokenizer.vocab_size)
    drawn = np.stack([rng.choice(vocabulary, half + 2, replace=False) for _ in range(n)])
    clean = np.concatenate([drawn[:, : half + 1], drawn[:, : half - 1]], axis=1).astype(np.int32)
    corrupted = clean.copy()
    corrupted[:, half - 1] = drawn[:, -1]
    answers, wrong = clean[:, half - 1], corrupted[:, half - 1]
    return ji.Task(
        name="induction",
        clean=as_tokens(clean),
        corrupted=as_tokens(corrupted),
        metric=ji.logit_diff(answers, wrong),
        answers=answers,
        wrong=wrong,
        roles={"answer": np.full(n, half - 1), "END": np.full(n, length - 1)},
        clean_text=tuple(tokenizer.decode(row.tolist()) for row in clean),
        corrupted_text=tuple(tokenizer.decode(row.tolist()) for row in corrupted),
        seed=seed,
        corruption="answer",
    )
