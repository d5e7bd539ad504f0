"""Effects of features, errors and edges, against gradients and differences taken by hand."""

import functools

import jax
import numpy as np
import pytest
from small_models import (
    DIFF,
    OTHER,
    PROMPTS,
    in_float64,
    only_long,
    ragged,
    small_model,
    with_types,
)
from test_sae_metrics import dictionary

import jaxinterp as ji
from jaxinterp.sae import circuits as room
from jaxinterp.sae.nodes import feature_nodes, select_nodes

MODEL = "llama"
PLACES = (
    ("resid_post", 0), ("attn_out", 1), ("mlp_out", 1), ("resid_post", 1), ("mlp_out", 2),
)  # fmt: skip
NEIGHBOURS = (("resid_post", 0), ("resid_post", 1))
ACTIVATIONS = ("relu", "gated", "jumprelu", "topk", "relu")


@functools.cache
def dictionaries(places=PLACES, n_features=6):
    out = []
    for seed, ((site, layer), activation) in enumerate(zip(places, ACTIVATIONS, strict=False)):
        d = dictionary(
            seed,
            site=site,
            layers=(layer,),
            n_features=n_features,
            activation=activation,
            d_in=10 if site == "mlp_post" else 8,
        )
        out.append(d.replace(k=3) if activation == "topk" else d)
    return out


def values(model, tokens, place, edits=()):
    site, layer = place
    return ji.forward(model, tokens, edits, record=(site,)).activations[site][layer]


@jax.jit
def parts(d, x):
    f = d.encode(x)
    return f, x - d.decode(f)


def test_padding_and_batches_are_nothing():
    model, some = small_model(MODEL), dictionaries(NEIGHBOURS)
    padded = ragged([[3, 1, 4, 1], PROMPTS[1].tolist()], "left", 7)
    donor = ragged([[3, 1, 7, 1], OTHER[1].tolist()], "left", 7)
    one, other = np.array([[3, 1, 4, 1]]), np.array([[3, 1, 7, 1]])
    metric = ji.logit_diff(4, 8)
    nodes = feature_nodes(model, some, padded, DIFF, donor=donor, batch=1)
    alone = feature_nodes(model, some, one, metric, donor=other)
    np.testing.assert_allclose(nodes[:, 0], alone[:, 0], atol=1e-5)
    edges = room.feature_edges(model, some, padded, DIFF, nodes, donor=donor, batch=1)
    alone = room.feature_edges(model, some, one, metric, nodes, donor=other)
    np.testing.assert_allclose(edges[:, 0], alone[:, 0], atol=1e-5)
    whole = feature_nodes(model, some, PROMPTS[1:], ji.logit_diff(9, 2), donor=OTHER[1:])
    np.testing.assert_allclose(nodes[:, 1], whole[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "aggregate", "places"),
    [
        (MODEL, "sum", PLACES),
        (MODEL, "none", NEIGHBOURS),
        ("neox", "sum", PLACES[1:4]),
        only_long("bert", "sum", (("resid_post", 0), ("attn_out", 1), ("resid_post", 1))),
        only_long("gemma2", "sum", (("resid_pre", 1), ("resid_mid", 1), ("mlp_post", 2))),
    ],
)
def test_edges_add_up_to_their_node(name, aggregate, places):
    """The chain rule: over all later nodes, those that stop at the metric among them."""
    model, some = small_model(name), dictionaries(places)
    tokens, donor = with_types(name, PROMPTS), with_types(name, OTHER)
    found = feature_nodes(model, some, tokens, DIFF, donor=donor, aggregate=aggregate)
    nodes = select_nodes(found, 0.0)
    assert nodes.shape == (found.size // len(PROMPTS), len(PROMPTS))
    edges = room.feature_edges(model, some, tokens, DIFF, nodes, donor=donor)
    scale = max(1, float(np.abs(nodes).max()))
    for row, node in zip(nodes, nodes.node.values, strict=True):
        own = edges[edges.upstream.values == node]
        assert len(own)
        np.testing.assert_allclose(own.sum("edge"), row, atol=1e-5 * scale)
    ends = set(zip(edges.upstream.values, edges.downstream.values, strict=True))
    assert len(ends) == len(edges)
    if places == PLACES:
        assert ("attn_out.1.f0", "resid_post.1.error") in ends
        assert ("mlp_out.2.error", "metric") in ends
        assert not any(a.startswith("resid_post.0") and b.startswith("mlp_out.2") for a, b in ends)
    if places == NEIGHBOURS:  # all passes the next dictionary's features and error
        assert not any(a.startswith("resid_post.0") and b == "metric" for a, b in ends)


def test_edges_are_differences():
    """In float64: a node is moved by hand, those between are held, the later node's part of what
    comes is put in by itself."""
    h, places = 1e-5, PLACES[1:]
    sites = tuple(dict.fromkeys(site for site, _ in places))
    with jax.enable_x64(True):
        model = in_float64(MODEL)
        some = [
            jax.tree.map(np.float64, d.replace(k=None)).replace(k=d.k) for d in dictionaries()[1:]
        ]
        x = {place: values(model, PROMPTS, place) for place in places}
        y = {place: values(model, OTHER, place) for place in places}
        nodes = feature_nodes(model, some, PROMPTS, DIFF, donor=OTHER)
        sizes = np.abs(nodes.mean("prompt").values).reshape(len(some), -1)
        best = np.argsort(-sizes[:, :-1], axis=1)[:, :2]
        rows = [7 * i + k for i in range(len(some)) for k in (*best[i].tolist(), 6)]
        nodes = nodes.isel(node=sorted(rows))
        edges = room.feature_edges(model, some, PROMPTS, DIFF, nodes, donor=OTHER)

        def edits(moved):
            """One program, whichever places they are."""
            out = []
            for site in sites:
                put, mask = np.zeros((3, *x[places[0]].shape)), np.zeros(3, bool)
                for own, layer in moved:
                    if own == site:
                        put[layer], mask[layer] = moved[own, layer], True
                out.append(ji.replace(site, put, layer=mask))
            return out

        def measured(moved):
            return np.asarray(ji.evaluate(DIFF, model, PROMPTS, edits(moved)))

        def read(place, moved):
            found = ji.forward(model, PROMPTS, edits(moved), record=sites)
            return found.activations[place[0]][place[1]]

        def written(d, feature, value):
            """A node's share of a value [B P D]."""
            f, e = parts(d, value)
            return e if feature < 0 else f[..., [feature]] * d.params.W_dec[feature]

        def slope(of):
            return (of(h) - of(-h)) / (2 * h)

        def edge(up, down):
            (a, d, feature), (b, e, later) = up, down or (None,) * 3
            step = written(d, feature, y[a]) - written(d, feature, x[a])
            if down is None:
                return slope(lambda t: measured({**x, a: x[a] + t * step}))
            others = {place: v for place, v in x.items() if place != b}
            part = slope(lambda t: written(e, later, read(b, {**others, a: x[a] + t * step})))
            return slope(lambda t: measured({b: x[b] + t * part}))

        named = {"metric": None}
        for node in nodes:
            i = places.index((str(node.site.values), int(node.layer)))
            named[str(node.node.values)] = places[i], some[i], int(node.feature)
        ends = list(zip(edges.upstream.values, edges.downstream.values, strict=True))
        true = np.stack([edge(named[up], named[down]) for up, down in ends])
        np.testing.assert_allclose(edges, true, atol=1e-6)
        assert np.abs(true).max() > 1e-2
        # attn_out.1 to mlp_out.1 and resid_post.1, that to it, it to mlp_out.2; two to the metric
        assert len(ends) == 4 * 9 + 2 * 3


def test_what_is_refused():
    model, some = small_model(MODEL), dictionaries(NEIGHBOURS)
    found = feature_nodes(model, some, PROMPTS, DIFF)
    with pytest.raises(ValueError, match=r"1000\.0 or more.* of resid_post"):
        room.feature_circuit(
            model, some, PROMPTS, DIFF, node_threshold=1e3, edge_threshold=0, steps=1
        )
    for given, message in (
        (found, "no dictionary for resid_post.1.f0: give the one at resid_post.1"),
        (found[:3].assign_coords(feature=("node", [0, 1, 6])), "the dictionary has 6 features"),
        (found[:3].assign_coords(position=("node", [0, 7, 1])), "position 7, the prompts have 7"),
    ):
        with pytest.raises(ValueError, match=message):
            room.feature_edges(model, some[:1], PROMPTS, DIFF, given)
