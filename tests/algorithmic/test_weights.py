"""The shipped models do what their cards say, measured anew from their files."""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.algorithmic import boards
from jaxinterp.loading.shipped import card, shipped, weights_folder

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import train_addition
import train_board
import train_brackets
import train_repeats
import train_retrieval
import train_shapes
import train_text

SCRIPTS = {
    script.NAME: script
    for script in (
        train_addition, train_brackets, train_repeats, train_retrieval, train_shapes, train_text,
    )
} | {"ataxx-6x6": train_board}  # fmt: skip
BETTER = {  # what a card has to reach at least (or, below 0, to stay under)
    "addition-113": {"accuracy": 1.0, "power_in_6": 0.8},
    "induction-2l": {"second_to_first": -1 / 3, "induction": 0.3, "previous_token": 0.7},
    "retrieval-2l": {"accuracy": 0.98},
    "brackets-2l": {"accuracy": 0.99},
    "ataxx-6x6": {"legal": 0.999, "legal_sets": 0.98},
    "shapes-vit": {"accuracy": 0.9},
    "wiki-3l": {"bits_per_byte": -2.2},
}


def test_every_shipped_model_has_a_script():
    assert shipped()
    assert set(shipped()) <= set(SCRIPTS)


@pytest.mark.parametrize("name", shipped())
def test_it_reaches_what_it_is_shipped_for(name):
    metrics, about = card(name).metrics, card(name)
    for key, least in BETTER[name].items():
        assert metrics[key] >= least if least > 0 else metrics[key] < -least, key
    assert sum(file.stat().st_size for file in (weights_folder() / name).iterdir()) < 10e6
    assert about.recipe.startswith(f"python scripts/{Path(SCRIPTS[name].__file__).name}")


@pytest.mark.parametrize("name", [n for n in shipped() if n != "wiki-3l"])  # below
def test_it_meets_its_card(name):
    model, about = ji.load(name)[0], card(name)
    options = {"addition-113": {"share": 0.3}, "ataxx-6x6": {"game": boards.ATAXX}}.get(name, {})
    measured = SCRIPTS[name].measured
    known = {"model": model, "seed": about.seed, **options}
    again = measured(
        **{k: v for k, v in known.items() if k in inspect.signature(measured).parameters}
    )
    assert again.keys() == about.metrics.keys()
    for key, value in about.metrics.items():
        assert again[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


@pytest.mark.long
def test_the_text_model_meets_its_card():
    model, tokenizer = ji.load("wiki-3l")
    train, test = train_text.texts()
    again = train_text.measured(
        model, train_text.encoded(tokenizer, train), train_text.encoded(tokenizer, test), test
    )
    assert again == pytest.approx(card("wiki-3l").metrics, rel=1e-3)


def test_the_board_of_new_games_is_read_by_the_probes_that_come_with_the_model():
    model, known = ji.load("ataxx-6x6")[0], boards.probes()
    at = boards.ATAXX.random_positions(500, seed=(11, 0))
    x = ji.collect(model, at.tokens)  # [point n D]
    right = [(known.read(each, point) == at.state).mean() for point, each in enumerate(x)]
    assert len(right) == model.config.n_layers + 1
    assert max(right) > 0.98
    assert right[0] < 0.75  # the last move alone does not tell it
    shuffled = np.random.default_rng(0).permutation(at.state)
    assert (known.read(x[2], 2) == shuffled).mean() < 0.6
    with pytest.raises(ji.loading.LoadError, match="'brackets-2l' has no arrays 'probes'"):
        boards.probes("brackets-2l")


def test_the_steps_kept_of_addition_show_grokking():
    # Known by heart early, the other pairs understood thousands of steps later.
    about = card("addition-113")

    def at(step):
        model = ji.load("addition-113", revision=step and f"step-{step}")[0]
        return train_addition.measured(model, about.seed, 0.3)

    early, before, end = at(500), at(8000), at(None)
    for known in (early, before):
        assert known["loss"] < 0.01
        assert known["held_out_loss"] > np.log(113)  # worse than not knowing
        assert known["accuracy"] < 0.35
    assert end["held_out_loss"] < 1e-3
    assert early["power_in_6"] < before["power_in_6"] < 0.5 < end["power_in_6"]
