"""Steering, against one plain forward per experiment."""

import numpy as np
import pytest
import scipy.special
from small_models import DIFF, PROMPTS, small_model
from tiny_tokenizers import word_tokenizer

import jaxinterp as ji
from jaxinterp import steering
from jaxinterp.directions import Direction

RNG = np.random.default_rng(0)
ONE, MANY = Direction(RNG.normal(size=8)), Direction(RNG.normal(size=(3, 8)))


def norms(model, ids, site="resid_post", first=False):
    values = np.asarray(ji.forward(model, ids, record=(site,)).activations[site], np.float64)
    return np.linalg.norm(values[:, :, 0 if first else 1 :], axis=-1).mean((1, 2))


@pytest.mark.parametrize("first", [False, True])
def test_the_unit_is_the_mean_norm(first):
    model = small_model("llama")
    found = steering.mean_norms(model, PROMPTS, first=first, batch=1)
    np.testing.assert_allclose(found, norms(model, PROMPTS, first=first), rtol=1e-5)


@pytest.mark.parametrize("positions", [None, [2, 6]])
def test_a_grid_is_one_forward_per_cell(positions):
    model = small_model("gemma2")
    found = ji.steer(
        model, PROMPTS, DIFF, {"one": ONE, "many": MANY}, coefficients=(-0.5, 2.0),
        layers=[2, 0], placebos=2, positions=positions, batch=1,
    )  # fmt: skip
    assert found.dims == ("layer", "coefficient", "direction", "prompt")
    assert found.direction.values.tolist() == ["one", "many", "random 0", "random 1"]
    unit = norms(model, PROMPTS)
    for layer in (0, 2):
        for name, vector in (("one", ONE.vector), ("many", MANY.vector[layer])):
            for c in (-0.5, 2.0):
                push = c * unit[layer] * vector / np.linalg.norm(vector)
                edit = ji.add("resid_post", push.astype(np.float32), layer=layer,
                              position=positions)  # fmt: skip
                expected = ji.evaluate(DIFF, model, PROMPTS, edit)
                got = found.sel(layer=layer, coefficient=c, direction=name)
                np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_allclose(found.clean, ji.evaluate(DIFF, model, PROMPTS), atol=1e-5)
    np.testing.assert_allclose(found.norm, unit[[2, 0]], rtol=1e-5)
    again = ji.steer(model, PROMPTS, DIFF, {"one": ONE}, coefficients=(0.0,), placebos=1)
    np.testing.assert_allclose(again - again.clean, 0, atol=1e-5)


@pytest.mark.parametrize("measure", ["kl", "cross_entropy"])
def test_side_effects_are_those_of_whole_logits(measure):
    model = small_model("llama")
    texts = RNG.integers(0, 17, (3, 6))
    found = steering.side_effects(
        model, texts, {"one": ONE}, measure=measure, coefficients=(1.0,), layers=[1], placebos=1,
        norms=np.array([1.0, 3.0, 1.0]),
    )  # fmt: skip
    edit = ji.add("resid_post", 3 * ONE.unit.vector, layer=1)
    plain, steered = (
        scipy.special.log_softmax(np.asarray(ji.forward(model, texts, e).logits, np.float64), -1)
        for e in ((), edit)
    )
    if measure == "kl":
        expected = (np.exp(plain) * (plain - steered)).sum(-1).mean(-1)
        np.testing.assert_allclose(found.clean, 0, atol=1e-5)
    else:
        after = np.take_along_axis(steered[:, :-1], texts[:, 1:, None], 2)[..., 0]
        expected = -after.mean(-1)
    got = found.sel(layer=1, coefficient=1.0, direction="one")
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_continuations_and_their_loss():
    model = small_model("llama")
    found = steering.continuations(model, PROMPTS, ONE, 1, (0.0, 2.0), 4)
    plain = ji.generate(model, PROMPTS, 4)
    np.testing.assert_array_equal(found.token.sel(coefficient=0.0), plain.new)
    unit = norms(model, PROMPTS)[1]
    push = (2 * unit * ONE.unit.vector).astype(np.float32)
    steered = ji.generate(model, PROMPTS, 4, interventions=ji.add("resid_post", push, layer=1))
    np.testing.assert_array_equal(found.token.sel(coefficient=2.0), steered.new)
    whole = np.concatenate([PROMPTS, steered.new], 1)
    log_p = scipy.special.log_softmax(np.asarray(ji.forward(model, whole).logits, np.float64), -1)
    expected = -np.take_along_axis(log_p[:, 6:-1], whole[:, 7:, None], 2)[..., 0].mean(1)
    np.testing.assert_allclose(found.loss.sel(coefficient=2.0), expected, atol=1e-4)


def test_continuations_end_with_their_text():
    """Padding after an end is no token: nothing of it is decoded, and a list of ends counts."""
    model, tokenizer = small_model("llama"), word_tokenizer()
    free = ji.generate(model, PROMPTS, 6)
    ends = sorted({int(free.new[0, 1]), int(free.new[1, 2])})
    tokenizer.ends = tuple(ends)
    found = steering.continuations(model, PROMPTS, ONE, 1, (0.0,), 6, tokenizer=tokenizer)
    made = ji.generate(model, PROMPTS, 6, stop=ends)
    assert (made.lengths < 6).any()
    for i, row in enumerate(np.asarray(free.new)):
        n = int(made.lengths[i])
        assert n == next((j + 1 for j, token in enumerate(row) if token in ends), 6)
        np.testing.assert_array_equal(found.token[0, i], [*row[:n], *[-1] * (6 - n)])
        assert found.text[0, i] == tokenizer.decode(row[:n]) == made.texts(tokenizer)[i]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": {}}, "no direction: give one"),
        ({"coefficients": ()}, r"coefficients=\(\), expected at least one"),
        ({"directions": {"a": Direction(np.ones(7))}}, r"expected \[8\] or \[3, 8\]"),
        (
            {"directions": {"a": ONE, "b": Direction(np.ones(8), "mlp_out")}},
            "one grid has one site",
        ),
        ({"directions": {"a": Direction(np.ones(8), "z")}}, "not of the stream's shape"),
        ({"norms": np.ones(2)}, r"expected finite \[3\]"),
        ({"layers": [3]}, "layers=3, expected .* from 0 to 2"),
    ],
)
def test_bad_input(options, message):
    given = {"directions": {"one": ONE}, "placebos": 1} | options
    with pytest.raises(ValueError, match=message):
        ji.steer(small_model("llama"), PROMPTS, DIFF, **given)


def test_bad_texts():
    model = small_model("llama")
    positions = np.tile(np.arange(7), (2, 1))
    positions[1, 5:] = -1
    with pytest.raises(ValueError, match="must not be padded"):
        steering.side_effects(model, ji.Tokens(PROMPTS, positions), {"one": ONE})
    with pytest.raises(ValueError, match="'kl' or 'cross_entropy'"):
        steering.side_effects(model, PROMPTS, {"one": ONE}, measure="loss")
