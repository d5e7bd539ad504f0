import jax
import numpy as np
import pytest
from small_models import CONFIGS, DIFF, OTHER, PROMPTS, small_model, with_long

import jaxinterp as ji
from jaxinterp.circuits import Graph, attribute_edges, importance, patch_edges
from jaxinterp.circuits.masked import masked_metric, written_by
from jaxinterp.metrics import evaluate
from jaxinterp.model import as_tokens, init

NAMES = with_long("gpt2")
RUNS = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}


def wide(name):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), small_model(name))


@pytest.mark.parametrize("name", NAMES)
def test_eap_is_the_slope_of_exchanging_an_edge(name):
    with jax.enable_x64(True):
        model, graph = wide(name), Graph(CONFIGS[name])
        got = attribute_edges(model, **RUNS)
        other = written_by(model, as_tokens(OTHER))
        value = jax.jit(lambda m: masked_metric(model, as_tokens(PROMPTS), DIFF, m, other))
        for i in np.random.default_rng(0).choice(graph.n_edges, 8, replace=False):
            mask = np.zeros(graph.exists.shape)
            mask[graph.place(graph.edges[i])] = 1e-5
            slope = (value(mask) - value(-mask)) / 2e-5
            np.testing.assert_allclose(got[i] - got["clean"], slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_integrated_edges_add_up_to_the_whole_effect(name, direction):
    got = attribute_edges(
        small_model(name), method="ig-edges", steps=200, direction=direction, **RUNS
    )
    base, end = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
    total = (got - got[base]).sum("edge")
    np.testing.assert_allclose(total, got[end] - got[base], atol=2e-3)
    assert np.abs(got[end] - got[base]).min() > 0.1


# Where the line from clean to corrupted is read in three steps. The authors' code takes embeddings
# corrupted + k / 3 (clean - corrupted), k = 0, 1, 2.
SHARES = {"midpoint": [1 / 6, 3 / 6, 5 / 6], "left": [1, 2 / 3, 1 / 3]}


@pytest.mark.parametrize("rule", SHARES)
def test_ig_inputs_averages_slopes_along_the_embeddings(rule):
    """By hand: the gradient at each interpolated embedding, from finite differences."""
    name, steps = "llama", 3
    with jax.enable_x64(True):
        model, graph = wide(name), Graph(CONFIGS[name])
        got = attribute_edges(model, method="eap-ig-inputs", steps=steps, rule=rule, **RUNS)
        clean, other = (written_by(model, as_tokens(t)) for t in (PROMPTS, OTHER))

        from jaxinterp.circuits.masked import Held, measure, walk

        held_at = np.zeros(graph.n_senders, bool)
        held_at[0] = True

        @jax.jit
        def value(model, tokens, shift, share):
            held = Held(held_at, clean + share * (other - clean))
            run = walk(model, tokens, shift=shift, held=held)
            return measure(model, tokens, DIFF, run.stream)

        tokens = as_tokens(PROMPTS)
        for i in (3, 50, graph.n_edges - 4):
            r, s = graph.place(graph.edges[i])
            total = 0
            for k in range(steps):
                shift = np.zeros((graph.n_receivers, *clean.shape[1:]))
                shift[r] = 1e-5 * (other - clean)[s]
                share = SHARES[rule][k]
                total = (
                    total
                    + (value(model, tokens, shift, share) - value(model, tokens, -shift, share))
                    / 2e-5
                    / steps
                )
            np.testing.assert_allclose(got[i] - got["clean"], total, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", with_long("gpt2", "gemma2", core=["llama"]))
def test_ig_activations_treats_one_sublayer_at_a_time(name):
    """On the direct edges into the logits the sublayer's line is the only thing that moves."""
    config = CONFIGS[name].replace(n_layers=1, windows=())
    model = init(config, jax.random.key(1), scale=2.0)
    got = attribute_edges(model, method="eap-ig-activations", steps=150, **RUNS)
    # Of one layer's MLP the only edge is the one into the logits: its integral is exact.
    exact = patch_edges(model, edges=["m0->logits"], **RUNS)
    np.testing.assert_allclose(got.sel(edge="m0->logits"), exact[0], atol=1e-4)
    assert np.abs(exact[0] - exact["clean"]).max() > 1e-2


def test_eap_is_exact_where_the_model_is_linear():
    """Edges into the logits, without a final norm."""
    config = CONFIGS["llama"].replace(norm_final=False)
    model = init(config, jax.random.key(3), scale=2.0)
    into = [e for e in Graph(config).edges if e.endswith("->logits")]
    exact = patch_edges(model, edges=into, **RUNS)
    for method in ("eap", "eap-ig-inputs", "eap-ig-activations"):
        got = attribute_edges(model, edges=into, method=method, **RUNS)
        np.testing.assert_allclose(got, exact, atol=1e-4)


def test_rules_count_from_the_corrupted_run_and_agree_in_the_end():
    model = small_model("llama")
    options = {"method": "eap-ig-inputs", "rule": "left", **RUNS}
    noise = attribute_edges(model, steps=4, **options)
    turned = attribute_edges(model, steps=4, direction="denoise", **options)
    # With one step the left end is the corrupted run: plain EAP there.
    one = attribute_edges(model, steps=1, direction="denoise", **options)
    eap = attribute_edges(model, direction="denoise", **RUNS)
    np.testing.assert_allclose(one, eap, atol=1e-5)
    np.testing.assert_allclose(noise - noise.clean, -(turned - turned.corrupted), atol=1e-4)
    assert noise.attrs["rule"] == "left"
    many = [
        attribute_edges(model, steps=60, **{**options, "rule": r}) for r in ("left", "midpoint")
    ]
    few = [attribute_edges(model, steps=2, **{**options, "rule": r}) for r in ("left", "midpoint")]
    gaps = [float(abs(a - b).max()) for a, b in (many, few)]
    assert gaps[0] < 0.1 * gaps[1]


def test_importance_is_what_is_lost_or_gained():
    model = small_model("gpt2")
    noise = patch_edges(model, **RUNS)
    np.testing.assert_allclose(
        importance(noise), (noise["clean"].values - noise.values).mean(-1), atol=1e-6
    )
    denoise = patch_edges(model, direction="denoise", **RUNS)
    np.testing.assert_allclose(
        importance(denoise), (denoise.values - denoise["corrupted"].values).mean(-1), atol=1e-6
    )


def test_a_vanishing_gradient_is_refused():
    model = small_model("llama")
    reference = ji.forward(model, PROMPTS).logits[:, -1]
    metric = ji.kl(reference)
    assert np.abs(np.asarray(evaluate(metric, model, PROMPTS))).max() < 1e-5
    with pytest.raises(ValueError, match=r"gradient of .* is zero"):
        attribute_edges(model, clean=PROMPTS, corrupted=OTHER, metric=metric)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"method": "acdc"}, "expected one of"), ({"steps": 0}, "steps=0, expected"),
     ({"edges": ["m0->a0.h0<q>"]}, "writes only after")],
)  # fmt: skip
def test_bad_input(change, says):
    with pytest.raises(ValueError, match=says):
        attribute_edges(small_model("llama"), **RUNS, **change)
