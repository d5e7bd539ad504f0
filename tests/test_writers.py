"""Every function that writes, pointed at somebody else's folder: all of it is there afterwards.

Those that write a folder refuse it, or write beside what is there; those that write a file write
that file alone. A function that is new and writes or deletes has to come here.
"""

import argparse
import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from small_models import small_model
from streaming_worker import stream
from tiny_tokenizers import word_tokenizer

import jaxinterp as ji
from jaxinterp import circuits, files, lens, report, results, sae, streaming, training
from jaxinterp.cli import output
from jaxinterp.loading import ship
from jaxinterp.loading.torch_file import write_torch
from jaxinterp.report.html import write_page

PACKAGE = Path(ji.__file__).parent
HOSTILE = [
    "notes.txt", ".parts/mine.npy", "x.partial", ".manifest.1.json", "..zmetadata.x", "chunk-0.npy",
    "a/.x.partial", "inputs/mine", "arrays/mine", "params/mine", "run.json", ".jaxinterp-notes",
    "0123456789abcdef-mine.npz", "empty.jaxinterp.lock", ".z.jaxinterp-notes.nc",
]  # fmt: skip


def scatter(folder):
    """A person's files, of names like ours."""
    for name in HOSTILE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def everything(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def intact(folder):
    return all((folder / name).read_text() == f"mine: {name}" for name in HOSTILE)


def dictionary():
    config = sae.DictionaryConfig(4, 6)
    arrays = {name: np.ones(shape, np.float32) for name, shape in config.shapes.items()}
    return sae.Dictionary(sae.Parameters(**arrays), config)


def result():
    sides = {"clean": ("prompt", np.ones(4)), "corrupted": ("prompt", np.zeros(4))}
    return xr.DataArray(np.ones((3, 4)), sides, ("layer", "prompt"), "logit_diff")


def empty_circuit():
    graph = circuits.Graph(small_model("attention_only").config)
    return circuits.Circuit(graph, np.zeros_like(graph.exists))


def some_lens():
    return lens.TunedLens(jnp.zeros((2, 8, 8)), jnp.zeros((2, 8)))


def train_model(folder):
    def loss(model, tokens):
        return jnp.square(ji.forward(model, tokens).logits).mean(), {}

    training.train(
        small_model("attention_only"), lambda step: np.ones((2, 3), int), loss, optax.sgd(0.1),
        steps=1, folder=folder,
    )  # fmt: skip


def train_dictionary(folder):
    sae.train(
        sae.DictionaryConfig(4, 6), [np.ones((8, 4), np.float32)] * 2, sae.TrainingConfig(2),
        sae.Hyperparameters(), folder=folder,
    )  # fmt: skip


def harvest(folder):
    config = sae.DictionaryConfig(8, 4, site="resid_post", layers=(1,))
    sae.harvest_to(folder, small_model("llama"), config, [np.ones((2, 5), int)])


def shipped(folder):
    about = {
        "description": "random", "data": "none", "recipe": "none", "seed": 0, "steps": 1,
        "compute": {}, "metrics": {},
    }  # fmt: skip
    ship(folder, small_model("llama"), **about)


def command_line(folder):
    with output.output(folder, "patch", {"seed": 0}, True) as out:
        results.save(result(), out / "z.nc")


def script(folder):
    output.begin(folder, "study", vars(argparse.Namespace(seed=0, out=folder)))


FOLDERS = {
    "ji.save": lambda f: ji.save(f, small_model("llama"), overwrite=True),
    "sae.save": lambda f: sae.save(f, dictionary(), overwrite=True),
    "sae.save, of another library": lambda f: sae.save(
        f, dictionary(), form="saelens", overwrite=True
    ),
    "lens.save": lambda f: lens.save(f, some_lens(), overwrite=True),
    "lens.save, of another library": lambda f: lens.save(
        f, some_lens(), form="tuned-lens", overwrite=True
    ),
    "ship": shipped,
    "train": train_model,
    "sae.train": train_dictionary,
    "harvest_to": harvest,
    "patch_stream": lambda f: streaming.patch_stream(small_model("llama"), stream(2), f),
    "Parts": lambda f: results.Parts(f, "key").put(0, np.ones(2)),
    "Tokenizer.save": lambda f: word_tokenizer(bos=True).save(f),
    "command line": command_line,
    "script": script,
    "discard": files.discard,
    "tidy": files.tidy,
}
BESIDE = ("Parts", "Tokenizer.save", "script", "discard", "tidy")


@pytest.mark.parametrize("name", FOLDERS)
def test_what_writes_a_folder_deletes_nothing(tmp_path, name):
    folder = tmp_path / "folder-1"
    folder.mkdir()
    scatter(folder)
    before = everything(folder)
    if name in BESIDE:
        FOLDERS[name](folder)
    else:
        with pytest.raises((ValueError, FileExistsError)):
            FOLDERS[name](folder)
        assert everything(folder) == before
    assert intact(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder-1"]


FILES = {
    "results.save": (".nc", lambda p: results.save(result(), p)),
    "report": (".html", lambda p: report.write_report({"z": result()}, p, title="z")),
    "page": (".html", lambda p: write_page("<html>", p)),
    "heatmap": (".png", lambda p: report.spread(result(), p, k=2)),
    "direction": (".npz", lambda p: ji.Direction(np.ones(3), "resid_post", "mine").save(p)),
    "circuit": (".json", lambda p: empty_circuit().save(p)),
    "torch": (".pt", lambda p: write_torch(p, {"a": np.ones(3, np.float32)})),
}


@pytest.mark.parametrize("name", FILES)
def test_what_writes_a_file_writes_that_one_alone(tmp_path, name):
    ending, write = FILES[name]
    scatter(tmp_path)
    before = everything(tmp_path)
    write(tmp_path / f"new{ending}")
    assert everything(tmp_path) == before | {f"new{ending}"}
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of a file"):
        write(tmp_path)
    assert intact(tmp_path)
    assert everything(tmp_path) == before | {f"new{ending}"}


# Nothing else writes

DELETES = {"rmtree", "unlink", "rmdir", "remove", "removedirs"}
WRITES = {"write_text", "write_bytes", "save_file", "savez", "savez_compressed", "to_netcdf"}
SAFE = {"whole", "whole_folder", "TemporaryDirectory", "_temporary"}


def called(node):
    """The name of what a call calls."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def writes(node):
    mode = node.args[1] if called(node) == "open" and len(node.args) > 1 else None
    opened = isinstance(mode, ast.Constant) and set("wax") & set(str(mode.value))
    return called(node) in DELETES | WRITES or bool(opened)


def unprotected(tree):
    """Functions with a call that writes or deletes outside of `whole` and its like."""
    found = set()

    def visit(node, function, safe):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.With):
            calls = [n for item in node.items for n in ast.walk(item) if isinstance(n, ast.Call)]
            safe = safe or any(called(call) in SAFE for call in calls)
        if isinstance(node, ast.Call) and writes(node) and not safe:
            found.add(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function, safe)

    visit(tree, "", False)
    return found


# What is written there lies in a folder that `whole_folder` gave, or is proven ours.
KNOWN = {
    "files.py": {"_remove", "_remove_if_empty", "append", "discard", "locked"},
    "growing.py": {"__init__", "_create", "put"},
    "lens/files.py": {"_write_common"},
    "loading/registry.py": {"_checked", "_from_index", "_install", "fetch"},
    "results.py": {"save"},  # in memory
    "sae/arrays.py": {"write_json", "write_tensors"},
    "sae/forms/gemma_scope.py": {"write_gemma_scope"},
    "sae/store.py": {"_put"},
}


def test_nothing_else_writes_or_deletes():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if names := unprotected(ast.parse(path.read_text(encoding="utf-8"))):
            found[path.relative_to(PACKAGE).as_posix()] = names
    for name, each in found.items():
        assert each <= KNOWN.get(name, set()), (name, each)
