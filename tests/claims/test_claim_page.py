"""The page of a claim: offline, exact, and deaf to what its texts say."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from test_claim import LIMITS, N, claim, known, pairs

HOSTILE = "</script><script>alert(1)</script><b>{{script}} & \u2028"


class Reader(html.parser.HTMLParser):
    """Collects tags, and what stands in the data element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self._inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.data += data


def read(given):
    text = given.html()
    reader = Reader(text)
    return text, reader, json.loads(reader.data)


def test_the_page_needs_nothing_else():
    text, reader, _ = read(claim())
    assert not re.search(r"https?://|@import|\burl\(", text)
    for tag, attributes in reader.tags:
        assert tag not in {"link", "iframe", "object", "img"}
        assert not {"src", "srcset"} & set(attributes)
    assert "default-src 'none'" in text
    assert len(text) < 200_000


def test_every_number_is_on_the_page():
    *_, data = read(claim())
    assert [s["title"] for s in data["sections"]] == [
        "Causal effect", "Controls", "Specificity", "Localization",
    ]  # fmt: skip
    blocks = {b["name"]: b for s in data["sections"] for b in s["experiments"]}
    assert list(blocks) == ["zero the head", "random heads", "loss elsewhere", "every head"]
    for name, block in blocks.items():
        experiment, found = claim()[name], claim()[name].found
        rows = [row for row in block["rows"] if not row.get("beside")]
        if name == "random heads":
            mean = rows.pop(0)
            assert [mean[k] for k in ("estimate", "low", "high")] == list(found.average)
        order = np.argsort(-np.abs(found.estimate), kind="stable")
        for key in ("estimate", "low", "high"):
            assert [row[key] for row in rows] == getattr(found, key)[order].tolist()
        assert [row["changed"] for row in rows] == [
            experiment.verdicts()[i] == "changed" for i in order
        ]
    effect = blocks["zero the head"]
    assert next(row["label"] for row in effect["rows"] if row.get("beside")).endswith("mean of 7")
    difference = claim()["zero the head"].found.values[0] - claim()["zero the head"].found.without
    np.testing.assert_allclose(effect["rows"][0]["dots"], difference, rtol=1e-3)
    assert len(effect["prompts"]) == N
    assert effect["prompts"][0][0] == known().alphabet.decode(pairs().clean.ids[0])
    assert data["limits"] == LIMITS


@pytest.mark.parametrize("field", ["statement", "task", "dataset", "components", "limits", "note"])
def test_hostile_texts_stay_texts(field):
    value = [HOSTILE] if field in ("components", "limits") else HOSTILE
    if field == "note":
        first, *rest = claim().experiments
        first = dataclasses.replace(first, note=HOSTILE, name=HOSTILE, texts=[HOSTILE] * N)
        given = dataclasses.replace(claim(), experiments=(first, *rest))
    else:
        given = dataclasses.replace(claim(), **{field: value})
    expected = [tag for tag, _ in Reader(claim().html()).tags]
    _, reader, data = read(given)
    assert [tag for tag, _ in reader.tags] == expected
    assert "alert(1)" in json.dumps(data)
