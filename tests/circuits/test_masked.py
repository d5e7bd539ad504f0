import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from edge_oracle import masked, run
from small_models import (
    CONFIGS,
    DIFF,
    OTHER,
    PROMPTS,
    diff,
    in_float64,
    ragged,
    small_model,
    with_long,
)

from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import Held, masked_metric, measure, walk, written_by
from jaxinterp.metrics import evaluate
from jaxinterp.model import as_tokens, forward

NAMES = with_long(*(name for name, config in CONFIGS.items() if not config.norm_stream))
TOKENS, DONORS = as_tokens(PROMPTS), as_tokens(OTHER)


def some(name, share, *last):
    """A random set of edges, bool [R S ...]."""
    rng = np.random.default_rng(len(name))
    exists = Graph(CONFIGS[name]).exists
    return exists.reshape(*exists.shape, *[1] * len(last)) & (
        rng.random((*exists.shape, *last)) < share
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_senders_write(name):
    graph = Graph(CONFIGS[name])
    written = written_by(small_model(name), TOKENS)
    for b, ids in enumerate(PROMPTS):
        _, expected = run(small_model(name), ids)
        for s, sender in enumerate(graph.senders):
            oracle.assert_near(written[s, b], expected[sender], 3e-5, sender)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_position", [False, True])
def test_a_masked_pass_equals_changing_every_input_by_hand(name, by_position):
    mask = some(name, 0.4, *([PROMPTS.shape[1]] if by_position else []))
    with jax.enable_x64(True):
        model = in_float64(name)
        got = masked_metric(model, TOKENS, DIFF, jnp.asarray(mask), written_by(model, DONORS))
        plain = evaluate(DIFF, model, TOKENS)
    runs = []
    for ids, other in zip(PROMPTS, OTHER, strict=True):
        _, alternative = run(model, other)
        runs.append((masked(model, ids, mask, alternative),))
    np.testing.assert_allclose(got, diff(runs), atol=1e-6, rtol=0)
    assert np.abs(np.asarray(got) - np.asarray(plain)).min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_no_edge_is_the_clean_run_and_all_edges_the_other(name):
    model, graph = small_model(name), Graph(CONFIGS[name])
    other = written_by(model, DONORS)
    none = masked_metric(model, TOKENS, DIFF, jnp.zeros(graph.exists.shape), other)
    every = masked_metric(model, TOKENS, DIFF, jnp.asarray(graph.exists), other)
    np.testing.assert_allclose(none, evaluate(DIFF, model, TOKENS), atol=1e-4)
    np.testing.assert_allclose(every, evaluate(DIFF, model, DONORS), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_patching_a_run_into_itself_changes_nothing(name):
    model = small_model(name)
    same = masked_metric(
        model, TOKENS, DIFF, jnp.asarray(some(name, 0.5)), written_by(model, TOKENS)
    )
    np.testing.assert_allclose(same, evaluate(DIFF, model, TOKENS), atol=1e-4)


@pytest.mark.parametrize("name", with_long("gpt2", "attention_only"))
def test_held_senders_write_what_they_are_given(name):
    model, graph = small_model(name), Graph(CONFIGS[name])
    other = written_by(model, DONORS)
    where = np.zeros(graph.n_senders, bool)
    where[[0, 2, graph.sender(1, 3), graph.sender(2)][: 4 - CONFIGS[name].attention_only]] = True

    @jax.jit
    def held(model, tokens, where):
        run = walk(model, tokens, held=Held(where, other))
        return measure(model, tokens, DIFF, run.stream)

    got = held(model, TOKENS, jnp.asarray(where))
    runs = []
    for ids, donor in zip(PROMPTS, OTHER, strict=True):
        _, given = run(model, donor)
        hold = {s: given[s] for s, held in zip(graph.senders, where, strict=True) if held}
        runs.append((run(model, ids, hold=hold)[0],))
    np.testing.assert_allclose(got, diff(runs), atol=1e-4)
    # The same as replacing all their edges.
    mask = jnp.asarray(graph.exists & where)
    np.testing.assert_allclose(got, masked_metric(model, TOKENS, DIFF, mask, other), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_cannot_matter(side):
    model = small_model("llama")
    mask = jnp.asarray(some("llama", 0.4))
    prompts = [[3, 1, 4, 1, 5], [6, 5, 3, 5, 8, 9, 7]]
    donors = [[3, 1, 7, 1, 5], [6, 5, 3, 11, 8, 10, 7]]
    batch, others = ragged(prompts, side, 8), ragged(donors, side, 8)
    got = masked_metric(model, batch, DIFF, mask, written_by(model, others))
    for b in range(2):
        alone, other = as_tokens([prompts[b]]), as_tokens([donors[b]])
        metric = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], DIFF)
        want = masked_metric(model, alone, metric, mask, written_by(model, other))
        np.testing.assert_allclose(got[b], want[0], atol=1e-5)


@pytest.mark.parametrize("name", with_long("gpt2"))
def test_the_mask_has_a_gradient_where_nothing_is_patched(name):
    """The gradient at zero reaches every edge: copies of the stream that are as they were count."""
    with jax.enable_x64(True):
        model = in_float64(name)
        graph, other = Graph(CONFIGS[name]), written_by(model, DONORS)

        def total(mask):
            return masked_metric(model, TOKENS, DIFF, mask, other).sum()

        zero = jnp.zeros(graph.exists.shape)
        gradient = np.asarray(jax.jit(jax.grad(total))(zero))
        rng = np.random.default_rng(0)
        rows, columns = np.nonzero(graph.exists)
        value = jax.jit(total)
        for i in rng.choice(len(rows), 12, replace=False):
            place, step = (rows[i], columns[i]), 1e-5
            slope = (value(zero.at[place].set(step)) - value(zero.at[place].set(-step))) / 2 / step
            np.testing.assert_allclose(gradient[place], slope, atol=1e-6, rtol=1e-5)
        assert (np.abs(gradient[graph.exists]) > 1e-9).mean() > 0.8


def test_an_edited_norm_still_reaches_heads_whose_copy_is_unchanged():
    """`reread`: the value is the edited norm's, the gradient that of the copy."""
    from jaxinterp.interventions import add, scale

    model = small_model("llama")

    def value(shift, edited=True):
        edits = (add("q_input", shift, layer=1, head=2),)
        edits += (scale("ln1_scale", 2.0, layer=1),) if edited else ()
        return evaluate(DIFF, model, TOKENS, edits).sum()

    zero = jnp.zeros(model.config.d_model)
    plain = evaluate(DIFF, model, TOKENS, scale("ln1_scale", 2.0, layer=1)).sum()
    np.testing.assert_allclose(value(zero), plain, atol=1e-5)
    assert np.abs(jax.grad(value)(zero)).max() > 1e-4
    assert np.abs(jax.grad(lambda s: value(s, edited=False))(zero)).max() > 1e-4
    assert forward(model, TOKENS).logits.shape[0] == 2
