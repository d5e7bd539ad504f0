"""`patch_stream`: the numbers of one `patch`, whatever kills it on the way."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import jax
import numpy as np
import pytest
import tokenizers
import xarray as xr
from small_models import ragged, small_model
from streaming_worker import SIZE, N, stream
from tokenizers import models, pre_tokenizers

from jaxinterp import files, metrics, streaming
from jaxinterp.model import Tokens
from jaxinterp.patching import patch
from jaxinterp.reading import JSON_BYTES
from jaxinterp.streaming import batches_of, patch_stream
from jaxinterp.tasks import Task
from jaxinterp.tokens import Tokenizer

WORKER = Path(__file__).parent / "streaming_worker.py"
WORDS = [
    "to", "the", "Mary", "John", "Anna", "store", "park", "gave", "drink", "went", "and", "said",
]  # fmt: skip


@pytest.fixture
def out(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def calls(monkeypatch):
    """The number of prompts of each call of `patch`."""
    made = []

    def counted(model, **options):
        made.append(len(options["clean"]))
        return patch(model, **options)

    counted.__signature__ = streaming.inspect.signature(patch)
    monkeypatch.setattr(streaming, "patch", counted)
    return made


def run(batches, out, name="llama", **options):
    return patch_stream(small_model(name), batches, out, **options)


def few(n=5, size=2, **options):
    return list(stream(n, size, **options))


def joined(batches):
    """The arguments of one `patch` call for all batches."""
    ids = {side: np.concatenate([b[side] for b in batches]) for side in ("clean", "corrupted")}
    metric = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(b["metric"] for b in batches))
    return {**ids, "metric": metric}


def assert_same(found, expected, exactly=False):
    """Values, coordinates and attributes."""
    assert found.dims == expected.dims
    assert found.name == expected.name
    assert found.attrs == expected.attrs
    assert found.coords.keys() == expected.coords.keys()
    close = np.testing.assert_array_equal if exactly else np.testing.assert_allclose
    for a, b in ((found, expected), *((found[k], expected[k]) for k in found.coords)):
        number = b.dtype.kind == "f"
        options = {} if exactly or not number else {"rtol": 1e-4, "atol": 1e-5}
        (close if number else np.testing.assert_array_equal)(a.values, b.values, **options)


def files_of(out):
    """Every file of a store but the manifest, which holds times."""
    paths = [p for p in Path(out).rglob("*") if p.is_file() and p.name != "manifest.json"]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


def kept(out):
    return json.loads((Path(out) / "manifest.json").read_text())


def tokenizer():
    ids = {w: i for i, w in enumerate(["[UNK]", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, name="words")


ROWS = [
    {"clean": f"{a} and {b} went to the {c} {b} gave drink to",
     "corrupted": f"{a} and {b} went to the {c} {a} gave drink to",
     "answer": a, "wrong": b, "subject": b, "place": 4}
    for c in ("store", "park") for a, b in (("Mary", "John"), ("John", "Anna"))
] + [
    {"clean": "Anna and Mary said Mary gave drink to",
     "corrupted": "Anna and Mary said Anna gave drink to",
     "answer": "Anna", "wrong": "Mary", "subject": "Mary", "place": 3},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"direction": "noise", "layers": [0, 2], "positions": [1, 4]}),
        ("llama", {"site": "z", "over": ("layer", "head"), "record": {"seed": 3}}),
        ("llama", {"site": "mlp_post", "over": ("layer", "neuron"), "neurons": 4}),
        ("gpt2", {"site": "pattern", "over": ("layer", "position", "source"), "positions": [3]}),
    ],
)
def test_a_stream_equals_one_patch(out, name, options):
    batches = few()
    found = run(iter(batches), out, name, **options)
    expected = patch(small_model(name), **joined(batches), **options, batch=2)
    assert_same(found, expected)
    plain = xr.open_zarr(out)
    xr.testing.assert_identical(plain[found.name].load(), found.load())
    assert plain[found.name].encoding["chunks"] == (*expected.shape[:-1], 2)


def patch_rows(rows, **options):
    """One `patch` call for all rows."""
    words = tokenizer()
    ids = {k: words([row[k] for row in rows]) for k in ("clean", "corrupted")}
    single = ([words.single_token(row[k]) for row in rows] for k in ("answer", "wrong"))
    return patch(
        small_model("llama"), **ids, metric=metrics.logit_diff(*single), batch=2, **options
    )


def test_texts_are_those_of_all_prompts(out):
    rows = ROWS[:3]
    options = {"tokenizer": tokenizer(), "names": ["IO", *[""] * 9, "END"]}
    found = run(batches_of(rows, tokenizer(), 2), out, **options)
    assert_same(found, patch_rows(rows, **options))
    assert found.position_token.values[[0, -1]].tolist() == ["Mary… [IO]", "to [END]"]
    assert found.position_token.values[6] == "store…"  # differs in the second batch only


def test_a_streamed_dataset_with_roles_and_unequal_lengths(out, calls):
    rows = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    batches = batches_of(rows, tokenizer(), 2, roles={"S2": "subject", "place": "place"})
    found = run(batches, out, positions="roles")
    assert calls == [2, 2, 2]
    texts = [row["clean"].split() for row in ROWS]
    positions = {
        "END": [len(text) - 1 for text in texts],
        "S2": [text.index(row["wrong"]) for text, row in zip(texts, ROWS, strict=True)],
        "place": [row["place"] for row in ROWS],
    }
    assert_same(found, patch_rows(ROWS, positions=positions))


def test_batches_of_any_width_without_positions(out):
    rng, options = np.random.default_rng(0), {"site": "z", "over": ("layer", "head")}
    lengths = [5, 4, 3, 2, 7, 6]
    clean, corrupted = ([rng.integers(0, 17, n).tolist() for n in lengths] for _ in range(2))

    def pair(rows, width):
        metric = metrics.logit_diff(rng.permuted([4, 9] * 3)[rows], 8)
        sides = (ragged(side[rows], "left", width) for side in (clean, corrupted))
        return dict(zip(("clean", "corrupted"), sides, strict=True), metric=metric)

    batches = [pair(slice(i, i + 2), lengths[i]) for i in (0, 2, 4)]
    found = run(batches, out, **options)
    ids = {k: ragged(v, "right", 8) for k, v in (("clean", clean), ("corrupted", corrupted))}
    correct = np.concatenate([b["metric"].correct for b in batches])
    expected = patch(
        small_model("llama"), **ids, metric=metrics.logit_diff(correct, 8), batch=2, **options
    )
    assert_same(found, expected)


def test_tasks_are_batches(out):
    def task(batch):
        tokens = {
            k: Tokens(batch[k], np.tile(np.arange(5), (2, 1))) for k in ("clean", "corrupted")
        }
        answers, text = np.array([4, 9]), ("a", "b")
        return Task(
            "test", **tokens, metric=batch["metric"], answers=answers, wrong=answers,
            roles={"END": np.array([4, 4])}, clean_text=text, corrupted_text=text,
        )  # fmt: skip

    batches = few(4)
    found = run([task(b) for b in batches], out, positions="roles")
    expected = patch(small_model("llama"), **joined(batches), positions={"END": [4] * 4}, batch=2)
    assert_same(found, expected)


def test_a_short_last_batch_compiles_nothing(out, tmp_path):
    from jaxinterp.sweep.base import observed
    from jaxinterp.sweep.run import run_chunk

    run(few(6, 3), out)
    before = run_chunk.compiled._cache_size(), observed.compiled._cache_size()
    run(few(7, 3, seed=1), tmp_path / "one")  # three batches, the last of one prompt
    run(few(8, 3, seed=2), tmp_path / "two")
    assert (run_chunk.compiled._cache_size(), observed.compiled._cache_size()) == before


def stopped(batches, out, n):
    """A run that ends after n batches."""
    seen = []

    def tell(experiments):
        seen.append(experiments)
        if len(seen) == n:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(batches, out, on_done=tell)


def test_a_stopped_run_resumes_without_running_again(out, tmp_path, calls):
    batches = few(7)
    whole = run(batches, tmp_path / "whole")
    assert len(calls) == 4
    stopped(batches, out, 2)
    assert len(calls) == 6
    partial = xr.open_zarr(out)["logit_diff"]  # readable meanwhile: what is finished
    np.testing.assert_array_equal(partial, whole[..., :4])
    assert partial.attrs["n_prompts"] == 4
    told = []
    resumed = run(iter(batches), out, on_done=told.append)
    assert len(calls) == 8
    assert told == [30, 30, 30, 15]
    assert_same(resumed, whole, exactly=True)
    assert files_of(out) == files_of(tmp_path / "whole")
    again = run(batches, out)
    assert len(calls) == 8
    assert_same(again, whole, exactly=True)
    assert [s["batches"] for s in kept(out)["sessions"] if s["rate"] > 0] == [2, 2]


def test_a_longer_stream_goes_on(out, tmp_path, calls):
    batches = few(8)
    run(batches[:2], out)
    assert_same(run(batches, out), run(batches, tmp_path / "whole"), exactly=True)
    assert len(calls) == 4 + 4


def other_metric(batch):
    return {**batch, "metric": batch["metric"].replace(wrong=batch["metric"].wrong + 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (few(6, seed=1), {}), "Batch 0 is not the one that .* holds"),
        (lambda b: ([b[0], *few(6, seed=1)[1:]], {}), "Batch 1 is not the one"),
        (lambda b: ([*b[:2], other_metric(b[2])], {}), "Batch 2 is not the one"),
        (lambda b: (b[:2], {}), "holds 6 prompts, the stream ended after 4"),
        (lambda b: (b, {"direction": "noise"}), "its direction is 'denoise', here it is 'noise'"),
        (lambda b: (b, {"layers": [1]}), "another run: its layers is None, here it is '"),
        (lambda b: (b, {"record": {"seed": 1}}), "its record is '{}', here"),
        (lambda b: (b, {"name": "qwen3"}), "its family is 'llama', here it is 'qwen3'"),
    ],
)
def test_another_stream_or_run_is_refused_and_nothing_is_touched(out, change, message):
    batches = few(6)
    run(batches, out)
    before = files_of(out), kept(out)
    changed, options = change(batches)
    with pytest.raises(ValueError, match=message):
        run(changed, out, **options)
    other = jax.tree.map(lambda x: x * 1.1, small_model("llama"))
    with pytest.raises(ValueError, match="another run: its weights is"):
        patch_stream(other, batches, out)
    assert (files_of(out), kept(out)) == before


def garble(out, damage):
    """Damage a store of which two batches are finished."""
    values = out / "logit_diff"
    if damage == "half a chunk beyond":
        (values / "0.0.2").write_bytes((values / "0.0.1").read_bytes()[:20])
        (out / "clean" / "2").write_bytes(b"")
        dead = f"jaxinterp-{files._HOST}_{files._SPACE}-999999999-0123abcd"
        (out / f".manifest.{dead}.json").write_text("{")
        (values / f"0.0.2.{'0a' * 16}.partial").write_bytes(b"x")
    elif damage == "sizes beyond":
        for name, shape in (("logit_diff", [3, 5, 6]), ("clean", [6])):
            meta = json.loads((out / name / ".zarray").read_text())
            (out / name / ".zarray").write_text(json.dumps({**meta, "shape": shape}))
    elif damage == "a finished chunk":
        (values / "0.0.0").write_bytes(b"nothing of the kind")
    elif damage == "a lost chunk":
        (values / "0.0.1").unlink()
    elif damage == "the arrays being made":
        shutil.rmtree(out / "logit_diff")
        (out / "manifest.json").write_text(json.dumps({**kept(out), "batches": []}))


DAMAGE = {
    "half a chunk beyond": 2, "sizes beyond": 2, "a finished chunk": 3, "a lost chunk": 3,
    "the arrays being made": 4,
}  # fmt: skip


@pytest.mark.parametrize(("damage", "runs"), DAMAGE.items())
def test_half_written_and_damaged_data_is_written_again(out, tmp_path, calls, damage, runs):
    batches = few(7)
    whole = run(batches, tmp_path / "whole")
    stopped(batches, out, 2)
    garble(out, damage)
    calls.clear()
    assert_same(run(batches, out), whole, exactly=True)
    assert len(calls) == runs
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"run": {}}', "cut", "entries", "numbers"])
def test_a_damaged_manifest_starts_over_and_says_so(out, tmp_path, calls, damage):
    batches = few(5)
    whole = run(batches, tmp_path / "whole")
    stopped(batches, out, 2)
    text = (out / "manifest.json").read_text()
    entries = json.dumps({**kept(out), "batches": [{}]})
    numbers = json.dumps({**kept(out), "batches": [3, 4]})
    damage = {"cut": text[:-30], "entries": entries, "numbers": numbers}.get(damage, damage)
    (out / "manifest.json").write_text(damage)
    calls.clear()
    with pytest.warns(UserWarning, match=r"manifest.json is damaged: the run starts over"):
        resumed = run(batches, out)
    assert len(calls) == 3
    assert_same(resumed, whole, exactly=True)
    (out / "manifest.json").write_text(damage)
    with pytest.raises(ValueError, match="damaged, and nothing shows that the store is of this"):
        run(batches, out, direction="noise")


def test_a_long_manifest_is_not_damaged(out, calls):
    """It is of a run of very many batches: longer than the JSON files of others may be."""
    batches = few(5)
    stopped(batches, out, 2)
    with open(out / "manifest.json", "a") as file:
        file.write(" " * JSON_BYTES)
    calls.clear()
    run(batches, out)
    assert len(calls) == 1


@pytest.mark.parametrize("lost", ["clean", "layer", "layer/0", "position/0"])
def test_lost_arrays_start_over_and_say_so(out, calls, lost):
    """A missing chunk of an axis would be read as zeros: every layer would be the first."""
    run(few(5), out)
    shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).unlink()
    with pytest.warns(UserWarning, match="lacks its arrays, or some are damaged: the run"):
        run(few(5), out)
    assert calls == [2] * 6


# Processes


def start(out):
    """A worker; programs are compiled by the first and found by the others."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.parent / "programs"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}  # fmt: skip
    command, pipe = [sys.executable, str(WORKER), str(out)], subprocess.PIPE
    environment = {**os.environ, **cache}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process):
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors[-2000:]


def survive(out, kills, seed):
    """Kill a run again and again, each a little further; compare with one left alone."""
    rng, batches, found = random.Random(seed), -(-N // SIZE), []
    finish(start(alone := out.parent / "alone"))
    for k in range(kills):
        target = 1 + k * (batches - 2) // kills + rng.randrange((batches - 2) // kills)
        with start(out) as process:
            for line in process.stdout:
                if int(line) >= target:
                    break
            time.sleep(rng.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
        found.append(len(kept(out)["batches"]))
    finish(start(out))
    assert sum(0 < n < batches for n in found) > kills // 2, found
    whole = xr.open_zarr(alone)["logit_diff"]
    assert whole.sizes["prompt"] == N
    assert_same(xr.open_zarr(out)["logit_diff"], whole, exactly=True)
    assert files_of(out) == files_of(alone)
    assert len(kept(out)["sessions"]) > kills // 2


def test_three_kills_leave_no_trace(out):
    survive(out, 3, seed=0)


@pytest.mark.long
def test_ten_kills_leave_no_trace(out):
    survive(out, 10, seed=1)


# What a person sees


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_rate_and_time_left_at_a_terminal(out, monkeypatch, capsys):
    run(few(6)[:2], out)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run(few(6), out, total=6)
    assert "90.0/90.0" in terminal.getvalue()
    assert "experiments/s" in terminal.getvalue()


LOGIT, BY_ROLE = {**few()[1], "metric": metrics.logit([1, 2])}, {"positions": "roles"}


def roles(*names, at=1):
    return [{**b, "roles": {name: [1, at]}} for b, name in zip(few(), names, strict=False)]


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "stream is empty"),
        (few()[0], {}, "is one dict: put it in a list"),
        ([few()[0], *few(length=6)], {}, "Batch 1: prompts of 6 tokens, the first has 5"),
        ([few()[2], few()[0]], {}, "Batch 1: batches of 1 prompts, then of 2"),
        ([*few(), few()[0]], {}, "Batch 3: batches of 2 prompts, then of 1"),
        ([few()[0], 5], {}, "Batch 1: int, expected a Task or a mapping with clean"),
        ([{"clean": [[1]]}], {}, r"Batch 0: \['clean'\], expected a Task"),
        ([{**few()[0], "clean": [[1, 2]]}], {}, "Batch 0: There are 1 clean and 2"),
        ([{**few()[0], "clean": [[1] * 5, [20] * 5]}], {}, "Batch 0: Token id 20 is outside"),
        ([few()[0], LOGIT], {}, r"Batch 1: roles \[\] and metric .*Logit.*, expected the first"),
        (few(), {"positions": "roles"}, r"Batch 0: roles of shapes {}, expected one position"),
        (few(), {"positions": "role"}, "positions='role', expected some positions, or 'roles'"),
        (few(), {"positions": {"S": [1, 1]}}, "expected some positions, or 'roles'"),
        (few(), {"layers": [9]}, "Batch 0: layer 9 is out of range"),
        (roles("A", "B"), BY_ROLE, r"Batch 1: roles \['B'\] .* first batch's roles \['A'\]"),
        (roles("A", at=5), BY_ROLE, "Batch 0: Role 'A' is .* expected a position within each"),
    ],
)
def test_bad_streams_are_one_sentence(out, batches, options, message):
    with pytest.raises(ValueError, match=message):
        run(batches, out, **options)


def test_options_that_patch_lacks_are_refused(out):
    lacks = {"parts": "the stream sets it itself", "layer": "`patch` has no such option"}
    for option, reason in lacks.items():
        with pytest.raises(TypeError, match=f"{option}='x': {reason}; leave it out"):
            run(few(), out, **{option: "x"})
    assert not out.exists()


def test_folders_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt' and no manifest.json: choose"):
        run(few(), tmp_path)
    with pytest.raises(OSError, match=r"notes.txt is not a folder: choose another"):
        run(few(), tmp_path / "notes.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match="nothing shows that the store is of this run: delete"):
        run(few(), tmp_path / "other")
    assert (tmp_path / "notes.txt").read_text() == "mine"


HOSTILE = [
    "x.partial", ".manifest.1.json", "..zmetadata.x", "deep/er/y.partial", ".parts/z", "chunk-0.npy"
]  # fmt: skip


def test_nothing_of_a_persons_is_deleted(tmp_path, out):
    """Neither in a folder that is refused, nor beside the arrays of a store."""

    def scatter(folder):
        for name in HOSTILE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("mine")

    def intact(folder):
        return all((folder / name).read_text() == "mine" for name in HOSTILE)

    scatter(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"holds '.*' and no manifest.json: choose"):
        run(few(), tmp_path / "theirs")
    assert intact(tmp_path / "theirs")
    assert len([p for p in (tmp_path / "theirs").rglob("*") if p.is_file()]) == len(HOSTILE)

    whole = run(few(5), out)
    scatter(out)
    (out / "logit_diff" / "mine.partial").write_text("mine")
    assert_same(run(few(5), out), whole, exactly=True)
    (out / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged: the run starts over"):
        assert_same(run(few(5), out), whole, exactly=True)
    assert intact(out)


def test_one_run_writes_at_a_time(out):
    def nested():
        yield few()[0]
        with pytest.raises(BlockingIOError, match="is written to by process"):
            run(few(), out)
        yield few()[1]

    assert run(nested(), out).sizes["prompt"] == 4
    assert not [p for p in out.iterdir() if "lock" in p.name]


def test_a_run_that_fails_at_once_leaves_no_folder(out):
    with pytest.raises(ValueError, match="Batch 0"):
        run([5], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted": "Mary said"}, "Row 1: 'clean' has 11 tokens and 'corrupted' 2"),
        ({"answer": "Mary John"}, "Row 1: 'Mary John' is 2 tokens"),
        ({"answer": "Bob"}, "Row 1: 'Bob' is not in the vocabulary"),
        ({"answer": 3}, "Row 1: 'answer' is 3, expected a text"),
        ({"clean": ""}, "Row 1: 'clean' is '', expected a text"),
        ({"subject": "Bob"}, "Row 1: 'Bob' occurs 0 times"),
    ],
)
def test_bad_rows_are_named(change, message):
    rows = [ROWS[0], {**ROWS[1], **change}]
    with pytest.raises(ValueError, match=message):
        list(batches_of(rows, tokenizer(), 2, roles={"S": "subject"}))


def test_fields_are_named_and_answers_may_be_sets():
    rows = [
        {"a": r["clean"], "b": r["corrupted"], "c": ["Mary", "John"], "d": "Anna"} for r in ROWS
    ]
    names = {"clean": "a", "corrupted": "b", "answer": "c", "wrong": "d"}
    made = list(batches_of(rows, tokenizer(), 3, **names))
    assert [len(b["clean"]) for b in made] == [3, 2]
    assert made[0]["metric"].correct.shape == (3, 2)
    assert made[1]["roles"]["END"].tolist() == [10, 7]
    with pytest.raises(ValueError, match="Row 0: there is no field 'answer' among a, b, c, d"):
        list(batches_of(rows, tokenizer(), 3, clean="a", corrupted="b"))
    with pytest.raises(ValueError, match="size=0"):
        list(batches_of(rows, tokenizer(), 0))
