"""What a folder says is used, or refused by name: every family's keys, tensors and files."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp.loading import LoadError, load, torch_file
from jaxinterp.loading.families import FAMILIES, family_of
from jaxinterp.loading.families.keys import FIXED, IDLE, NEEDED
from jaxinterp.loading.torch_file import write_torch
from jaxinterp.model import forward
from jaxinterp.model.parts import inverse_frequencies

HERE = Path(__file__).parent
sys.path.append(str(HERE))
import tiny_settings  # noqa: E402

GOLDENS = HERE / "goldens"
FOLDERS = sorted(p.parent.name for p in GOLDENS.glob("*/golden.npz"))
KEYS = json.loads((GOLDENS / "keys.json").read_text("utf-8"))
PUBLISHED = json.loads((HERE / "published.json").read_text("utf-8"))
REFERENCE = json.loads((GOLDENS / "folders.json").read_text("utf-8"))


def config_of(name):
    return json.loads((GOLDENS / name / "config.json").read_text("utf-8"))


def tensors_of(name):
    return {
        key: array
        for file in sorted((GOLDENS / name).glob("*.safetensors"))
        for key, array in load_file(file).items()
    }


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def refused(message, *arguments, call=load, **options):
    with pytest.raises(LoadError, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


def same(folder, name):
    ours, theirs = load(folder)[0], load(GOLDENS / name)[0]
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


# Keys


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_key_of_the_reference_is_on_a_list(model_type):
    """The fields of the reference's class are used with its default, idle, or fixed."""
    keys, golden = FAMILIES[model_type].keys, KEYS[model_type]
    known = {*keys.used, *keys.fixed, *keys.idle, *keys.aliases, *IDLE, *FIXED}
    assert {*golden["defaults"], *KEYS["shared"], *KEYS["generation"]} <= known
    assert golden["model"] in FAMILIES[model_type].models
    assert golden["base"] in FAMILIES[model_type].bases
    sizes = golden["defaults"]
    compared = 0
    for name, default in golden["defaults"].items():
        if name in keys.fixed:
            assert default == keys.fixed[name][0] or not (default or keys.fixed[name][0])
        if name not in keys.used or keys.used[name].default is NEEDED or name == "rope_parameters":
            continue
        ours = keys.used[name].default
        if ours is None:  # what the reference works out and writes for itself
            ours = {
                "head_dim": lambda: sizes["hidden_size"] // sizes["num_attention_heads"],
                "num_key_value_heads": lambda: sizes["num_attention_heads"],
                "word_embed_proj_dim": lambda: sizes["hidden_size"],
            }.get(name, lambda: None)()
        if name == "sliding_window" and model_type.startswith("qwen"):
            assert default is None  # 4096, once use_sliding_window is true
            continue
        assert ours == default, name
        compared += 1
    used = sum(name in keys.used for name in sizes)
    print(f"{model_type}: {len(known)} keys known, {used} used, {compared} defaults compared")


def test_idle_and_fixed_keys_say_why():
    for family in FAMILIES.values():
        reasons = [*IDLE.values(), *family.keys.idle.values()]
        reasons += [why for _, why in (*FIXED.values(), *family.keys.fixed.values())]
        reasons += [why for _, why in family.ignored]
        assert all(len(why.split()) > 1 for why in reasons)
        assert not set(family.keys.used) & {*IDLE, *family.keys.idle, *family.keys.fixed}


@pytest.mark.parametrize("name", FOLDERS)
def test_keys_at_values_that_are_not_supported(name):
    """Each fixed key at another value, each used key at a value of another kind, unknown keys."""
    config = config_of(name)
    family = family_of(config["model_type"])
    read, tried = family.config, 0
    for key, (value, _) in {**FIXED, **family.keys.fixed}.items():
        others = ("other", {"0": [1]}, not value, 7)
        other = next(x for x in others if value is None or type(x) is type(value))
        refused(re.escape(f"{key}={other!r} of this"), {**config, key: other}, call=read)
        if not value:
            read({**config, key: None})
        tried += 1
    for key, its in family.keys.used.items():
        for bad in ("a text" if not its.fits("a text") else 3, -1, [3], {"a": [1]}, True, 1e400):
            if its.fits(bad) or (isinstance(bad, dict) and "mapping" in its.expected):
                continue
            refused(re.escape(f"says {key}="), {**config, key: bad}, call=read)
            tried += 1
        if its.default is NEEDED:
            refused(f"lacks {key!r}", {k: v for k, v in config.items() if k != key}, call=read)
            tried += 1
    for key, value in (("use_new_thing", True), ("scale_z", None), ("x", {}), ("alpha", 0)):
        unknown = {**config, key: value}
        refused(f"has the unknown key {key!r}, which may change", unknown, call=read)
        assert read(unknown, ignore=[key]) == read(config)
        tried += 1
    refused("ignore_keys names 'vocab_size', which", config, ["vocab_size"], call=read)
    print(f"{name}: {tried} changes of config.json refused")


@pytest.mark.parametrize("name", FOLDERS)
def test_keys_without_effect(name):
    """Every idle key at an odd value leaves the config as it is."""
    config = config_of(name)
    family = family_of(config["model_type"])
    idle = {**IDLE, **family.keys.idle}.keys() - {"model_type", "architectures"}
    changed = {**config, **dict.fromkeys(idle, 12345)}
    assert family.config(changed) == family.config(config)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_have_no_unknown_keys(name):
    """config.json of models as they are on the hub: each of its keys is on a list."""
    json = PUBLISHED[name]
    config = family_of(json["model_type"]).config(json)
    text = json.get("text_config", json)
    assert config.d_model == text.get("hidden_size", text.get("n_embd"))
    assert config.n_layers == text.get("num_hidden_layers", text.get("n_layer"))
    refused("unknown key 'quantization'", {**json, "quantization": {}},
            call=family_of(json["model_type"]).config)  # fmt: skip


def test_ignored_keys_at_the_door(tmp_path):
    folder = write(tmp_path / "a", {**config_of("llama"), "new": 1}, tensors_of("llama"))
    refused("unknown key 'new'.*ignore_keys=..new", folder)
    assert load(folder, ignore_keys=("new",))[0].config == load(GOLDENS / "llama")[0].config
    refused("ignore_keys=.* applies to folders", "induction-2l", ignore_keys=("new",))
    gemma = config_of("gemma3")
    nested = {"model_type": "gemma3", "text_config": {**gemma, "new": 1}}
    refused("gemma3_text model has the unknown key 'new'", nested, call=family_of("gemma3").config)
    assert family_of("gemma3").config(nested, ["new"]) == family_of("gemma3_text").config(gemma)
    taken = load(folder, ignore_keys="new")[0].config
    assert taken == load(GOLDENS / "llama")[0].config
    refused("names 'old', which config.json .* does not hold", folder, ignore_keys=("new", "old"))
    refused("names 'factor', which config.json .* does not hold", config_of("llama_yarn"),
            ["factor"], call=family_of("llama").config)  # fmt: skip
    config = {**config_of("llama"), "rope_scaling": LINEAR, "rope_parameters": None}
    folder = write(tmp_path / "b", config, tensors_of("llama"))
    refused("names 'rope_scaling_v2', which", folder, ignore_keys="rope_scaling_v2")
    refused("names 'rope_scaling', which the family .* knows", folder, ignore_keys="rope_scaling")
    for key in sorted(set(gemma) - {"architectures"}):
        refused(f"names {key!r}, which the family", nested, ["new", key],
                call=family_of("gemma3").config)  # fmt: skip
    nested["tie_word_embeddings"] = False
    nested["text_config"] = {**gemma, "tie_word_embeddings": True}
    refused("disagree on tie_word_embeddings", nested, call=family_of("gemma3").config)


@pytest.mark.parametrize("name", FOLDERS)
def test_architectures(name, tmp_path):
    config, tensors = config_of(name), tensors_of(name)
    family = family_of(config["model_type"])
    for other in ("LlamaForSequenceClassification", "T5ForConditionalGeneration"):
        changed = {**config, "architectures": [other]}
        refused(f"{other!r} of this .* is not supported", changed, call=family.config)
    if name.startswith("bert"):
        return
    assert family.config({**config, "architectures": None}) == family.config(config)
    # A file of the transformer alone: tied models have their unembedding all the same.
    head = tiny_settings.names(config["model_type"])[1]
    bare = {k: v for k, v in tensors.items() if k not in (head, "lm_head.weight", "lm_head.bias")}
    folder = write(tmp_path / "base", {**config, "architectures": list(family.bases)}, bare)
    tied = family.config(config).head == "tied"
    if "lm_head.bias" in tensors or not tied:
        model = load(folder)[0]
        assert model.config.head == "none"
        ids = np.load(GOLDENS / name / "golden.npz")["tokens"]
        assert forward(model, ids).logits is None
    else:
        same(folder, name)


# Tensors


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_counts(name, tmp_path):
    """One tensor more, one less, one under two names: each is named in the error."""
    config, tensors = config_of(name), tensors_of(name)
    extra = np.zeros(3, np.float32)
    for new in ("model.extra.weight", "h.0.attn.gate.bias", "adapter.lora_A.weight"):
        folder = write(tmp_path / "more", config, {**tensors, new: extra})
        refused(f"holds {new!r}, which a", folder)
    head = tiny_settings.names(config["model_type"])[1]
    missing = sorted(tensors)[:: max(1, len(tensors) // 7)]
    for old in missing:
        if old in (head, "lm_head.weight", "cls.predictions.bias") or "pooler" in old:
            continue
        folder = write(tmp_path / "less", config, {k: v for k, v in tensors.items() if k != old})
        refused(f"lacks the tensor .*{old.split('.')[-2]}", folder)
    first = next(k for k in sorted(tensors) if "layer" in k or ".h." in k)
    for double in (f"module.{first}", f"_orig_mod.{first}"):
        folder = write(tmp_path / "twice", config, {**tensors, double: tensors[first]})
        refused(f"{first}.* and .*{first}.* two tensors for one parameter", folder)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.",
                                    "transformer."])  # fmt: skip
def test_prefixes_of_wrappers(name, prefix, tmp_path):
    tensors = {f"{prefix}{key}": array for key, array in tensors_of(name).items()}
    same(write(tmp_path / name, config_of(name), tensors), name)


def test_one_parameter_under_two_spellings(tmp_path):
    tensors = tensors_of("gpt2")
    tensors["wte.weight"] = tensors["transformer.wte.weight"] * 2
    folder = write(tmp_path / "a", config_of("gpt2"), tensors)
    refused("holds 'transformer.wte.weight' and 'wte.weight', which are two tensors", folder)


@pytest.mark.parametrize("name", tiny_settings.HEADS)
def test_the_unembedding_is_the_reference_s(name, tmp_path):
    """tie_word_embeddings against a file with its own unembedding, an equal one, none, only one."""
    kinds = {}
    for case in tiny_settings.head_cases():
        if case[0] != name:
            continue
        config, tensors = config_of(name), tensors_of(name)
        config.pop("tie_word_embeddings", None)
        if case[1] is not None:
            config["tie_word_embeddings"] = case[1]
        embedding, own = tiny_settings.change_head(tensors, config["model_type"], case[2])
        if name == "bert":
            tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
        expected = REFERENCE["heads"][tiny_settings.label(*case)]
        folder = write(tmp_path / str(len(kinds)), config, tensors)
        kinds[case[1:]] = expected
        tied = family_of(config["model_type"]).config(config).head == "tied"
        if expected == "random" or (case[2] == "only" and not tied):
            refused("lacks the tensor", folder)
            continue
        model = load(folder)[0]
        untied = model.config.head == "untied"
        got = np.asarray(model.params.head.W_U.T if untied else model.params.embed.W_E)
        np.testing.assert_array_equal(got, own if expected == "own" else embedding)
        assert untied == (not tied or case[2] == "own")
    assert len(kinds) == 12
    print(f"{name}: {len(kinds)} combinations, {list(kinds.values()).count('random')} refused")


def test_the_biases_of_bert_s_head(tmp_path):
    """The reference adds the decoder's; only in a tied model is it the other one's."""
    config, tensors = config_of("bert"), tensors_of("bert")
    first = tensors["cls.predictions.bias"]
    tensors.pop("cls.predictions.decoder.bias", None)
    np.testing.assert_array_equal(
        load(write(tmp_path / "a", config, tensors))[0].params.head.b_U, first
    )
    tensors["cls.predictions.decoder.bias"] = first + 1
    np.testing.assert_array_equal(
        load(write(tmp_path / "b", config, tensors))[0].params.head.b_U, first + 1
    )
    del tensors["cls.predictions.decoder.bias"]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    folder = write(tmp_path / "c", {**config, "tie_word_embeddings": False}, tensors)
    refused("lacks the tensor 'cls.predictions.decoder.bias'", folder)


# Rotary settings


def test_rotary_settings_in_both_forms():
    """Frequencies and factors as the reference computes them from the same config.json."""
    cases = list(tiny_settings.rotary_cases())
    assert len(cases) == len(REFERENCE["rotary"])
    for (model_type, options), golden in zip(cases, REFERENCE["rotary"], strict=True):
        config = family_of(model_type).config(
            {"model_type": model_type, "head_dim": 8, **copy.deepcopy(options)}
            if model_type not in ("phi3", "gpt_neox") else options
        )  # fmt: skip
        kinds = {"": 0} if set(golden) == {""} else {
            kind: config.rotary_kind[-1 if kind == "full_attention" else 0] for kind in golden
        }  # fmt: skip
        for kind, index in kinds.items():
            inverse, factor = golden[kind]
            turned = config.rotary[index]
            ours, ours_factor = inverse_frequencies(turned)
            np.testing.assert_allclose(ours, inverse, rtol=1e-6, err_msg=str(options))
            assert ours_factor == pytest.approx(factor)
    print(f"{len(cases)} settings")


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("llama", {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 2.0}}, "=2.0 in one place"),
        ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}}, "factor="),
        ("llama", {"rope_scaling": {**LINEAR, "type": "yarn"}}, "'linear' and type='yarn"),
        ("llama", {"rope_scaling": {**LINEAR, "beta_fast": 3}}, "'beta_fast', which 'linear' does"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'linear' .* lacks 'factor'"),
        ("llama", {"rope_scaling": {**LINEAR, "factor": -2}}, "factor=-2 .* no finite number"),
        ("llama", {"rope_scaling": {**LINEAR, "factor": "2"}}, "factor='2' .* no finite number"),
        ("llama", {"rope_theta": -1}, "says rope_theta=-1, expected a finite number above 0"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5.*expected 1 \(all"),
        ("llama", {"rope_parameters": {"full_attention": LINEAR}}, "differ by layer type"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "lacks 'low_freq_factor'"),
        ("phi3", {"rope_scaling": LINEAR}, "'linear' .* only default are"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' .* only default are"),
        ("gpt_neox", {"rotary_pct": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
         "partial_rotary_factor=0.25 in one place"),
        ("gpt_neox", {"rotary_emb_base": 100, "rope_theta": 10}, "two names of one value"),
        ("gpt_neox", {"rotary_pct": 0.4}, "an even number of them"),
        ("gemma3", {"rope_parameters": LINEAR}, "expected settings for each of the layer types"),
        ("gemma3", {"rope_theta": 5.0}, "rope_theta=1000.0 in one place and rope_theta=5.0"),
        ("gemma3", {"rope_scaling": {**LINEAR, "factor": 3.0}}, "factor=4.0 in one place"),
        ("gemma3", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5.*expected 1"),
        ("gptj", {"rotary_dim": 3}, "rotary_dim=3 .* no even number up to"),
        ("gptj", {"rotary_dim": None}, "says rotary_dim=None"),
        ("llama_yarn", {"original_max_position_embeddings": 99}, "=16 in one place and .*=99 in"),
    ],
)  # fmt: skip
def test_rotary_settings_that_are_refused(model_type, settings, message):
    config = config_of(model_type)
    if "rope_parameters" in settings or model_type in ("llama", "gpt_neox", "phi3"):
        config.pop("rope_parameters", None)
    refused(message, {**config, **settings}, call=family_of(config["model_type"]).config)


# Files


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors",
                                  "adapter_model.bin"])  # fmt: skip
def test_an_adapter_is_never_passed_over(file, tmp_path):
    folder = Path(shutil.copytree(GOLDENS / "llama", tmp_path / "llama"))
    (folder / file).write_text("{}")
    refused(f"holds a PEFT adapter \\({file}\\).*merge it", folder)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / file).write_text("{}")
    refused(f"holds a PEFT adapter \\({file}\\)", tmp_path / "alone")


def as_torch(name, folder, change=lambda tensors: tensors, shards=1):
    """A golden folder with pytorch_model.bin, or shards of it, in place of safetensors."""
    folder.mkdir()
    shutil.copy(GOLDENS / name / "config.json", folder)
    tensors = change(tensors_of(name))
    if shards == 1:
        write_torch(folder / "pytorch_model.bin", tensors)
        return folder
    where = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        part = dict(sorted(tensors.items())[i::shards])
        where |= dict.fromkeys(part, file)
        write_torch(folder / file, part)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_files_are_read(name, shards, tmp_path):
    same(as_torch(name, tmp_path / "torch", shards=shards), name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_pytorch_files_in_half_precision(dtype, tmp_path):
    def narrow(tensors):
        masks = {"transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), bool)}  # as old files have
        return {key: array.astype(dtype) for key, array in tensors.items()} | masks

    model = load(as_torch("gpt2", tmp_path / "torch", narrow))[0]
    want = tensors_of("gpt2")["transformer.wte.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(model.params.embed.W_E, want)


def test_pytorch_files_of_integers_are_refused(tmp_path):
    def quantise(tensors):
        return {key: (array * 10).astype(np.int8) for key, array in tensors.items()}

    refused(
        "is stored as int8, expected one of float64", as_torch("gpt2", tmp_path / "a", quantise)
    )


def test_tied_tensors_of_a_pytorch_file(tmp_path):
    """As torch saves them: the unembedding is there, too."""

    def tie(tensors):
        return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}

    same(as_torch("gpt2", tmp_path / "torch", tie), "gpt2")


def test_a_shared_storage_is_read_once(tmp_path, monkeypatch):
    """Of many views of one storage, asked for one after another."""
    torch_file.write_torch(tmp_path / "t.bin", {str(i): np.full(3, float(i)) for i in range(4)})
    file, read = torch_file.TorchFile(tmp_path / "t.bin"), []
    whole = torch_file.Storage("DoubleStorage", "2", 3)
    for name in "013":
        file._at[name] = file._at[name]._replace(storage=whole)
    file._shared = {file._member(whole)}
    kept = torch_file.zipfile.ZipFile.read
    monkeypatch.setattr(torch_file.zipfile.ZipFile, "read",
                        lambda self, name: (read.append(name), kept(self, name))[1])  # fmt: skip
    for name in "0123":
        np.testing.assert_array_equal(file.read(name), np.full(3, 2.0))
    assert len(read) == 1


def test_which_file_is_read(tmp_path):
    """As in the reference: safetensors first, one file before shards; never two that disagree."""
    folder = as_torch(
        "llama", tmp_path / "a", lambda tensors: {k: v * 2 for k, v in tensors.items()}
    )
    shutil.copy(GOLDENS / "llama" / "model.safetensors", folder)
    same(folder, "llama")
    sharded = Path(shutil.copytree(GOLDENS / "llama_llama3_sharded", tmp_path / "b"))
    save_file(tensors_of("llama_llama3_sharded"), sharded / "model.safetensors")
    refused(
        "holds its weights twice, in model.safetensors and in the shards of model.safe", sharded
    )
    for shard in sharded.glob("model-*.safetensors"):
        shard.unlink()
    same(sharded, "llama_llama3_sharded")  # the index alone is what is left of them


def test_index_and_shards_agree(tmp_path):
    folder = Path(shutil.copytree(GOLDENS / "llama_llama3_sharded", tmp_path / "a"))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, other = next(iter(index["weight_map"])), "model.missing.weight"
    files = sorted(set(index["weight_map"].values()))

    def say(**changes):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], **changes}}))

    say(**{other: files[0]})
    refused(f"says that {other!r} is in {files[0]}, which does not hold it", folder)
    say(**{name: next(file for file in files if file != index["weight_map"][name])})
    refused(f"says that {name!r} is in", folder)
    say(**{name: "../elsewhere.safetensors"})
    refused("not inside it", folder)
    path.write_text("{}")
    refused("has no weight_map", folder)
    say()
    tensors = load_file(folder / files[0])
    moved = next(key for key, file in index["weight_map"].items() if file == files[1])
    save_file({**tensors, moved: np.zeros(3, np.float32)}, folder / files[0])
    refused(f"holds {moved!r} in {files[0]} and in {files[1]}", folder)
