"""IOI prompts with a word-level and a trained byte-level tokenizer."""

import json
import re

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxinterp import tasks
from jaxinterp.metrics import evaluate
from jaxinterp.model import Config, init
from jaxinterp.tasks import ioi
from jaxinterp.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from jaxinterp.tokens import Tokenizer

CORRUPTIONS = ["swap_subject", "abc", "symmetric"]


def word_level(names=NAMES, places=PLACES, objects=OBJECTS, **policy):
    """Words with their leading space; names that are left out fall apart into letters."""
    text = " ".join(re.sub(r"\{\w+\}", "", t) for t in TEMPLATES)
    plain = re.findall(r"\w+|,", text)
    letters = [chr(c) for c in range(65, 123)]
    words = ["[UNK]", "<s>", ",", *plain, *(f" {w}" for w in plain)]
    words += [f" {w}" for w in (*names, *places, *objects)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*words, *letters, *names]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?\w+|,"), "isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend, bos=1, name="words", **policy)


def byte_level():
    filled = [
        t.format(A=a, B=b, S=a, place=p, object=o)
        for t in TEMPLATES
        for a, b in zip(NAMES[:40:2], NAMES[1:40:2], strict=True)
        for p, o in zip(PLACES, OBJECTS, strict=True)
    ]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=560, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    backend.train_from_iterator(filled, trainer)
    return Tokenizer(backend, bos=0, name="bytes")


TOKENIZERS = {"words": word_level(), "bos": word_level(add_bos=True), "bytes": byte_level()}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("equal_length", [True, False])
def test_roles_answers_and_corruptions(tokenizer, corruption, equal_length):
    task = ioi(tokenizer, n=20, seed=3, corruption=corruption, equal_length=equal_length)
    assert len(task) == len(set(task.clean_text)) == 20
    assert list(task.roles) == ["IO", "S1", "S1+1", "S2", "END"]
    rows = np.arange(len(task))
    at = {role: (rows, where) for role, where in task.roles.items()}
    clean, corrupted = task.clean.ids, task.corrupted.ids

    # Roles say where the names stand: in the ids, and in the text when decoded.
    assert (clean[at["IO"]] == task.answers).all()
    assert (clean[at["S1"]] == task.wrong).all()
    assert (clean[at["S2"]] == task.wrong).all()
    assert (task.answers != task.wrong).all()
    assert (task.roles["END"] == task.clean.lengths - 1).all()
    assert (task.roles["S1"] + 1 == task.roles["S1+1"]).all()
    for i, text in enumerate(task.clean_text):
        io, subject = (tokenizer.decode(t).strip() for t in (task.answers[i], task.wrong[i]))
        assert (io, subject) == (task.prompts["IO"][i], task.prompts["S"][i])
        assert len(re.findall(rf"\b{subject}\b", text)) == 2
        assert len(re.findall(rf"\b{io}\b", text)) == 1
        assert text.endswith(" to")
        assert tokenizer.decode(clean[at["END"]][i]) == " to"
        assert (task.roles["IO"][i] < task.roles["S1"][i]) == (task.prompts["order"][i] == "ABBA")
    assert task.prompts["order"].tolist()[:3] == ["ABBA", "BABA", "ABBA"]

    # The twins differ where they should and nowhere else.
    assert (task.clean.positions == task.corrupted.positions).all()
    differ = [set(np.flatnonzero(row).tolist()) for row in clean != corrupted]
    places = ("IO", "S1", "S2") if corruption == "symmetric" else ("S2",)
    assert differ == [{int(task.roles[r][i]) for r in places} for i in rows]
    if corruption == "symmetric":
        assert (corrupted[at["IO"]] == task.wrong).all()
        assert (corrupted[at["S1"]] == task.answers).all()
    if corruption == "abc":
        third = corrupted[at["S2"]]
        assert ((third != task.answers) & (third != task.wrong)).all()
    else:
        assert (corrupted[at["S2"]] == task.answers).all()
    for text, ids, mask in zip(task.corrupted_text, corrupted, task.clean.mask, strict=True):
        assert tokenizer.encode(text) == ids[mask].tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_every_word_is_one_token(tokenizer):
    task = ioi(tokenizer, n=30)
    for i in range(len(task)):
        for word in (task.prompts["IO"][i], task.prompts["S"][i]):
            assert tokenizer.is_single_token(f" {word}")
    dropped = task.meta["dropped"]
    assert not any(tokenizer.is_single_token(f" {name}") for name in dropped["names"])
    for name, pieces in dropped["names"].items():
        assert "".join(pieces).strip() == name


def test_equal_length_keeps_the_commonest_class_and_says_so():
    tokenizer = TOKENIZERS["words"]
    task = ioi(tokenizer, n=40)
    assert task.equal_length
    assert task.clean.mask.all()
    left_out = task.meta["dropped"]["templates"]
    assert set(left_out) | set(task.prompts["template"]) == set(TEMPLATES)
    assert task.clean.shape[1] not in left_out.values()
    mixed = ioi(tokenizer, n=40, equal_length=False)
    assert not mixed.equal_length
    assert mixed.meta["dropped"]["templates"] == {}
    assert len(set(mixed.prompts["template"])) > len(set(task.prompts["template"]))


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_labels_where_prompts_agree(order):
    task = ioi(TOKENIZERS["bos"], n=6, templates=order)
    assert set(task.prompts["order"]) == {order}
    labels = task.labels()
    assert len(labels) == task.clean.shape[1]
    assert labels[task.roles["S1"][0]] == "S1"
    assert labels[-1] == "END"
    assert ioi(TOKENIZERS["bos"], n=6).labels().count("S1") == 0  # it moves between prompts


def test_bos_policy():
    tokenizer = TOKENIZERS["words"]
    plain, with_bos = ioi(tokenizer, n=4), ioi(tokenizer, n=4, prepend_bos=True)
    assert (with_bos.clean.ids[:, 0] == 1).all()
    assert (with_bos.clean.ids[:, 1:] == plain.clean.ids).all()
    for role in plain.roles:
        assert (with_bos.roles[role] == plain.roles[role] + 1).all()


def test_the_seed_decides_everything():
    one, again, other = (ioi(TOKENIZERS["words"], n=10, seed=s) for s in (1, 1, 2))
    assert one.clean_text == again.clean_text
    assert one.record() == again.record()
    assert one.record()["sha256"] != other.record()["sha256"]


def test_a_seed_goes_on_making_the_same_prompts():
    """So that results of earlier versions can be made again."""
    assert ioi(TOKENIZERS["words"]).record()["sha256"].startswith("05e150ffce46ac02")
    assert ioi(TOKENIZERS["bos"]).record()["sha256"].startswith("97f9e74ab218c861")


def test_some_of_the_prompts():
    task = ioi(TOKENIZERS["words"], n=8, corruption="abc")
    some = task[2:6][[1, 3]]
    assert some.clean_text == (task.clean_text[3], task.clean_text[5])
    assert (some.clean.ids == task.clean.ids[[3, 5]]).all()
    assert (some.metric.correct[:, 0] == task.answers[[3, 5]]).all()
    assert (some.roles["S2"] == task.roles["S2"][[3, 5]]).all()
    assert some.prompts["IO"].tolist() == task.prompts["IO"][[3, 5]].tolist()
    assert some.record()["rows"] == [3, 5]
    assert json.loads(json.dumps(some.record()))["n_made"] == 8
    assert len(task[-1]) == 1
    assert task[-1].clean_text == task.clean_text[-1:]
    mask = np.arange(8) % 2 == 0
    assert len(task[mask]) == 4
    with pytest.raises(IndexError, match="prompt 8"):
        task[8]
    with pytest.raises(ValueError, match="at least one"):
        task[8:]


def test_check_measures_both_sides():
    tokenizer = TOKENIZERS["words"]
    config = Config(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, vocab_size=tokenizer.vocab_size,
        n_ctx=32,
    )  # fmt: skip
    model, task = init(config, jax.random.key(0)), ioi(tokenizer, n=4)
    found = tasks.check(model, task)
    expected = np.mean(evaluate(task.metric, model, task.clean))
    assert found["clean_logit_diff"] == pytest.approx(expected)
    assert set(found) == {
        f"{side}_{what}"
        for side in ("clean", "corrupted")
        for what in ("logit_diff", "accuracy", "preferred")
    }
    assert 0 <= found["clean_preferred"] <= 1


def test_registry():
    task = tasks.make("ioi", TOKENIZERS["words"], n=2, corruption="abc")
    assert (task.name, task.corruption, len(task)) == ("ioi", "abc", 2)
    with pytest.raises(ValueError, match="'iou' is not a task"):
        tasks.make("iou", TOKENIZERS["words"])


def test_bad_requests_are_refused():
    tokenizer = TOKENIZERS["words"]
    for options, match in [
        ({"templates": "AABB"}, "templates='AABB'"),
        ({"corruption": "noise"}, "corruption='noise'"),
        ({"n": 0}, "n=0"),
        ({"n": 10**8}, "n=100000000, expected"),
    ]:
        with pytest.raises(ValueError, match=match):
            ioi(tokenizer, **options)
    with pytest.raises(ValueError, match="more than half"):
        ioi(word_level(names=NAMES[:4]), n=10**6)
    with pytest.raises(ValueError, match="Only 3 of"):
        ioi(word_level(names=NAMES[:3]))
    with pytest.raises(ValueError, match="Only 0 of 12 places"):
        ioi(word_level(places=()))
    ending = Tokenizer(tokenizer.backend, template=((1,), (1,)))
    with pytest.raises(ValueError, match="prepend_bos=False"):
        ioi(ending)
    assert len(ioi(ending, n=2, prepend_bos=False)) == 2


def test_four_names_are_enough():
    task = ioi(word_level(names=NAMES[:4]), n=8)
    assert set(task.prompts["IO"]) <= set(NAMES[:4])
    assert set(task.meta["dropped"]["names"]) == set(NAMES[4:])


def test_twins_must_match():
    task = ioi(TOKENIZERS["words"], n=4)
    longer = ioi(TOKENIZERS["bos"], n=4)
    broken = {f: getattr(task, f) for f in task.__dataclass_fields__}
    with pytest.raises(ValueError, match="token by token"):
        tasks.Task(**{**broken, "corrupted": longer.corrupted})
    with pytest.raises(ValueError, match="answers has 3 entries for 4"):
        tasks.Task(**{**broken, "answers": task.answers[:3]})
    with pytest.raises(ValueError, match="Role END lies outside"):
        tasks.Task(**{**broken, "roles": {"END": np.full(4, 99)}})
