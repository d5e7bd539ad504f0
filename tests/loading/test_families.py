"""Config files old and new, other spellings of tensor names, and the small transforms."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxinterp.loading import LoadError, load
from jaxinterp.loading import transforms as t
from jaxinterp.loading.families import family_of
from jaxinterp.loading.torch_file import write_torch
from jaxinterp.model import Config, Rotary

GOLDENS = Path(__file__).parent / "goldens"


TENSORFLOW = {"weight": "gamma", "bias": "beta"}


def golden_config(name):
    return json.loads((GOLDENS / name / "config.json").read_text())


def config(json):
    return family_of(json["model_type"]).config(json)


def without(json, *keys):
    return {key: value for key, value in json.items() if key not in keys}


# config.json as transformers 4 wrote it


@pytest.mark.parametrize(
    "name", ["llama", "llama_linear", "llama_llama3_sharded", "llama_yarn", "qwen2", "mistral_bf16"]
)
def test_flat_rotary_options(name):
    new = golden_config(name)
    rope = dict(new["rope_parameters"])
    old = {**without(new, "rope_parameters", "layer_types"), "rope_theta": rope.pop("rope_theta")}
    if rope["rope_type"] != "default":
        old["rope_scaling"] = rope
        assert config(new).rotary[0].scaling[0] == rope["rope_type"]
        older = {**without(rope, "rope_type"), "type": rope["rope_type"]}
        assert config({**old, "rope_scaling": older}) == config(new)
    assert config(old) == config(new)


def test_old_gpt_neox():
    new = golden_config("gpt_neox")
    old = {**without(new, "rope_parameters"), "rotary_pct": 0.5, "rotary_emb_base": 100}
    assert config(old) == config(new)
    assert config(new).rotary == (Rotary(4, 100.0),)


def test_old_gemma3():
    new = golden_config("gemma3")
    old = {
        **without(new, "rope_parameters"),
        "rope_theta": 1000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    assert config(old) == config(new)
    kinds, per_layer = config(new).rotary, config(new).rotary_kind
    assert [kinds[kind].theta for kind in per_layer] == [50.0, 1000.0, 50.0]
    unnamed = without(old, "layer_types", "_sliding_window_pattern")
    patterned = {**unnamed, "sliding_window_pattern": 2}
    assert config(patterned).windows == (4, 0, 4)


def test_windows_of_each_family():
    assert config(golden_config("qwen2")).windows == (0, 4, 4)
    unused = {**golden_config("qwen2"), "use_sliding_window": False}
    assert config(without(unused, "layer_types")).windows == ()
    with pytest.raises(LoadError, match="no sliding_window is in use"):
        config(unused)
    assert config(without(golden_config("qwen2"), "sliding_window")).windows == (0, 4096, 4096)
    assert config(golden_config("mistral_bf16")).windows == (4, 4, 4)
    assert config({**golden_config("mistral_bf16"), "sliding_window": None}).windows == ()
    assert config(without(golden_config("gemma2"), "layer_types")).windows == (4, 0, 4)


def test_yarn_temperature():
    rope = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    base = {**golden_config("llama"), "rope_parameters": rope}

    def temperature(**numbers):
        return config({**base, "rope_parameters": {**rope, **numbers}}).rotary[0].scaling[5]

    assert temperature() == pytest.approx(0.1 * np.log(40) + 1)
    assert temperature(attention_factor=1.5) == 1.5
    assert temperature(mscale=1.0, mscale_all_dim=1.0) == 1.0


# The config.json files of published models, as they are


PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512,
    "intermediate_size": 2048, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
    "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
LLAMA32 = {
    "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "tie_word_embeddings": True, "vocab_size": 128256,
}  # fmt: skip
GEMMA3_4B = {  # leaves most to the defaults
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {"hidden_size": 1152},
}  # fmt: skip


def test_published_configs():
    pythia, llama, gemma = config(PYTHIA), config(LLAMA32), config(GEMMA3_4B)
    assert pythia.rotary == (Rotary(16, 10_000.0),)
    assert (pythia.parallel, pythia.head, pythia.bias_qkv) == (True, "untied", True)
    assert llama.rotary == (Rotary(64, 500_000.0, scaling=("llama3", 32.0, 1.0, 4.0, 8192.0)),)
    assert (llama.head, llama.n_kv_heads) == ("tied", 8)
    assert (gemma.n_heads, gemma.n_kv_heads, gemma.d_head, gemma.vocab_size) == (8, 4, 256, 262_208)
    assert gemma.rotary[gemma.rotary_kind[5]] == Rotary(256, 1e6, scaling=("linear", 8.0))
    assert gemma.rotary[gemma.rotary_kind[0]] == Rotary(256, 1e4)
    assert gemma.windows[:7] == (1024, 1024, 1024, 1024, 1024, 0, 1024)


# Other spellings


def respelled(name, tmp_path, rename, change=lambda config: config):
    folder = tmp_path / "model"
    shutil.copytree(GOLDENS / name, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(key): x for key, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(change(golden_config(name))))
    return folder


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("gpt2", lambda key: key.removeprefix("transformer.")),
        ("opt", lambda key: key.removeprefix("model.")),
        ("bert_encoder", lambda key: f"bert.{key}"),
        ("bert", lambda key: re.sub(r"Norm\.(\w+)", lambda m: f"Norm.{TENSORFLOW[m[1]]}", key)),
        ("gemma3", lambda key: f"language_model.{key}"),
        ("gemma3", lambda key: key.replace("model.", "model.language_model.", 1)),
    ],
)  # fmt: skip
def test_other_names_of_the_same_tensors(name, rename, tmp_path):
    nest = name == "gemma3"
    folder = respelled(
        name, tmp_path, rename, lambda c: {"model_type": "gemma3", "text_config": c} if nest else c
    )
    ours, theirs = load(folder)[0], load(GOLDENS / name)[0]
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_buffers_are_passed_over(tmp_path):
    folder = respelled("gpt2", tmp_path, lambda key: key)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]  # tied all the same
    save_file(tensors, folder / "model.safetensors")
    assert load(folder)[0].params.head.W_U is None


def test_the_folders_tokenizer_comes_along(tmp_path):
    folder = respelled("gpt2", tmp_path, lambda key: key)
    vocab = {"[UNK]": 0, "hello": 1, "world": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    assert load(folder)[1].encode("hello world") == [1, 2]
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"tokenizer in .* cannot be read"):
        load(folder)


def test_the_hub_gives_name_and_commit(monkeypatch, tmp_path):
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(GOLDENS / "gpt2", tmp_path / commit)
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model, _ = load("someone/gpt2-tiny", revision="v1")
    assert (model.name, model.revision) == ("someone/gpt2-tiny", commit)
    assert (asked["repository"], asked["revision"]) == ("someone/gpt2-tiny", "v1")
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in asked["allow_patterns"])
    for file in ("model-00001-of-00002.safetensors", "adapter_config.json", "added_tokens.json"):
        assert any(fnmatch(file, pattern) for pattern in asked["allow_patterns"])
    assert not any(fnmatch("consolidated.safetensors", p) for p in asked["allow_patterns"])


def test_the_hub_gives_pytorch_files_where_there_are_no_safetensors(monkeypatch, tmp_path):
    import huggingface_hub

    commit, asked = "0123456789abcdef0123456789abcdef01234567", []
    shutil.copytree(GOLDENS / "gpt2", tmp_path / commit)
    tensors = load_file(tmp_path / commit / "model.safetensors")
    (tmp_path / commit / "model.safetensors").unlink()

    def snapshot(repository, revision, allow_patterns):
        asked.append((revision, allow_patterns))
        if len(asked) == 2:
            write_torch(tmp_path / commit / "pytorch_model.bin", tensors)
        return str(tmp_path / commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model, _ = load("someone/gpt2-tiny")
    ours, theirs = model.params, load(GOLDENS / "gpt2")[0].params
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [revision for revision, _ in asked] == [None, commit]
    assert any(fnmatch("pytorch_model-00001-of-00002.bin", p) for p in asked[1][1])


# Transforms


def tiny(H, G, K, D):
    return Config(1, D, H, K, 4, 8, 16, n_kv_heads=G)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))


@given(sizes, st.integers(0, 2**31))
def test_transforms_keep_what_a_head_computes(sizes, seed):
    """x W^T, cut into heads, is what the einsum over the split weight gives."""
    G, R, K, D = sizes
    H, K = G * R, 2 * K
    c, rng = tiny(H, G, K, D), np.random.default_rng(seed)
    x = rng.normal(size=D)
    W = rng.normal(size=(H * K, D))
    want = (W @ x).reshape(H, K)
    np.testing.assert_allclose(np.einsum("d,hdk->hk", x, t.heads(W, c)), want)
    np.testing.assert_allclose(np.einsum("d,hdk->hk", x, t.heads_conv(W.T, c)), want)
    out = rng.normal(size=(D, H * K))
    y = np.einsum("hk,hkd->d", want, t.heads_out(out, c))
    np.testing.assert_allclose(y, out @ want.reshape(-1))
    np.testing.assert_array_equal(t.heads_out_conv(out.T, c), t.heads_out(out, c))


@given(sizes, st.integers(0, 2**31))
def test_fused_projections_come_apart(sizes, seed):
    G, R, K, D = sizes
    H, K = G * R, 2 * K
    c, rng = tiny(H, G, K, D), np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(n * K, D)) for n in (H, G, G))
    for i, part in enumerate((q, k, v)):
        np.testing.assert_array_equal(t.qkv_rows(i)(np.concatenate([q, k, v]), c), part)
    q, k, v = (rng.normal(size=(H * K, D)) for _ in range(3))
    side = np.concatenate([q.T, k.T, v.T], -1)
    together = np.stack([x.reshape(H, K, D) for x in (q, k, v)], 1).reshape(-1, D)
    for i, part in enumerate((q, k, v)):
        np.testing.assert_array_equal(t.third(i)(side, c), part.T)
        np.testing.assert_array_equal(t.interleaved(i)(together, c), part)
        np.testing.assert_array_equal(t.interleaved(i)(together[:, 0], c), part[:, 0])


@given(sizes, st.integers(0, 2**31))
def test_rotary_rows_come_back_in_order(sizes, seed):
    H, _, K, D = sizes
    K *= 2
    W = np.random.default_rng(seed).normal(size=(H * K, D))
    written = W.reshape(H, 2, K // 2, D).swapaxes(1, 2).reshape(W.shape)  # as llama.cpp does
    np.testing.assert_array_equal(t.unpermute(written, tiny(H, H, K, D)), W)


def test_gains_and_rows():
    np.testing.assert_array_equal(t.plus_one(np.array([0.5, -1.0]), None), [1.5, 0.0])
    np.testing.assert_array_equal(t.drop_rows(2)(jnp.arange(5), None), [2, 3, 4])
    np.testing.assert_array_equal(t.half(1)(np.arange(6), None), [3, 4, 5])
