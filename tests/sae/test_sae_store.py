"""The activation store: what is kept is what the model does, across kills, damage and shards."""

import json

import numpy as np
import pytest
from small_models import ragged, small_model

from jaxinterp import sae
from jaxinterp.files import MARK
from jaxinterp.loading import LoadError

D = 8
CONFIG = sae.DictionaryConfig(D, 4, site="resid_post", layers=(1,))
TRANSCODER = sae.DictionaryConfig(
    D, 4, kind="transcoder", site="resid_mid", target="mlp_out", layers=(1,)
)


def blocks(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 17, (3, 9)) for _ in range(n)]


def every(config, given, first=False):
    pairs = [sae.values_at(small_model("llama"), b, config, first=first) for b in given]
    return [np.concatenate(side) for side in zip(*pairs, strict=True)]


def put(path, config=CONFIG, n=6, **options):
    return sae.harvest_to(path, small_model("llama"), config, blocks(n), **options)


def as_set(rows):
    return sorted(map(tuple, np.round(np.asarray(rows, float), 3).tolist()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_holds_what_the_model_does(tmp_path, dtype):
    seen = []
    store = put(tmp_path / "s", dtype=dtype, on_done=seen.append)
    assert (len(store), store.chunks, store.rows) == (6 * 24, 6, 24)
    assert seen == [24, 48, 72, 96, 120, 144]
    x, _ = every(CONFIG, blocks(6))
    found = np.concatenate([store.chunk(i) for i in range(6)])
    np.testing.assert_allclose(found, x, atol=1e-6 if dtype == "float32" else 0.02)


def test_pairs_stay_pairs(tmp_path):
    store = put(tmp_path / "s", TRANSCODER, dtype="float32", first=True)
    x, y = every(TRANSCODER, blocks(6), first=True)
    for a, b in store.batches(20, epochs=1):
        for row_x, row_y in zip(a, b, strict=True):
            at = np.abs(x - row_x).sum(1).argmin()
            np.testing.assert_allclose(row_y, y[at], atol=1e-5)


def test_batches_are_shuffled_repeatable_and_complete(tmp_path):
    store = put(tmp_path / "s", dtype="float32")
    x, _ = every(CONFIG, blocks(6))
    one = list(store.batches(16, epochs=1, mix=3, seed=4))
    assert [b.shape for b in one] == [(16, D)] * 9
    assert as_set(np.concatenate(one)) == as_set(x)
    again = list(store.batches(16, epochs=1, mix=3, seed=4))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = next(store.batches(16, seed=5))
    assert not np.array_equal(other, one[0])
    chunks = {int(np.abs(x - row).sum(1).argmin()) // 24 for row in one[0]}
    assert len(chunks) > 1
    halves = [np.concatenate(list(store.batches(8, epochs=1, shard=(i, 2)))) for i in (0, 1)]
    assert as_set(np.concatenate(halves)) == as_set(x)
    twice = list(store.batches(16, epochs=2, mix=3, seed=4))
    assert len(twice) == 18
    assert as_set(np.concatenate(twice[9:])) == as_set(x)


def test_batches_without_the_longest(tmp_path):
    store = put(tmp_path / "s", dtype="float32")
    rows = np.concatenate([store.chunk(i) for i in range(store.chunks)])
    norms = np.linalg.norm(rows, axis=1)
    limit = 1.1 * np.median(np.linalg.norm(store.chunk(0), axis=1))
    assert store.norm_limit(1.1) == pytest.approx(limit)
    found = np.concatenate(list(store.batches(4, epochs=1, longest=1.1)))
    assert 0 < (norms <= limit).sum() - len(found) < 4 < (norms > limit).sum()
    kept = {row.tobytes() for row in rows[norms <= limit]}
    assert all(row.tobytes() in kept for row in found)


def test_a_killed_harvest_goes_on(tmp_path):
    def dying():
        yield from blocks(6)[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sae.harvest_to(tmp_path / "s", small_model("llama"), CONFIG, dying())
    assert sae.open_store(tmp_path / "s").chunks == 3
    store, whole = put(tmp_path / "s"), put(tmp_path / "whole")
    for i in range(6):
        np.testing.assert_array_equal(store.chunk(i), whole.chunk(i))


def test_training_from_a_store(tmp_path):
    store = put(tmp_path / "s")
    config = sae.DictionaryConfig(D, 16, activation="topk", site="resid_post", layers=(1,))
    found = sae.train(
        config,
        store.batches(32),
        sae.TrainingConfig(40),
        sae.Hyperparameters(k=3, learning_rate=1e-2),
        log_every=10,
    )
    assert found.history.explained[-1, 0] > found.history.explained[0, 0]


def test_what_is_refused(tmp_path):
    store = put(tmp_path / "s")
    with pytest.raises(ValueError, match=r"is another harvest \(dtype differ\)"):
        put(tmp_path / "s", dtype="float32")
    with pytest.raises(ValueError, match="dtype='int8'"):
        put(tmp_path / "t", dtype="int8")
    with pytest.raises(ValueError, match="size=1000, expected a whole number from 1 to 144"):
        next(store.batches(1000))
    with pytest.raises(ValueError, match="has no chunk"):
        next(store.batches(8, shard=(6, 7)))
    with pytest.raises(ValueError, match="Batch 0 is padded"):
        sae.harvest_to(
            tmp_path / "t", small_model("llama"), CONFIG, [ragged([[3, 4], [5]], "right", 2)]
        )
    with pytest.raises(FileNotFoundError, match=r"store\.json"):
        sae.open_store(tmp_path / "nothing")
    loud = small_model("llama")
    loud = loud.replace(params=loud.params.replace(
        embed=loud.params.embed.replace(W_E=loud.params.embed.W_E * 1e6)
    ))  # fmt: skip
    with pytest.raises(ValueError, match="Batch 0 has inputs that are not finite in float16"):
        sae.harvest_to(tmp_path / "t", loud, CONFIG, blocks(1))


def chunk_files(store, name="inputs"):
    return [store.path / name / "c" / str(i) / "0" for i in range(store.chunks)]


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


DAMAGE = {
    "flipped": lambda s: flipped(chunk_files(s)[2]),
    "missing": lambda s: chunk_files(s)[2].unlink(),
    "cut": lambda s: chunk_files(s)[2].write_bytes(chunk_files(s)[2].read_bytes()[:-9]),
    "of another chunk": lambda s: chunk_files(s)[2].write_bytes(chunk_files(s)[1].read_bytes()),
    "missing target": lambda s: chunk_files(s, "targets")[2].unlink(),
    "no description": lambda s: (s.path / "inputs" / "zarr.json").unlink(),
    "other description": lambda s: (s.path / "inputs" / "zarr.json").write_text("{"),
    "an empty description": lambda s: (s.path / "inputs" / "zarr.json").write_text("{}"),
    "a description of another kind": lambda s: (s.path / "inputs" / "zarr.json").write_text("[]"),
    "a description of another format": lambda s: (s.path / "inputs" / "zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "array"}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_mended(tmp_path, damage):
    """A missing chunk would be read as zeros, and training would learn from them."""
    store = put(tmp_path / "s", TRANSCODER)
    whole = [store.chunk(i) for i in range(6)]
    DAMAGE[damage](store)
    assert store.path.is_dir()
    with pytest.raises(LoadError, match=r"Chunk \d of .* is damaged .*: harvest it again"):
        [store.chunk(i) for i in range(6)]
    with pytest.raises(LoadError, match="is damaged"):
        list(sae.open_store(tmp_path / "s").batches(16, epochs=1))
    again = put(tmp_path / "s", TRANSCODER)
    for i in range(6):
        np.testing.assert_array_equal(again.chunk(i), whole[i])


def test_a_damaged_description_is_named(tmp_path):
    put(tmp_path / "s")
    manifest, chunks = tmp_path / "s" / "store.json", tmp_path / "s" / "chunks.jsonl"
    lines = chunks.read_text()
    for text in ("{\n", "[]\n", '{"chunk": 0}\n', lines.split("\n", 1)[1]):
        chunks.write_text(text)
        with pytest.raises(LoadError, match=r"chunks\.jsonl"):
            sae.open_store(tmp_path / "s")
    chunks.write_text(lines[:-5])
    assert sae.open_store(tmp_path / "s").chunks == 5
    assert put(tmp_path / "s").chunks == 6
    assert chunks.read_text() == lines
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"rows": 24}))
    with pytest.raises(LoadError, match="is damaged"):
        sae.open_store(tmp_path / "s")
    manifest.write_text(json.dumps({**said, "format": 1}))
    with pytest.raises(LoadError, match="another version: harvest it again"):
        put(tmp_path / "s")


def test_going_on_compares_all_that_decides(tmp_path):
    """The model, what is read of it, and every batch of tokens."""
    put(tmp_path / "s", n=3)
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    harvest = {"model": small_model("llama"), "config": CONFIG, "batches": blocks(6)}
    other = harvest["model"].params.embed.replace(W_E=harvest["model"].params.embed.W_E * 1.01)
    changes = {
        "weights differ": {"model": harvest["model"].replace(
            params=harvest["model"].params.replace(embed=other))},
        "layers differ": {"config": CONFIG.replace(layers=(0,)) if hasattr(CONFIG, "replace")
                          else sae.DictionaryConfig(D, 4, site="resid_post", layers=(0,))},
        "first differ": {"first": True},
        "Batch 0 is not the one": {"batches": blocks(6, seed=1)},
        "Batch 2 is not the one": {"batches": [*blocks(6)[:2], *blocks(4, seed=1)]},
    }  # fmt: skip
    for says, change in changes.items():
        with pytest.raises(ValueError, match=says):
            sae.harvest_to(tmp_path / "s", **(harvest | change))
        assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()} == before


def test_a_folder_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "inputs" / "c").mkdir(parents=True)
    for name in ("chunk-0.npy", "inputs/c/x.partial", ".jaxinterp-notes"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"holds '.*' and no store\.json: choose"):
        put(tmp_path)
    assert all(p.read_text() == "mine" for p in tmp_path.rglob("*") if p.is_file())
    assert len(list(tmp_path.rglob("*"))) == 5


def test_a_store_without_a_marker_is_somebody_elses(tmp_path):
    put(tmp_path)
    (tmp_path / MARK).unlink()
    (tmp_path / "inputs" / "zarr.json").write_text("{")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="nothing shows that jaxinterp wrote it"):
        put(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_array_that_cannot_be_opened_keeps_its_description(tmp_path, monkeypatch):
    """Only what zarr says of a damaged description makes it ours to write anew."""

    def full(*_):
        raise OSError("Input/output error")

    put(tmp_path, n=2)
    before = (tmp_path / "inputs" / "zarr.json").read_bytes()
    monkeypatch.setattr("jaxinterp.sae.store._array", full)
    with pytest.raises(OSError, match="Input/output"):
        put(tmp_path, n=3)
    assert (tmp_path / "inputs" / "zarr.json").read_bytes() == before


def test_one_harvest_at_a_time(tmp_path):
    def nested():
        yield blocks(1)[0]
        with pytest.raises(BlockingIOError, match="is written to by process"):
            put(tmp_path / "s")
        yield blocks(2)[1]

    assert sae.harvest_to(tmp_path / "s", small_model("llama"), CONFIG, nested()).chunks == 2
