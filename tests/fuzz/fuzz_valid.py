"""A small valid file of every format, made anew."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import jaxinterp as ji
from jaxinterp.circuits.circuit import Circuit
from jaxinterp.claims import Claim, Experiment, Found
from jaxinterp.directions import Direction
from jaxinterp.lens.kinds import JacobianLens, TunedLens
from jaxinterp.loading.torch_file import write_torch
from jaxinterp.model import Config, init
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig, Parameters

TESTS = Path(__file__).parents[1]
GOLDENS = TESTS / "loading" / "goldens"

CONFIG = Config(
    n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=6, vocab_size=12, n_ctx=8
)
STORE = [f"store/inputs/c/{i}/0" for i in range(2)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return rng().standard_normal(shape).astype(np.float32)


def model(folder: Path) -> None:
    _golden("llama", folder)


def sharded(folder: Path) -> None:
    _golden("llama_llama3_sharded", folder)


def _golden(name: str, folder: Path) -> None:
    for file in (GOLDENS / name).iterdir():
        if file.name != "golden.npz":
            shutil.copy(file, folder)


def gguf(folder: Path) -> None:
    from safetensors.numpy import load_file

    sys.path.append(str(TESTS / "loading"))
    import tiny_gguf

    given = load_file(GOLDENS / "llama" / "model.safetensors")
    config = json.loads((GOLDENS / "llama" / "config.json").read_text())
    tiny_gguf.write(folder / "m.gguf", config, given)


def torch(folder: Path) -> None:
    tensors = {
        "a.weight": _normal(4, 6), "a.bias": np.arange(6, dtype=np.int64),
        "b": _normal(2, 3, 4).astype(np.float16), "k": np.int32(3),
    }  # fmt: skip
    write_torch(folder / "t.pt", tensors)


def tuned_lens(folder: Path) -> None:
    lens = TunedLens(_normal(2, 4, 4), _normal(2, 4))
    ji.lens.save(folder / "saved", lens, form="tuned-lens")
    for file in (folder / "saved").iterdir():
        file.rename(folder / file.name)


def own_lens(folder: Path) -> None:
    ji.lens.save(folder / "lens", JacobianLens(_normal(2, 4, 4)))


def direction(folder: Path) -> None:
    Direction(_normal(3, 8), "resid_post", "test").save(folder / "d.npz")


@functools.cache
def dictionary() -> Dictionary:
    config = DictionaryConfig(6, 10, activation="jumprelu", site="resid_post", layers=(1,))
    arrays = {name: _normal(*shape) for name, shape in config.shapes.items()}
    return Dictionary(Parameters(**arrays), config, None)


def gemma_scope(folder: Path) -> None:
    ji.sae.save(folder / "saved", dictionary(), form="gemma-scope")
    (folder / "saved" / "params.npz").rename(folder / "params.npz")


def saelens(folder: Path) -> None:
    ji.sae.save(folder / "saved", dictionary(), form="saelens")
    for file in (folder / "saved").iterdir():
        file.rename(folder / file.name)
    (folder / "saved").rmdir()


def store(folder: Path) -> None:
    """An activation store of two chunks, harvested from a model."""
    found = ji.sae.harvest_to(
        folder / "store", init(CONFIG, jax.random.key(0)),
        DictionaryConfig(8, 4, site="resid_post", layers=(1,)),
        [rng().integers(0, 12, (2, 5)), rng().integers(0, 12, (2, 5))], dtype="float32",
    )  # fmt: skip
    values = np.concatenate([found.chunk(0), found.chunk(1)])
    np.save(folder.parent / "store-values.npy", values)


def _result() -> Any:
    import xarray as xr

    coords = {"layer": [0, 1, 2], "prompt": np.arange(5), "token": ("position", list("abcd"))}
    about = {"model": "m", "config": '{"a": 1}'}
    return xr.DataArray(_normal(3, 4, 5), coords, ("layer", "position", "prompt"), "z", about)


def result(folder: Path) -> None:
    ji.results.save(_result(), folder / "r.nc")


def others_result(folder: Path) -> None:
    """As a program without this library writes it: no checksum."""
    _result().to_dataset(name="z").to_netcdf(folder / "r.nc", engine="h5netcdf")


def _words() -> tokenizers.Tokenizer:
    ids = {word: i for i, word in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", "the", "w1", "w2"])}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def tokenizer(folder: Path) -> None:
    _words().save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def two_files(folder: Path) -> None:
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", "Ġ", "th", "the", "an", "<|endoftext|>"]
    ids = {letter: i for i, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\na n\n", encoding="utf-8")
    said = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def claim(folder: Path) -> None:
    """A claim with numbers as if it had been run."""
    tokens, metric = rng().integers(0, 12, (4, 5)), ji.logit_diff([1, 2, 3, 4], [2, 3, 4, 5])
    found = Found(_normal(4), _normal(1, 4) - 9, 0.95, 100, 0)
    more = Found(_normal(4), _normal(2, 4), 0.95, 100, 0)
    grid = ji.zero("z", **ji.product(layer=range(1), head=range(2)))
    experiments = (
        Experiment("zero a head", "effect", tokens, ji.zero("z", layer=1, head=1), metric,
                   found=found),
        Experiment("others", "control", tokens, grid, metric, grid=True, found=more),
    )  # fmt: skip
    said = Claim(
        "Head 1.1 does it.", init(CONFIG, jax.random.key(0)), components=["head 1.1"],
        experiments=experiments, limits=["No other prompts."], resamples=100,
    )  # fmt: skip
    (folder / "claim.json").write_text(said.to_json(), encoding="utf-8")


@functools.cache
def _some() -> Circuit:
    whole = Circuit.full(CONFIG)
    return Circuit.of(CONFIG, list(whole.names)[::3])


def circuit(folder: Path) -> None:
    _some().save(folder / "c.json")


def mib(folder: Path) -> None:
    _some().save(folder / "c.json", format="mib")


@functools.cache
def _tiny() -> Any:
    return init(CONFIG, jax.random.key(0))


def numbers_of_checkpoint() -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(_tiny().params)])


def checkpoint(folder: Path) -> None:
    ji.save(folder / "m", _tiny())


def shipped(folder: Path) -> None:
    ji.loading.ship(
        folder / "tiny", _tiny(), description="d", data="d", recipe="r", seed=0, steps=1,
        compute={"machine": "m"}, metrics={"loss": 1.0},
    )  # fmt: skip
