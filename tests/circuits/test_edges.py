import jax
import numpy as np
import pytest
from edge_oracle import masked, run
from small_models import (
    CONFIGS,
    CORE,
    CORRECT,
    DIFF,
    OTHER,
    PROMPTS,
    WRONG,
    in_float64,
    small_model,
    with_long,
)

import jaxinterp as ji
from jaxinterp.circuits import Circuit, Graph, patch_edges
from jaxinterp.circuits.masked import written_by
from jaxinterp.metrics import evaluate
from jaxinterp.model import as_tokens, init

NAMES = with_long("gpt2", "olmo2", "attention_only")


def exact(name, ids, donor, prompt, edges):
    """The metric of each edge patched alone, by whole NumPy forwards."""
    model, graph = small_model(name), Graph(CONFIGS[name])
    _, alternative = run(model, donor)
    out = []
    for edge in edges:
        logits = masked(model, ids, graph.mask([edge]), alternative)
        out.append(logits[-1, CORRECT[prompt]] - logits[-1, WRONG[prompt]])
    return out


@pytest.mark.parametrize("name", NAMES)
def test_edges_equal_a_loop_over_whole_forwards(name):
    graph = Graph(CONFIGS[name])
    with jax.enable_x64(True):
        got = patch_edges(in_float64(name), clean=PROMPTS, corrupted=OTHER, metric=DIFF)
    assert got.dims == ("edge", "prompt")
    assert got["edge"].values.tolist() == list(graph.edges)
    some = np.random.default_rng(0).choice(graph.n_edges, 25, replace=False)
    for prompt in range(2):
        edges = [graph.edges[i] for i in some]
        want = exact(name, PROMPTS[prompt], OTHER[prompt], prompt, edges)
        np.testing.assert_allclose(got.values[some, prompt], want, atol=1e-7)


def test_denoising_puts_clean_values_into_the_corrupted_run():
    graph = Graph(CONFIGS["llama"])
    edges = [graph.edges[i] for i in (0, 7, 40, 77, -1)]
    got = patch_edges(
        small_model("llama"), clean=PROMPTS, corrupted=OTHER, metric=DIFF, edges=edges,
        direction="denoise",
    )  # fmt: skip
    for prompt in range(2):
        want = exact("llama", OTHER[prompt], PROMPTS[prompt], prompt, edges)
        np.testing.assert_allclose(got.values[:, prompt], want, atol=1e-5)
    clean = evaluate(DIFF, small_model("llama"), PROMPTS)
    np.testing.assert_allclose(got["clean"], clean, atol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_other_alternatives(kind):
    name = "gemma2"
    model, graph = small_model(name), Graph(CONFIGS[name])
    mean = np.asarray(written_by(model, as_tokens(OTHER))).mean(1, keepdims=True)
    given = "zero" if kind == "zero" else mean
    got = patch_edges(model, clean=PROMPTS, corrupted=None, metric=DIFF, alternative=given)
    values = {s: (0 if kind == "zero" else mean[i, 0]) for i, s in enumerate(graph.senders)}
    for i in (0, 5, 33, 60, graph.n_edges - 2):
        logits = masked(model, PROMPTS[0], graph.mask([graph.edges[i]]), values)
        want = logits[-1, CORRECT[0]] - logits[-1, WRONG[0]]
        np.testing.assert_allclose(got.values[i, 0], want, atol=1e-5)


def test_a_run_patched_into_itself():
    got = patch_edges(small_model("llama"), clean=PROMPTS, corrupted=PROMPTS, metric=DIFF)
    np.testing.assert_allclose(got - got["clean"], 0, atol=1e-5)


@pytest.mark.parametrize("name", CORE)
def test_edges_into_the_logits_add_up_under_a_frozen_norm(name):
    """With the last norm's scale frozen the metric is linear in what is added to the stream."""
    config = CONFIGS[name].replace(norm_final=False, logit_softcap=0.0)
    model = init(config, jax.random.key(3), scale=2.0)
    graph = Graph(config)
    into = [e for e in graph.edges if e.endswith("->logits")]
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
        got = patch_edges(model, clean=PROMPTS, corrupted=OTHER, metric=DIFF, edges=into)
    total = (got - got["clean"]).sum("edge")
    np.testing.assert_allclose(total, got["corrupted"] - got["clean"], atol=1e-9)
    assert np.abs(total).min() > 1e-2


def test_batches_do_not_matter():
    prompts, others = np.tile(PROMPTS, (3, 1))[:5], np.tile(OTHER, (3, 1))[:5]
    metric = ji.logit_diff(np.resize(CORRECT, 5), np.resize(WRONG, 5))
    arguments = {"clean": prompts, "corrupted": others, "metric": metric}
    model = small_model("gpt2")
    got = patch_edges(model, batch=2, **arguments)
    np.testing.assert_allclose(got, patch_edges(model, batch=5, **arguments), atol=1e-5)
    done = []
    patch_edges(model, batch=2, on_done=done.append, **arguments)
    assert sum(done) == Graph(model.config).n_edges * 5


def test_the_operations_are_near_the_fewest():
    from jaxinterp.sweep.flops import edge_bound

    config = CONFIGS["gpt2"].replace(
        n_layers=4, d_model=64, n_heads=4, n_kv_heads=4, d_head=16, d_mlp=256
    )
    model = init(config, __import__("jax").random.key(0))
    ledger = ji.Ledger()
    first = PROMPTS[:1].copy()
    other = first.copy()
    other[0, 0] = 7
    metric = ji.logit_diff([4], [8])
    patch_edges(model, clean=first, corrupted=other, metric=metric, ledger=ledger)
    bound = edge_bound(config, 7, 0)
    assert ledger.experiments == Graph(config).n_edges
    assert bound < ledger.cost.operations < 2 * bound


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edges": ["a2.h0->a0.h0<q>"]}, "writes only after"),
        ({"edges": []}, "No edges are given"),
        ({"edges": Circuit.of(CONFIGS["llama"], [])}, "No edges are given"),
        ({"direction": "both"}, "expected 'denoise' or 'noise'"),
        ({"alternative": "ones"}, "expected 'run'"),
        ({"alternative": "zero", "direction": "denoise"}, "needs alternative='run'"),
        ({"alternative": np.zeros((3, 1, 1, 8))}, "does not broadcast"),
        ({"corrupted": None}, "needs corrupted="),
        ({"corrupted": OTHER[:, :5]}, "twins of equal length"),
        ({"batch": 0}, "batch=0, expected"),
    ],
)
def test_bad_input(change, says):
    arguments = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF} | change
    with pytest.raises(ValueError, match=says):
        patch_edges(small_model("llama"), **arguments)
