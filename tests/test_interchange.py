"""Interchange on subspaces equals the NumPy oracle, and carries what lies in it."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import assert_near
from small_models import CONFIGS, DIFF, OTHER, PROMPTS, diff, ragged, small_model
from two_codes import MODEL, PLANES, task_of

from jaxinterp.interchange import (
    interchange_accuracy,
    orthonormal,
    principal_angles,
    random_basis,
    replace_component,
)
from jaxinterp.interchange.accuracy import goal_of
from jaxinterp.interventions import Shared, product, replace
from jaxinterp.metrics import evaluate
from jaxinterp.model import SITES, as_tokens, forward
from jaxinterp.model.sites import axis_size
from jaxinterp.sweep import sweep

HERE, THERE = np.array([3, 4]), np.array([5, 2])  # positions in the base and source prompts
PLACES = [
    ("gpt2", "resid_post", None),
    ("llama", "k", 1),
    ("llama", "mlp_post", None),
    ("neox", "mlp_out", None),
    ("gemma2", "z", 2),
    ("bert", "attn_out", None),
]


def width_of(name, site):
    return axis_size(CONFIGS[name], SITES[site], SITES[site].axes[-1])


def exchanged(name, site, layer, head, basis, weights, base=PROMPTS, source=OTHER):
    """The oracle's runs of the base prompts, at HERE with the source's component from THERE."""
    model = small_model(name)

    def edit(b):
        _, sites = oracle.forward(model, source[b])
        given = sites[site][layer, THERE[b]]

        def change(where, at, value):
            if (where, at) == (site, layer):
                entry = (HERE[b],) if head is None else (HERE[b], head)
                own = given if head is None else given[head]
                for direction, weight in zip(np.asarray(basis, float).T, weights, strict=True):
                    moved = (own - value[entry]) @ direction
                    value[entry] += weight * moved * direction
            return value

        return change

    return oracle.batch(model, as_tokens(np.asarray(base)), edit)


def source_values(name, site, source=OTHER, at=THERE):
    """What is recorded at one position of each source prompt: [L B 1 ...]."""
    values = forward(small_model(name), source, record=(site,)).activations[site]
    index = np.asarray(at).reshape(1, -1, *[1] * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=2)


# The intervention


@pytest.mark.parametrize(("name", "site", "head"), PLACES, ids=["-".join(p[:2]) for p in PLACES])
def test_forward_equals_the_oracle_with_a_projection_by_hand(name, site, head):
    basis = random_basis(width_of(name, site), 3, seed=1)
    weights = np.array([1.0, 0.25, 0.0])
    edit = replace_component(
        site, source_values(name, site), basis, weights=weights, layer=1, position=HERE, head=head
    )
    runs = exchanged(name, site, 1, head, basis, weights)
    logits = forward(small_model(name), PROMPTS, edit).logits
    plain = np.stack([run[0] for run in oracle.batch(small_model(name), as_tokens(PROMPTS))])
    assert np.abs(logits - plain).max() > 1e-3
    assert_near(logits, np.stack([run[0] for run in runs]), 1e-5)


def test_a_sweep_over_places_and_bases_equals_one_forward_each():
    name, site = "llama", "resid_post"
    cells = product(layer=range(3), position=[2, 5])
    bases = np.stack([random_basis(8, 2, seed) for seed in range(6)])
    model = small_model(name)
    values = forward(model, OTHER, record=(site,)).activations[site]
    grid = replace_component(site, Shared(values), bases, **cells)
    found = sweep(model, PROMPTS, grid, DIFF)
    one = jax.jit(lambda basis, where: evaluate(
        DIFF, model, PROMPTS, replace_component(site, values, basis, **where)))  # fmt: skip
    each = [one(basis, {k: v[i] for k, v in cells.items()}) for i, basis in enumerate(bases)]
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-3


def logits_with(basis, site="resid_post", source=OTHER, weights=None):
    model = small_model("llama")
    values = forward(model, source, record=(site,)).activations[site]
    edit = replace_component(site, values, basis, weights=weights, layer=1)
    return np.asarray(forward(model, PROMPTS, edit).logits)


def test_full_rank_is_replace_and_rank_0_changes_nothing():
    model = small_model("llama")
    plain = np.asarray(forward(model, PROMPTS).logits)
    values = forward(model, OTHER, record=("resid_post",)).activations["resid_post"]
    replaced = forward(model, PROMPTS, replace("resid_post", values, layer=1)).logits
    np.testing.assert_allclose(logits_with(random_basis(8, 8)), replaced, atol=2e-5)
    np.testing.assert_array_equal(logits_with(random_basis(8, 0)), plain)
    assert np.abs(replaced - plain).max() > 1e-2


def test_a_run_exchanged_with_itself_stays():
    plain = forward(small_model("llama"), PROMPTS).logits
    found = logits_with(random_basis(8, 3), source=PROMPTS)
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_weights_choose_among_the_directions():
    basis = random_basis(8, 5)
    some = logits_with(basis, weights=np.array([0.0, 1, 0, 1, 0]))
    np.testing.assert_allclose(some, logits_with(basis[:, [1, 3]]), atol=1e-5)
    turned = basis @ np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    np.testing.assert_allclose(logits_with(turned), logits_with(basis), atol=1e-5)


def test_padding_moves_nothing():
    base, source = [[3, 1, 4, 1, 5], [6, 5, 3]], [[3, 7, 4, 1, 5], [6, 11, 3, 2, 2, 1]]
    basis = random_basis(8, 2)

    def edit(b):
        given = oracle.forward(small_model("llama"), source[b])[1]["resid_post"][1, 2]

        def change(site, layer, value):
            if (site, layer) == ("resid_post", 1):
                value[[3, 1][b]] += (given - value[[3, 1][b]]) @ basis @ basis.T
            return value

        return change

    for side in ("left", "right"):
        tokens = ragged(base, side, 6)
        found = interchange_accuracy(
            small_model("llama"), base=tokens, source=ragged(source, side, 6), metric=DIFF,
            basis=basis, layer=1, position=[3, 1], source_position=2,
        )  # fmt: skip
        assert_near(found, diff(oracle.batch(small_model("llama"), tokens, edit)), 1e-5)


def test_subspaces():
    matrix = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    basis = np.asarray(orthonormal(matrix))
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    # Column i lies in the span of the columns up to i.
    np.testing.assert_allclose(principal_angles(basis[:, :2], matrix[:, :2]), 0, atol=1e-6)
    plane = np.eye(4)[:, :2]
    turned = np.array([[1, 0], [0, np.cos(0.3)], [0, np.sin(0.3)], [0, 0]])
    np.testing.assert_allclose(principal_angles(plane, turned), [0, 0.3], atol=1e-9)
    np.testing.assert_allclose(principal_angles(plane, np.eye(4)[:, 2:]), np.pi / 2)


# Interchange accuracy


def numpy_runs(name, site, layer, basis):
    """Logits [B V] at the last position: as it is, whole value exchanged, component exchanged."""
    width = width_of(name, site)
    plain = oracle.batch(small_model(name), as_tokens(PROMPTS))
    whole = exchanged(name, site, layer, None, np.eye(width), np.ones(width))
    part = exchanged(name, site, layer, None, basis, np.ones(basis.shape[1]))
    return [np.stack([run[0][-1] for run in runs]) for runs in (plain, whole, part)]


@pytest.mark.parametrize("choices", [None, [2, 5, 7, 11, 16]])
def test_interchange_accuracy_equals_counting_the_oracles_answers(choices):
    basis = random_basis(8, 4, seed=3)
    runs = numpy_runs("gemma2", "resid_post", 0, basis)
    some = np.arange(17) if choices is None else np.array(choices)
    answers = [some[logits[:, some].argmax(-1)] for logits in runs]
    labels = np.array([answers[2][0], next(c for c in some if c != answers[2][1])])
    result = interchange_accuracy(
        small_model("gemma2"), base=PROMPTS, source=OTHER, labels=labels, choices=choices,
        layer=0, position=HERE, source_position=THERE, basis=basis,
    )  # fmt: skip
    assert result.dims == ("prompt",)
    assert result.values.tolist() == [1, 0]
    for coordinate, own in zip(("base", "full"), answers, strict=False):
        assert result.coords[coordinate].values.tolist() == (own == labels).tolist()
    assert result.name == "interchange_accuracy"
    assert result.attrs["rank"] == 4


def test_a_metric_in_place_of_labels_and_no_basis_for_the_whole_value():
    runs = exchanged("llama", "resid_post", 1, None, np.eye(8), np.ones(8))
    result = interchange_accuracy(
        small_model("llama"), base=PROMPTS, source=OTHER, metric=DIFF, layer=1, position=HERE,
        source_position=THERE,
    )  # fmt: skip
    assert_near(result, diff(runs), 1e-5)
    np.testing.assert_array_equal(result, result.coords["full"])


def test_labels_among_choices_are_scored_as_by_hand():
    logits = np.array([[[1.0, 3.0, 2.0, 3.0, 0.0]], [[0.5, 0.1, 0.2, 0.9, 0.3]]])
    labels, choices = [[3], [0, 2]], [[4, 3, 3, 1], [2, 0, 1]]
    goal = goal_of(2, labels, choices, None, None)
    tokens, columns = as_tokens(PROMPTS[:, :3]), np.asarray(goal.score.vocabulary)
    seen = np.stack([row[:, ids] for row, ids in zip(logits, columns, strict=True)])
    scores = [np.asarray(each(jnp.asarray(seen), tokens)) for each in goal[:2]]
    e = np.exp(logits[:, 0])
    first = np.log(e[0, 3] / e[0, [4, 3, 1]].sum())
    second = np.log(e[1, [0, 2]].sum() / e[1, [2, 0, 1]].sum())
    np.testing.assert_allclose(scores[0], [first, second], rtol=1e-5)
    assert scores[1].tolist() == [1, 1]  # of equals the first; any of a set is right


def test_the_known_plane_carries_the_variable_and_a_random_one_does_not():
    task = task_of("left")
    place = {"layer": 0, "position": 2, **task.arguments}
    known = interchange_accuracy(MODEL, basis=PLANES["left"], **place)
    wrong = interchange_accuracy(MODEL, basis=PLANES["right"], **place)
    random = interchange_accuracy(MODEL, basis=random_basis(24, 2), **place)
    assert (known == 1).all()
    np.testing.assert_array_equal(known.coords["base"], ~task.changed)
    assert known.coords["full"].mean() < 0.7  # it moves b too
    assert wrong.mean() < 0.5
    np.testing.assert_array_equal(random, ~task.changed)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: replace_component("attn_scores", 0, np.eye(3)), "has no subspaces"),
        (lambda: replace_component("resid_post", 0.0, np.eye(3)), r"\[3, 3\], expected \[8, k\]"),
        (lambda: replace_component("resid_post", 0.0, 2 * np.eye(8)), "not orthonormal"),
        (
            lambda: replace_component("resid_post", 0.0, np.eye(8), weights=np.ones(3)),
            r"expected \[8\]",
        ),
        (lambda: replace_component("resid_post", 0.0, np.eye(8), layer=7), "layer 7 is out of"),
    ],
)
def test_bad_interventions_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        forward(small_model("llama"), PROMPTS, edit())
