"""Training: one update against optax by hand, fronts, resuming, bad batches, a known dictionary."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from small_models import small_model

from jaxinterp import sae
from jaxinterp.loading import LoadError
from jaxinterp.sae.losses import firing
from jaxinterp.sae.sparse import most_active, room_for_dead, slots_for, sparse_loss

D, F, B = 8, 24, 32
CONFIG = sae.DictionaryConfig(D, F)
KINDS = {
    "relu": (CONFIG, sae.Hyperparameters(sparsity=0.05)),
    "gated": (sae.DictionaryConfig(D, F, activation="gated"), sae.Hyperparameters(sparsity=0.05)),
    "topk": (sae.DictionaryConfig(D, F, activation="topk"), sae.Hyperparameters(k=4)),
    "batch_topk": (sae.DictionaryConfig(D, F, activation="batch_topk"), sae.Hyperparameters(k=4)),
    "jumprelu": (
        sae.DictionaryConfig(D, F, activation="jumprelu"),
        sae.Hyperparameters(sparsity=0.5, target_l0=4),
    ),
    "matryoshka": (
        sae.DictionaryConfig(D, F, activation="batch_topk", prefixes=(6, 12, F)),
        sae.Hyperparameters(k=4),
    ),
}  # fmt: skip


def stream(n, seed=0, size=B, width=D):
    """n batches: sparse sums of few directions, off the origin."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(12, width))
    for _ in range(n):
        f = rng.exponential(size=(size, 12)) * (rng.random((size, 12)) < 0.2)
        yield (f @ directions + 3).astype(np.float32)


def trained(name="relu", steps=20, batches=None, member=None, training=None, **options):
    config, own = KINDS[name]
    training = {"dead_after": 100, "k_aux": 3, **(training or {})}
    return sae.train(
        config, stream(steps) if batches is None else batches,
        sae.TrainingConfig(steps, **training), (member or own).replace(learning_rate=3e-3),
        log_every=5, **options,
    )  # fmt: skip


def leaves_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0, **tolerance})


@pytest.mark.parametrize("unit_norm", [False, True])
def test_an_update_is_adams(unit_norm):
    """Against optax on the plain loss, its rate and its penalty rising as the training says."""
    training = sae.TrainingConfig(
        10, warmup=0.5, decay=0.3, sparsity_warmup=0.5, unit_norm=unit_norm
    )
    member = sae.Hyperparameters(learning_rate=1e-2, sparsity=0.1)
    state = sae.start(CONFIG, training, member)
    optimizer = optax.chain(
        optax.clip_by_global_norm(training.clip), optax.adam(lambda n: 1e-2 * training.rate(n))
    )
    params = state.dictionary.params
    moments = optimizer.init(params)
    step = jax.jit(functools.partial(sae.update, training=training))
    for number, x in enumerate(stream(9)):
        state, _ = step(state, member, x, x)

        rise = min(1, (number + 1) / 5)

        def plain(p, x=x, rise=rise):
            f = jax.nn.relu(x @ p.W_enc + p.b_enc)
            error = jnp.square(x - f @ p.W_dec - p.b_dec).sum(1).mean()
            return error + 0.1 * rise * (f * jnp.linalg.norm(p.W_dec, axis=1)).sum(1).mean()

        slopes = jax.grad(plain)(params)
        if unit_norm:
            W, slope = params.W_dec, slopes.W_dec
            slopes = slopes.replace(W_dec=slope - (slope * W).sum(1, keepdims=True) * W)
        moves, moments = optimizer.update(slopes, moments, params)
        params = optax.apply_updates(params, moves)
        if unit_norm:
            W = params.W_dec
            params = params.replace(W_dec=W / jnp.linalg.norm(W, axis=1, keepdims=True))
    leaves_equal(state.dictionary.params, params, rtol=1e-4, atol=1e-5)
    assert training.rate(0) == 0.2
    np.testing.assert_allclose([training.rate(s) for s in (5, 7, 9)], [1, 1, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_front_is_its_members_trained_alone(name):
    config, own = KINDS[name]
    varied = "k" if config.activation in ("topk", "batch_topk") else "sparsity"
    differ = [{"seed": 0, varied: 2.0}, {"seed": 1, varied: 5.0}]
    own, training = own.replace(learning_rate=3e-3), sae.TrainingConfig(12, dead_after=100, k_aux=3)
    many = own.replace(**{key: np.array([m[key] for m in differ]) for key in differ[0]})
    together = sae.train(config, stream(12), training, many)
    assert dict(together.history.sizes) == {"step": 1, "member": 2}
    for i, one in enumerate(differ):
        alone = sae.train(config, stream(12), training, own.replace(**one))
        leaves_equal(together.dictionaries[i], alone.dictionaries[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.history.l0[:, i], alone.history.l0[:, 0], rtol=1e-3)


@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
@pytest.mark.parametrize(
    "fields", [{}, {"subtract_bias": True}, {"kind": "transcoder", "skip": True, "d_out": 5}]
)
def test_sparse_products_are_the_dense_ones(activation, fields):
    config = sae.DictionaryConfig(D, F, activation=activation, **fields)
    rng = np.random.default_rng(3)
    x = next(iter(stream(1)))
    y = rng.normal(size=(B, config.d_out)).astype(np.float32) if config.kind != "sae" else x
    arrays = {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in config.shapes.items()}
    d = sae.Dictionary(sae.Parameters(**arrays), config, 3.0)
    active = most_active(d, x, 20)
    assert not active.short
    values, index = (np.asarray(a).reshape(B, 20) for a in (active.values, active.features))
    code = np.asarray(sae.encode(d, x, together=True).features)[active.order]
    held = np.zeros_like(code)
    np.put_along_axis(held, index, values, 1)
    np.testing.assert_allclose(held, code, atol=1e-5)

    def dense(params, x):
        total, (parts, features) = sae.loss(d.replace(params=params), x, y, sae.LossCoefficients())
        return total, (parts, firing(features))

    def sparse(params, x):
        return sparse_loss(d.replace(params=params), x, y, active)

    found, expected = (
        jax.value_and_grad(f, (0, 1), has_aux=True)(d.params, x) for f in (sparse, dense)
    )
    leaves_equal(found, expected, rtol=1e-4, atol=1e-4)
    slots = int((active.values > 0).sum(-1).max())
    assert bool(most_active(d, x, slots - 1).short)  # too few slots are noticed

    # A few dead features learn beside them.
    dead = np.zeros(F, bool)
    dead[np.argsort(code.sum(0))[: room_for_dead(config)]] = True
    auxiliary = sae.LossCoefficients(auxk=0.3)

    def dense_reviving(params, x):
        one = d.replace(params=params)
        total, (parts, features) = sae.loss(one, x, y, auxiliary, dead, k_aux=2)
        return total, (parts, firing(features))

    def sparse_reviving(params, x):
        return sparse_loss(d.replace(params=params), x, y, active, 0.3, dead, k_aux=2)

    found, expected = (
        jax.value_and_grad(f, (0, 1), has_aux=True)(d.params, x)
        for f in (sparse_reviving, dense_reviving)
    )
    leaves_equal(found, expected, rtol=1e-4, atol=1e-4)
    assert float(found[0][1][0].auxk) > 0


def test_updates_revive_the_dead_alike():
    config = sae.DictionaryConfig(D, F, activation="batch_topk")
    members = sae.Hyperparameters(k=[2.0, 0.3], learning_rate=1e-2, seed=[0, 1])

    def run(slots):
        training = sae.TrainingConfig(30, slots=slots, dead_after=2 * B, auxk=0.5, k_aux=3)
        return sae.train(config, stream(30), training, members, log_every=1).history

    dense, found = run(0), run(20)
    dead = dense.dead.values * F
    assert ((dead > 0) & (dead <= room_for_dead(config))).any()
    assert (dead > room_for_dead(config)).any()
    for name in ("l0", "error", "explained", "dead"):
        np.testing.assert_allclose(found[name], dense[name], rtol=1e-3)


def test_updates_without_slots_enough_are_dense():
    config = sae.DictionaryConfig(D, F, activation="batch_topk")
    members = sae.Hyperparameters(k=np.array([2, 3]), learning_rate=1e-2, seed=[0, 1])

    def run(slots):
        training = sae.TrainingConfig(8, slots=slots, dead_after=10**6)
        return sae.train(config, stream(8), training, members, log_every=1).history

    dense = run(0)
    for slots in (20, 5, 2):
        found = run(slots)
        for name in ("l0", "error", "explained", "dead"):
            np.testing.assert_allclose(found[name], dense[name], rtol=1e-3)


def test_slots_are_chosen_where_they_pay():
    def chosen(k, **fields):
        return slots_for(sae.DictionaryConfig(64, 4096, **fields), k)

    assert chosen(32, activation="topk") == 32
    assert chosen(32, activation="batch_topk") == 384
    assert chosen(100, activation="topk") == 0
    assert chosen(32, activation="batch_topk", prefixes=(64, 4096)) == 0
    assert chosen(0) == 0


@pytest.mark.parametrize("name", ["relu", "batch_topk", "jumprelu"])
def test_resumed_is_unbroken_bit_for_bit(name, tmp_path):
    whole = trained(name, folder=tmp_path / "whole", save_every=100)

    def broken():
        yield from stream(13)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(name, batches=broken(), folder=tmp_path / "run", save_every=6)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["step"] == 12
    resumed = trained(name, folder=tmp_path / "run", save_every=6)
    leaves_equal(resumed.dictionaries, whole.dictionaries)
    kept = resumed.history.sel(step=[9, 14, 19])
    assert kept.equals(whole.history.sel(step=[9, 14, 19]))
    leaves_equal(trained(name, folder=tmp_path / "run").dictionaries, whole.dictionaries)
    with pytest.raises(ValueError, match="a checkpoint of another run"):
        trained(name, folder=tmp_path / "run", training={"warmup": 0.3})
    for file in (tmp_path / "run" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(LoadError, match="is damaged"):
        trained(name, folder=tmp_path / "run")


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        trained(folder=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    made = trained(folder=tmp_path / "run")
    with pytest.raises(ValueError, match="begun with another scaling"):
        trained(
            folder=tmp_path / "run", scaling=sae.measure_scaling(*[next(stream(1, seed=5))] * 2)
        )
    assert made.skipped == ()


def test_a_harvest_resumes(tmp_path):
    """Its buffer and its key are in the checkpoint."""
    model = small_model("llama")
    rng = np.random.default_rng(0)
    blocks = [rng.integers(2, 17, (4, 12)) for _ in range(16)]
    config = sae.DictionaryConfig(D, F, activation="topk", site="resid_post", layers=(1,))

    def run(given, folder):
        source = sae.harvest(model, config, blocks[:4])
        member, training = sae.Hyperparameters(k=3, learning_rate=1e-2), sae.TrainingConfig(12)
        return sae.train(
            config, given, training, member, source=source, folder=folder, save_every=5
        ).dictionaries

    def broken():
        yield from blocks[4:11]
        raise KeyboardInterrupt

    whole = run(blocks[4:], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(broken(), tmp_path / "run")
    leaves_equal(run(blocks[4:], tmp_path / "run"), whole)


def test_a_batch_topk_keeps_its_k_alone():
    """Its threshold, learned on the way, gives the L0 it was trained at; TopK's is exact."""
    held = np.concatenate(list(stream(8, seed=0)))
    config, _ = KINDS["batch_topk"]
    found = sae.train(
        config,
        stream(400),
        sae.TrainingConfig(400),
        sae.Hyperparameters(learning_rate=3e-3, k=np.array([2.0, 5.0])),
    )
    for k, d in zip((2, 5), found.dictionaries, strict=True):
        np.testing.assert_allclose(sae.reconstruction(d, [held]).l0, k, rtol=0.15)


def test_a_threshold_stays_positive():
    config, member = KINDS["jumprelu"]
    found = sae.train(
        config,
        stream(60),
        sae.TrainingConfig(60, threshold=1e-4),
        member.replace(learning_rate=0.05),
    )
    assert (np.asarray(found.dictionaries[0].params.threshold) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_batches_are_named_and_poison_nothing(bad):
    def spoilt(n=20):
        for number, x in enumerate(stream(n)):
            if number in (7, 11):
                x[3, 2] = bad
            yield x

    with pytest.raises(ValueError, match=r"Batch 7 has values that are not finite"):
        trained(batches=spoilt())
    found = trained(batches=spoilt(), on_bad="skip")
    assert found.skipped == ((7, (0,)), (11, (0,)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.dictionaries))
    with pytest.raises(ValueError, match="first sample's inputs are not finite"):
        trained(batches=itertools.islice(spoilt(), 7, None))


def test_dead_features_are_counted_and_revived():
    config = sae.DictionaryConfig(D, F, activation="topk")

    def dead(auxk):
        training = sae.TrainingConfig(300, dead_after=10 * B, k_aux=4, auxk=auxk, warmup=0.01)
        member = sae.Hyperparameters(learning_rate=1e-2, k=2)
        found = sae.train(config, stream(300), training, member, log_every=20)
        return float(found.history.dead.mean())

    assert dead(None) < 0.9 * dead(0.0)


def test_a_jumprelu_holds_its_target():
    found = sae.train(
        KINDS["jumprelu"][0], stream(1500), sae.TrainingConfig(1500),
        sae.Hyperparameters(learning_rate=1e-2, sparsity=1.0, target_l0=np.array([2.0, 4.0])),
    )  # fmt: skip
    np.testing.assert_allclose(found.history.l0[-1], [2, 4], rtol=0.25)


def test_orthogonal_features_are_recovered():
    """Issue's line 2, small: orthogonal truth, as many features as there are."""
    make = sae.synthetic(
        16, 16, orthogonal=True, roots=1, branch=2, depth=1, correlation=0.0, exclusive=0.0,
        probabilities=(0.1, 0.3),
    )  # fmt: skip
    found = sae.train(
        sae.DictionaryConfig(16, 16), sae.batches(make, 256), sae.TrainingConfig(1500),
        sae.Hyperparameters(learning_rate=3e-3, sparsity=0.3, seed=np.array([0, 1])),
    )  # fmt: skip
    for d in found.dictionaries:
        scores = sae.recovery(d.params.W_dec, make.directions)
        assert scores["mmcs"] > 0.98


def test_sharded_is_single():
    """Examples over two devices, features over four: the same numbers, a quarter of the rows."""
    worker = Path(__file__).parent / "sharded_worker.py"
    done = subprocess.run([sys.executable, worker], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"matryoshka", "jumprelu", "gated", "crosscoder", "cross_layer"}
    for one in found.values():
        assert one["error"] < 1e-5
        assert one["rows"] == 24 // 4


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((1,), ("model",), "an axis 'model'"),
    ],
)
def test_meshes_that_are_refused(shape, axes, message):
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(shape), axes)
    with pytest.raises(ValueError, match=message):
        trained(mesh=mesh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "topk", "member": sae.Hyperparameters()},
            "keeps a whole number of them, 1 to 24",
        ),
        ({"name": "topk", "member": sae.Hyperparameters(k=2.5)}, "keeps a whole number of them"),
        ({"name": "batch_topk", "member": sae.Hyperparameters(k=25)}, "keeps 1 to 24 features"),
        (
            {"name": "topk", "member": sae.Hyperparameters(k=3, sparsity=1.0)},
            "k makes a topk sparse",
        ),
        ({"member": sae.Hyperparameters(k=3, sparsity=1.0)}, "a relu dictionary has no k"),
        ({"member": sae.Hyperparameters()}, "a relu dictionary is dense"),
        ({"member": sae.Hyperparameters(sparsity=1.0, target_l0=3.0)}, "is a jumprelu's"),
        ({"member": sae.Hyperparameters(sparsity=np.ones(2), seed=np.arange(3))}, "lengths"),
        ({"member": sae.Hyperparameters(sparsity=-1.0)}, r"sparsity=-1.0, expected"),
        ({"batches": stream(5)}, "The stream has 5 batches, 20 steps need as many"),
        ({"batches": stream(20, width=9)}, r"reads \['example', 8\]"),
        ({"on_bad": "ignore"}, "on_bad='ignore'"),
        ({"training": {"decay": 2.0}}, r"decay=2.0, expected .* at most 1"),
        ({"training": {"exponent": 0.0}}, "exponent=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        trained(**change)


def test_a_log_has_a_line_every_few_steps(tmp_path):
    seen = []
    found = trained(log=tmp_path / "log.jsonl", on_step=lambda step, line: seen.append(step))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == seen == [4, 9, 14, 19]
    assert lines[-1]["l0"] == found.history.l0[-1].values.tolist()


def test_a_log_that_is_no_runs_is_not_replaced(tmp_path):
    (tmp_path / "notes").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"Line 1 of .*notes is not one that a run told of"):
        trained(log=tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_a_models_name_decides_nothing(tmp_path, monkeypatch):
    """The same run goes on where its model was loaded under another name."""
    places = {"folder": tmp_path / "run", "save_every": 6}
    made = trained(**places)
    config, own = KINDS["relu"]
    monkeypatch.setitem(KINDS, "relu", (dataclasses.replace(config, model="another"), own))
    again = trained(**places)
    assert again.dictionaries[0].config.model == "another"
    np.testing.assert_array_equal(
        again.dictionaries[0].params.W_dec, made.dictionaries[0].params.W_dec
    )


def test_a_log_of_a_resumed_run_says_nothing_twice(tmp_path):
    def broken():
        yield from stream(16)
        raise KeyboardInterrupt

    places = {"folder": tmp_path / "run", "log": tmp_path / "log.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        trained(batches=broken(), save_every=6, **places)
    trained(save_every=6, **places)
    lines = [json.loads(line) for line in places["log"].read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 9, 11, 14, 17, 19]
