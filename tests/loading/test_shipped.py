"""Shipped models: written, listed, loaded by name and by step, and checked to the last bit."""

import dataclasses
import hashlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import CONFIGS, perturbed, small_model
from tiny_tokenizers import word_tokenizer

from jaxinterp.loading import (
    LoadError,
    attach,
    attached,
    card,
    load,
    models,
    ship,
    weights_folder,
)  # fmt: skip
from jaxinterp.loading.shipped import shipped
from jaxinterp.model import Config, forward

REAL = weights_folder()
ABOUT = {
    "description": "A random model", "data": "none | at all", "seed": 3, "steps": 20,
    "recipe": "python scripts/none.py --seed 3",
    "compute": {"seconds": 1.5, "machine": "2 cores", "date": "2026-11-26"},
    "metrics": {"accuracy": np.float32(0.25), "loss": 2},
}  # fmt: skip


def path_of(key):
    return ".".join(part.name for part in key)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A weights folder with one model in it, "tiny-1", that has two steps and a tokenizer."""
    folder = tmp_path / "weights"
    monkeypatch.setattr("jaxinterp.loading.shipped.weights_folder", lambda: folder)
    monkeypatch.setattr("jaxinterp.loading.weights_folder", lambda: folder)
    kept = {9: perturbed(small_model("llama"), 9), 5: perturbed(small_model("llama"), 5)}
    tokenizer = word_tokenizer(bos=True)
    ship(folder / "tiny-1", small_model("llama"), kept=kept, tokenizer=tokenizer, **ABOUT)
    return folder


def fails(match, name="tiny-1", **options):
    with pytest.raises(LoadError, match=match) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_it_comes_back_bit_for_bit_by_its_name(weights):
    model, tokenizer = load("tiny-1")
    same(model.params, small_model("llama").params)
    assert (model.config, model.name) == (CONFIGS["llama"], "tiny-1")
    file = (weights / "tiny-1" / "model.safetensors").read_bytes()
    assert model.revision == hashlib.sha256(file).hexdigest()
    assert tokenizer == word_tokenizer(bos=True)
    assert not any(leaf.committed for leaf in jax.tree.leaves(model))
    got, want = (forward(m, [[1, 2, 3]]).logits for m in (model, small_model("llama")))
    np.testing.assert_array_equal(got, want)
    same(load(weights / "tiny-1")[0], model)  # the folder does as well as the name


@pytest.mark.parametrize("step", [5, 9])
def test_it_comes_back_as_it_was_at_a_step(weights, step):
    model, tokenizer = load("tiny-1", revision=f"step-{step}")
    same(model.params, perturbed(small_model("llama"), step).params)
    file = (weights / "tiny-1" / f"step-{step}.safetensors").read_bytes()
    assert (model.name, model.revision) == ("tiny-1", hashlib.sha256(file).hexdigest())
    assert tokenizer is not None


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_architecture_ships(weights, name):
    made = ship(weights / "other", small_model(name), **ABOUT)
    model, tokenizer = load("other")
    same(model.params, small_model(name).params)
    assert model.config == Config.from_dict(made.config) == CONFIGS[name]
    assert tokenizer is None
    stored = load_file(weights / "other" / "model.safetensors")
    leaves = jax.tree_util.tree_leaves_with_path(small_model(name).params)
    assert stored.keys() == {path_of(key) for key, _ in leaves}
    assert "embed.W_E" in stored
    for key, leaf in leaves:
        np.testing.assert_array_equal(stored[path_of(key)], leaf)
    assert f"{sum(leaf.size for _, leaf in leaves):,} parameters" in made.architecture()


def test_the_same_numbers_give_the_same_files(weights):
    first = card("tiny-1")
    params = jax.tree.map(jnp.asarray, small_model("llama"))  # on a device, in another folder
    again = ship(weights.parent / "tiny-1", params, tokenizer=word_tokenizer(bos=True), **ABOUT)
    assert again.files == {n: d for n, d in first.files.items() if "step" not in n}


def test_the_card_says_what_is_known(weights):
    its = card("tiny-1")
    assert its == card(weights / "tiny-1")
    files = {p.name: p.read_bytes() for p in (weights / "tiny-1").iterdir()}
    on_disk = json.loads(files.pop("card.json"))
    assert on_disk == dataclasses.asdict(its)
    assert its.files == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    weight_files = {"model.safetensors", "step-5.safetensors", "step-9.safetensors"}
    assert {name for name in files if name.endswith(".safetensors")} == weight_files
    assert its.kept == (5, 9)
    assert (its.seed, its.steps, its.licence) == (3, 20, "Apache-2.0")
    assert its.metrics == {"accuracy": 0.25, "loss": 2.0}
    page = its.markdown()
    assert page.startswith("# tiny-1\n\nA random model\n\n")
    for row in (
        "| architecture | 3 layers of width 8, 4 heads of 6, MLPs of 10 (silu), causal; ",
        "| data | none \\| at all |", "| recipe | `python scripts/none.py --seed 3` |",
        "| seed | 3 |", "| steps | 20 |", "| accuracy | 0.25 |", "| licence | Apache-2.0 |",
        "| compute | seconds: 1.5, machine: 2 cores, date: 2026-11-26 |",
        "| kept on the way | `step-5`, `step-9` |",
        f"| `model.safetensors` | `{its.files['model.safetensors']}` |",
    ):  # fmt: skip
        assert f"\n{row}" in page
    made = ship(weights / "plain", small_model("encoder"), **{**ABOUT, "metrics": {}})
    assert "kept on the way" not in made.markdown()
    assert "bidirectional" in made.markdown()


def test_arrays_beside_a_model(weights):
    folder, found = weights / "tiny-1", {"W": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    before = card("tiny-1")
    its = attach(folder, "probes", found)
    assert its == card("tiny-1")
    assert its.attached == ("probes",)
    assert its.kept == before.kept
    digest = hashlib.sha256((folder / "probes.safetensors").read_bytes()).hexdigest()
    assert its.files == before.files | {"probes.safetensors": digest}
    for name in ("tiny-1", folder):
        again = attached(name, "probes")
        assert again.keys() == found.keys()
        np.testing.assert_array_equal(again["W"], found["W"])
    assert attach(folder, "probes", {"b": np.ones(2, np.float32)}).attached == ("probes",)
    assert attached("tiny-1", "probes").keys() == {"b"}
    load("tiny-1")
    with pytest.raises(LoadError, match="no arrays 'erasers' beside it: expected one of: probes"):
        attached("tiny-1", "erasers")
    with pytest.raises(LoadError, match="no arrays 'model'"):
        attached("tiny-1", "model")
    for name, arrays, match in (
        ("model", found, "cannot be the name"), ("step-5", found, "cannot be the name"),
        ("wide", {"W": np.ones(3)}, "W for wide.safetensors is float64"),
        ("wide", {"W": np.full(3, np.nan, np.float32)}, "not finite"),
        ("wide", {"W": np.zeros(2_500_000, np.float32)}, "expected at most 10,000,000"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            attach(folder, name, arrays)
    (folder / "probes.safetensors").write_bytes(b"other")
    with pytest.raises(LoadError, match="it was changed"):
        attached("tiny-1", "probes")


def test_they_are_listed(weights):
    ship(weights / "another", small_model("gpt2"), **ABOUT, licence="MIT")
    (weights / "notes").mkdir()  # holds no model
    (weights / "README.md").write_text("models")
    assert shipped() == ("another", "tiny-1")
    listed = models()
    assert list(listed)[-2:] == ["another", "tiny-1"]
    assert listed["another"] == "A random model; 0.0 MB; MIT"
    assert "smollm2-135m-instruct" in listed


def test_bfloat16_and_a_mesh(weights):
    model, _ = load("tiny-1", dtype=jnp.bfloat16)
    want = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), small_model("llama").params)
    same(model.params, want)
    mesh = jax.make_mesh((1,), ("model",))
    split, _ = load("tiny-1", mesh=mesh)
    spec = split.params.embed.W_E.sharding.spec
    assert spec == jax.sharding.PartitionSpec("model")
    same(jax.tree.map(np.asarray, split.params), small_model("llama").params)
    huge = jax.tree.map(lambda leaf: leaf * np.float32(1e6), small_model("llama"))
    ship(weights / "huge", huge, **ABOUT)
    fails("values beyond float16: load with dtype=jnp.float32", "huge", dtype=jnp.float16)


def test_what_is_not_there(weights):
    fails(
        r"no revision 'step-7': expected a step kept on the way \(step-5, step-9\)",
        revision="step-7",
    )
    fails(r"no revision 'main'", revision="main")
    fails(r"no revision '\.\./tiny-1/model'", revision="../tiny-1/model")
    ship(weights / "plain", small_model("gpt2"), **ABOUT)
    fails(r"no revision 'step-5'.*it has none", "plain", revision="step-5")
    with pytest.raises(
        LoadError, match="'tiny-2' is no shipped model: expected one of plain, tiny"
    ):
        card("tiny-2")
    shutil.rmtree(weights)
    assert shipped() == ()
    with pytest.raises(LoadError, match=r"expected a folder with a card\.json"):
        card("tiny-1")


def test_a_changed_file_is_refused(weights):
    folder = weights / "tiny-1"
    for file, revision in (
        ("model.safetensors", None), ("step-5.safetensors", "step-5"), ("tokenizer.json", None),
    ):  # fmt: skip
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        expected = hashlib.sha256(data).hexdigest()
        fails(rf"{re.escape(file)} has SHA-256 \w+, expected {expected}", revision=revision)
        if file.startswith("step"):  # the others are not read
            load("tiny-1")
        (folder / file).unlink()
        fails(f"{re.escape(file)} is missing", revision=revision)
        (folder / file).write_bytes(data)
    load("tiny-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not valid JSON"),
        ({"name": "tiny-3"}, r"of 'tiny-3' and lists .*: expected 'tiny-1'"),
        ({"seed": ...}, r"is damaged .*seed"),
        ({"colour": "red"}, r"is damaged .*colour"),
        ({"config": {"n_layers": 2}}, r"is damaged .*lacks d_model, n_heads"),
        ({"files": {}}, r"lists no files: expected 'tiny-1' with model\.safetensors"),
        ({"files": {"model.safetensors": 3}}, r"is damaged .*no SHA-256"),
        ({"files": ["model.safetensors"]}, r"is damaged"),
    ],
)
def test_a_damaged_card_is_refused(weights, change, message):
    path = weights / "tiny-1" / "card.json"
    if isinstance(change, str):
        path.write_text(change)
    else:
        found = {**json.loads(path.read_text()), **change}
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))
    fails(message)
    with pytest.raises(LoadError, match=message):
        card("tiny-1")


def test_files_that_do_not_belong_to_the_config_are_refused(weights):
    folder = weights / "tiny-1"
    arrays = load_file(folder / "model.safetensors")
    found = json.loads((folder / "card.json").read_text())

    def put(changed):
        save_file(changed, folder / "model.safetensors")
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        found["files"]["model.safetensors"] = digest
        (folder / "card.json").write_text(json.dumps(found))

    put({**arrays, "head.b_U": np.zeros(17, np.float32)})
    fails(r"head\.b_U of shape \(17,\), where its config says None")
    put({name: array for name, array in arrays.items() if name != "head.W_U"})
    fails(r"head\.W_U of shape None, where its config says \(8, 17\)")
    put({**arrays, "embed.W_E": np.zeros((16, 8), np.float32)})
    fails(r"embed\.W_E of shape \(16, 8\), where its config says \(17, 8\)")
    put(arrays)
    load("tiny-1")


def test_what_cannot_be_shipped(weights):
    model = small_model("llama")

    def refused(match, name="other", given=model, error=ValueError, **changed):
        with pytest.raises(error, match=match):
            ship(weights / name, given, **{**ABOUT, **changed})

    for name in ("Tiny", "a--b", "two words", "-a"):
        refused("cannot be a shipped model's name", name)
    refused("is a built-in model's name", "smollm2-135m-instruct")
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), model)
    refused(r"for model\.safetensors is float16.*expected finite float32", given=half)
    bad = jax.tree.map(lambda leaf: np.where(leaf > 0.5, np.nan, leaf), model)
    refused("expected finite float32", given=bad)
    refused(r"for step-3\.safetensors", kept={3: bad})
    refused(r"kept\[21\] is no model of the way: expected 0 to 20", kept={21: model})
    refused(r"kept\[2\] is no model of the way", kept={2: small_model("gpt2")})
    refused("'loss' is nan", metrics={"loss": float("nan")})
    refused("W_E of shape", given=model.replace(config=model.config.replace(vocab_size=18)))
    (weights / "full").mkdir()
    (weights / "full" / "thesis.txt").write_text("mine")
    refused(r"holds no card\.json", "full", error=FileExistsError)
    assert (weights / "full" / "thesis.txt").read_text() == "mine"
    assert sorted(p.name for p in weights.iterdir()) == ["full", "tiny-1"]  # nothing half written


def test_too_large_a_model_is_refused_and_a_new_one_takes_the_old_ones_place(weights, monkeypatch):
    monkeypatch.setattr("jaxinterp.loading.shipped.LIMIT", 20_000)
    before = card("tiny-1")
    kept = dict.fromkeys(range(9), small_model("llama"))
    with pytest.raises(
        ValueError, match=r"have \d+,\d+ bytes, expected at most 20,000: keep fewer"
    ):
        ship(weights / "tiny-1", small_model("llama"), kept=kept, **ABOUT)
    assert card("tiny-1") == before
    load("tiny-1")
    ship(weights / "tiny-1", small_model("gpt2"), **ABOUT)
    assert load("tiny-1")[0].config == CONFIGS["gpt2"]
    assert [p.name for p in weights.iterdir()] == ["tiny-1"]


def test_where_they_lie(monkeypatch, tmp_path):
    """In the package where it was installed, beside it in the repository."""
    place = tmp_path / "jaxinterp" / "loading" / "shipped.py"
    monkeypatch.setitem(weights_folder.__globals__, "__file__", str(place))
    (tmp_path / "jaxinterp").mkdir()
    assert weights_folder() == tmp_path / "weights"
    (tmp_path / "jaxinterp" / "weights").mkdir()
    assert weights_folder() == tmp_path / "jaxinterp" / "weights"


@pytest.mark.parametrize("name", shipped())
def test_what_is_really_shipped(name):
    """Each file is the card's, nothing else lies there, and every model of the way loads."""
    folder, its = REAL / name, card(name)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "card.json"}
    assert its.files == {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    assert sum(map(len, files.values())) < 10_000_000
    assert {"seconds", "machine", "date"} <= its.compute.keys()
    assert its.metrics
    assert its.recipe.startswith("python scripts/train_")
    for revision in (None, *(f"step-{n}" for n in its.kept)):
        model, _ = load(name, revision=revision)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
        assert model.config == Config.from_dict(its.config)
