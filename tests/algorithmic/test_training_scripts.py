"""The scripts that train small models: losses and metrics by hand, and one run to its card."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ragged, small_model

import jaxinterp as ji
from jaxinterp.algorithmic import addition, boards, brackets, repeats, retrieval
from jaxinterp.algorithmic.prompts import as_prompts
from jaxinterp.loading.shipped import card
from jaxinterp.model import n_params

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import train_addition
import train_board
import train_brackets
import train_repeats
import train_retrieval
import training_run

SCRIPTS = (train_addition, train_brackets, train_repeats, train_retrieval)


def started(script, **smaller):
    return training_run.started(script.CONFIG.replace(**smaller), 0, script.NAME, 0.5)


def log_p(logits):
    """Log-probabilities in float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert"])
def test_logits_at_a_few_columns(name):
    model = small_model(name)
    tokens = ragged([[3, 1, 4, 1, 5], [6, 5, 3, 5, 8, 9, 7]], "right", 8)
    columns = np.array([[0, 4], [2, 6]])
    got = training_run.logits_at(model, jax.tree.map(jnp.asarray, tokens), columns)
    want = np.asarray(ji.forward(model, tokens).logits)[np.arange(2)[:, None], columns]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_loss_of_addition():
    model = started(train_addition)
    batch = train_addition.pairs(7, seed=0, share=0.3)
    jax.tree.map(np.testing.assert_array_equal, batch, train_addition.pairs(8, seed=0, share=0.3))
    numbers = batch["known"] @ [addition.P, 1, 0]
    assert numbers.tolist() == addition.split(0, 0.3)[0].tolist()
    assert not set(batch["others"] @ [addition.P, 1, 0]) & set(numbers)
    small = {"known": batch["known"][:50], "others": batch["others"][:20]}
    value, seen = train_addition.loss(model, small)

    def by_hand(ids):
        said = log_p(ji.forward(model, ids).logits[:, -1])
        sums = [(a + b) % 113 for a, b, _ in ids.tolist()]
        right = np.mean([row.argmax() == c for row, c in zip(said, sums, strict=True)])
        return -np.mean([row[c] for row, c in zip(said, sums, strict=True)]), right

    loss, right = by_hand(small["known"])
    assert (value, seen["accuracy"]) == pytest.approx((loss, right), rel=1e-5)
    loss, right = by_hand(small["others"])
    found = seen["held_out_loss"], seen["held_out_accuracy"]
    assert found == pytest.approx((loss, right), rel=1e-5)
    # Nothing is learned from the held-out pairs.
    slopes = jax.grad(lambda m: train_addition.loss(m, small)[0])(model)
    alone = jax.grad(lambda m: train_addition.answered(m, small["known"])[0])(model)
    jax.tree.map(np.testing.assert_array_equal, slopes, alone)


def test_the_loss_of_repeats():
    model, drawn = started(train_repeats), train_repeats.batch(3, seed=1, n=6)
    assert np.array_equal(drawn.ids, repeats.sequences(6, (0, 1, 3)).ids)
    value, seen = train_repeats.loss(model, drawn)
    said = log_p(ji.forward(model, drawn.ids).logits)
    by_kind = {True: [], False: []}
    for row, (ids, source) in enumerate(zip(drawn.ids, drawn.source, strict=True)):
        for t in range(1, len(ids)):
            by_kind[bool(source[t] >= 0)].append(-said[row, t - 1, ids[t]])
    assert value == pytest.approx(np.mean(by_kind[True] + by_kind[False]), rel=1e-5)
    assert seen["repeats"] == pytest.approx(np.mean(by_kind[True]), rel=1e-5)
    assert seen["others"] == pytest.approx(np.mean(by_kind[False]), rel=1e-5)


def test_the_loss_of_retrieval_and_brackets():
    model, batch = started(train_retrieval), train_retrieval.batch(2, seed=1, n=5)
    drawn = retrieval.prompts(5, (0, 1, 2))
    value, seen = train_retrieval.loss(model, batch)
    said = log_p(ji.forward(model, batch[0]).logits)
    wanted = [(i, at, answer) for i in range(5) for at, answer in zip(
        drawn.at[i], drawn.answers[i], strict=True
    )]  # fmt: skip
    assert value == pytest.approx(-np.mean([said[where] for where in wanted]), rel=1e-5)
    right = np.mean([said[i, at].argmax() == answer for i, at, answer in wanted])
    assert seen["accuracy"] == pytest.approx(right)

    model, batch = started(train_brackets), train_brackets.batch(2, seed=1, n=40)
    drawn = brackets.strings(40, (0, 1, 2))
    value, seen = train_brackets.loss(model, batch)
    said = log_p(ji.forward(model, batch[0]).logits[:, 0])
    own = said[np.arange(40), drawn.answers]
    assert value == pytest.approx(-own.mean(), rel=1e-5)
    assert seen["accuracy"] == pytest.approx((said.argmax(1) == drawn.answers).mean())


@pytest.mark.parametrize("game", boards.GAMES.values(), ids=boards.GAMES)
def test_the_loss_and_measures_of_a_board_game(game):
    model = training_run.started(train_board.CONFIG, 0, "board", 5.0)
    batch = train_board.batch(game, 3, seed=1, n=8)
    value, seen = train_board.loss(model, batch)
    loss, floor, _ = played(model, game, game.random_games(8, (training_run.TRAINED, 1, 3)))
    assert value == pytest.approx(loss, rel=1e-5)
    assert seen["above_floor"] == pytest.approx(loss - floor, rel=1e-4)

    found = train_board.measured(model, game, 1, n=250)
    games = game.random_games(250, (training_run.HELD_OUT, 1))
    _, floor, by_hand = played(model, game, games)
    assert found == pytest.approx({**by_hand, "floor": floor}, rel=1e-4)
    assert 0.05 < found["legal"] < 0.8
    assert found["illegal_mass"] > 0.2


def played(model, game, games):
    """Of all moves after each game's first: the loss against all legal ones, the least that can be,
    and what is measured of a model, in loops."""
    played, said = game.replay(games), log_p(ji.forward(model, as_prompts(games[:, :-1])).logits)
    kept = {"loss": [], "legal": [], "legal_sets": [], "illegal_mass": []}
    losses, floors = [], []
    for i, moves in enumerate(games):
        for t in range(games.shape[1] - 1):
            if moves[t + 1] < 0:
                continue
            legal = np.flatnonzero(played.legal[i, t])
            losses.append(-said[i, t, legal].mean())
            floors.append(np.log(len(legal)))
            ranked = np.argsort(-said[i, t])
            kept["loss"].append(-said[i, t, moves[t + 1]])
            kept["legal"].append(ranked[0] in legal)
            kept["legal_sets"].append(set(ranked[: len(legal)]) == set(legal))
            kept["illegal_mass"].append(1 - np.exp(said[i, t, legal]).sum())
    return np.mean(losses), np.mean(floors), {name: np.mean(all_) for name, all_ in kept.items()}


def test_muon_is_for_the_matrices_of_the_blocks():
    params = ji.init(train_board.CONFIG, jax.random.key(0)).params
    chosen = training_run.matrices(params)
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        found = getattr(chosen.blocks.attn, name)
        assert (found.reduction_axis, found.output_axis) == (2, 3)  # [layer head in out]
    for found in (chosen.blocks.mlp.W_in, chosen.blocks.mlp.W_out):
        assert (found.reduction_axis, found.output_axis) == (1, 2)
    assert chosen.embed.W_E is chosen.head.W_U is chosen.blocks.mlp.b_in is None
    # One update turns each of them by an orthogonal matrix; a vector of biases goes as Adam's do.
    optimizer = training_run.muon(10, 0.02, 3e-3, 0.0)
    slopes = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    state = optimizer.init(params)
    for _ in range(2):  # the first is warming up, at a rate of 0
        updates, state = optimizer.update(slopes, state, params)
    singular = np.linalg.svd(updates.blocks.attn.W_Q, compute_uv=False)
    assert singular.max() / singular.min() < 2
    own = np.abs(updates.blocks.mlp.b_in)
    assert np.quantile(own, 0.1) / own.max() > 0.99  # but where a slope is near 0


def test_padding_is_seen_by_nobody():
    """A string of brackets alone gets the same answer as in its padded batch."""
    model, drawn = started(train_brackets), brackets.strings(6, 0)
    tokens, _ = train_brackets.batch(0, seed=0, n=6)
    drawn = brackets.strings(6, (0, 0, 0))
    together = np.asarray(ji.forward(model, tokens).logits[:, 0])
    for row, ids in zip(together, drawn.ids, strict=True):
        alone = ji.forward(model, ids[ids >= 0]).logits[0, 0]
        np.testing.assert_allclose(alone, row, atol=1e-5)


def test_measures_of_an_untrained_model():
    """What cannot have been learned is at chance, and floors are where they must be."""
    found = train_repeats.measured(started(train_repeats), 0, n=64)
    drawn, entropy = repeats.sequences(64, (training_run.HELD_OUT, 0)), []
    for ids, source in zip(drawn.ids, drawn.source, strict=True):
        for t in range(1, len(ids)):
            if source[t] < 0:
                row = repeats.background(ids[max(t - 2, 0)], ids[t - 1])
                entropy.append(-sum(p * np.log(p) for p in row if p > 0))
    assert found["floor_of_others"] == pytest.approx(np.mean(entropy))
    assert found["second_to_first"] == pytest.approx(1, abs=0.05)
    assert found["repeats_foretold"] < 0.05
    assert found["previous_token"] < 0.2
    found = train_retrieval.measured(started(train_retrieval), 0, n=300)
    assert found["chance_of_12"] == pytest.approx(1 / 12)
    assert found["accuracy"] < 0.15
    found = train_brackets.measured(started(train_brackets), 0, n=100)
    assert found["accuracy"] <= 0.6
    assert set(found) == {"accuracy", "loss", *(f"accuracy_{kind}" for kind in brackets.KINDS)}
    model = started(train_addition)
    found = train_addition.measured(model, 0, 0.3)
    said = log_p(ji.forward(model, addition.every()).logits[:, -1])
    own, sums = said[np.arange(len(said)), addition.sums(addition.every())], addition.split(0, 0.3)
    assert found["loss"] == pytest.approx(-own[sums[0]].mean(), rel=1e-5)
    assert found["held_out_loss"] == pytest.approx(-own[sums[1]].mean(), rel=1e-5)
    assert found["accuracy"] < 0.05
    assert 6 / 56 < found["power_in_6"] < 0.25


def test_a_run_to_its_card(tmp_path, monkeypatch, capsys):
    out, folder = tmp_path / "addition-113", tmp_path / "run"
    options = ["--steps", "3", "--seed", "2", "--share", "0.05"]
    argv = ["train_addition.py", *options, "--out", str(out), "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(train_addition, "KEEP", (0, 2, 500))
    train_addition.main()
    made = card(out)
    assert made.recipe == f"python scripts/train_addition.py {' '.join(options)}"
    assert (made.steps, made.seed, made.kept) == (3, 2, (0, 2))
    assert "accuracy" in capsys.readouterr().out
    model, tokenizer = ji.load(str(out))
    assert tokenizer == addition.tokenizer()
    assert train_addition.measured(model, 2, 0.05) == pytest.approx(made.metrics)
    start, _ = ji.load(str(out), revision="step-0")
    fresh = training_run.started(train_addition.CONFIG, 2, "addition-113", 128**-0.5)
    jax.tree.map(np.testing.assert_array_equal, start.params, fresh.params)
    assert json.dumps(dataclasses.asdict(made))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.NAME)
def test_models_are_small_and_fit_their_worlds(script):
    assert 4 * n_params(ji.init(script.CONFIG, jax.random.key(0)).params) < 2_000_000
    world = {
        "addition-113": addition, "brackets-2l": brackets, "induction-2l": repeats,
        "retrieval-2l": retrieval,
    }[script.NAME]  # fmt: skip
    assert script.CONFIG.vocab_size == len(world.TOKENS)
    task = world.task(4)
    assert np.isfinite(ji.evaluate(task.metric, started(script), task.clean)).all()
