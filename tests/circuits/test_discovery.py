import numpy as np
import pytest
from edge_oracle import masked, run
from small_models import CONFIGS, CORRECT, DIFF, OTHER, PROMPTS, WRONG, small_model

from jaxinterp.circuits import (
    Circuit,
    Graph,
    acdc,
    evaluate_circuits,
    faithfulness,
    greedy_edges,
    importance,
    patch_edges,
    prune_edges,
    stability,
    top_edges,
)

RUNS = {"clean": PROMPTS, "corrupted": OTHER, "metric": DIFF}
SMALL = CONFIGS["llama"].replace(n_layers=2, n_heads=2, n_kv_heads=1)


def tiny(seed=0):
    import jax
    from small_models import perturbed

    from jaxinterp.model import init

    return perturbed(init(SMALL, jax.random.key(seed), scale=2.0))


def plain_acdc(model, threshold):
    """The published algorithm: receivers from the output down, senders one by one."""
    graph = Graph(model.config)
    others = [run(model, ids)[1] for ids in OTHER]

    def deviation(mask):
        out = 0.0
        for b in range(2):
            logits = masked(model, PROMPTS[b], mask, others[b])
            clean = masked(model, PROMPTS[b], np.zeros_like(mask), others[b])
            pick = [CORRECT[b], WRONG[b]]
            out += abs((logits[-1, pick] - clean[-1, pick]) @ [1, -1])
        return out / 2

    mask = np.zeros(graph.exists.shape, bool)
    now = deviation(mask)
    for receiver in reversed(graph.receivers):
        for sender in reversed(graph.senders):
            place = graph.receivers.index(receiver), graph.senders.index(sender)
            if not graph.exists[place]:
                continue
            mask[place] = True
            then = deviation(mask)
            if then - now < threshold:
                now = then
            else:
                mask[place] = False
    return Circuit(graph, graph.exists & ~mask).pruned()


def test_acdc_equals_the_plain_algorithm():
    model = tiny()
    levels = [0.002, 0.01, 0.05]
    found = acdc(model, threshold=levels, block=16, **RUNS)
    for level, circuit in zip(levels, found, strict=True):
        assert circuit == plain_acdc(model, level)
    assert len(found[0]) > len(found[2]) > 0
    assert acdc(model, threshold=0.01, **RUNS) == found[1]


def test_acdc_from_a_smaller_start():
    model = tiny()
    start = top_edges(model, importance(patch_edges(model, **RUNS)), 20, pruned=False)
    done = []
    circuit = acdc(model, threshold=0.05, start=start, on_done=done.append, **RUNS)
    assert circuit <= start
    assert sum(done) == 20


def test_the_best_edges():
    model, graph = small_model("gpt2"), Graph(CONFIGS["gpt2"])
    scores = np.random.default_rng(0).standard_normal(graph.n_edges)
    names = np.array(graph.edges)
    top = top_edges(model, scores, 9, pruned=False)
    assert set(top) == set(names[np.argsort(-np.abs(scores))[:9]])
    top = top_edges(model, scores, 9, signed=True, pruned=False)
    assert set(top) == set(names[np.argsort(-scores)[:9]])
    assert len(top_edges(model, np.zeros(graph.n_edges), 9, pruned=False)) == 9
    matrix = np.zeros(graph.exists.shape)
    matrix[graph.exists] = scores
    assert top_edges(model, matrix, 30) == top_edges(model, scores, 30)


@pytest.mark.parametrize("signed", [False, True])
def test_greedy_edges_all_lead_to_the_logits(signed):
    graph = Graph(CONFIGS["gpt2"])
    scores = np.random.default_rng(0).standard_normal(graph.n_edges)
    worth = dict(zip(graph.edges, scores if signed else abs(scores), strict=True))
    chosen, nodes = [], {"logits"}
    for _ in range(25):  # the slow, obvious way
        open_ = [
            e for e in graph.edges if e not in chosen and e.split("->")[1].split("<")[0] in nodes
        ]
        best = max(open_, key=worth.get)
        chosen.append(best)
        nodes.add(best.split("->")[0])
    assert set(greedy_edges(graph, scores, 25, signed=signed, pruned=False)) == set(chosen)


def test_edge_pruning_finds_a_small_faithful_circuit():
    model = tiny(3)
    graph = Graph(model.config)
    circuit, logits = prune_edges(model, share=0.3, steps=200, seed=0, **RUNS)
    assert logits.shape == (graph.n_edges,)
    assert 0 < len(circuit) <= round(0.3 * graph.n_edges) + 1
    random = [
        top_edges(model, np.random.default_rng(i).random(graph.n_edges), len(circuit))
        for i in range(20)
    ]
    f = faithfulness(evaluate_circuits(model, [circuit, *random], **RUNS))
    misses = abs(1 - f.values)
    assert misses[0] < np.median(misses[1:])
    assert misses[0] < 0.5
    again, _ = prune_edges(model, share=0.3, steps=200, seed=0, **RUNS)
    assert again == circuit


def test_stability_is_the_mean_jaccard():
    a = Circuit.of(SMALL, ["input->m0", "m0->logits"])
    b = Circuit.of(SMALL, ["input->m0", "m1->logits"])
    assert stability([a, a]) == 1
    assert stability([a, b, a]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    with pytest.raises(ValueError, match="at least two"):
        stability([a])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: top_edges(m, np.zeros(3), 1), "one per edge"),
        (lambda m: top_edges(m, np.zeros(Graph(SMALL).n_edges), 0), "n=0, expected .* from 1 to"),
        (lambda m: top_edges(m, np.full(Graph(SMALL).n_edges, np.nan), 1), "NaN"),
        (lambda m: greedy_edges(m, np.zeros(Graph(SMALL).n_edges), 10**6), "n=1000000, expected"),
        (lambda m: acdc(m, threshold=-1, **RUNS), "threshold=-1, expected"),
        (lambda m: acdc(m, threshold=1, start=Circuit.of(m, []), **RUNS), "empty"),
        (lambda m: prune_edges(m, share=1.5, **RUNS), "share=1.5, expected .* less than 1"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call(tiny())
