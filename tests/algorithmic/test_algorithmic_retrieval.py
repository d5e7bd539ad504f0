"""Retrieval prompts read again as text: a dict of pairs, token by token."""

import string

import numpy as np
import pytest

from jaxinterp.algorithmic import retrieval

LETTERS, SIGNS = set(string.ascii_lowercase), set(".,;:-+*/")


def read(text):
    """What a prompt's text says: pairs in order, distractors, and queries with what follows."""
    words, pairs, others, queries = text.split(), [], [], []
    while words:
        word = words.pop(0)
        if word == "?":
            key = words.pop(0)
            queries.append((key, words.pop(0) if words else None))
        elif word in LETTERS:
            assert not queries
            pairs.append((word, words.pop(0)))
        else:
            others.append(word)
    return pairs, others, queries


def test_tokens():
    tokenizer = retrieval.tokenizer()
    assert len(set(retrieval.TOKENS)) == len(retrieval.TOKENS) == 68
    for ids, wanted in (
        (retrieval.KEYS, LETTERS),
        (retrieval.VALUES, set(map(str, range(10, 42)))),
        (retrieval.SIGNS, SIGNS),
    ):
        assert set(tokenizer.token_texts(ids)) == wanted


def test_prompts_say_what_they_should():
    drawn, tokenizer = retrieval.prompts(1000, seed=(0, 3)), retrieval.tokenizer()
    counts, distractors, strays = set(), set(), set()
    for i in range(1000):
        ids = drawn.ids[i][drawn.ids[i] >= 0]
        assert (drawn.ids[i, len(ids) :] == -1).all()
        bos, *words = tokenizer.str_tokens(ids)
        pairs, others, queries = read(" ".join(words))
        assert bos == "[BOS]"
        assert len({key for key, _ in pairs}) == len(pairs) == drawn.pairs[i]
        known = dict(pairs)
        assert all(known[key] == value for key, value in queries)
        assert tokenizer.token_texts(ids[drawn.at[i]]).tolist() == [key for key, _ in queries]
        assert tokenizer.token_texts(drawn.answers[i]).tolist() == [v for _, v in queries]
        counts.add(len(pairs))
        distractors.add(len(others))
        strays |= set(others) - SIGNS
    assert counts == set(range(2, 13))
    assert distractors == set(range(12))
    assert len(strays) == 32
    assert np.array_equal(retrieval.prompts(1000, seed=(0, 3)).ids, drawn.ids)
    assert (retrieval.prompts(20, 0, pairs=5).pairs == 5).all()


def test_pairs_stand_anywhere_and_any_is_asked_for():
    drawn = retrieval.prompts(4000, 1, pairs=4)
    first = np.array([(row == key[0]).argmax() for row, key in zip(
        drawn.ids, np.take_along_axis(drawn.ids, drawn.at, 1), strict=True
    )])  # fmt: skip
    # Of four pairs each is asked for as often: the order of the pair's key among the keys.
    order = [
        (np.isin(row[:at], retrieval.KEYS)).sum()
        for row, at in zip(drawn.ids, first, strict=True)
    ]  # fmt: skip
    shares = np.bincount(order, minlength=4) / 4000
    assert abs(shares - 0.25).max() < 0.03


@pytest.mark.parametrize("corruption", ["values", "query"])
def test_the_task(corruption):
    task = retrieval.task(200, seed=2, pairs=6, distractors=3, corruption=corruption)
    tokenizer = retrieval.tokenizer()
    for i in range(200):
        clean, corrupted = task.clean_text[i].split(), task.corrupted_text[i].split()
        answers = []
        for words in (clean, corrupted):
            pairs, others, queries = read(" ".join(words))
            assert (len(pairs), len(others), len(queries)) == (6, 3, 1)
            answers.append(dict(pairs)[queries[0][0]])
            assert len({value for _, value in pairs}) == 6
        assert tokenizer.token_texts([task.answers[i], task.wrong[i]]).tolist() == answers
        at = {role: int(where[i]) - 1 for role, where in task.roles.items()}  # without BOS
        assert (clean[at["KEY"]], clean[at["VALUE"]]) == (clean[-1], answers[0])
        assert clean[at["OTHER_VALUE"]] == answers[1]
        assert clean[at["OTHER_KEY"]] in LETTERS - {clean[-1]}
        assert (clean[at["QUERY"]], at["END"]) == ("?", len(clean) - 1)
        differ = {j for j, (x, y) in enumerate(zip(clean, corrupted, strict=True)) if x != y}
        roles = {"values": ("VALUE", "OTHER_VALUE"), "query": ("END",)}[corruption]
        assert differ == {at[role] for role in roles}
    assert np.array_equal(tokenizer(list(task.clean_text)).ids, task.clean.ids)
    assert len(set(task.roles["KEY"] > task.roles["OTHER_KEY"])) == 2
    with_most = retrieval.task(3, pairs=12, distractors=11)
    assert with_most.clean.shape[1] <= retrieval.CONTEXT


def test_what_cannot_be():
    with pytest.raises(ValueError, match="n=0"):
        retrieval.prompts(0)
    with pytest.raises(ValueError, match=r"pairs=13, expected .* from 2 to 12"):
        retrieval.prompts(2, pairs=13)
    with pytest.raises(ValueError, match=r"pairs=1, expected .* from 2 to 12"):
        retrieval.task(2, pairs=1)
    with pytest.raises(ValueError, match=r"distractors=12, expected .* from 0 to 11"):
        retrieval.task(2, distractors=12)
    with pytest.raises(ValueError, match="expected 'values' or 'query'"):
        retrieval.task(2, corruption="break")
