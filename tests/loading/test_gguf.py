"""GGUF files: the same model as in Hugging Face layout, and the tokenizer they describe."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxinterp.loading import LoadError, load
from jaxinterp.loading.gguf_file import GgufFile
from jaxinterp.loading.gguf_tokenizer import tokenizer_of
from jaxinterp.model.parts import inverse_frequencies

sys.path.append(str(Path(__file__).parent))
import tiny_gguf

GOLDENS = Path(__file__).parent / "goldens"
GGUFS = sorted(p.stem for p in (GOLDENS / "gguf").glob("*.gguf"))
TEXTS = json.loads((Path(__file__).parent / "tiny_texts.json").read_text("utf-8"))


def as_gguf(name, file, **options):
    """A golden folder's model, written as GGUF."""
    folder = GOLDENS / name
    tensors = {}
    for part in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(part)
    config = json.loads((folder / "config.json").read_text()) | options.pop("config", {})
    return tiny_gguf.write(file, config, tensors, **options)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "phi3"])
def test_both_layouts_hold_the_same_model(name, tmp_path):
    options = {}
    if name == "gemma3":
        scaled = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 4.0}
        options = {"metadata": {**scaled, "gemma3.rope.freq_base_swa": 50.0}}
    model, tokenizer = load(as_gguf(name, tmp_path / "model.gguf", **options))
    want = load(GOLDENS / name)[0]
    # What GGUF leaves to a rule (Gemma's score scale, which layers slide) or rounds.
    loose = {"attn_scale": 1.0, "norm_eps": 1e-6}
    if name == "gemma3":
        assert model.config.windows == (4, 4, 4)  # of six, the last one sees everything
        assert set(model.config.rotary) <= set(want.config.rotary)
        loose |= {"windows": (), "rotary_kind": (), "rotary": want.config.rotary}
    assert model.config.replace(**loose) == want.config.replace(**loose)
    jax.tree.map(np.testing.assert_array_equal, model.params, want.params)
    assert tokenizer.vocab_size == 64


def test_llama3_scaling_is_recognised_in_its_factors(tmp_path):
    config = {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    }
    pairs = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
    turns = 8192 * pairs / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    factors = 1 / ((1 - smooth) / 32 + smooth)
    assert 1 < np.median(factors) < 32 or len(set(factors)) > 2
    file = as_gguf(
        "llama_llama3_sharded", tmp_path / "llama.gguf", config=config, rope_freqs=factors
    )
    rotary = load(file)[0].config.rotary[0]
    assert rotary.scaling == ("llama3", 32.0, 1.0, 4.0, 8192.0)
    np.testing.assert_allclose(inverse_frequencies(rotary)[0], pairs / factors, rtol=1e-5)

    strange = np.linspace(1, 32, 8)
    file = as_gguf(
        "llama_llama3_sharded", tmp_path / "strange.gguf", config=config, rope_freqs=strange
    )
    with pytest.raises(LoadError, match=r"is not Llama 3\.1's rotary scaling"):
        load(file)


def test_other_scalings_are_refused(tmp_path):
    metadata = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    file = as_gguf("llama_linear", tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(LoadError, match=r"'yarn' of .* is not supported in GGUF"):
        load(file)


@pytest.mark.parametrize("name", GGUFS)
def test_tokens_are_those_of_transformers(name):
    golden = np.load(GOLDENS / "gguf" / f"{name}.npz")
    _, tokenizer = load(GOLDENS / "gguf" / f"{name}.gguf")
    for i, text in enumerate(TEXTS):
        want = golden[f"text{i}"].tolist()
        assert tokenizer.encode(text) == want, (text, tokenizer.str_tokens(want))


def test_metadata_of_every_kind(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "kinds.gguf", "llama")
    writer.add_int8("int8", -3)
    writer.add_uint64("uint64", 2**40)
    writer.add_float64("float64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "ж" * 100)
    writer.add_array("numbers", list(range(1000)))
    writer.add_array("words", [str(i) for i in range(1000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GgufFile(tmp_path / "kinds.gguf").metadata
    assert metadata["numbers"] == list(range(1000))
    assert metadata["words"] == [str(i) for i in range(1000)]
    del metadata["numbers"], metadata["words"]
    assert metadata == {
        "general.architecture": "llama",
        "int8": -3,
        "uint64": 2**40,
        "float64": 0.1,
        "bool": True,
        "string": "ж" * 100,
    }


# Hostile files: each of these hung or took all memory.


def written(path, **changes):
    """A file of some metadata alone; what its tokenizer takes is what counts here."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in changes.items():
        name = f"tokenizer.ggml.{key}"
        (writer.add_array if isinstance(value, list) else writer.add_string)(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path).metadata


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["a" * n for n in range(1, 3000)], "too long to be made from others"),
        (["a" * n for n in range(1, 800)], "merges have more than"),
        (["a" * 1_000_000], "too long"),
        (["a", 3], "no list of str"),
        ([f"{i:03d}" * 33_000 for i in range(180)], "letters"),
    ],
)
def test_tokens_that_no_tokenizer_has(tmp_path, tokens, message):
    given = {"model": "llama", "tokens": tokens, "scores": [float(i) for i in range(len(tokens))]}
    if all(isinstance(token, str) for token in tokens):
        metadata = written(tmp_path / "m.gguf", **given)
    else:
        metadata = {f"tokenizer.ggml.{key}": value for key, value in given.items()}
    began = time.process_time()
    with pytest.raises(LoadError, match=message):
        tokenizer_of(metadata, "m")
    assert time.process_time() - began < 5


def test_more_layers_than_tensors(tmp_path):
    data = as_gguf("llama", tmp_path / "m.gguf").read_bytes()
    name = b"llama.block_count" + struct.pack("<I", 4)
    assert data.count(name + struct.pack("<I", 3)) == 1
    for layers, message in ((5000, "5000 layers, but"), (10**6, r"=1000000, expected .* 1 to ")):
        changed = data.replace(name + struct.pack("<I", 3), name + struct.pack("<I", layers))
        (tmp_path / "m.gguf").write_bytes(changed)
        with pytest.raises(LoadError, match=message):
            load(tmp_path / "m.gguf")


GGUF_1 = b"GGUF" + struct.pack("<I", 3)
KEY = struct.pack("<Q", 1) + b"a"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (struct.pack("<QQ", 1 << 60, 0), "within its header"),
        (struct.pack("<QQ", 0, 1 << 60), "within its header"),
        (struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62), "within its header"),
        (struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 4, 1 << 61), "within its header"),
        (struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 8, 1 << 50), "within its header"),
        (
            struct.pack("<QQ", 0, 1) + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "nested",
        ),
        (struct.pack("<QQ", 0, 1) + KEY + struct.pack("<I", 77) + bytes(9), "unknown kind 77"),
        (struct.pack("<QQ", 0, 2) + (KEY + struct.pack("<IB", 0, 1)) * 2, "'a' twice"),
        (struct.pack("<QQ", 1, 0) + KEY + struct.pack("<I", 99) + bytes(99), "99 axes"),
        (struct.pack("<QQ", 1, 0) + KEY + struct.pack("<IQIQ", 1, 0, 0, 0), r"shape \[0\]"),
        (struct.pack("<QQ", 1, 0) + KEY + struct.pack("<IQIQ", 1, 1 << 40, 0, 0), "header says"),
    ],
)
def test_numbers_that_no_header_has(tmp_path, header, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF_1 + header + bytes(64))
    with pytest.raises(LoadError, match=message):
        GgufFile(path)


def test_tensors_in_one_place(tmp_path):
    one = struct.pack("<IQIQ", 1, 8, 0, 0)
    header = GGUF_1 + struct.pack("<QQ", 2, 0) + KEY + one + struct.pack("<Q", 1) + b"b" + one
    path = tmp_path / "m.gguf"
    path.write_bytes(header + bytes(96))
    with pytest.raises(LoadError, match="'a' and 'b' overlap"):
        GgufFile(path)
