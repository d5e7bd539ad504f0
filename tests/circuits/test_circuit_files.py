"""Circuits in files: scores and marks that others need, and what others write, key by key."""

import json
import math

import numpy as np
import pytest
from small_models import CONFIGS

from jaxinterp.circuits import Circuit, Graph, circuit, top_edges
from jaxinterp.loading import LoadError
from jaxinterp.reading import JSON_BYTES

LLAMA = CONFIGS["llama"]  # 4 heads, 2 key/value heads
GRAPHS = {name: Graph(CONFIGS[name]) for name in ("gpt2", "llama", "neox")}


def scored(graph, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    edges = graph.exists & (rng.random(graph.exists.shape) < share)
    scores = rng.normal(size=graph.n_edges)
    nodes = rng.normal(size=graph.n_senders)
    nodes[1::3] = np.nan
    return Circuit(graph, edges, scores, nodes)


def theirs(cfg):
    """Nodes and edges of a graph as MIB and EAP-IG name them, from their description."""
    nodes, edges, before = ["input"], [], ["input"]
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
        mlp = f"m{layer}"
        edges += [f"{s}->{head}<{x}>" for s in before for head in heads for x in "qkv"]
        readers = before if cfg["parallel_attn_mlp"] else [*before, *heads]
        edges += [f"{s}->{mlp}" for s in readers]
        before = [*before, *heads, mlp]
        nodes += [*heads, mlp]
    return [*nodes, "logits"], [*edges, *(f"{s}->logits" for s in before)]


def read_as_they_do(path):
    """What their reader takes from a file, or the exception that it would end with.

    It builds the graph of ``cfg``, then sets every node and edge of the file by name: a node needs
    in_graph, an edge needs score and in_graph, and a name that is not in the graph is a KeyError.
    """
    data = json.loads(path.read_text())
    assert all(key in data for key in ("cfg", "nodes", "edges"))
    nodes, edges = (dict.fromkeys(names) for names in theirs(data["cfg"]))
    for name, entry in data["nodes"].items():
        if name == "logits":
            continue
        nodes[name]  # a KeyError for a stranger
        nodes[name] = (entry["in_graph"], entry.get("score"))
    scores = dict.fromkeys(edges, 0.0)
    inside = dict.fromkeys(edges, False)
    for name, entry in data["edges"].items():
        scores[name]
        scores[name], inside[name] = float(entry["score"]), entry["in_graph"]
        assert isinstance(entry["in_graph"], bool)
    return nodes, scores, inside


def by_query(graph, edge):
    size = graph.config.n_heads // graph.config.n_kv_heads
    sender, receiver = edge.split("->")
    if receiver[-3:] not in ("<k>", "<v>"):
        return [edge]
    stem, head = receiver[:-3].split(".h")
    return [f"{sender}->{stem}.h{int(head) * size + i}{receiver[-3:]}" for i in range(size)]


@pytest.mark.parametrize("name", GRAPHS)
def test_their_reader_takes_every_edge_with_its_score(name, tmp_path):
    graph = GRAPHS[name]
    circuit = scored(graph)
    nodes, scores, inside = read_as_they_do(circuit.save(tmp_path / "c.json", "mib"))
    assert sorted(scores) == sorted(q for edge in graph.edges for q in by_query(graph, edge))
    for edge in graph.edges:
        names = by_query(graph, edge)
        own = circuit.scores[graph.place(edge)]
        np.testing.assert_allclose(sum(scores[q] for q in names), own)
        assert all(inside[q] == (edge in circuit) for q in names)
        for q in names if edge in circuit else ():  # as after their pruning: ends are marked
            ends = {q.split("->")[0], q.split("->")[1].split("<")[0]} - {"logits"}
            assert all(nodes[end][0] for end in ends)
    for sender, score in zip(graph.senders, circuit.node_scores, strict=True):
        assert nodes[sender][1] == (None if math.isnan(score) else score)


@pytest.mark.parametrize("form", ["own", "mib"])
@pytest.mark.parametrize("name", GRAPHS)
def test_scores_come_back(name, form, tmp_path):
    circuit = scored(GRAPHS[name], 1)
    again = Circuit.load(circuit.save(tmp_path / "c.json", form), GRAPHS[name])
    assert again == circuit
    np.testing.assert_allclose(again.scores, circuit.scores, rtol=1e-15)
    np.testing.assert_array_equal(again.node_scores, circuit.node_scores)
    text = (tmp_path / "c.json").read_text()
    assert again.save(tmp_path / "d.json", form).read_text() == text


def test_without_scores_those_of_the_circuit_count_one(tmp_path):
    circuit = Circuit(GRAPHS["gpt2"], scored(GRAPHS["gpt2"]).edges)
    assert Circuit.load(circuit.save(tmp_path / "own.json"), circuit.graph).scores is None
    _, scores, inside = read_as_they_do(circuit.save(tmp_path / "c.json", "mib"))
    assert scores == {edge: float(inside[edge]) for edge in scores}
    again = Circuit.load(tmp_path / "c.json", circuit.graph)
    np.testing.assert_array_equal(again.scores, circuit.edges)


def test_a_chosen_circuit_keeps_what_it_was_chosen_by(tmp_path):
    graph = GRAPHS["llama"]
    weights = np.random.default_rng(2).normal(size=graph.n_edges)
    circuit = top_edges(graph, weights, 30)
    np.testing.assert_array_equal(circuit.scores[graph.exists], weights)
    np.testing.assert_array_equal(circuit.pruned().scores, circuit.scores)
    again = Circuit.load(circuit.save(tmp_path / "c.json", "mib"), graph)
    assert top_edges(graph, again.scores, 30) == circuit
    assert (circuit | circuit).scores is None


def test_what_the_format_has_no_place_for_is_not_written(tmp_path):
    graph = GRAPHS["gpt2"]
    by_position = np.broadcast_to(graph.exists[..., None], (*graph.exists.shape, 4))
    with pytest.raises(ValueError, match="knows no positions"):
        Circuit(graph, by_position).save(tmp_path / "c.json", "mib")
    endless = np.where(np.arange(graph.n_edges) == 3, np.inf, 0)
    with pytest.raises(ValueError, match=f"The score of {graph.edges[3]} is inf"):
        Circuit(graph, graph.exists, endless).save(tmp_path / "c.json", "mib")
    with pytest.raises(ValueError, match="Some scores are NaN"):
        Circuit(graph, graph.exists, endless * np.nan)
    with pytest.raises(ValueError, match="expected one per edge"):
        Circuit(graph, graph.exists, [1.0])
    with pytest.raises(ValueError, match="node_scores has shape"):
        Circuit(graph, graph.exists, None, [1.0])
    assert not list(tmp_path.iterdir())


def their_file(graph, seed=0, queries=None):
    """A file as EAP-IG writes it: every edge with a score; those of the circuit and their nodes."""
    cfg = {n: graph.to_dict()[n] for n in ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")}
    rng = np.random.default_rng(seed)
    nodes, edges = theirs(cfg)
    chosen = {q for e in graph.edges if rng.random() < 0.3 for q in by_query(graph, e)}
    ends = {end.split("<")[0] for edge in chosen for end in edge.split("->")}
    return {
        "cfg": cfg,
        "nodes": {n: {"in_graph": n in ends or n == "logits"} for n in nodes},
        "edges": {e: {"score": rng.normal(), "in_graph": e in chosen} for e in edges},
    }


def written(path, data):
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", GRAPHS)
def test_their_files_are_read_with_scores(name, tmp_path):
    graph = GRAPHS[name]
    data = their_file(graph)
    circuit = Circuit.load(written(tmp_path / "c.json", data), graph)
    for edge in graph.edges:
        names = by_query(graph, edge)
        assert (edge in circuit) == data["edges"][names[0]]["in_graph"]
        total = sum(data["edges"][q]["score"] for q in names)
        np.testing.assert_allclose(circuit.scores[graph.place(edge)], total)
    assert circuit.node_scores is None
    none = {**data, "edges": {e: {**x, "score": None} for e, x in data["edges"].items()}}
    assert Circuit.load(written(tmp_path / "d.json", none), graph).scores is None


def test_a_shared_key_for_some_queries_only(tmp_path):
    graph, data = GRAPHS["llama"], their_file(GRAPHS["llama"])
    for name in ("input->a0.h2<k>", "input->a0.h3<k>"):
        data["edges"][name]["in_graph"] = name.endswith("3<k>")
    data["nodes"]["input"]["in_graph"] = data["nodes"]["a0.h3"]["in_graph"] = True
    path = written(tmp_path / "c.json", data)
    with pytest.raises(LoadError, match=r"has 1 of 2 edges in the graph that are one here"):
        Circuit.load(path, graph)
    for shared in ("any", "all"):
        circuit = Circuit.load(path, graph, shared=shared)
        assert ("input->a0.h1<k>" in circuit) == (shared == "any")
    with pytest.raises(ValueError, match="shared='some', expected one of"):
        Circuit.load(path, graph, shared="some")


CFG, NODES, EDGES = "cfg", "nodes", "edges"
EDGE, NODE = "input->m0", "m0"
CHANGES = [  # where, the new value (None takes it out), what the error names; None: as it was
    ([CFG], None, "cfg"), ([NODES], None, "nodes"), ([EDGES], None, "edges"),
    ([CFG], [], "cfg"), ([NODES], [], "nodes"), ([EDGES], [], "edges"),
    ([CFG, "n_layers"], None, "n_layers"), ([CFG, "n_layers"], 7, "n_layers"),
    ([CFG, "n_heads"], None, "n_heads"), ([CFG, "n_heads"], 2, "n_heads"),
    ([CFG, "d_model"], None, None), ([CFG, "d_model"], 7, "d_model"),
    ([CFG, "parallel_attn_mlp"], None, None), ([CFG, "parallel_attn_mlp"], True, "parallel_attn"),
    ([CFG, "n_kv_heads"], 1, "n_kv_heads"), ([CFG, "attn_only"], True, "attn_only"),
    ([CFG, "never_heard_of"], 1, None), (["neurons"], {}, "neurons"), (["more"], 1, "more"),
    ([NODES, NODE], None, None), ([NODES, NODE], 7, NODE), ([NODES, NODE], {}, NODE),
    ([NODES, NODE], True, None), ([NODES, NODE], False, NODE), ([NODES, "m9"], True, "m9"),
    ([NODES, "a0.h9"], True, "a0.h9"), ([NODES, "a0.h0<q>"], True, "a0.h0<q>"),
    ([NODES, NODE, "in_graph"], None, NODE), ([NODES, NODE, "in_graph"], 1, NODE),
    ([NODES, NODE, "in_graph"], False, NODE), ([NODES, NODE, "more"], 1, "more"),
    ([NODES, NODE, "score"], "x", NODE), ([NODES, NODE, "score"], 1e400, NODE),
    ([NODES, NODE, "neurons"], [True, True], None), ([NODES, NODE, "neurons"], [True, False], NODE),
    ([NODES, NODE, "neurons"], 3, "neurons"), ([NODES, NODE, "neurons_scores"], [0.5], NODE),
    ([NODES, NODE, "neurons_scores"], [math.nan], None), ([NODES, "logits"], None, None),
    ([EDGES, EDGE], None, "edges"), ([EDGES, EDGE], 7, EDGE), ([EDGES, EDGE], {}, EDGE),
    ([EDGES, EDGE], True, EDGE), ([EDGES, EDGE, "score"], None, EDGE),
    ([EDGES, EDGE, "score"], "x", EDGE), ([EDGES, EDGE, "score"], math.nan, EDGE),
    ([EDGES, EDGE, "score"], math.inf, EDGE), ([EDGES, EDGE, "score"], True, EDGE),
    ([EDGES, EDGE, "in_graph"], None, EDGE), ([EDGES, EDGE, "in_graph"], "no", EDGE),
    ([EDGES, EDGE, "more"], 1, "more"),
    ([EDGES, "input->m9"], {"score": 1, "in_graph": True}, "input->m9"),
    ([EDGES, "m0->a0.h0<q>"], {"score": 1, "in_graph": False}, "m0->a0.h0<q>"),
    ([EDGES, "input->a0.h9<k>"], {"score": 1, "in_graph": False}, "input->a0.h9<k>"),
    ([EDGES, "input->a0.hx<k>"], {"score": 1, "in_graph": False}, "input->a0.hx<k>"),
    ([EDGES, "input"], {"score": 1, "in_graph": False}, "'input'"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value", "named"), CHANGES)
def test_every_key_of_their_files_counts(where, value, named, tmp_path):
    graph = GRAPHS["gpt2"]
    data = their_file(graph)
    data["edges"][EDGE]["in_graph"] = True
    data["nodes"]["input"]["in_graph"] = data["nodes"][NODE]["in_graph"] = True
    plain = Circuit.load(written(tmp_path / "plain.json", data), graph)
    inside = data
    for key in where[:-1]:
        inside = inside[key]
    if value is None:
        inside.pop(where[-1], None)
    else:
        inside[where[-1]] = value
    path = written(tmp_path / "c.json", data)
    if where == [EDGES, EDGE] and value is None:  # as their reader has it: outside, score 0
        found = Circuit.load(path, graph)
        assert set(plain) - set(found) == {EDGE}
        assert found.scores[graph.place(EDGE)] == 0
    elif named is None:
        found = Circuit.load(path, graph)
        assert found == plain
        np.testing.assert_array_equal(found.scores, plain.scores)
    else:
        with pytest.raises(LoadError) as error:
            Circuit.load(path, graph)
        assert named in str(error.value)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("form", ["own", "mib"])
def test_what_is_written_is_never_too_large_to_read(heads, form, tmp_path, monkeypatch):
    """The limit grows with the graph: of Llama 3.1 8B's 805,681 edges the MIB file has 113 MiB."""
    n_heads, n_kv_heads = heads
    graph = Graph(LLAMA.replace(n_layers=8, n_heads=n_heads, n_kv_heads=n_kv_heads))
    path = scored(graph).save(tmp_path / "c.json", format=form)
    monkeypatch.setattr(circuit, "JSON_BYTES", 1)
    assert Circuit.load(path, graph) == scored(graph)
    path.write_bytes(path.read_bytes() + b" " * 400 * graph.n_edges)
    with pytest.raises(LoadError, match="expected at most"):
        Circuit.load(path, graph)
    many = np.repeat(graph.exists[..., None], 200, -1)
    with pytest.raises(ValueError, match="save fewer positions"):
        Circuit(graph, many).save(tmp_path / "d.json")
    assert not (tmp_path / "d.json").exists()


def test_a_file_beyond_the_usual_limit(tmp_path):
    graph = Graph(LLAMA.replace(n_layers=20, n_heads=16, n_kv_heads=16))
    found = Circuit(graph, graph.mask(graph.edges[:9]))
    path = found.save(tmp_path / "c.json")
    path.write_bytes(path.read_bytes() + b" " * JSON_BYTES)
    assert Circuit.load(path, graph) == found


def test_every_key_of_our_files_counts(tmp_path):
    circuit = scored(GRAPHS["gpt2"])
    data = circuit._to_dict()
    for key in data:
        for value in (None, 7, "x", [1], {"a": 1}):
            new = {n: v for n, v in data.items() if n != key or value is not None}
            if value is not None:
                new[key] = value
            path = written(tmp_path / "c.json", new)
            if value is None and key in ("scores", "node_scores"):
                found = Circuit.load(path, circuit.graph)
                assert found == circuit
                assert getattr(found, key) is None
                continue
            with pytest.raises(LoadError):
                Circuit.load(path, circuit.graph)
    with pytest.raises(LoadError, match="never_heard_of"):
        Circuit.load(written(tmp_path / "c.json", {**data, "never_heard_of": 1}), circuit.graph)
