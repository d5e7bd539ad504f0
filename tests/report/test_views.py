"""Views: what the page holds is what was given, and nothing on it can run but its own script."""

import html
import json
import re

import numpy as np
import pytest
import xarray as xr
from test_html import HOSTILE, Reader

from jaxinterp import heads
from jaxinterp.report import attention_view, projections, token_view

RNG = np.random.default_rng(0)


def held(view):
    reader = Reader(view.page)
    assert not re.search(r"https?://|@import|\burl\(", view.page)
    assert "default-src 'none'" in view.page
    assert [tag for tag, _ in reader.tags].count("script") == 2
    return json.loads(reader.data)


def pattern(n_tokens=4):
    values = RNG.dirichlet(np.ones(n_tokens), (3, 2, n_tokens))
    dims = ("layer", "head", "query", "source")
    coords = {"layer": [4, 5, 6], "head": [0, 1], "token": ("source", HOSTILE[:n_tokens])}
    return xr.DataArray(values, coords, dims, attrs={"model": "tiny"})


def test_tokens_and_their_values(tmp_path):
    tokens = [HOSTILE[:3], HOSTILE[3:8]]
    values = {"a": [[1.0, np.nan, -2.5], RNG.normal(size=5)], "b": [[0, 0, 1], np.arange(5)]}
    view = token_view(tokens, values, labels=["x", "y"], title="<b>")
    data = held(view)
    assert [p["tokens"] for p in data["prompts"]] == tokens
    assert data["names"] == ["a", "b"]
    assert data["prompts"][0]["values"] == [[1.0, None, -2.5], [0, 0, 1]]
    np.testing.assert_allclose(data["prompts"][1]["values"][0], values["a"][1], atol=1e-5)
    path = view.save(tmp_path / "tokens.html")
    assert path.read_text(encoding="utf-8", errors="replace").startswith("<!doctype html>")
    frame = view._repr_html_()
    assert 'sandbox="allow-scripts"' in frame
    inside = re.search('srcdoc="(.*?)"', frame, re.DOTALL)[1]
    assert html.unescape(inside) == view.page
    one = held(token_view(tokens[0], {"a": [1, 2, 3]}))
    assert one["prompts"][0]["values"] == [[1, 2, 3]]


def test_attention_of_every_head():
    given = pattern()
    data = held(attention_view(given))
    assert data["layers"] == [4, 5, 6]
    assert data["tokens"] == HOSTILE[:4]
    found = np.array(data["weights"]).reshape(3, 2, 4, 4)
    np.testing.assert_allclose(found, given, atol=6e-4)
    assert "tiny" in data["facts"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: token_view([], {"a": []}), "nothing to show"),
        (lambda: token_view(["a", "b"], {"a": [1]}), r"lengths \[1\] for prompts of \[2\]"),
        (lambda: token_view([["a"], ["b"]], {"a": [[1]]}), "lengths"),
        (lambda: attention_view(pattern().rename(head="h")), "expected layer, head"),
        (lambda: attention_view(xr.concat([pattern(4)] * 400, "layer").isel(
            source=[0] * 81, query=[0] * 101)), "too many"),
        (lambda: projections([1.0, 2.0], [0]), "expected .n. each"),
    ],
)  # fmt: skip
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_projections_have_their_area_under_the_curve(tmp_path):
    along, labels = RNG.normal(size=60), np.repeat(["a", "b"], 30)
    along[30:] += 1
    figure = projections(along, labels, tmp_path / "p.png", title="$x")
    pairs = [(hi > lo) for hi in along[30:] for lo in along[:30]]
    assert f"AUC {np.mean(pairs):.3f}" in figure.axes[0].get_xlabel()
    drawn = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert drawn == 60


def test_a_pattern_to_look_at():
    from small_models import PROMPTS, small_model

    import jaxinterp as ji

    model = small_model("llama")
    found = heads.attention(model, PROMPTS[0])
    expected = ji.forward(model, PROMPTS[:1], record=("pattern",)).activations["pattern"]
    np.testing.assert_allclose(found, np.asarray(expected)[:, 0], atol=1e-6)
    weighted = heads.attention(model, PROMPTS[0], by_value=True)
    np.testing.assert_allclose(weighted.sum("source"), 1, atol=1e-5)
    assert "shares" in held(attention_view(weighted))["facts"]
    with pytest.raises(ValueError, match="one whole prompt"):
        heads.attention(model, PROMPTS)
