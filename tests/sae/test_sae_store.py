"""The activation store: what is kept is what the model does, across kills, damage and shards."""

import json

import numpy as np
import pytest
from small_models import ragged, small_model

from jaxinterp import sae
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
    with pytest.raises(ValueError, match="size=1000, but there are 144"):
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


def test_damage_is_named(tmp_path):
    store = put(tmp_path / "s")
    chunks = sorted(p for p in (tmp_path / "s" / "inputs" / "c").rglob("*") if p.is_file())
    data = bytearray(chunks[2].read_bytes())
    data[len(data) // 2] ^= 255
    chunks[2].write_bytes(data)
    with pytest.raises(LoadError, match="is damaged"):
        [store.chunk(i) for i in range(6)]
    manifest = tmp_path / "s" / "store.json"
    manifest.write_text(json.dumps({"rows": 24}))
    with pytest.raises(LoadError, match="is damaged"):
        sae.open_store(tmp_path / "s")
