import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CONFIGS

from jaxinterp.circuits import Circuit, Graph, without

LLAMA = CONFIGS["llama"]  # 4 heads, 2 key/value heads
GRAPH = Graph(LLAMA)
CHAIN = ["input->a0.h1<v>", "a0.h0->a1.h0<k>", "a0.h2->a1.h0<k>", "a1.h1->logits"]


def random_circuit(seed, share=0.2, *last):
    rng = np.random.default_rng(seed)
    exists = GRAPH.exists.reshape(*GRAPH.exists.shape, *[1] * len(last))
    return Circuit(GRAPH, exists & (rng.random((*GRAPH.exists.shape, *last)) < share))


@given(st.integers(0, 999), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_circuits_are_sets_of_edges(i, j):
    a, b = random_circuit(i), random_circuit(j)
    A, B, every = set(a), set(b), set(GRAPH.edges)
    assert set(a | b) == A | B
    assert set(a & b) == A & B
    assert set(a - b) == A - B
    assert set(~a) == every - A
    assert (a <= b) == (A <= B)
    assert (a == b) == (A == B)
    assert len(a) == len(A)
    assert a.jaccard(b) == pytest.approx(len(A & B) / max(len(A | B), 1))
    assert all((e in a) == (e in A) for e in GRAPH.edges[::7])
    assert Circuit.of(LLAMA, a.names) == a


def on_a_path(edges):
    """The edges on some path from input to logits, by depth-first search over names."""

    def leads(edge):  # edges out of the reader's node
        receiver = edge.split("->")[1]
        if receiver == "logits":
            return None
        node = receiver.split("<")[0]
        nodes = [node]
        if receiver.endswith(("<k>", "<v>")):
            layer, kv = node.split(".h")
            nodes = [f"{layer}.h{2 * int(kv)}", f"{layer}.h{2 * int(kv) + 1}"]
        return [e for e in edges if e.split("->")[0] in nodes]

    found = set()

    def visit(edge, path):
        following = leads(edge)
        if following is None:
            found.update([*path, edge])
            return
        for new in following:
            visit(new, [*path, edge])

    for edge in edges:
        if edge.startswith("input->"):
            visit(edge, [])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_pruning_leaves_what_lies_on_a_path(seed):
    circuit = random_circuit(seed, 0.06)
    assert set(circuit.pruned()) == on_a_path(list(circuit))
    assert circuit.pruned().pruned() == circuit.pruned()


def test_pruning_follows_grouped_heads():
    circuit = Circuit.of(LLAMA, CHAIN)
    # a0's key/value head 1 serves queries 2 and 3; nobody reads a0.h0's inputs.
    expected = ["input->a0.h1<v>", "a0.h2->a1.h0<k>", "a1.h1->logits"]
    assert list(circuit.pruned()) == expected
    assert Circuit.of(LLAMA, ["m0->logits"]).pruned().nodes == ()


def test_circuits_of_nodes():
    circuit = Circuit.of_nodes(LLAMA, ["a0.h1", "m2"])
    assert set(circuit) == {
        "input->a0.h1<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->m2", "a0.h1->m2",
        "input->logits", "a0.h1->logits", "m2->logits",
    }  # fmt: skip
    assert circuit.nodes == ("input", "a0.h1", "m2", "logits")
    assert Circuit.of_nodes(LLAMA, GRAPH.senders) == Circuit.full(LLAMA)
    less = without(Circuit.full(LLAMA), [s for s in GRAPH.senders if s not in circuit.nodes])
    assert less == circuit


@pytest.mark.parametrize("format", ["own", "mib"])
def test_files_keep_a_circuit(tmp_path, format):
    circuit = random_circuit(3)
    path = circuit.save(tmp_path / "circuit.json", format)
    assert Circuit.load(path, LLAMA) == circuit


def test_files_keep_positions(tmp_path):
    circuit = random_circuit(3, 0.1, 5)
    assert Circuit.load(circuit.save(tmp_path / "c.json"), LLAMA) == circuit


def test_the_mib_format_names_keys_by_query_head(tmp_path):
    path = Circuit.of(LLAMA, CHAIN).save(tmp_path / "c.json", "mib")
    data = json.loads(path.read_text())
    assert data["cfg"]["n_heads"] == 4
    assert set(data) == {"cfg", "nodes", "edges"}
    inside = {e for e, entry in data["edges"].items() if entry["in_graph"]}
    assert {"input->a0.h2<v>", "input->a0.h3<v>", "a0.h0->a1.h0<k>", "a0.h0->a1.h1<k>"} <= inside
    assert len(inside) == 7
    assert data["nodes"]["a1.h1"]["in_graph"]
    assert not data["nodes"]["m1"]["in_graph"]


def test_the_mib_format_of_others_is_read(tmp_path):
    """Edges as booleans inside entries with scores, as the benchmark's submissions have them."""
    data = {
        "cfg": {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {"input": {"in_graph": True}},
        "edges": {
            "input->m0": {"score": 0.5, "in_graph": True},
            "m0->logits": {"score": -0.5, "in_graph": True},
            "input->logits": {"score": 0.1, "in_graph": False},
        },
    }
    (tmp_path / "c.json").write_text(json.dumps(data))
    assert list(Circuit.load(tmp_path / "c.json", LLAMA)) == ["input->m0", "m0->logits"]


def test_bad_files_and_names(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Circuit.load(bad, LLAMA)
    path = random_circuit(0).save(tmp_path / "c.json")
    with pytest.raises(ValueError, match="n_layers 3, this one has 5"):
        Circuit.load(path, LLAMA.replace(n_layers=5))
    with pytest.raises(ValueError, match="expected 'own' or 'mib'"):
        random_circuit(0).save(tmp_path / "c.json", "xml")
    with pytest.raises(ValueError, match="does not write"):
        Circuit.of_nodes(LLAMA, ["a7.h0"])
    with pytest.raises(ValueError, match=r"expected .*receivers, senders"):
        Circuit(GRAPH, np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="writes only after"):
        Circuit(GRAPH, np.ones(GRAPH.exists.shape, bool))
    with pytest.raises(ValueError, match="different shapes"):
        random_circuit(0) | Circuit.full(CONFIGS["gpt2"])
