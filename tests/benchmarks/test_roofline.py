"""Operation counts: against published numbers, and against counting node by node."""

import numpy as np
import pytest
import roofline

from jaxinterp.model import Config
from jaxinterp.model.sites import absent
from jaxinterp.sweep.flops import cell_bound, n_edges

GPT2_SMALL = Config(
    n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, vocab_size=50257, n_ctx=1024,
    gated=False, act="gelu", positions="learned",
)  # fmt: skip
TINY = Config(
    n_layers=3, d_model=12, n_heads=4, d_head=6, d_mlp=7, vocab_size=11, n_ctx=8, gated=False
)
FAMILIES = {
    "plain": TINY,
    "gated": TINY.replace(gated=True),
    "grouped": TINY.replace(n_kv_heads=2),
    "parallel": TINY.replace(parallel=True),
    "attention only": TINY.replace(d_mlp=0),
    "one layer": TINY.replace(n_layers=1),
}
LENGTH, COLUMNS = 5, 2


def in_tera(operations, digits):
    """As printed: so many significant digits of 10^12 operations."""
    return float(f"{operations / 1e12:.{digits}g}")


class Graph:
    """Every matrix product of a small model as nodes: what each costs and what it reads."""

    def __init__(self, config, length):
        self.config, self.length = config, length
        self.cost, self.reads = {}, {}
        c, times = config, range(length)
        share = c.n_heads // c.n_kv_heads
        for t in times:
            self.add(("resid", 0, t), 0)
        for i in range(c.n_layers):
            for t in times:
                for h in range(c.n_heads):
                    self.add(("q", i, h, t), madds(c.d_model, c.d_head), ("resid", i, t))
                for g in range(c.n_kv_heads):
                    for name in "kv":
                        self.add((name, i, g, t), madds(c.d_model, c.d_head), ("resid", i, t))
                for h in range(c.n_heads):
                    seen = range(t + 1)
                    sources = [(n, i, h // share, s) for s in seen for n in "kv"]
                    each = [madds(c.d_head) + madds(c.d_head) for _ in seen]
                    self.add(("row", i, h, t), sum(each), ("q", i, h, t), *sources)
                    self.add(("out", i, h, t), madds(c.d_head, c.d_model), ("row", i, h, t))
                outs = [("out", i, h, t) for h in range(c.n_heads)]
                self.add(("mid", i, t), 0, ("resid", i, t), *outs)
                mlp_in = ("resid" if c.parallel else "mid", i, t)
                self.add(("mlp", i, t), (3 if c.gated else 2) * madds(c.d_model, c.d_mlp), mlp_in)
                ends = [("mid", i, t)] + ([("mlp", i, t)] if c.d_mlp else [])
                self.add(("resid", i + 1, t), 0, *ends)
        self.end = ("resid", c.n_layers, length - 1)

    def add(self, node, cost, *reads):
        self.cost[node], self.reads[node] = cost, reads

    def needed(self):
        """Everything the last position's stream depends on."""
        found, open_ = set(), [self.end]
        while open_:
            node = open_.pop()
            if node not in found:
                found.add(node)
                open_ += self.reads[node]
        return found

    def patched(self, *sources, paid=False):
        """The operations after some nodes change (``paid``: themselves too)."""
        changed = set(sources)
        for node, reads in self.reads.items():  # in the order they were added: reads first
            if any(r in changed for r in reads):
                changed.add(node)
        counted = changed if paid else changed - set(sources)
        readout = COLUMNS * madds(self.config.d_model)
        return sum(self.cost[n] for n in counted & self.needed()) + readout


def madds(*sizes):
    """Operations of an einsum over axes of these sizes: a multiplication and an addition."""
    return sum(2 for _ in np.ndindex(*sizes))


def test_matches_the_published_table():
    t, c = 15, GPT2_SMALL
    assert in_tera(roofline.hook_loop(c, t, 180), 3) == 0.668
    assert in_tera(roofline.hook_loop(c, t, 144), 3) == 0.534
    assert in_tera(roofline.residual_bound(c, t), 4) == 0.1135
    assert in_tera(roofline.residual_bound(c, t, 10), 3) == 0.0148
    assert in_tera(roofline.head_bound(c, t), 3) == 0.166
    assert in_tera(roofline.head_bound(c, t, 10), 3) == 0.0564
    assert n_edges(c) == 32_491
    assert in_tera(roofline.hook_loop(c, t, n_edges(c)), 4) == 120.6
    assert in_tera(roofline.edge_bound(c, t), 3) == 22.7
    assert in_tera(roofline.edge_bound(c, t, 10), 2) == 7.8


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_full_forward_is_all_nodes(config):
    graph = Graph(config, LENGTH)
    unembedding = LENGTH * madds(config.d_model, config.vocab_size)
    expected = sum(graph.cost.values()) + unembedding
    assert roofline.full_forward(config, LENGTH) == expected
    last = roofline.full_forward(config, LENGTH, reads=1, columns=COLUMNS)
    assert last == expected - unembedding + COLUMNS * madds(config.d_model)
    assert roofline.hook_loop(config, LENGTH, 3) == 3 * expected


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("first", range(LENGTH + 1))
def test_residual_bound_counts_what_changes_and_is_read(config, first):
    graph = Graph(config, LENGTH)
    expected = sum(
        graph.patched(("resid", i, t)) for i in range(config.n_layers) for t in range(first, LENGTH)
    )
    assert roofline.residual_bound(config, LENGTH, first, columns=COLUMNS) == expected


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("first", range(LENGTH))
def test_head_bound_counts_what_changes_and_is_read(config, first):
    graph = Graph(config, LENGTH)
    expected = sum(
        graph.patched(*(("row", i, h, t) for t in range(first, LENGTH)))
        for i in range(config.n_layers)
        for h in range(config.n_heads)
    )
    assert roofline.head_bound(config, LENGTH, first, columns=COLUMNS) == expected


@pytest.mark.parametrize("name", ["plain", "gated", "parallel", "attention only", "one layer"])
@pytest.mark.parametrize("first", [0, 2, LENGTH - 1])
def test_edge_bound_counts_what_changes_and_is_read(name, first):
    config = FAMILIES[name]
    graph = Graph(config, LENGTH)
    times = range(first, LENGTH)
    expected, edges, written = 0, 0, 1
    for i in range(config.n_layers):
        receivers = {(n, i, h): written for n in "qkv" for h in range(config.n_heads)}
        if config.d_mlp:
            receivers[("mlp", i)] = written + (0 if config.parallel else config.n_heads)
        for receiver, senders in receivers.items():
            nodes = [(*receiver, t) for t in times]
            expected += senders * graph.patched(*nodes, paid=True)
            edges += senders
        written += config.n_heads + bool(config.d_mlp)
    expected += written * COLUMNS * madds(config.d_model)
    assert n_edges(config) == edges + written
    assert roofline.edge_bound(config, LENGTH, first, columns=COLUMNS) == expected


def test_bounds_grow_with_what_changes():
    for bound in (roofline.residual_bound, roofline.head_bound, roofline.edge_bound):
        values = [bound(TINY, LENGTH, first) for first in range(LENGTH + 1)]
        assert values == sorted(values, reverse=True)
        assert values[-1] == 0
        with pytest.raises(ValueError, match="outside"):
            bound(TINY, LENGTH, LENGTH + 1)
        with pytest.raises(ValueError, match="causal"):
            bound(TINY.replace(causal=False), LENGTH)


def test_matmul_rate_times_the_product_alone():
    prepared, ran = [], []

    def prepare(a, b):
        prepared.append((a.shape, a.dtype))
        return lambda: ran.append(a @ b)

    assert roofline.matmul_rate(prepare, size=32, repeats=3) > 0
    assert prepared == [((32, 32), np.float32)]
    assert len(ran) == 4  # one to warm up


NODES = {  # site: the nodes that change with one of its heads, and how many heads it has
    "resid_pre": (lambda i, t: ("resid", i, t), None),
    "q": (lambda i, t: ("q", i, 0, t), "n_heads"),
    "k": (lambda i, t: ("k", i, 0, t), "n_kv_heads"),
    "v": (lambda i, t: ("v", i, 0, t), "n_kv_heads"),
    "z": (lambda i, t: ("row", i, 0, t), "n_heads"),
    "resid_mid": (lambda i, t: ("mid", i, t), None),
    "mlp_out": (lambda i, t: ("mlp", i, t), None),
    "resid_post": (lambda i, t: ("resid", i + 1, t), None),
}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("site", NODES)
@pytest.mark.parametrize("whole", [False, True], ids=["here", "from here on"])
def test_cell_bound_counts_what_changes_and_is_read(config, site, whole):
    if site in absent(config):
        pytest.skip("no such site")
    graph, (node, heads) = Graph(config, LENGTH), NODES[site]
    part = 1 / getattr(config, heads) if heads else 1.0
    for i in range(config.n_layers):
        for t in range(LENGTH):
            times = range(t, LENGTH) if whole else [t]
            ours = cell_bound(config, site, LENGTH, i, t, whole=whole, part=part, columns=COLUMNS)
            assert ours == graph.patched(*(node(i, u) for u in times)), (i, t)
