"""Feature pages: what the file holds is the study, and none of its texts can become markup."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
import xarray as xr
from test_html import HOSTILE, Reader

from jaxinterp.report.features import write_features

END = "</script><img src=x onerror=alert(1)>"
DIMS = ("feature", "group", "rank", "offset")


def made(n=6, k=5, intervals=4, window=(12, 6), n_tokens=30_000, share=0.3, seed=0, texts=None):
    """A study of invented numbers: Zipf's tokens, none of them alike enough to pack well."""
    rng = np.random.default_rng(seed)
    shape = (n, 1 + intervals, k)
    offsets = np.arange(-window[0], window[1] + 1)
    chance = 1 / np.arange(10, n_tokens + 10)

    def tokens(*size):
        return rng.choice(n_tokens, size, p=chance / chance.sum())

    context = tokens(*shape, len(offsets))
    position = rng.integers(0, 500, shape)
    context[position[..., None] + offsets < 0] = -1
    activation = rng.gamma(2, 1.5, context.shape) * (rng.random(context.shape) < share)
    activation[..., window[0]] = -np.sort(-rng.gamma(2, 1.5, shape) - 0.1, axis=-1)
    activation = np.where(context >= 0, activation, np.nan).astype(np.float32)
    value, written = activation[..., window[0]].copy(), tokens(n, 2, 8)
    factors, change = [0.0, 2.0], rng.normal(size=(n, 2))
    data = {
        "value": (DIMS[:3], value), "position": (DIMS[:3], position),
        "prompt": (DIMS[:3], rng.integers(0, 10**5, shape)),
        "context": (DIMS, context), "activation": (DIMS, activation),
        "lower": (DIMS[:2], value.min(-1)), "upper": (DIMS[:2], value.max(-1)),
        "count": (("feature", "bin"), rng.geometric(0.002, (n, 40)) * (np.arange(40) < 31)),
        "width": ("feature", 2.0 ** rng.integers(-4, 1, n)),
        "density": ("feature", 10 ** rng.uniform(-5, -0.5, n)),
        "written": (("feature", "end", "place"), written),
        "change": (("feature", "end", "place"), rng.normal(size=written.shape) * [[1], [-1]]),
        "other": (("feature", "near"), rng.integers(0, 2 * n, (n, 5))),
        "cosine": (("feature", "near"), -np.sort(-rng.uniform(0, 1, (n, 5)))),
        "effect": (("feature", "factor"), change, {"metric": "summed next-token loss"}),
        "effect_low": (("feature", "factor"), change - 0.1),
        "effect_high": (("feature", "factor"), change + 0.1),
        "effect_active": ("feature", rng.integers(0, 999, n)),
    }  # fmt: skip
    ids = np.unique(np.concatenate([context[context >= 0], written.ravel()]))
    texts = [f" w{i}" for i in ids] if texts is None else [texts[i % len(texts)] for i in ids]
    data["text"] = ("token", np.asarray(texts, object))
    names = [f"{100 - 25 * (i + 1)} to {100 - 25 * i}%" for i in range(intervals)]
    coords = {
        "feature": 2 * np.arange(n) + 1, "group": ["top", *names], "offset": offsets,
        "end": ["raised", "lowered"], "factor": factors, "token": ids,
    }  # fmt: skip
    attrs = {"model": "tiny", "site": "resid_post", "layer": 1, "n_counted": 12_345}
    return xr.Dataset(data, coords, {**attrs, "n_features": 64, "config": '{"a": [1]}'})


def held(study, tmp_path, title="Features"):
    """The page's text, its tags, its data, and every feature's own."""
    path = write_features(study, tmp_path / "features.html", title=title)
    assert [file.name for file in tmp_path.iterdir()] == ["features.html"]
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    data = json.loads(reader.data)
    packed = [json.loads(zlib.decompress(base64.b64decode(one))) for one in data["features"]]
    return page, [tag for tag, _ in reader.tags], data, packed


def close(found, expected):
    """To the four digits that are kept; null for no number."""
    expected = np.where(np.isfinite(expected), np.asarray(expected, float), np.nan)
    np.testing.assert_allclose(np.array(found, float), expected, rtol=5.1e-4)


def check(study, data, packed):
    """Everything in the study is on the page."""
    assert data["number"] == study.feature.values.tolist()
    assert data["groups"] == study.group.values.tolist()
    close(data["density"], study.density)
    close(data["max"], study.value.isel(group=0).max("rank"))
    peak = study.sizes["offset"] - 1 - int(study.offset[-1])

    def text(token):
        return study.text.sel(token=token).item() if "text" in study else f"⟨{token}⟩"

    for i, one in enumerate(packed):
        own = study.isel(feature=i)
        used = len(one["count"])
        assert one["count"] == own["count"].values[:used].tolist()
        assert own["count"].values[used:].sum() == 0
        assert one["width"] == float(own.width)
        close([pair[0] for pair in one["limits"]], own.lower)
        close([pair[1] for pair in one["limits"]], own.upper)
        for group, rows in enumerate(one["examples"]):
            there = np.flatnonzero(own.context[group, :, peak] >= 0)
            assert len(rows) == len(there)
            for rank, (prompt, position, place, tokens, values) in zip(there, rows, strict=True):
                example = own.isel(group=group, rank=rank)
                inside = np.flatnonzero(example.context >= 0)
                assert (prompt, position) == (int(example.prompt), int(example.position))
                assert inside[place] == peak
                named = [data["texts"][token] for token in tokens]
                assert named == [text(int(t)) for t in example.context[inside]]
                close(values, example.activation[inside])
                close(values[place], example.value)
        first = own.context[0, :, peak].values
        peaks = [text(t) for t in dict.fromkeys(first.tolist()) if t >= 0]
        assert [data["texts"][token] for token in data["peaks"][i]] == peaks
        if "written" in study:
            for end, name in enumerate(("raised", "lowered")):
                words = [data["texts"][token] for token in data[name][i]]
                assert words == [text(int(t)) for t in own.written[end]]
                close(one["change"][end], own.change[end])
        if "other" in study:
            assert one["other"] == own.other.values.tolist()
            close(one["cosine"], own.cosine)
        if "effect" in study:
            close(one["effect"], np.stack([own.effect, own.effect_low, own.effect_high], 1))
            close([column[i] for column in data["effects"]], own.effect)
            assert one["active"] == int(own.effect_active)


def test_the_page_holds_the_study(tmp_path):
    study = made()
    study.effect_low[2, 1] = np.nan
    study.value[3] = -np.inf  # a feature that is never active
    study.context[3], study.activation[3] = -1, np.nan
    study.lower[3] = study.upper[3] = np.nan
    study["count"][3], study.density[3] = 0, 0
    page, _, data, packed = held(study, tmp_path)
    check(study, data, packed)
    assert data["max"][3] is None
    assert packed[3]["count"] == []
    assert packed[3]["examples"] == [[]] * 5
    assert data["facts"] == ["tiny", "resid_post", "layer 1", "6 of 64 features", "12,345 tokens"]
    assert ["config", '{\n "a": [\n  1\n ]\n}'] in data["record"]
    assert data["metric"] == "next-token loss, nats"
    assert not re.search(r"https?://|@import|\burl\(", page)
    assert "default-src 'none'" in page


def test_common_texts_have_short_numbers(tmp_path):
    study = made()
    *_, data, _ = held(study, tmp_path)
    ids = np.concatenate([study.context.values.ravel(), study.written.values.ravel()])
    kinds, counts = np.unique(ids[ids >= 0], return_counts=True)
    assert len(data["texts"]) == len(kinds)
    often = dict(zip((f" w{i}" for i in kinds), counts, strict=True))
    assert [often[text] for text in data["texts"]] == sorted(counts, reverse=True)


def test_texts_cannot_become_markup(tmp_path):
    hostile = [END, *(text for text in HOSTILE if text != "\ud800")]  # xarray takes no surrogates
    _, tags, _, _ = held(made(), tmp_path)
    study = made(texts=hostile).assign_attrs(model=END, note=hostile[1])
    page, found, data, packed = held(study, tmp_path, title=END)
    assert found == tags
    assert found.count("script") == 2
    assert "<img" not in page
    check(study, data, packed)
    assert data["title"] == END
    assert set(hostile) == set(data["texts"])


def test_less_may_be_known(tmp_path):
    names = ["text", "written", "change", "other", "cosine", "effect", "effect_low",
             "effect_high", "effect_active"]  # fmt: skip
    study = made().drop_vars([*names, "token"]).isel(group=[0])
    study.attrs = {}
    *_, data, packed = held(study, tmp_path)
    check(study, data, packed)
    assert data["factors"] == data["effects"] == data["record"] == []
    assert data["raised"] == [[]] * 6
    assert data["facts"] == ["6 of 6 features"]
    assert set(packed[0]) == {"examples", "limits", "width", "count"}


@pytest.mark.parametrize(("share", "most"), [(0.1, 4000), (1.0, 6000)])
def test_a_feature_takes_little_room(tmp_path, share, most):
    few, many = (len(held(made(n, share=share), tmp_path)[0]) for n in (20, 220))
    assert (many - few) / 200 < most


def test_a_study_of_a_model(tmp_path):
    from small_models import small_model
    from tiny_tokenizers import word_tokenizer

    from jaxinterp import sae
    from jaxinterp.sae.study import study_features

    config, rng = (
        sae.DictionaryConfig(8, 20, site="resid_post", layers=(1,)),
        np.random.default_rng(0),
    )
    arrays = {name: rng.normal(size=shape) / 3 for name, shape in config.shapes.items()}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    model, d = small_model("llama"), sae.Dictionary(sae.Parameters(**arrays), config)
    batches = [rng.integers(2, 17, (4, 9)) for _ in range(3)]
    study = study_features(
        model, d, batches, k=3, sample=30, tokenizer=word_tokenizer(words=14),
        effects=sae.feature_effects(model, d, batches[0]),
    )  # fmt: skip
    *_, data, packed = held(study, tmp_path)
    check(study, data, packed)
    assert data["counted"] == 96
    assert data["facts"][-2:] == ["20 of 20 features", "96 tokens"]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (xr.Dataset({"value": 1}), "lacks 'lower'"),
        (made().isel(feature=[]), "no features"),
    ],
)
def test_what_is_refused(tmp_path, study, message):
    with pytest.raises(ValueError, match=message):
        write_features(study, tmp_path / "a.html", title="t")
