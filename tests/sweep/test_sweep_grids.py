"""Grids of every kind against the oracle: tuples, masks, operations, a user's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from oracle import assert_near, batch
from small_models import DIFF, PROMPTS, diff, donor, small_model

from jaxinterp.interventions import Shared, add, product, project_out, scale, zero
from jaxinterp.metrics import evaluate
from jaxinterp.model import as_tokens
from jaxinterp.sweep import sweep, sweep_plain


@pytest.fixture(autouse=True)
def eager(request):
    """Op by op: compiling each of these grids would be most of the time."""
    with jax.disable_jit("compiled" not in request.node.name):
        yield


def check(name, grid, edits):
    """The engine and the plain sweep against one oracle edit per experiment."""
    model = small_model(name)
    expected = np.stack([diff(batch(model, as_tokens(PROMPTS), lambda b, e=e: e)) for e in edits])
    assert_near(sweep_plain(model, PROMPTS, grid, DIFF), expected, 1e-5, "plain")
    assert_near(sweep(model, PROMPTS, grid, DIFF), expected, 1e-5, "engine")
    assert (np.ptp(expected, axis=0) > 1e-4).all(), "all experiments are the same"


def at(site, layer, change):
    """An oracle edit: ``change(array)`` in place at one site and a set of layers."""
    layers = [layer] if np.ndim(layer) == 0 else layer

    def edit(name, l, array):
        if name == site and l in layers:
            change(array)
        return array

    return edit


def both(first, second):
    return lambda name, l, array: second(name, l, first(name, l, array))


def set_to(entry, value):
    def change(array):
        array[entry] = value

    return change


def multiply(entry, factor):
    def change(array):
        array[entry] = array[entry] * factor

    return change


def test_two_interventions_at_once():
    grid = (
        zero("z", layer=np.array([0, 2]), head=np.array([1, 3])),
        scale("mlp_out", Shared(3.0), layer=np.array([1, 0]), position=np.array([4, 6])),
    )
    edits = [
        both(at("z", 0, set_to(np.s_[:, 1], 0)), at("mlp_out", 1, multiply(4, 3))),
        both(at("z", 2, set_to(np.s_[:, 3], 0)), at("mlp_out", 0, multiply(6, 3))),
    ]
    check("llama", grid, edits)


def test_one_of_two_interventions_shared():
    grid = (
        zero("attn_out", layer=np.array([0, 2])),
        scale("mlp_out", Shared(2.0), layer=Shared(1)),
    )
    second = at("mlp_out", 1, multiply(np.s_[:], 2))
    edits = [both(at("attn_out", layer, set_to(np.s_[:], 0)), second) for layer in (0, 2)]
    check("llama", grid, edits)


def test_layer_windows():
    masks = np.array([[1, 1, 0], [0, 1, 1]], bool)
    grid = zero("attn_out", layer=masks, position=Shared(np.array([0, 0, 0, 1, 1, 0, 1], bool)))
    change = set_to([3, 4, 6], 0)
    check("llama", grid, [at("attn_out", np.flatnonzero(m), change) for m in masks])


def test_head_sets():
    masks = np.array([[1, 1, 0, 0], [0, 1, 0, 1]], bool)
    grid = zero("z", layer=np.array([0, 1]), head=masks)
    edits = [at("z", l, set_to(np.s_[:, np.flatnonzero(masks[l])], 0)) for l in (0, 1)]
    check("llama", grid, edits)


def test_neuron_blocks():
    masks = np.arange(10)[None] // 5 == np.arange(2)[:, None]
    grid = zero("mlp_post", layer=Shared(1), neuron=masks)
    check("llama", grid, [at("mlp_post", 1, set_to(np.s_[:, np.flatnonzero(m)], 0)) for m in masks])


def test_positions_of_their_own_for_each_prompt():
    positions = np.array([[2, 5], [6, 3]])
    grid = zero("resid_mid", layer=np.array([1, 0]), position=positions)
    model, expected = small_model("llama"), []
    for layer, row in zip((1, 0), positions, strict=True):
        edits = [at("resid_mid", layer, set_to(p, 0)) for p in row]
        expected.append(diff(batch(model, as_tokens(PROMPTS), edits.__getitem__)))
    assert_near(sweep(model, PROMPTS, grid, DIFF), np.stack(expected), 1e-5)


def test_position_masks_of_their_own_for_each_prompt():
    masks = np.zeros((2, 2, 7), bool)
    masks[0, 0, [2, 3]] = masks[0, 1, 5] = masks[1, 0, 6] = masks[1, 1, :4] = True
    grid = zero("mlp_out", layer=Shared(1), position=masks)
    model, expected = small_model("llama"), []
    for experiment in masks:
        edits = [at("mlp_out", 1, set_to(np.flatnonzero(m), 0)) for m in experiment]
        expected.append(diff(batch(model, as_tokens(PROMPTS), edits.__getitem__)))
    assert_near(sweep(model, PROMPTS, grid, DIFF), np.stack(expected), 1e-5)


def test_steering_vectors_of_their_own_for_each_experiment():
    vectors = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    # [E, B, P, D]: a leading experiment axis, then what broadcasts to the site's value.
    grid = add("resid_post", vectors[:, None, None], layer=np.array([0, 1]))

    def shift(v):
        def change(array):
            array += v

        return change

    check("llama", grid, [at("resid_post", l, shift(v)) for l, v in enumerate(vectors)])


def test_directions_projected_out():
    vectors = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    grid = project_out("resid_pre", vectors, layer=np.array([1, 2]), position=np.array([6, 5]))

    def remove(v, position):
        def change(array):
            array[position] -= (array[position] @ v) / (v @ v) * v

        return change

    edits = [at("resid_pre", 1, remove(vectors[0], 6)), at("resid_pre", 2, remove(vectors[1], 5))]
    check("llama", grid, edits)


FACTORS = np.array([-1.0, 2.0], np.float32)


@pytest.mark.parametrize("factors", [FACTORS[:, None], FACTORS])
def test_scales_of_their_own_for_each_experiment(factors):
    grid = scale("q", factors, layer=Shared(1), head=Shared(2), position=Shared(6))
    check("llama", grid, [at("q", 1, multiply(np.s_[6, 2], f)) for f in FACTORS])


def test_a_site_that_occurs_once_and_a_layered_one():
    grid = (
        scale("embed", Shared(2.0), position=np.array([3, 6])),
        zero("mlp_out", layer=np.array([2, 0])),
    )
    edits = [
        both(at("embed", None, multiply(3, 2)), at("mlp_out", 2, set_to(np.s_[:], 0))),
        both(at("embed", None, multiply(6, 2)), at("mlp_out", 0, set_to(np.s_[:], 0))),
    ]
    check("llama", grid, edits)


class Flip(struct.PyTreeNode):
    """A user's own: it does not say where it begins."""

    layer: Any
    sites = ("mlp_out",)

    def __call__(self, value, at):
        return jnp.where(at.layer == self.layer, -value, value)


class FlipLate(struct.PyTreeNode):
    """A user's own that reads positions: they are right in a suffix run too."""

    layer: Any
    position: Any
    sites = ("resid_mid",)

    def begins(self, config):
        return self.layer, self.position

    def __call__(self, value, at):
        chosen = (at.layer == self.layer) & (at.positions >= self.position)
        return jnp.where(chosen[:, :, None], -value, value)


def test_a_users_own_intervention():
    flip = multiply(np.s_[:], -1)
    check("neox", Flip(np.array([0, 2])), [at("mlp_out", l, flip) for l in (0, 2)])


def test_a_users_own_intervention_with_a_beginning():
    edits = [at("resid_mid", l, multiply(np.s_[p:], -1)) for l, p in ((0, 6), (2, 3))]
    check("llama", FlipLate(np.array([0, 2]), np.array([6, 3])), edits)


def test_a_users_own_beside_a_built_in():
    grid = (Flip(np.array([0, 1])), zero("z", layer=Shared(2), position=np.array([6, 5])))
    edits = [
        both(at("mlp_out", l, multiply(np.s_[:], -1)), at("z", 2, set_to(p, 0)))
        for l, p in ((0, 6), (1, 5))
    ]
    check("llama", grid, edits)


def test_two_classes_that_look_alike_are_not_confused_when_compiled():
    class Negate(Flip):
        pass

    class Triple(Flip):
        def __call__(self, value, at):
            return jnp.where(at.layer == self.layer, 3 * value, value)

    model, layers = small_model("neox"), np.array([1])
    a, b = (sweep(model, PROMPTS, kind(layers), DIFF) for kind in (Negate, Triple))
    assert (a != b).all()


def test_compiled_under_the_callers_jit_and_grad():
    model, values = small_model("llama"), donor("llama")["resid_pre"][1]
    cells = {"layer": np.array([0, 1]), "position": np.array([6, 3])}

    @jax.jit
    def total(vector):
        return sweep(model, PROMPTS, add("resid_pre", Shared(vector), **cells), DIFF).sum()

    vector, step = values[0, 3], np.full(8, 1e-2, np.float32)
    plain = sweep(model, PROMPTS, add("resid_pre", Shared(vector), **cells), DIFF).sum()
    np.testing.assert_allclose(total(vector), plain, rtol=1e-5)
    slope = (jax.grad(total)(vector) * step).sum()
    difference = (total(vector + step) - total(vector - step)) / 2
    np.testing.assert_allclose(slope, difference, rtol=2e-2)
    assert abs(slope) > 1e-3


def test_compiled_with_traced_indices_out_of_range_gives_nan():
    model = small_model("llama")

    @jax.jit
    def effects(layers):
        return sweep(model, PROMPTS, zero("z", layer=layers), DIFF)

    out = effects(np.array([1, 3]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def test_sweep_of_a_single_experiment_equals_evaluate():
    model = small_model("neox")
    grid = scale("attn_out", np.array([0.5], np.float32), layer=np.array([1]))
    alone = evaluate(DIFF, model, PROMPTS, scale("attn_out", np.float32(0.5), layer=1))
    assert_near(sweep(model, PROMPTS, grid, DIFF)[0], alone, 1e-5)


@pytest.mark.parametrize("kind", [list, tuple, lambda n: range(n[0], n[-1] + 1)])
def test_indices_may_be_lists(kind):
    model, indices = small_model("gpt2"), [1, 2]
    listed = sweep(model, PROMPTS, zero("z", layer=kind(indices), head=[0, 3]), DIFF)
    arrays = zero("z", layer=np.array(indices), head=np.array([0, 3]))
    np.testing.assert_array_equal(listed, sweep(model, PROMPTS, arrays, DIFF))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (zero("z", layer=1), "nothing to sweep.*evaluate"),
        (zero("z", layer=1, head=np.arange(2)), "share one leading experiment axis"),
        (zero("z", layer=np.array([0, 1]), head=np.array([0, 1, 2])), r"lengths \[2, 3\]"),
        (zero("z", **product(layer=range(4))), "layer 3 is out of range"),
        (zero("z", layer=np.array([0]), position=np.array([[2, 7]])), "position 7 is out of range"),
        (zero("resid_mid", layer=np.array([0])), "parallel"),
        (add("z", np.zeros((1, 5)), layer=np.array([0])), r"\[5\], which does not broadcast"),
    ],
)
def test_a_bad_grid_is_an_error(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep(small_model("neox"), PROMPTS, grid, DIFF)
