"""Our own checkpoints: equal bit for bit, whole or not at all, sharded on request."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.loading import LoadError, checkpoint, load, save

GOLDENS = Path(__file__).parent / "goldens"


def same(a, b):
    assert a.config == b.config
    assert (a.name, a.revision) == (b.name, b.revision)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)


@pytest.mark.parametrize("name", ["gemma3", "bert", "llama_yarn", "gguf/qwen2.gguf"])
def test_a_checkpoint_comes_back_bit_for_bit(name, tmp_path):
    model, tokenizer = load(GOLDENS / name)
    path = save(tmp_path / "checkpoint", model, tokenizer)
    again, its_tokenizer = load(path)
    same(model, again)
    assert its_tokenizer == tokenizer
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_bfloat16_checkpoint_comes_back_in_either_dtype(tmp_path):
    model, _ = load(GOLDENS / "mistral_bf16", dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.params))
    path = save(tmp_path / "checkpoint", model)
    same(model, load(path, dtype=jnp.bfloat16)[0])
    wide = load(path)[0]
    same(wide, load(GOLDENS / "mistral_bf16")[0])


def test_nothing_is_overwritten_unasked(tmp_path):
    first, _ = load(GOLDENS / "gpt2")
    second, _ = load(GOLDENS / "opt")
    path = save(tmp_path / "checkpoint", first)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(path, second)
    same(load(path)[0], first)
    save(path, second, overwrite=True)
    same(load(path)[0], second)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_nothing(tmp_path):
    model, _ = load(GOLDENS / "gpt2")

    class Broken:
        def save(self, path):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "checkpoint", model, Broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "checkpoint format 99, expected 1"),
        ({"config": {"n_layers": 2}}, "not a file with a model's config"),
    ],
)
def test_a_strange_description_is_refused(tmp_path, change, message):
    path = save(tmp_path / "checkpoint", load(GOLDENS / "gpt2")[0])
    description = json.loads((path / "jaxinterp.json").read_text())
    (path / "jaxinterp.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(LoadError, match=message):
        load(path)


def test_arrays_of_another_shape_are_refused(tmp_path):
    model, _ = load(GOLDENS / "gpt2")
    path = save(tmp_path / "checkpoint", model)
    description = json.loads((path / "jaxinterp.json").read_text())
    description["config"]["vocab_size"] = 100
    (path / "jaxinterp.json").write_text(json.dumps(description))
    with pytest.raises(LoadError, match=r"W_E of shape \[64, 16\], its config says \[100, 16\]"):
        load(path)


def test_arrays_that_are_not_those_that_were_saved_are_refused(tmp_path):
    path = save(tmp_path / "c", load(GOLDENS / "llama")[0])
    said = json.loads((path / "jaxinterp.json").read_text())
    assert len(said["sums"]) > 5
    said["sums"][2] = said["sums"][2][:-8] + "00000000"
    (path / "jaxinterp.json").write_text(json.dumps(said))
    with pytest.raises(LoadError, match="not those that were saved: their checksums differ"):
        load(path)
    load(path, dtype=jnp.bfloat16)  # of another dtype they say nothing
    mesh = jax.make_mesh((1,), ("model",))
    with pytest.raises(LoadError, match="not those that were saved: their checksums differ"):
        load(path, mesh=mesh)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (lambda sums: [], "not the checksums of"),
        (lambda sums: sums[1:], "not the checksums of"),
        (lambda sums: "x" * len(sums), "not the checksums of"),
        (lambda sums: [7] * len(sums), "not the checksums of"),
        (lambda sums: [""] * len(sums), "checksums differ"),
        (lambda sums: ["int32" + s[7:] for s in sums], "checksums differ"),
        (lambda sums: ["bfloat16 (9,) 00000000" for _ in sums], "checksums differ"),
    ],
)
def test_checksums_that_are_none_are_refused(sums, message, tmp_path):
    path = save(tmp_path / "c", load(GOLDENS / "gpt2")[0])
    said = json.loads((path / "jaxinterp.json").read_text())
    said["sums"] = sums(said["sums"])
    (path / "jaxinterp.json").write_text(json.dumps(said))
    with pytest.raises(LoadError, match=message):
        load(path)


def test_arrays_of_several_hosts_have_no_checksums(monkeypatch, tmp_path):
    class Part:
        """An array of which another host has the rest."""

        is_fully_addressable = False

        def __array__(self, *_, **__):
            raise RuntimeError("spans devices that are not addressable")

    assert checkpoint._sums([Part(), np.zeros(3)]) is None
    model = load(GOLDENS / "gpt2")[0]
    monkeypatch.setattr(checkpoint, "_sums", lambda params: None)
    same(load(save(tmp_path / "c", model))[0], model)


def test_missing_arrays_are_an_error(tmp_path):
    path = save(tmp_path / "checkpoint", load(GOLDENS / "gpt2")[0])
    shutil.rmtree(path / "params")
    with pytest.raises(LoadError, match=r"The arrays in .*params cannot be read"):
        load(path)


SHARDED = """
import jax, numpy as np, sys
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxinterp.loading import load, save
from jaxinterp.model import forward
goldens, out = sys.argv[1:]
assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("data", "model"))
for name in ("llama", "gpt2", "gguf/phi3.gguf"):
    plain, _ = load(f"{goldens}/{name}")
    split, _ = load(f"{goldens}/{name}", mesh=mesh)
    tokens = np.arange(24).reshape(2, 12) % 60
    want = forward(plain, tokens).logits
    got = forward(split, tokens).logits
    np.testing.assert_allclose(got, want, atol=1e-5)
    attn, mlp, embed = split.params.blocks.attn, split.params.blocks.mlp, split.params.embed
    W_Q, W_in, W_E = attn.W_Q, mlp.W_in, embed.W_E
    assert W_Q.addressable_shards[0].data.shape[1] == plain.config.n_heads // 4, name
    assert W_in.addressable_shards[0].data.shape[2] == plain.config.d_mlp // 4, name
    assert W_E.addressable_shards[0].data.shape[0] == 16, name
    G = plain.config.n_kv_heads  # 2 of them do not divide over 4: replicated
    assert attn.W_K.sharding.is_fully_replicated == (G == 2), name
    path = save(f"{out}/{name.replace('/', '-')}", split)
    again, _ = load(path, mesh=mesh)
    assert again.params.blocks.attn.W_Q.sharding == W_Q.sharding
    np.testing.assert_allclose(forward(again, tokens).logits, got, atol=0)
    single, _ = load(path)
    auto = Mesh(mesh.devices, mesh.axis_names)
    rows = jax.device_put(tokens, NamedSharding(auto, PartitionSpec("data")))
    for free in (plain, single):  # a model without a mesh follows its tokens to theirs
        np.testing.assert_allclose(forward(free, rows).logits, want, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, single.params, plain.params)
print("fine")
"""


def test_a_mesh_of_eight_devices_gives_the_same_logits(tmp_path):
    import os

    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(GOLDENS), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.strip() == "fine", done.stderr[-2000:]
