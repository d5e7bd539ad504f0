"""Brackets against a stack, and against all strings there are."""

import itertools

import numpy as np
import pytest

from jaxinterp.algorithmic import brackets


def by_stack(text):
    """Whether every bracket has its partner."""
    stack = []
    for sign in text:
        if sign == "(":
            stack.append(sign)
        elif not stack:
            return False
        else:
            stack.pop()
    return not stack


def text_of(ids):
    """The brackets of one prompt, which must begin with BOS."""
    held = ids[ids >= 0].tolist()
    assert held[0] == brackets.BOS
    return "".join({brackets.OPEN: "(", brackets.CLOSE: ")"}[i] for i in held[1:])


def dips(text):
    """Whether a closing bracket comes too early."""
    return any(text[:i].count(")") > text[:i].count("(") for i in range(len(text) + 1))


def test_all_strings_of_eight():
    texts = ["".join(signs) for signs in itertools.product("()", repeat=8)]
    ids = brackets.tokenizer()(texts).ids
    assert brackets.is_balanced(ids).tolist() == [by_stack(text) for text in texts]
    want = [[text[:i].count("(") - text[:i].count(")") for i in range(9)] for text in texts]
    assert brackets.heights(ids).tolist() == want


def test_strings_and_their_answers():
    drawn = brackets.strings(3000, seed=(0, 5))
    texts = [text_of(row) for row in drawn.ids]
    assert (drawn.answers == brackets.BALANCED).tolist() == [by_stack(text) for text in texts]
    assert ((drawn.answers == brackets.BALANCED) == (drawn.kind == 0)).all()
    assert {len(text) for text in texts} == set(range(2, 41, 2))
    assert abs((drawn.kind == 0).mean() - 0.5) < 0.04
    assert all((row[np.argmin(row >= 0) :] == -1).all() for row in drawn.ids if (row < 0).any())
    for kind, text in zip(drawn.kind, texts, strict=True):
        gap = text.count("(") - text.count(")")
        name = brackets.KINDS[kind]
        if name == "flipped":
            assert abs(gap) == 2
        if name in ("exchanged", "shuffled"):
            assert gap == 0
            assert dips(text)
    again = brackets.strings(3000, seed=(0, 5))
    assert np.array_equal(again.ids, drawn.ids)
    assert not np.array_equal(brackets.strings(3000, seed=(0, 6)).ids, drawn.ids)


@pytest.mark.parametrize("kind", brackets.KINDS)
def test_one_kind_alone(kind):
    drawn = brackets.strings(500, 2, kind)
    assert {brackets.KINDS[k] for k in drawn.kind} == {kind}
    assert [by_stack(text_of(row)) for row in drawn.ids] == [kind == "balanced"] * 500
    lengths = {len(text_of(row)) for row in drawn.ids}
    assert len(lengths) == 20


def test_balanced_strings_are_drawn_evenly():
    drawn = brackets.strings(60_000, 0, "balanced")
    texts = [text for row in drawn.ids if len(text := text_of(row)) == 8]
    kinds, counts = np.unique(texts, return_counts=True)
    assert len(kinds) == 14  # Catalan's number
    want = len(texts) / 14
    assert (np.square(counts - want) / want).sum() < 34.5  # chi squared, 13 degrees: p = 0.001


@pytest.mark.parametrize("corruption", ["flip", "exchange"])
def test_the_task(corruption):
    task = brackets.task(300, seed=1, pairs=7, corruption=corruption)
    differing = {"flip": {"FLIPPED"}, "exchange": {"OPEN", "CLOSE"}}[corruption]
    for i in range(300):
        clean, corrupted = task.clean_text[i], task.corrupted_text[i]
        assert len(clean) == len(corrupted) == 14
        assert by_stack(clean)
        assert not by_stack(corrupted)
        at = {role: int(where[i]) for role, where in task.roles.items()}
        differ = {j + 1 for j in range(14) if clean[j] != corrupted[j]}  # BOS stands before
        assert differ == {at[role] for role in differing}
        assert (at["BOS"], at["LAST"]) == (0, 14)
        if corruption == "exchange":
            assert (clean[at["OPEN"] - 1], clean[at["CLOSE"] - 1]) == ("(", ")")
            assert clean.count("(") == corrupted.count("(")
            first = next(j for j in range(15) if dips(corrupted[:j]))
            assert at["DIP"] == first
    ids = brackets.tokenizer()(list(task.clean_text)).ids
    assert np.array_equal(ids, task.clean.ids)
    assert (task.answers == brackets.tokenizer().single_token("balanced")).all()
    assert (task.wrong == brackets.tokenizer().single_token("unbalanced")).all()
    assert np.asarray(task.metric.read(task.clean)).tolist() == [[0]] * 300
    assert task.labels()[0] == "BOS"


def test_what_cannot_be():
    with pytest.raises(ValueError, match="kind='odd', expected one of balanced, flipped"):
        brackets.strings(3, kind="odd")
    with pytest.raises(ValueError, match="n=0, expected"):
        brackets.strings(0)
    with pytest.raises(ValueError, match=r"pairs=21, expected .* from 1 to 20"):
        brackets.task(3, pairs=21)
    with pytest.raises(ValueError, match="expected 'flip' or 'exchange'"):
        brackets.task(3, corruption="swap")
