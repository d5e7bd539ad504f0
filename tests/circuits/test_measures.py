import numpy as np
import pytest
from edge_oracle import masked, run
from small_models import CONFIGS, CORRECT, DIFF, OTHER, PROMPTS, WRONG, small_model, with_long

from jaxinterp.circuits import (
    Circuit,
    Graph,
    cmd,
    cpr,
    evaluate_circuits,
    faithfulness,
    faithfulness_curve,
    importance,
    incompleteness,
    minimality,
    patch_edges,
    roc,
    specificity,
    without,
    worst_incompleteness,
)
from jaxinterp.circuits.measures import area
from jaxinterp.metrics import evaluate

RUNS = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}
NAMES = with_long("gpt2")


def some_circuits(name, n, *last):
    graph = Graph(CONFIGS[name])
    rng = np.random.default_rng(5)
    exists = graph.exists.reshape(*graph.exists.shape, *[1] * len(last))
    return [
        Circuit(graph, exists & (rng.random((*graph.exists.shape, *last)) < share))
        for share in np.linspace(0.1, 0.9, n)
    ]


def by_hand(name, circuit, zero=False):
    """m(C) of both prompts, by whole NumPy forwards."""
    model, graph = small_model(name), circuit.graph
    exists = graph.exists if circuit.edges.ndim == 2 else graph.exists[..., None]
    out = []
    for b in range(2):
        _, other = run(model, OTHER[b])
        other = {k: 0 * v for k, v in other.items()} if zero else other
        logits = masked(model, PROMPTS[b], exists & ~circuit.edges, other)
        out.append(logits[-1, CORRECT[b]] - logits[-1, WRONG[b]])
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alternative", ["run", "zero"])
def test_many_circuits_in_one_pass_each(name, alternative):
    circuits = some_circuits(name, 4)
    got = evaluate_circuits(small_model(name), circuits, alternative=alternative, **RUNS)
    assert got.dims == ("circuit", "prompt")
    for values, circuit in zip(got.values, circuits, strict=True):
        want = by_hand(name, circuit, alternative == "zero")
        np.testing.assert_allclose(values, want, atol=2e-5)
    assert got["edges"].values.tolist() == [len(c) for c in circuits]


def test_circuits_by_position():
    circuits = [*some_circuits("llama", 2, 7), *some_circuits("llama", 1)]
    got = evaluate_circuits(small_model("llama"), circuits, **RUNS)
    for values, circuit in zip(got.values, circuits, strict=True):
        np.testing.assert_allclose(values, by_hand("llama", circuit), atol=2e-5)


def test_chunks_do_not_matter():
    circuits = some_circuits("llama", 7)
    whole = evaluate_circuits(small_model("llama"), circuits, **RUNS)
    parts = evaluate_circuits(small_model("llama"), circuits, memory=1, batch=1, **RUNS)
    np.testing.assert_allclose(whole, parts, atol=2e-5)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_whole_model_is_faithful_and_nothing_is_not(direction):
    model = small_model("llama")
    circuits = {"whole": Circuit.full(model), "none": Circuit.of(model, [])}
    got = evaluate_circuits(model, circuits, direction=direction, **RUNS)
    f = faithfulness(got)
    np.testing.assert_allclose(f.sel(circuit=["whole", "none"]), [1, 0], atol=1e-5)
    ends = [got["clean"], got["corrupted"]][:: 1 if direction == "noise" else -1]
    np.testing.assert_allclose(got.sel(circuit="whole"), ends[0], atol=1e-5)
    np.testing.assert_allclose(got["clean"], evaluate(DIFF, model, PROMPTS), atol=1e-5)
    np.testing.assert_allclose(got["corrupted"], evaluate(DIFF, model, OTHER), atol=1e-5)


def test_the_curve_and_its_areas():
    model = small_model("gpt2")
    scores = importance(patch_edges(model, **RUNS))
    fractions = (0.05, 0.2, 0.5, 1.0)
    curve = faithfulness_curve(model, scores, fractions=fractions, signed=True, **RUNS)
    assert curve["fraction"].values.tolist() == list(fractions)
    np.testing.assert_allclose(curve[-1], 1, atol=1e-5)
    by_hand = sum(
        (b - a) * (x + y) / 2
        for a, b, x, y in zip(fractions, fractions[1:], curve.values, curve.values[1:])  # noqa: B905
    )
    assert cpr(curve) == pytest.approx(float(by_hand))
    assert cmd(curve) == pytest.approx(area(fractions, abs(1 - curve.values)))
    greedy = faithfulness_curve(model, scores, fractions=(1.0,), select="greedy", **RUNS)
    np.testing.assert_allclose(greedy, 1, atol=1e-5)


def test_roc_against_a_loop_over_pairs():
    graph = Graph(CONFIGS["llama"])
    truth = Circuit(
        graph, graph.exists & (np.random.default_rng(0).random(graph.exists.shape) < 0.2)
    )
    rng = np.random.default_rng(1)
    scores = rng.integers(-5, 6, graph.n_edges) + 3.0 * truth.edges[graph.exists]
    found = roc(scores, truth)
    is_true, size = truth.edges[graph.exists], np.abs(scores)
    pairs = [(a > b) + (a == b) / 2 for a in size[is_true] for b in size[~is_true]]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert found["pessimistic_auc"] <= found["auc"]
    perfect = roc(is_true.astype(float), truth)
    assert perfect["auc"] == perfect["pessimistic_auc"] == 1
    with pytest.raises(ValueError, match="scores for"):
        roc(scores[1:], truth)
    with pytest.raises(ValueError, match="edges inside"):
        roc(scores, Circuit.full(graph))


def test_knocking_out_nodes():
    model = small_model("llama")
    circuit = some_circuits("llama", 3)[1]
    sets = {"none": [], "two": ["a0.h1", "m1"]}
    got = incompleteness(model, circuit, sets=sets, **RUNS)
    assert got.dims == ("of", "set", "prompt")
    for k, nodes in sets.items():
        for of, c in (("circuit", circuit), ("model", Circuit.full(model))):
            want = by_hand("llama", without(c, nodes))
            np.testing.assert_allclose(got.sel(of=of, set=k), want, atol=2e-5)
    gap, worst = worst_incompleteness(got)
    gaps = {
        k: abs(float((got.sel(of="circuit", set=k) - got.sel(of="model", set=k)).mean()))
        for k in sets
    }
    assert gap == pytest.approx(max(gaps.values()))
    assert worst == ", ".join(sets[max(gaps, key=gaps.get)])
    full = incompleteness(model, Circuit.full(model), samples=3, **RUNS)
    assert worst_incompleteness(full)[0] < 1e-5


def test_minimality_by_hand():
    model = small_model("llama")
    circuit = Circuit.of_nodes(model, ["a0.h1", "m1", "a2.h3"])
    got = minimality(model, circuit, samples=3, seed=1, **RUNS)
    assert got["node"].values.tolist() == ["a0.h1", "m1", "a2.h3"]
    whole = np.mean(by_hand("llama", Circuit.full(model)))
    none = np.mean(by_hand("llama", Circuit.of(model, [])))
    for node in got["node"].values:
        k = [n for n in got["set"].sel(node=node).item().split(", ") if n]
        assert node not in k
        a = np.mean(by_hand("llama", without(circuit, k)))
        b = np.mean(by_hand("llama", without(circuit, [*k, node])))
        assert float(got.sel(node=node)) == pytest.approx(abs(a - b) / abs(whole - none), abs=1e-4)
        empty = np.mean(by_hand("llama", without(circuit, [node])))
        alone = abs(np.mean(by_hand("llama", circuit)) - empty) / abs(whole - none)
        assert float(got.sel(node=node)) >= alone - 1e-4


def test_a_node_that_does_nothing_is_not_minimal():
    model = small_model("llama")
    attn = model.params.blocks.attn
    silent = np.array(attn.W_O)
    silent[1, 2] = 0
    model = model.replace(
        params=model.params.replace(
            blocks=model.params.blocks.replace(attn=attn.replace(W_O=silent))
        )
    )
    got = minimality(model, Circuit.full(model), samples=2, **RUNS)
    assert float(got.sel(node="a1.h2")) < 1e-4
    assert float(got.max()) > 0.05


def test_specificity_is_the_circuit_on_other_tasks():
    class Task:
        clean, corrupted, metric = PROMPTS, OTHER, DIFF

        def record(self):
            return {"name": "test"}

    class Swapped(Task):
        clean, corrupted = OTHER, PROMPTS

    circuit = some_circuits("llama", 3)[1]
    found = specificity(small_model("llama"), circuit, {"own": Task(), "other": Swapped()})
    np.testing.assert_allclose(found["own"][0], by_hand("llama", circuit), atol=2e-5)
    assert not np.allclose(found["own"], found["other"])


@pytest.mark.parametrize(
    ("circuits", "says"),
    [
        ([], "No circuits"),
        ([Circuit.full(CONFIGS["llama"].replace(n_layers=2))], "another shape"),
        (some_circuits("llama", 1, 5), "for 5 positions"),
    ],
)
def test_bad_circuits(circuits, says):
    with pytest.raises(ValueError, match=says):
        evaluate_circuits(small_model("llama"), circuits, **RUNS)
    with pytest.raises(ValueError, match="no heads or MLPs"):
        minimality(small_model("llama"), Circuit.of(CONFIGS["llama"], []), **RUNS)
