"""Claims of strangers: what they need is told first, and nothing in their files is believed."""

import dataclasses
import json
import os

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_claim import N, claim, model

import jaxinterp as ji
from jaxinterp.claims import Claim


def hostile(**changes):
    return json.dumps({**json.loads(claim().to_json()), **changes})


def test_a_claim_tells_what_it_needs_and_fetches_nothing_unless_told_to(tmp_path, monkeypatch):
    asked = []

    def download(*given, **options):
        asked.append(given[0])
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    far = Claim.from_json(hostile(source="someone/model", revision="main"))
    needs = far.needs()
    assert (needs.model, needs.revision, needs.place, needs.fetches) == (
        "someone/model", "main", "hub", True,
    )  # fmt: skip
    assert needs.size == sum(leaf.nbytes for leaf in jax.tree.leaves(model().params))
    assert needs.experiments == 1 + 7 + 1 + 8
    assert needs.prompts == N * (2 + 8 + 2 + 9)
    assert "'someone/model' at main is on the Hugging Face hub (about 0 MB are down" in str(needs)
    with pytest.raises(ValueError, match=r"fetches its model.*rerun\(fetch=True\)"):
        far.rerun()
    assert asked == []
    with pytest.raises(ji.loading.LoadError, match="no connection"):
        far.rerun(fetch=True)
    assert asked == ["someone/model"]
    assert far.rerun(model()).agreement == dict.fromkeys([e.name for e in far.experiments], 0.0)

    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path))
    built = Claim.from_json(hostile(source="smollm2-135m-instruct"))
    assert (built.needs().place, built.needs().fetches) == ("built-in", True)
    assert built.needs().size == 98_362_432
    with pytest.raises(ValueError, match="fetches its model"):
        built.rerun()
    for source, place in (("induction-2l", "shipped"), (str(tmp_path), "local"), ("", "nowhere")):
        needs = Claim.from_json(hostile(source=source)).needs()
        assert (needs.place, needs.fetches) == (place, False)
    for source in ("//server/share", "\\\\server\\share", "a\0b"):
        with pytest.raises(ji.loading.LoadError, match="expected a local path, or a name"):
            Claim.from_json(hostile(source=source)).needs()
    for source in ("~nosuchuser/x", "x" * 5000):
        with pytest.raises(ji.loading.LoadError, match="cannot be looked at"):
            Claim.from_json(hostile(source=source)).needs()
        with pytest.raises(ji.loading.LoadError, match="cannot be looked at"):
            ji.load(source)


def test_a_commit_in_the_hub_s_cache_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--someone--model" / "snapshots" / commit
    here = Claim.from_json(hostile(source="someone/model", revision=commit))
    assert here.needs().fetches
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, name in enumerate("ab", 1):
        assert here.needs().fetches  # a part of the weights is not there
        save_file({name: np.zeros(2)}, folder / f"model-{number}-of-2.safetensors")
    assert not here.needs().fetches
    assert "nothing is downloaded" in str(here.needs())
    branch = Claim.from_json(hostile(source="someone/model", revision="main"))
    assert branch.needs().fetches  # it may have moved on
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ji.loading.LoadError, match="Architecture None"):
        here.rerun()


def test_no_letter_of_a_claim_is_replaced(tmp_path):
    path = claim().save(tmp_path / "c.json")
    path.write_bytes(path.read_bytes().replace(b"Head 1.0 copies", b"Head 1.0 \xff copies"))
    with pytest.raises(ji.loading.LoadError, match=r"c\.json is no text in UTF-8"):
        Claim.load(path)
    half = dataclasses.replace(claim(), statement="Half \ud800 a letter")
    assert Claim.load(half.save(tmp_path / "h.json")).statement == half.statement
    for name in ("h.txt", "h.html"):  # seen, not replaced
        assert "Half \\xd800 a letter" in half.save(tmp_path / name).read_text("utf-8")
    accents = dataclasses.replace(claim(), statement="Têtes → 头")
    assert Claim.load(accents.save(tmp_path / "a.json")).statement == "Têtes → 头"


@pytest.mark.parametrize(
    "change",
    [
        {"resamples": 10**12}, {"resamples": -1}, {"resamples": "many"}, {"level": 2.0},
        {"level": float("nan")}, {"seed": -1}, {"statement": 3}, {"statement": ""},
        {"source": ["a"]}, {"absent": "no"}, {"model": None}, {"model": {"model": "x"}},
        {"arrays": []}, {"arrays": {"x": {"dtype": "object", "shape": [1], "base64": ""}}},
        {"experiments": {}}, {"experiments": [3]}, {"limits": 3}, {"agreement": [1]},
        {"more": 1},
    ],
)  # fmt: skip
def test_json_of_strangers_ends_in_one_error(change):
    with pytest.raises(ji.loading.LoadError):
        Claim.from_json(hostile(**change))


def test_values_of_strangers(tmp_path):
    plain = json.loads(claim().to_json())

    def refused(message, **found):
        one = {**plain["experiments"][0]}
        one["found"] = {**one["found"], **found}
        with pytest.raises(ji.loading.LoadError, match=message):
            Claim.from_json(json.dumps({**plain, "experiments": [one]}))

    refused("not finite", values=[[float("nan")] * N])
    refused("not finite", without=[1e999] * N)
    refused("more than are computed", resamples=10_000_000)
    refused("could not convert", values=[["x"] * N])
    deep = "[" * 500 + "]" * 500
    with pytest.raises(ji.loading.LoadError, match="nests more than 100 levels"):
        Claim.from_json(hostile(task=0).replace('"task": 0', f'"task": {deep}'))
    with pytest.raises(ji.loading.LoadError, match="letters, at most"):
        Claim.from_json(" " * (50 << 20))
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    with pytest.raises(ji.loading.LoadError, match="no regular file"):
        Claim.load(path)
    assert Claim.load(claim().save(tmp_path / "c.json")).text() == claim().text()


@pytest.mark.parametrize(
    "value",
    [
        {"function": "files.discard"}, {"function": "loading.load"}, {"function": "cli.main.run"},
        {"class": "sae.store.Store", "fields": {}}, {"class": "claims.claim.Claim", "fields": {}},
        {"class": "loading.registry.File", "fields": {}}, {"function": "metrics.__builtins__"},
        {"class": "interventions.np", "fields": {}}, {"function": "..os.system"},
    ],
)  # fmt: skip
def test_what_a_claim_names_can_only_compute(value):
    plain = json.loads(claim().to_json())
    plain["experiments"][0]["intervention"] = {"tuple": [value]}
    with pytest.raises(ji.loading.LoadError, match="jaxinterp has no"):
        Claim.from_json(json.dumps(plain))
