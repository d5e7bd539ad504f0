"""Training: the numbers of a plain optax loop, resumed runs, kept models, runs that must stop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_models import CONFIGS, small_model

from jaxinterp.loading import LoadError
from jaxinterp.model import Tokens, as_tokens, forward, init
from jaxinterp.nnx import Transformer
from jaxinterp.reading import JSON_BYTES
from jaxinterp.training import Loop, train

STEPS = 12
PLACE = {"save_every": 5, "log_every": 4}


def batch(step):
    """Rows that count upwards from somewhere."""
    rng = np.random.default_rng(step)
    start = rng.integers(0, 17, (4, 1))
    return as_tokens((start + np.arange(6)) % 17)


def loss(model, tokens):
    logits = forward(model, tokens).logits[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens.ids[:, 1:])
    right = logits.argmax(-1) == tokens.ids[:, 1:]
    return losses.mean(), {"accuracy": right.mean()}


def optimizer():
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, STEPS)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))


CONFIG = CONFIGS["llama"].replace(n_layers=1)


def start(config=CONFIG, seed=3):
    return init(config, jax.random.key(seed)).replace(name="counting", revision="abc")


def run(model=None, **options):
    options = {"steps": STEPS, "log_every": 4, **options}
    given = {"batch": batch, "loss": loss, "optimizer": optimizer(), **options}
    return train(start() if model is None else model, **given)


@pytest.fixture(scope="module")
def unbroken():
    return run(keep=range(STEPS + 1))


def by_hand(model, loss, tx, steps):
    """Parameters after each number of updates and losses, by optax alone."""

    @jax.jit
    def update(params, state, tokens):
        def objective(params):
            return loss(model.replace(params=params), tokens)[0]

        value, slopes = jax.value_and_grad(objective)(params)
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.tree.map(jnp.asarray, model.params)
    state, models, losses = tx.init(params), [params], []
    for step in range(steps):
        params, state, value = update(params, state, batch(step))
        models.append(params)
        losses.append(float(value))
    return models, losses


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_the_numbers_are_those_of_a_plain_optax_loop(unbroken):
    models, losses = by_hand(start(), loss, optimizer(), STEPS)
    close(unbroken.model.params, models[-1])
    assert list(unbroken.history.step.values) == [0, 4, 8, 11]
    np.testing.assert_allclose(unbroken.history.loss, np.take(losses, [0, 4, 8, 11]), atol=1e-5)
    assert losses[-1] < losses[0] - 0.3  # something was learned, so that this can fail
    assert sorted(unbroken.kept) == list(range(STEPS + 1))
    for n, kept in unbroken.kept.items():
        close(kept.params, models[n])
        assert (kept.config, kept.name, kept.revision) == (CONFIG, "counting", "")
    same(unbroken.kept[0].params, start().params)
    same(unbroken.kept[STEPS], unbroken.model)
    told = [loss(unbroken.kept[n], batch(n))[1]["accuracy"] for n in (0, 4, 8, 11)]
    np.testing.assert_allclose(unbroken.history.accuracy, told, atol=1e-6)


def test_a_model_without_an_unembedding_trains_too():
    """All parameters that a stream depends on, of a model in NumPy with biases and shifts."""

    def size(model, tokens):
        stream = forward(model, tokens, record="resid_post").activations["resid_post"]
        return jnp.square(stream - 1).mean(), {}

    def tx():
        return optax.sgd(1e-2, momentum=0.9)

    model = small_model("encoder")
    got = run(model, loss=size, optimizer=tx(), steps=3)
    close(got.model.params, by_hand(model, size, tx(), 3)[0][-1])
    assert list(got.history.data_vars) == ["loss"]


def test_the_given_model_is_left_as_it_was():
    model = start()
    before = jax.tree.map(np.array, model)
    got = run(model, steps=2, keep=(1,))
    same(jax.tree.map(np.array, model), before)  # its buffers were not donated
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((got.model, got.kept)))
    assert got.model.params.embed.W_E.tobytes() != before.params.embed.W_E.tobytes()


def stopped_at(step):
    def broken(at):
        if at == step:
            raise KeyboardInterrupt
        return batch(at)

    return broken


@pytest.mark.parametrize("at", [3, 8])
def test_resumed_is_unbroken_bit_for_bit(unbroken, at, tmp_path):
    keep = (0, 4, 9, STEPS)
    whole = unbroken._replace(kept={n: unbroken.kept[n] for n in keep})
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(keep=keep, folder=folder, batch=stopped_at(at), log=tmp_path / "log", **PLACE)
    assert folder.exists() == (at > 5)
    seen, told = [], []

    def counted(step):
        seen.append(step)
        return batch(step)

    resumed = run(
        keep=keep, folder=folder, batch=counted, log=tmp_path / "log", **PLACE,
        on_step=lambda step, values: told.append((step, values)),
    )  # fmt: skip
    first = {3: 0, 8: 5}[at]
    last = [first - 1] if first else []  # the one learned from last is compared
    assert [s for s in seen if s] == [*last, *range(max(first, 1), STEPS)]
    same(resumed.model, whole.model)
    same(resumed.kept, whole.kept)
    assert resumed.history.identical(whole.history)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line.pop("step") for line in lines] == [0, 4, 8, 11]
    assert [line["loss"] for line in lines] == list(whole.history.loss.values)
    assert told == [(s, v) for s, v in zip([0, 4, 8, 11], lines, strict=True) if s >= first]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["run"]
    seen.clear()
    again = run(keep=keep, folder=folder, batch=counted, **PLACE)  # all is done
    assert seen == [0, STEPS - 1]
    same(again.model, whole.model)
    same(again.kept, whole.kept)
    assert not any(leaf.committed for leaf in jax.tree.leaves((again.model, again.kept)))


def test_an_optimizer_that_draws_noise_resumes(tmp_path):
    """Its state holds a key, and an average that begins as the parameters' own buffers."""

    def noisy():
        average = optax.GradientTransformation(  # Polyak's; the state is not used, only kept
            lambda params: params,
            lambda updates, state, params: (updates, optax.incremental_update(params, state, 0.1)),
        )
        return optax.chain(optax.add_noise(0.1, 0.5, 0), optax.adam(1e-2), average)

    model = start(CONFIGS["attention_only"])  # few arrays
    whole = run(model, optimizer=noisy())
    with pytest.raises(KeyboardInterrupt):
        run(model, optimizer=noisy(), folder=tmp_path / "run", batch=stopped_at(7), **PLACE)
    same(run(model, optimizer=noisy(), folder=tmp_path / "run", **PLACE).model, whole.model)


def test_a_folder_of_another_run_is_refused(tmp_path):
    folder = tmp_path / "run"
    run(folder=folder, keep=(2,), **PLACE)
    before = (folder / "run.json").read_bytes()

    def other(step):
        return batch(step + 1)

    def flatter(model, tokens):
        value, others = loss(model, tokens)
        return 0.5 * value, others

    cases = {
        "program": {"loss": flatter}, "steps": {"steps": STEPS + 1},
        "batch": {"batch": other}, "weights": {"model": start(seed=4)},
        "config, program, weights": {"model": start(CONFIG.replace(d_mlp=12))},
    }  # fmt: skip
    for what, changed in cases.items():
        with pytest.raises(ValueError, match=f"another run, of other {what}: give another folder"):
            run(folder=folder, keep=(2,), **{**PLACE, **changed})
    with pytest.raises(ValueError, match=r"kept the models of \[2\] and not of \[3\]: leave these"):
        run(folder=folder, keep=(2, 3), **PLACE)
    for rate in (optax.sgd(1e-2, momentum=0.9), optax.adamw(1e-3)):
        with pytest.raises(ValueError, match="another run, of other program"):
            run(folder=folder, keep=(2,), optimizer=rate, **PLACE)

    def later(step):
        return batch(step + 1 if step == STEPS - 1 else step)

    with pytest.raises(ValueError, match="batch 11 is not the one that it learned from"):
        run(folder=folder, keep=(2,), batch=later, **PLACE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(folder=tmp_path / "full")
    assert (folder / "run.json").read_bytes() == before
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_what_decides_no_number_may_change(unbroken, tmp_path):
    """The model's name, how often the run tells, and which models are kept from here on."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder=folder, keep=(2, 4), batch=stopped_at(8), **PLACE)
    resumed = run(
        start().replace(name="another"), folder=folder, keep=(4, 9), save_every=3, log_every=1
    )
    assert resumed.model.name == "another"
    same(resumed.model.params, unbroken.model.params)
    assert sorted(resumed.kept) == [4, 9]
    for n, kept in resumed.kept.items():
        same(kept.params, unbroken.kept[n].params)
    assert list(resumed.history.step.values) == [0, 4, *range(5, STEPS)]


def test_a_long_runs_history_is_read_again(tmp_path):
    """It is longer than the JSON files of others may be."""
    folder = tmp_path / "run"
    made = run(folder=folder, **PLACE)
    with open(folder / "run.json", "a") as file:
        file.write(" " * JSON_BYTES)
    same(run(folder=folder, **PLACE).model, made.model)


MINE = ["my thesis", "my thesis\n", '{"step": 0}\n', '{"step": 0, "loss": 1}\nmine\n', "[]\n"]


@pytest.mark.parametrize("text", MINE)
def test_a_log_that_is_no_runs_is_not_replaced(tmp_path, text):
    (tmp_path / "log").write_text(text)
    with pytest.raises(FileExistsError, match=r"Line \d of .*log is not one that a run told of"):
        run(log=tmp_path / "log", steps=1)
    assert (tmp_path / "log").read_text() == text


@pytest.mark.parametrize("text", ["", '{"st', '{"step": 0, "loss": 1.5}\n{"step": 4, "lo'])
def test_a_log_of_an_earlier_run_is_replaced(tmp_path, text):
    (tmp_path / "log").write_text(text)
    run(log=tmp_path / "log", steps=1)
    (line,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert set(line) == {"step", "loss", "accuracy"}


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = tmp_path / "run"
    run(folder=folder, **PLACE)
    (folder / "run.json").write_text("{")
    with pytest.raises(LoadError, match=r"run\.json is not valid JSON"):
        run(folder=folder)


def test_arrays_that_were_changed_are_named(tmp_path):
    """What a checkpoint holds is compared with the checksums that it was written with."""
    folder = tmp_path / "run"
    run(folder=folder, **PLACE)
    said = json.loads((folder / "run.json").read_text())
    said["sums"][3] = said["sums"][3][:-8] + "00000000"
    (folder / "run.json").write_text(json.dumps(said))
    with pytest.raises(LoadError, match="its arrays have other checksums"):
        run(folder=folder, **PLACE)
    (folder / "run.json").write_text(json.dumps({**said, "format": 1}))
    with pytest.raises(ValueError, match="of other format"):
        run(folder=folder, **PLACE)


def test_a_checkpoint_with_a_persons_file_in_it_is_not_replaced(tmp_path):
    folder = tmp_path / "run"
    run(folder=folder, **PLACE)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt'"):
        run(folder=folder, **PLACE)
    assert (folder / "notes.txt").read_text() == "mine"


def test_one_run_holds_a_folder_at_a_time(tmp_path):
    def nested(step):
        if step == 2:
            with pytest.raises(BlockingIOError, match="is written to by process"):
                run(folder=tmp_path / "run", **PLACE)
        return batch(step)

    run(folder=tmp_path / "run", batch=nested, **PLACE)


def poisoned(step):
    """A loss that is NaN on one batch, which is marked."""

    def marked(at):
        return batch(at), np.float32(at == step)

    def bad(model, given):
        value, others = loss(model, given[0])
        return jnp.where(given[1] > 0, jnp.nan, value), others

    return {"batch": marked, "loss": bad}


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(unbroken, tmp_path):
    folder = tmp_path / "run"
    told = []
    with pytest.raises(ValueError, match=r"loss of step 7 is nan.*checkpoint is of 5 updates"):
        run(
            **poisoned(7), folder=folder, **PLACE, keep=(8,), log=tmp_path / "log",
            on_step=lambda step, values: told.append(step),
        )  # fmt: skip
    assert told == [0, 4]
    assert "NaN" not in (tmp_path / "log").read_text()
    saved = json.loads((folder / "run.json").read_text())
    assert saved["step"] == 5
    good = {**poisoned(-1), "folder": folder, "keep": (8,), **PLACE}
    resumed = run(**good)  # the batches are good again: the run goes on from there
    close(resumed.model.params, unbroken.model.params)
    with pytest.raises(ValueError, match=r"loss of step 3 is nan.*nothing was saved"):
        run(**poisoned(3))


def test_parameters_that_are_not_finite_stop_the_run_too(tmp_path):
    """The loss is finite, its gradient is not: sqrt at zero."""

    def cusp(model, tokens):
        value, others = loss(model, tokens)
        return value + jnp.sqrt(0.0 * value), others

    with pytest.raises(ValueError, match="update of step 0 made parameters that are not finite"):
        run(loss=cusp, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_input_is_named():
    for name in ("steps", "save_every", "log_every"):
        with pytest.raises(ValueError, match=f"{name}=0, expected a whole number from 1"):
            run(**{name: 0})
    for keep, message in (
        ((-1, 2), "keep=-1, expected"),
        ((3, STEPS + 1), "expected numbers of updates from 0 to steps=12"),
    ):
        with pytest.raises(ValueError, match=message):
            run(keep=keep)

    def ragged(step):
        return batch(step)[:2] if step == 2 else batch(step)

    with pytest.raises(
        ValueError, match=r"Batch 2 has arrays of shapes .*\(2, 6\).* batch 0 had .*\(4, 6\)"
    ):
        run(batch=ragged)
    with pytest.raises(ValueError, match=r"gives 'loss' of shape \[4\], expected scalars"):
        run(loss=lambda model, tokens: (forward(model, tokens).logits.sum((1, 2)), {}))
    with pytest.raises(ValueError, match="tells 'step', a name that is taken"):
        run(loss=lambda model, tokens: (loss(model, tokens)[0], {"step": jnp.zeros(())}))


def test_a_half_precision_model_moves_by_less_than_its_rounding_and_resumes(tmp_path):
    """Each of Adam's steps is lost in bfloat16's rounding; twelve of them together are not."""
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)

    def moved(model):
        options = {"optimizer": optax.adam(2e-4), **PLACE}
        made = run(
            model, folder=tmp_path / str(model.params.head.W_U.dtype), keep=[0, 6], **options
        )
        again = run(
            model, folder=tmp_path / str(model.params.head.W_U.dtype), keep=[0, 6], **options
        )
        same((again.model, again.kept), (made.model, made.kept))
        same(made.kept[0].params, model.params)
        leaves = zip(jax.tree.leaves(made.model.params), jax.tree.leaves(model.params), strict=True)
        assert all(new.dtype == old.dtype for new, old in leaves)
        return np.asarray(made.model.params.head.W_U, float) - np.asarray(
            model.params.head.W_U, float
        )

    found, expected = moved(low), moved(wide)
    assert np.abs(expected).max() < 12 * 2e-4 * 1.01
    assert np.abs(found).mean() == pytest.approx(np.abs(expected).mean(), rel=0.3)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8


def test_the_step_is_compiled_once():
    calls = []

    def counted(model, tokens):
        calls.append(isinstance(tokens, Tokens))
        return loss(model, tokens)

    run(loss=counted)
    assert len(calls) == 1


def test_the_loop_is_flax_nnx(unbroken):
    """The update takes the state of `Transformer` and `nnx.Optimizer`, as any Flax loop."""
    loop = Loop(start(), optimizer())
    state, told, finite = loop.update(loss)(loop.begin(), batch(0))
    module, tx = loop.pair(state)
    assert isinstance(module, Transformer)
    assert isinstance(tx, nnx.Optimizer)
    assert int(tx.step[...]) == 1
    assert bool(finite)
    assert float(told["loss"]) == pytest.approx(float(loss(start(), batch(0))[0]), abs=1e-5)
    close(module.model().params, unbroken.kept[1].params)
