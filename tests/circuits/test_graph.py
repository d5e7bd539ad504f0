import dataclasses

import numpy as np
import pytest
from small_models import CONFIGS

from jaxinterp.circuits.graph import Graph
from jaxinterp.sweep.flops import n_edges

NAMES = [name for name, config in CONFIGS.items() if not config.norm_stream]


def obvious_edges(config):
    """Every edge, by walking through the model as it is read."""
    edges, written = set(), ["input"]
    for l in range(config.n_layers):
        heads = [f"a{l}.h{h}" for h in range(config.n_heads)]
        readers = [f"a{l}.h{h}<q>" for h in range(config.n_heads)]
        readers += [f"a{l}.h{h}<{kv}>" for kv in "kv" for h in range(config.n_kv_heads)]
        edges |= {f"{s}->{r}" for s in written for r in readers}
        if config.attention_only:
            written = written + heads
            continue
        seen = written if config.parallel else written + heads
        edges |= {f"{s}->m{l}" for s in seen}
        written = [*written, *heads, f"m{l}"]
    return edges | {f"{s}->logits" for s in written}


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_those_one_meets_walking_through(name):
    graph = Graph(CONFIGS[name])
    assert set(graph.edges) == obvious_edges(CONFIGS[name])
    assert len(graph.edges) == graph.n_edges == n_edges(CONFIGS[name])
    for edge in graph.edges:
        assert graph.exists[graph.place(edge)]
    assert graph.mask(graph.edges).sum() == graph.n_edges


def test_gpt2_small_has_32491():
    config = CONFIGS["gpt2"].replace(n_layers=12, n_heads=12, n_kv_heads=12, d_model=768)
    graph = Graph(config)
    assert graph.n_edges == 32_491
    assert (graph.n_senders, graph.n_receivers) == (157, 445)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_places_agree(name):
    config = CONFIGS[name]
    graph = Graph(config)
    for layer in range(config.n_layers):
        for head in range(config.n_heads):
            assert graph.senders[graph.sender(layer, head)] == f"a{layer}.h{head}"
            at = graph.receiver(layer, "q", head)
            assert graph.receivers[at] == f"a{layer}.h{head}<q>"
            assert graph.where(at) == ("q", layer, head)
        for head in range(config.n_kv_heads):
            assert graph.receivers[graph.receiver(layer, "v", head)] == f"a{layer}.h{head}<v>"
        if not config.attention_only:
            assert graph.senders[graph.sender(layer)] == f"m{layer}"
            assert graph.receivers[graph.receiver(layer, "mlp")] == f"m{layer}"
    assert [graph.layer_of(i) for i in range(graph.n_senders)] == [
        -1 if s == "input" else int(s[1:].split(".")[0]) for s in graph.senders
    ]
    assert graph.where(graph.n_receivers - 1)[0] == "logits"


def test_a_head_reads_its_own_query_and_its_groups_keys():
    graph = Graph(CONFIGS["llama"])  # 4 heads, 2 key/value heads
    row = graph.readers[graph.sender(1, 3)]
    assert [graph.receivers[i] for i in np.flatnonzero(row)] == ["a1.h3<q>", "a1.h1<k>", "a1.h1<v>"]
    assert not graph.readers[0].any()


@pytest.mark.parametrize(
    ("edge", "says"),
    [
        ("a1.h0->a0.h0<q>", "writes only after"),
        ("m0->a0.h0<q>", "writes only after"),
        ("a0.h0->a1.h3<k>", "not an edge"),  # there are two key/value heads
        ("logits->input", "not an edge"),
        ("a0.h0", "not an edge"),
    ],
)
def test_what_is_not_an_edge_is_refused(edge, says):
    with pytest.raises(ValueError, match=says):
        Graph(CONFIGS["llama"]).place(edge)


def test_post_norm_streams_are_refused():
    with pytest.raises(ValueError, match="not a sum over senders"):
        Graph(CONFIGS["bert"])


def test_parallel_blocks_lose_the_edges_within_a_layer():
    config = CONFIGS["neox"]
    sequential = dataclasses.replace(config, parallel=False)
    lost = set(Graph(sequential).edges) - set(Graph(config).edges)
    assert lost == {f"a{l}.h{h}->m{l}" for l in range(3) for h in range(4)}
