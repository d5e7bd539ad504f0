"""Corpora: rows of local files, and blocks packed from texts."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import word_tokenizer

from jaxinterp import corpora

TEXTS = ["one two three", "four", "", "five six seven eight nine ten"]


def lines(path, texts=TEXTS):
    path.write_text("\n".join(texts) + "\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "csv", "folder"])
def test_local_files_are_streamed(tmp_path, kind):
    texts = [t for t in TEXTS if t]
    path = tmp_path / f"corpus.{kind}"
    if kind == "txt":
        lines(path, texts)
    elif kind == "txt.gz":
        with gzip.open(path, "wt") as out:
            out.write("\n".join(texts))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in texts))
    elif kind == "csv":
        path.write_text("text,n\n" + "\n".join(f"{t},1" for t in texts))
    else:
        path.mkdir()
        lines(path / "a.txt", texts[:1])
        lines(path / "b.txt", texts[1:])
    assert [row["text"] for row in corpora.open_texts(path)] == texts


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*none\.txt"):
        corpora.open_texts(tmp_path / "none.txt")
    lines(tmp_path / "a.txt")
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(ValueError, match="expected one kind"):
        corpora.open_texts(tmp_path)


@given(
    st.lists(st.lists(st.integers(0, 8), min_size=0, max_size=9), max_size=8),
    st.integers(2, 5), st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_blocks_are_the_texts_in_order(rows, length, batch, bos, eos):
    tokenizer = word_tokenizer(bos=bos, eos=eos)
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    stream = []
    for text in texts:
        if text:
            stream += tokenizer.encode(text, add_bos=False) + [tokenizer.eos] * eos
    room = length - bos
    whole = len(stream) // (room * batch)
    found = [np.asarray(t.ids) for t in corpora.packed(texts, tokenizer, length, batch)]
    assert all(ids.shape == (batch, length) for ids in found)
    ids = np.concatenate(found) if found else np.zeros((0, length), int)
    assert len(ids) == whole * batch
    assert ids[:, bos:].reshape(-1).tolist() == stream[: whole * batch * room]
    if bos:
        assert (ids[:, 0] == tokenizer.bos).all()


def test_rows_may_be_mappings_and_are_not_read_ahead():
    def rows():
        yield {"body": "w1 w2 w3 w4"}
        raise AssertionError("read too far")

    tokenizer = word_tokenizer()
    first = next(corpora.packed(rows(), tokenizer, 2, 2, field="body"))
    assert tokenizer.decode(np.asarray(first.ids)[1]).split() == ["w3", "w4"]


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        (["w1"], (0, 1), "length=0, expected"),
        (["w1"], (4, 0), "batch=0, expected"),
        (["w1", {"text": None}], (4, 1), "Row 1 has None"),
        ([{"body": "w1"}], (4, 1), "'text', expected text"),
    ],
)
def test_bad_input(rows, sizes, message):
    with pytest.raises(ValueError, match=message):
        list(corpora.packed(rows, word_tokenizer(), *sizes))


def test_lines_of_a_file(tmp_path):
    text = "one\n\n  two é \nthree"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write(text)
    for name in ("a.txt", "a.txt.gz"):
        assert list(corpora.read_lines(tmp_path / name)) == ["one", "two é", "three"]
