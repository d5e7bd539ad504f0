"""Bad input is met with one sentence that names the value and what to do."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from jaxinterp.loading import LoadError, load
from jaxinterp.loading.families import family_of

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def folder(tmp_path):
    """A copy of a good model, to be broken."""
    return Path(shutil.copytree(GOLDENS / "llama", tmp_path / "llama"))


def change_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def fails(path, match, **options):
    with pytest.raises(LoadError, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


def test_the_untouched_copy_loads(folder):
    assert load(folder)[0].name == "llama"


# Names


def test_unknown_paths(tmp_path):
    fails("./no/such/folder", "does not exist")
    fails(tmp_path / "missing.gguf", "does not exist")
    fails(tmp_path, "neither config.json nor jaxinterp.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    fails(tmp_path / "pytorch_model.bin", "give a .gguf file, or the folder")


def test_a_name_that_the_hub_cannot_have():
    fails("two words", "no model name, no hub id and no existing path")


def test_an_unreachable_hub_names_the_built_in_models(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    fails("some/model", "no built-in model .*smollm2-135m-instruct.*no connection")


def test_a_revision_only_means_something_on_the_hub(folder):
    fails(folder, "applies to hub ids only", revision="main")
    fails("smollm2-135m-instruct", "applies to hub ids only", revision="main")


def test_a_dtype_that_is_not_floating(folder):
    fails(folder, "expected e.g. jnp.float32", dtype=jnp.int32)


# Configs


def test_unknown_architecture(folder):
    change_config(folder, model_type="mamba")
    fails(folder, "'mamba' is not supported: expected one of gpt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "absent"}, "lacks 'hidden_size'"),
        ({"hidden_act": "snake"}, "'snake' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' .* is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "'dynamic'"),
        ({"rope_parameters": {"other": {"rope_type": "default"}}}, r"differ by layer type \(other"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"intermediate_size": 25}, r"shape \[24, 16\].*does not give \[16, 25\]"),
        ({"vocab_size": 65}, r"shape \[64, 16\].*does not give \[65, 16\]"),
        ({"num_hidden_layers": 4}, "lacks the tensor 'model.layers.3."),
        ({"num_hidden_layers": 2}, "holds 'model.layers.2..* and 15 more"),
        ({"mlp_bias": False}, "holds 'model.layers.0.mlp.down_proj.bias'"),
    ],
)
def test_configs_that_do_not_fit(folder, change, message):
    change_config(folder, **change)
    fails(folder, message)


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    fails(folder, "config.json is not valid JSON")


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False .* OPT-350m"),
        ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim=8"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative positions"),
        ("gemma3", {"use_bidirectional_attention": True}, "looks ahead"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention'"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
    ],
)
def test_options_that_a_family_refuses(family, change, message):
    config = json.loads((GOLDENS / family / "config.json").read_text())
    with pytest.raises(LoadError, match=message):
        family_of(config["model_type"]).config({**config, **change})


# Safetensors


def test_missing_weights(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    fails(folder, r"lacks the weight file model.safetensors .* It has other.safetensors, which no")


def test_a_missing_shard(tmp_path):
    folder = Path(shutil.copytree(GOLDENS / "llama_llama3_sharded", tmp_path / "sharded"))
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.unlink()
    fails(folder, f"lacks the weight file {first.name}")


@pytest.mark.parametrize("keep", [4, 100, 0.5, 0.999])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    fails(folder, "truncated|its header says")


def test_a_corrupted_header(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    fails(folder, "header of .* is corrupted")


def test_something_else_named_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>" * 10)
    fails(folder, "truncated or no safetensors file")


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder, value):
    change_tensors(folder, lambda t: t[NAME].__setitem__((0, 3), value))
    fails(folder, f"{NAME}.* holds NaN or infinite")


def test_values_beyond_the_dtype(folder):
    change_tensors(folder, lambda t: t[NAME].__setitem__((0, 3), 1e6))
    assert load(folder)[0].params.blocks.mlp.W_in[1, 3, 0] == 1e6
    fails(folder, f"{NAME}.* holds values beyond float16", dtype=jnp.float16)


def test_a_missing_tensor(folder):
    change_tensors(folder, lambda t: t.pop(NAME))
    fails(folder, f"lacks the tensor '{NAME}'")


def test_an_unexplained_tensor(folder):
    change_tensors(folder, lambda t: t.update({"model.extra": np.zeros(3, np.float32)}))
    fails(folder, "holds 'model.extra', which a llama model of this config has no place for")


def test_a_quantised_tensor(folder):
    change_tensors(folder, lambda t: t.update({NAME: t[NAME].astype(np.int8)}))
    fails(folder, f"{NAME}.* is stored as I8")


def test_float16_and_bfloat16_sources(folder):
    want = load(folder)[0].params.blocks.mlp.W_in
    for dtype, error in ((np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2), (np.float64, 0)):

        def narrow(tensors, dtype=dtype):
            tensors.update({name: x.astype(dtype) for name, x in tensors.items()})

        change_tensors(folder, narrow)
        got = load(folder)[0].params.blocks.mlp.W_in
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=error)
        shutil.copy(GOLDENS / "llama" / "model.safetensors", folder)


# GGUF


@pytest.fixture
def gguf(tmp_path):
    return Path(shutil.copy(GOLDENS / "gguf" / "llama.gguf", tmp_path))


@pytest.mark.parametrize("keep", [6, 100, 900, 0.5, 0.999])
def test_truncated_gguf(gguf, keep):
    data = gguf.read_bytes()
    gguf.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    fails(gguf, "truncated or corrupted")


def test_something_else_named_gguf(gguf):
    gguf.write_bytes(b"PK\x03\x04" + bytes(100))
    fails(gguf, "no GGUF file")


def edit(gguf, old, new):
    """Replace bytes of the header by as many others."""
    data = gguf.read_bytes()
    assert data.count(old) >= 1
    assert len(old) == len(new)
    gguf.write_bytes(data.replace(old, new))


def test_gguf_of_another_architecture(gguf):
    edit(gguf, b"llama", b"mamba")
    fails(gguf, "architecture 'mamba' .* is not supported: expected one of llama")


def test_gguf_with_another_way_of_splitting_text(gguf):
    edit(gguf, b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0other")
    fails(gguf, "pre-tokenizer 'other' .* is not known: expected one of gpt-2")


def test_gguf_with_another_tokenizer(gguf):
    edit(gguf, b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0wp99")
    fails(gguf, "tokenizer 'wp99' .* is not supported")


def test_gguf_of_a_future_version(gguf):
    edit(gguf, b"GGUF" + struct.pack("<I", 3), b"GGUF" + struct.pack("<I", 9))
    fails(gguf, "version 9, expected 2 or 3")


def test_gguf_with_a_missing_tensor(gguf):
    edit(gguf, b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    fails(gguf, "lacks the tensor 'blk.1.ffn_up.weight'")


# Hostile files


def rewritten(folder, change):
    """The safetensors file with another header, and the same data behind it."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    coded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(coded)) + coded + data[8 + length :])


def overlapping(header):
    header["extra"] = {**header[NAME], "shape": list(header[NAME]["shape"])}


def negative(header):
    at = header[NAME]["data_offsets"]
    header[NAME]["data_offsets"] = [at[0] - 2**40, at[1] - 2**40]


@pytest.mark.parametrize(
    "change",
    [
        overlapping,
        negative,
        lambda h: h[NAME].update(shape=[-n for n in h[NAME]["shape"]]),
        lambda h: h[NAME].update(shape=[float(n) for n in h[NAME]["shape"]]),
        lambda h: h[NAME].update(shape=[2**62, 2**62, 0]),
        lambda h: h[NAME].update(data_offsets=[0]),
        lambda h: h.update(extra=3),
        lambda h: h.update(extra=None),
    ],
)
def test_headers_that_the_safetensors_library_refuses(folder, change):
    from safetensors import SafetensorError, safe_open

    rewritten(folder, change)
    with pytest.raises(SafetensorError), safe_open(folder / "model.safetensors", "numpy"):
        pass
    fails(folder, "header of .* is corrupted|has .* bytes where its header says")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file(folder, file, kind):
    path = folder / file
    path.unlink(missing_ok=True)
    make = {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}
    make[kind](path)
    fails(folder, f"{file} is no regular file")
    if file == "config.json":
        return
    for suffix in (".gguf", ".bin"):
        fails(Path(shutil.move(path, path.with_suffix(suffix))), "no regular file|neither")
        shutil.move(path.with_suffix(suffix), path)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "100 levels"),
        ('{"a":' * 200 + "1" + "}" * 200, "100 levels"),
        ('{"a": 1, "a": 2}', "gives 'a' two values, 1 and 2"),
        ("[1]", "holds list, expected a JSON object"),
        ('"\\ud800', "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("9" * 10_000, "not valid JSON"),
    ],
)
def test_json_that_no_folder_has(folder, file, text, message):
    write_tokenizer(folder)
    (folder / file).write_bytes(text.encode("latin1"))
    fails(folder, message)


def write_tokenizer(folder):
    ids = {"[UNK]": 0, "a": 1}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )


@pytest.mark.parametrize(
    "name", ["../llama/model.safetensors", "/etc/passwd", "a\0b", "", 3, "x" * 300]
)
def test_an_index_names_files_of_its_folder(tmp_path, name):
    folder = Path(shutil.copytree(GOLDENS / "llama_llama3_sharded", tmp_path / "sharded"))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    fails(folder, "which is not inside it|has no weight_map of files")


def test_links_into_a_cache_are_followed(tmp_path):
    """The hub's cache is a folder of links to ../../blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"
    shutil.copytree(GOLDENS / "llama", blobs)
    snapshot.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (snapshot / file).symlink_to(Path("../../blobs") / file)
    assert load(snapshot)[0].config.n_layers == 3


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": -1},
        {"hidden_size": 0}, {"head_dim": -6}, {"vocab_size": 10**12}, {"vocab_size": -64},
        {"intermediate_size": 10**12}, {"num_key_value_heads": 3}, {"num_key_value_heads": -2},
        {"rms_norm_eps": -1.0}, {"rms_norm_eps": "x"}, {"max_position_embeddings": 0},
        {"rope_parameters": {"rope_theta": -1.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": -0.5}},
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        {"rope_parameters": [1]}, {"hidden_size": [16]}, {"num_attention_heads": "4"},
        {"num_hidden_layers": 2.5}, {"num_attention_heads": True}, {"hidden_act": 3},
        {"hidden_act": ["silu"]}, {"model_type": ["llama"]}, {"model_type": None},
    ],
)  # fmt: skip
def test_numbers_that_no_model_has(folder, change):
    change_config(folder, **change)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(LoadError):
        load(folder)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert time.process_time() - began < 2
