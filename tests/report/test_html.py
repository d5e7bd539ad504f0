"""The page: self-contained, exact, and deaf to what its texts say."""

import html.parser
import json
import re

import numpy as np
import pytest

from jaxinterp.report import html as page
from jaxinterp.report import summarize, write_report

HOSTILE = [
    "</script><script>alert(1)</script>", "<|im_start|>", "<!--", "&lt;b&gt;", '"quoted"',
    "{{script}}", "\u2028", "\ud800", "<img src=x onerror=alert(1)>",
]  # fmt: skip


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


def written(tmp_path, results, **more):
    path = write_report(results, tmp_path / "report.html", **{"title": "A title"} | more)
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    return text, reader, json.loads(reader.data)


@pytest.fixture(scope="module")
def both(sweep):
    return {"resid_pre": sweep(), "z": sweep(("layer", "head"))}


def test_the_page_needs_nothing_else(tmp_path, both):
    text, reader, _ = written(tmp_path, both)
    assert not re.search(r"https?://|@import|\burl\(", text)
    for tag, attributes in reader.tags:
        assert tag not in {"link", "iframe", "object", "img"}
        assert not {"src", "srcset"} & set(attributes)
    assert "default-src 'none'" in text
    assert len(text) < 1_500_000
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_every_number_is_on_the_page(tmp_path, both):
    *_, data = written(tmp_path, both)
    for section, (name, result) in zip(data["sections"], both.items(), strict=True):
        assert section["name"] == name
        values = np.array(section["values"], result.dtype).reshape(result.shape)
        np.testing.assert_array_equal(values, result)
        for key in ("clean", "corrupted"):
            found = np.array(section[key]["values"], np.float32)
            np.testing.assert_array_equal(found, result.coords[key])
            assert section[key]["mean"] == pytest.approx(float(result.coords[key].mean()), rel=1e-6)
            texts = result.coords[f"{key}_text"].values.tolist()
            assert [p[key] for p in section["prompts"]] == texts
        cells = summarize(result, k=page.TOP)["cells"]
        assert section["top"] == [row["cell"] for row in cells]
        stats = section["share_stats"]
        for row in cells:
            shown = [stats[key][row["cell"]] for key in ("mean", "low", "high", "std")]
            wanted = [row[key] for key in ("share", "low", "high", "std")]
            np.testing.assert_allclose(shown, wanted, rtol=1e-5)
        assert [name for name, _ in section["record"]] == list(result.attrs)


def test_double_precision_survives(tmp_path, sweep):
    result = sweep(n=2).astype(np.float64) / 3
    *_, data = written(tmp_path, {"a": result})
    np.testing.assert_array_equal(data["sections"][0]["values"], result.values.ravel())


def test_hostile_texts_stay_texts(tmp_path, sweep):
    result = sweep(n=len(HOSTILE))
    tokens = HOSTILE + result.position_token.values[len(HOSTILE) :].tolist()
    result = result.assign_coords(
        position_token=("position", tokens), clean_text=("prompt", HOSTILE)
    ).assign_attrs(model=HOSTILE[0], note="{{data}}")
    result.name = HOSTILE[0]
    clean_tags = [tag for tag, _ in written(tmp_path, {"a": sweep(n=2)})[1].tags]
    more = {"title": HOSTILE[0], "extra": {"<b>": HOSTILE}}
    _, reader, data = written(tmp_path, {HOSTILE[0]: result}, **more)
    assert [tag for tag, _ in reader.tags] == clean_tags
    section = data["sections"][0]
    assert section["name"] == data["title"] == HOSTILE[0]
    assert [p["clean"] for p in section["prompts"]] == HOSTILE
    assert section["axes"][1]["exact"] == tokens
    assert ["note", "{{data}}"] in section["record"]
    assert json.loads(data["extra"][0][1]) == HOSTILE


@pytest.mark.parametrize(
    ("dims", "up", "across", "rest"),
    [
        (("layer",), None, "layer", []),
        (("layer", "head", "position"), "layer", "head", ["position"]),
        (("layer", "head", "position", "source"), "position", "source", ["layer", "head"]),
    ],
)
def test_further_axes_are_sliders(tmp_path, sweep, dims, up, across, rest):
    *_, data = written(tmp_path, {"a": sweep(dims, n=2, n_layers=4)})
    section = data["sections"][0]
    assert (section["up"], section["across"], section["rest"]) == (up, across, rest)
    assert [axis["name"] for axis in section["axes"]] == list(dims)


def test_no_number_is_null(tmp_path, sweep):
    result = sweep(n=1)
    result[3, 4, 0] = np.nan
    *_, data = written(tmp_path, {"a": result})
    section = data["sections"][0]
    assert section["values"][3 * 15 + 4] is None
    assert section["share_stats"]["mean"][3 * 15 + 4] is None
    assert section["share_stats"]["low"] == [None] * (30 * 15)


def test_no_gap_hides_the_share(tmp_path, sweep):
    result = sweep(n=3)
    *_, data = written(tmp_path, {"a": result.assign_coords(clean=result.corrupted)})
    assert data["sections"][0]["defined"] is False
    assert "agree" in data["sections"][0]["notes"][0]


def test_huge_sweeps_travel_as_means(tmp_path, sweep, monkeypatch):
    monkeypatch.setattr(page, "MOST_VALUES", 100)
    *_, data = written(tmp_path, {"a": sweep(n=3)})
    assert data["sections"][0]["values"] is None
    assert len(data["sections"][0]["metric_stats"]["mean"]) == 30 * 15


def test_bad_places_and_empty_reports_are_errors(tmp_path, sweep):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="not a folder"):
        write_report({"a": sweep(n=2)}, tmp_path / "file" / "a.html", title="t")
    with pytest.raises(ValueError, match="no results"):
        write_report({}, tmp_path / "a.html", title="t")
