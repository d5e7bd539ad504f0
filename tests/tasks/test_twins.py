"""What tasks are built with: templates that fit, words, roles and answers that do not."""

import numpy as np
import pytest
from vocabularies import TOKENIZERS, word_level

from jaxinterp.metrics import prob_diff
from jaxinterp.tasks.twins import Twins, build, distinct, fitting
from jaxinterp.tasks.words import fill, following, position, single, single_pairs

TOKENIZER = TOKENIZERS["two digits"]


def twins(clean, corrupted, spans=None, answers=(" is",), wrong=(" are",), **more):
    return Twins(clean, corrupted, spans or {}, answers, wrong, {"subject": clean[4:7]}, **more)


def made(*pairs, **options):
    options = {"seed": 0, "corruption": "", "prepend_bos": None, "meta": {}, **options}
    return build("made", TOKENIZER, pairs, **options)


def test_a_filled_template_and_its_places():
    template = "The {a} near the {b} of the {a}"
    text, spans = fill(template, {"a": "dog", "b": "house"})
    assert text == "The dog near the house of the dog"
    assert {field: text[slice(*span)] for field, span in spans.items()} == {
        "a": "dog",
        "b": "house",
    }
    assert spans["a"] == (len(text) - 3, len(text))


def test_templates_that_fit():
    samples = {
        "short": twins("The dog", "The dogs"),
        "long": twins("The dog near the house", "The dogs near the house"),
        "also long": twins("The dog near the car", "The dogs near the car"),
        "torn": twins("The dog near the car", "The dog near the red car"),
    }
    kept, left_out = fitting(TOKENIZER, "made", samples, equal_length=True)
    assert kept == ["long", "also long"]
    assert left_out == {"short": 2, "torn": [5, 6]}
    kept, left_out = fitting(TOKENIZER, "made", samples, equal_length=False)
    assert kept == ["short", "long", "also long"]
    assert left_out == {"torn": [5, 6]}
    torn = {"torn": samples["torn"]}
    with pytest.raises(ValueError, match=r"No template of made has aligned .* 5 tokens, .* 6\."):
        fitting(TOKENIZER, "made", torn, equal_length=False)


def test_words_and_pairs_of_words():
    tokenizer = word_level(without=("dogs", "cat"))
    kept, dropped = single(tokenizer, ["dog", "dogs", "cat", "dog"])
    assert kept == ["dog"]
    assert list(dropped) == ["dogs", "cat"]
    pairs = [("dog", "dogs"), ("cat", "cats"), ("boy", "boys")]
    assert single_pairs(tokenizer, "made", "nouns", pairs)[0] == [("boy", "boys")]
    with pytest.raises(ValueError, match="Only 1 of 3 pairs of nouns"):
        single_pairs(tokenizer, "made", "nouns", pairs, least=2)


def test_where_a_role_stands_and_what_follows():
    assert position(TOKENIZER, "The dog near", (4, 7), "subject", True) == 2
    with pytest.raises(ValueError, match="subject of 'The dog near' is more than one token"):
        position(TOKENIZER, "The dog near", (4, 12), "subject", None)
    ids = TOKENIZER.encode("The dog")
    assert following(TOKENIZER, "The dog", ids, " is", None) == TOKENIZER.single_token(" is")
    for answer in (" is red", "s", " unheard"):
        with pytest.raises(ValueError, match="cut differently when its answer"):
            following(TOKENIZER, "The dog", ids, answer, None)


def test_a_task_is_built():
    short = twins("The dog", "The dogs", {"subject": (4, 7)}, after={"subject": "next"})
    long = twins("The cat near", "The cats near", {"subject": (4, 7)}, [" is"], [" are", " he"])
    with pytest.raises(ValueError, match="next has 1 entries for 2"):
        made(short, long)
    with pytest.raises(ValueError, match="Role next lies outside"):
        made(short)
    task = made(short._replace(after={}), long, metric=prob_diff)
    assert task.roles["subject"].tolist() == [1, 1]
    assert task.roles["END"].tolist() == [1, 2]
    assert task.answers.tolist() == [TOKENIZER.single_token(" is")] * 2
    are, he = (TOKENIZER.single_token(word) for word in (" are", " he"))
    assert task.wrong.tolist() == [[are, -1], [are, he]]
    assert task.prompts["subject"].tolist() == ["dog", "cat"]
    assert not task.equal_length
    assert task.metric.name == "prob_diff"
    assert np.array_equal(task[[1]].wrong, [[are, he]])


def test_twins_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"made has no aligned positions .* 2 tokens, .* 3\."):
        made(twins("The dog", "The red dog"))
    with pytest.raises(ValueError, match=r"does not know token 1 of 'The zyx', a prompt of made"):
        made(twins("The zyx", "The dog"))
    with pytest.raises(ValueError, match="does not know token 0 of 'zyx dog'"):
        made(twins("The dog", "zyx dog"))
    with pytest.raises(ValueError, match="same token as a wrong one"):
        made(twins("The dog", "The dogs", answers=[" is"], wrong=[" are", " is"]))


def test_distinct_prompts():
    texts = iter("abacbd")
    pairs = distinct(4, 8, lambda _: twins(next(texts), ""))
    assert [pair.clean for pair in pairs] == list("abcd")
    with pytest.raises(ValueError, match="n=5 is more than half of the 8"):
        distinct(5, 8, lambda _: twins("", ""))
