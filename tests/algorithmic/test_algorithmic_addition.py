"""Addition mod 113 against loops, and its Fourier basis against NumPy's transform."""

import numpy as np
import pytest

from jaxinterp.algorithmic import addition

P = 113


def test_every_prompt_and_its_sum():
    ids = addition.every()
    assert ids.dtype == np.int32
    want = [[a, b, 113] for a in range(P) for b in range(P)]
    assert ids.tolist() == want
    assert addition.sums(ids).tolist() == [(a + b) % P for a, b, _ in want]


def test_texts_and_ids():
    tokenizer = addition.tokenizer()
    ids = tokenizer("17 100 =").ids
    assert np.array_equal(ids, addition.prompts(17, 100))
    assert tokenizer.decode(ids) == "17 100 ="
    assert tokenizer.encode("112 113 =")[1] == len(addition.TOKENS)  # beyond the vocabulary
    assert tokenizer.single_token(" 5") == 5


def test_a_split_is_a_partition():
    known, others = addition.split(seed=3)
    assert len(known) == round(0.3 * P * P)
    assert sorted([*known, *others]) == list(range(P * P))
    again, _ = addition.split(seed=3)
    other, _ = addition.split(seed=4)
    assert np.array_equal(known, again)
    assert not np.array_equal(known, other)


@pytest.mark.parametrize("changed", ["a", "b"])
def test_the_task(changed):
    task = addition.task(200, seed=1, corruption=changed)
    assert len(set(task.clean_text)) == 200
    for i in range(200):
        clean, corrupted = task.clean_text[i].split(), task.corrupted_text[i].split()
        differ = [role for role, x, y in zip("ab=", clean, corrupted, strict=True) if x != y]
        assert differ == [changed]
        assert task.answers[i] == (int(clean[0]) + int(clean[1])) % P
        assert task.wrong[i] == (int(corrupted[0]) + int(corrupted[1])) % P
        assert task.answers[i] != task.wrong[i]
        assert [clean[task.roles[role][i]] for role in ("a", "b", "END")] == [*clean[:2], "="]
    assert np.array_equal(task.clean.ids, addition.tokenizer()(list(task.clean_text)).ids)
    assert task.record() == addition.task(200, seed=1, corruption=changed).record()


def test_the_basis_and_the_power_of_its_waves():
    basis = addition.fourier_basis()
    np.testing.assert_allclose(basis @ basis.T, np.eye(P), atol=1e-12)
    x = np.arange(P)
    np.testing.assert_allclose(basis[2 * 7 - 1], np.cos(2 * np.pi * 7 * x / P) * (2 / P) ** 0.5)
    np.testing.assert_allclose(basis[2 * 7], np.sin(2 * np.pi * 7 * x / P) * (2 / P) ** 0.5)

    table = np.random.default_rng(0).normal(size=(P, 3, 2))
    power = addition.power(table)
    squares = np.abs(np.fft.rfft(table, axis=0)) ** 2 / P
    squares[1:] *= 2  # of both signs of a frequency
    np.testing.assert_allclose(power, squares.sum((1, 2)))
    assert power.sum() == pytest.approx(np.square(table).sum())
    only = addition.power(np.cos(2 * np.pi * 9 * x / P + 0.3))
    assert only.argmax() == 9
    assert only[9] == pytest.approx(only.sum())


def test_what_cannot_be():
    with pytest.raises(ValueError, match="not whole numbers from 0 to 112"):
        addition.prompts(113, 0)
    with pytest.raises(ValueError, match="not whole numbers"):
        addition.prompts(0, [0.5])
    with pytest.raises(ValueError, match="share=1"):
        addition.split(share=1.0)
    with pytest.raises(ValueError, match=r"n=12770, expected .* from 1 to 12769"):
        addition.task(P * P + 1)
    with pytest.raises(ValueError, match="expected 'a' or 'b'"):
        addition.task(3, corruption="c")
    with pytest.raises(ValueError, match="expected 113 rows"):
        addition.power(np.ones((114, 2)))
