"""Sequences that repeat, checked place by place, and their background against its table."""

import numpy as np
import pytest

from jaxinterp.algorithmic import repeats


@pytest.fixture(scope="module")
def drawn():
    return repeats.sequences(4000, seed=(0, 7))


def test_sources_are_what_is_repeated(drawn):
    assert (drawn.ids[:, 0] == repeats.BOS).all()
    assert drawn.ids[:, 1:].min() == 1
    assert drawn.ids.max() == repeats.SIZE - 1
    lags, runs = set(), set()
    for ids, source in zip(drawn.ids[:500].tolist(), drawn.source[:500].tolist(), strict=True):
        run = 0
        for t, at in enumerate(source):
            if at < 0:
                runs.add(run)
                run = 0
                continue
            assert 1 < at < t
            assert (ids[at - 1], ids[at]) == (ids[t - 1], ids[t])
            assert run == 0 or at == source[t - 1] + 1
            run += 1
            lags.add(t - at)
    assert min(lags) == repeats.NEAREST
    assert len(lags) > 80  # of any distance
    assert max(runs) == repeats.LENGTHS[1] - 1  # the first of a run is foretold by nothing
    assert set(range(repeats.LENGTHS[0] - 1, 30)) <= runs


def test_how_often_sequences_repeat(drawn):
    share = (drawn.source >= 0).mean(1)
    assert 0.3 < share.mean() < 0.5
    assert (share == 0).mean() > 0.002
    assert (drawn.source[:, : repeats.NEAREST + 2] < 0).all()


def test_the_background_is_as_its_table_says(drawn):
    table = repeats.background(np.arange(repeats.SIZE)[:, None], np.arange(repeats.SIZE))
    np.testing.assert_allclose(table.sum(-1), 1)
    next_one, next_but_one = repeats.favoured()
    assert next_one.shape == (121, 4)
    assert all(len(set(row)) == 4 for row in (*next_one, *next_but_one))
    by_hand = dict.fromkeys(range(1, 121), 0.3 / 120) | {0: 0.0}
    for t in next_one[9]:
        by_hand[t] += 0.35 / 4
    for t in next_but_one[5]:
        by_hand[t] += 0.35 / 4
    assert table[5, 9] == pytest.approx([by_hand[t] for t in range(121)])

    # Before sequences may turn back, all is background.
    early = drawn.ids[:, : repeats.NEAREST + 1]
    before = np.concatenate([early[:, :1], early[:, :-2]], 1)
    p = np.take_along_axis(repeats.background(before, early[:, :-1]), early[:, 1:, None], 2)
    told = repeats.background(before, early[:, :-1])
    entropy = -(told * np.log(np.where(told > 0, told, 1))).sum(-1)
    surprise = -np.log(p[..., 0])
    error = surprise.std() / surprise.size**0.5
    assert abs(surprise.mean() - entropy.mean()) < 4 * error
    for of, back in ((next_one, 1), (next_but_one, 2)):
        hits = (of[early[:, 2 - back + 1 : -back + early.shape[1]]] == early[:, 3:, None]).any(-1)
        assert abs(hits.mean() - (0.35 + 0.65 * 4 / 120)) < 0.02


def test_sequences_are_those_of_their_seed():
    one, again = repeats.sequences(5, (0, 3), 20), repeats.sequences(5, (0, 3), 20)
    assert one.ids.shape == one.source.shape == (5, 20)
    assert np.array_equal(one.ids, again.ids)
    assert not np.array_equal(one.ids, repeats.sequences(5, (0, 4), 20).ids)


def test_said_twice():
    ids = repeats.said_twice(300, length=30, seed=1)
    assert ids.shape == (300, 61)
    assert (ids[:, 0] == repeats.BOS).all()
    assert np.array_equal(ids[:, 1:31], ids[:, 31:])
    assert all(len(set(row)) == 30 and min(row) > 0 for row in ids[:, 1:31].tolist())
    counts = np.bincount(ids[:, 1:31].ravel(), minlength=121)[1:]
    assert (np.square(counts - 75) / 75).sum() < 175  # even over 120 syllables


@pytest.mark.parametrize("corruption", ["break", "swap_answer"])
def test_the_task(corruption):
    task = repeats.task(150, seed=3, length=40, copy=9, corruption=corruption)
    tokenizer = repeats.tokenizer()
    for i in range(150):
        clean, corrupted = ["[BOS]", *task.clean_text[i].split()], task.corrupted_text[i].split()
        corrupted = ["[BOS]", *corrupted]
        assert len(clean) == len(corrupted) == 40
        at = {role: int(where[i]) for role, where in task.roles.items()}
        a, end, size = at["A"], at["END"], 9
        assert end == 39
        assert [j for j, word in enumerate(clean) if word == clean[end]] == [a, end]
        answer, wrong = tokenizer.token_texts([task.answers[i], task.wrong[i]])
        assert (clean[a + 1], corrupted[a + 1]) == (answer, wrong)
        assert at["B"] == a + 1
        one, two = at["START1"], at["START2"]
        assert clean[one : one + size - 1] == clean[two:]
        assert one + size == a + 2
        assert len(set(clean)) == 40 - (size - 1)
        differ = [j for j, (x, y) in enumerate(zip(clean, corrupted, strict=True)) if x != y]
        assert differ == ([a + 1] if corruption == "swap_answer" else [*range(one, one + size)])
        if corruption == "break":
            assert len(set(corrupted)) == 40
    assert len(set(task.roles["START1"].tolist())) > 15
    assert np.array_equal(tokenizer(list(task.clean_text)).ids, task.clean.ids)
    assert np.array_equal(tokenizer(list(task.corrupted_text)).ids, task.corrupted.ids)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="length=0, expected"):
        repeats.sequences(3, length=0)
    with pytest.raises(ValueError, match=r"length=121, expected .* from 1 to 120"):
        repeats.said_twice(3, length=121)
    with pytest.raises(ValueError, match="length=20, copy=11: expected a copy of 2 or more"):
        repeats.task(3, length=20, copy=11)
    with pytest.raises(ValueError, match="copy=1, expected"):
        repeats.task(3, copy=1)
    with pytest.raises(ValueError, match="twice as many tokens up to 120"):
        repeats.task(3, length=121)
    with pytest.raises(ValueError, match="expected 'break' or 'swap_answer'"):
        repeats.task(3, corruption="other")
    assert repeats.task(2, length=120).clean.shape == (2, 120)
