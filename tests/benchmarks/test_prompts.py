"""The repeated random sequence, with a tokenizer that need not know words."""

import numpy as np
import prompts
import pytest


class Numbers:
    vocab_size = 1000

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("length", [4, 10, 128])
def test_the_answer_follows_the_last_token_in_the_first_half(length):
    task = prompts.induction(Numbers(), n=3, length=length)
    clean, corrupted = np.asarray(task.clean.ids), np.asarray(task.corrupted.ids)
    half = length // 2
    assert clean.shape == (3, length)
    assert (clean[:, half + 1 :] == clean[:, : half - 1]).all()
    for row, other, answer, wrong in zip(clean, corrupted, task.answers, task.wrong, strict=True):
        before = np.flatnonzero(row[:-1] == row[-1])
        assert row[before[-1] + 1] == answer
        assert other[before[-1] + 1] == wrong != answer
        assert (row == answer).sum() == (other == wrong).sum() == 1
        assert np.flatnonzero(row != other).tolist() == [half - 1]


def test_odd_lengths_are_refused():
    with pytest.raises(ValueError, match="even number"):
        prompts.induction(Numbers(), length=9)
