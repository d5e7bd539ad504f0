"""Cases of circuits: edges, paths, scores, gates and measures."""

import functools

import numpy as np
from cases import EXACT, FORWARD, GRADIENT, case
from small_models import CORRECT, OTHER, PROMPTS, WRONG, small_model

import jaxinterp as ji
from jaxinterp import circuits
from jaxinterp.model import as_tokens

PAIR = {"clean": PROMPTS, "corrupted": OTHER, "metric": ji.log_prob(CORRECT)}
SIGNS = {"bfloat16": 0.2, "float16": 0.05}  # Adam's first steps go by the signs of slopes
RATIO = {"bfloat16": 0.3, "float16": 0.05}  # of small differences of a model's rounded numbers
NAMES = ["input->a0.h1<q>", "a0.h1->a2.h0<v>", "m0->m2", "a1.h2->logits"]


@functools.cache
def _circuit():
    """Every third edge of the small model."""
    graph = circuits.Graph(small_model("llama").config)
    edges = graph.exists.copy()
    edges[graph.exists] = np.arange(graph.n_edges) % 3 > 0
    return circuits.Circuit(graph, edges)


@case("circuits.patch_edges", "circuits.importance", long=True)
def patched_edges(given):
    found = circuits.patch_edges(given.model(), **PAIR, edges=NAMES)
    return found, circuits.importance(found) + found.clean.mean()


@case("circuits.patch_paths", long=True)
def patched_paths(given):
    return circuits.patch_paths(
        given.model(), **PAIR, receivers=["a2.h0<q>", "logits"], through="mlps"
    )


@case("circuits.attribute_edges", within=GRADIENT, long=True)
def attributed_edges(given):
    methods = {"eap": 1, "eap-ig-inputs": 100, "eap-ig-activations": 3, "ig-edges": 100}
    found = {
        method: circuits.attribute_edges(given.model(), **PAIR, method=method, steps=steps)
        for method, steps in methods.items()
    }
    return {method: ji.stats.effects(each).values for method, each in found.items()}


@case("circuits.evaluate_circuits", "circuits.faithfulness", within=FORWARD, long=True)
def evaluated_circuits(given):
    listed = [_circuit(), circuits.Circuit.full(given.model())]
    found = circuits.evaluate_circuits(given.model(), listed, **PAIR)
    circuits.faithfulness(found)
    return found


@case("circuits.faithfulness", "circuits.cmd", "circuits.cpr", within=EXACT)
def faithfulness_of_stored_values(given):
    import xarray as xr

    values = np.asarray(given.normal(4, 300, shift=20))
    ends = {end: ("prompt", np.asarray(given.normal(300, shift=at, seed=at)))
            for end, at in (("clean", 22), ("corrupted", 18))}  # fmt: skip
    found = xr.DataArray(values, ends, ("circuit", "prompt"), "m", {"direction": "noise"})
    faithful = circuits.faithfulness(found).assign_coords(fraction=("circuit", [0.1, 0.2, 0.5, 1]))
    stored = faithful.copy(data=np.asarray(given.cast(faithful.values)))
    return [faithful, circuits.cmd(stored), circuits.cpr(stored)]


@case("circuits.faithfulness_curve", within=RATIO, long=True)
def faithfulness_curve(given):
    scores = given.normal(_circuit().graph.n_edges)
    return circuits.faithfulness_curve(given.model(), scores, **PAIR, fractions=(0.2, 0.9, 1))


@case("circuits.incompleteness", long=True)
def incompleteness(given):
    return circuits.incompleteness(given.model(), _circuit(), **PAIR, samples=3)


@case("circuits.worst_incompleteness", "circuits.importance", within=EXACT)
def worst_of_stored_values(given):
    import xarray as xr

    values = np.asarray(given.normal(2, 5, 300, shift=20))
    coords = {"of": ["circuit", "model"], "nodes": ("set", list("abcde"))}
    found = xr.DataArray(values, coords, ("of", "set", "prompt"))
    edges = xr.DataArray(
        values[0], {"clean": ("prompt", values[1, 0])}, ("edge", "prompt"), "m",
        {"direction": "noise"},
    )  # fmt: skip
    return circuits.worst_incompleteness(found)[0], circuits.importance(edges)


@case("circuits.minimality", within=RATIO, long=True)
def minimality(given):
    heads = circuits.Circuit.of_nodes(given.model(), ["input", "a1.h0", "m1", "logits"])
    return circuits.minimality(given.model(), heads, **PAIR, samples=2)


@case("circuits.specificity", long=True)
def specificity(given):
    texts = ("", "")
    tokens = [as_tokens(ids) for ids in (PROMPTS, OTHER)]
    task = ji.Task(
        "own", *tokens, PAIR["metric"], np.array(CORRECT), np.array(WRONG), {}, texts, texts
    )
    return circuits.specificity(given.model(), _circuit(), {"own": task})


@case("circuits.prune_edges", within=SIGNS, long=True)
def pruned_edges(given):
    return circuits.prune_edges(given.model(), **PAIR, share=0.5, steps=5)[1]


@case("circuits.roc", "circuits.stability", "circuits.Circuit.share", "circuits.Circuit.jaccard",
      within=EXACT)  # fmt: skip
def counts_of_edges(given):
    half = _circuit()
    scores = given.normal(half.graph.n_edges)
    other = circuits.Circuit.full(half.graph)
    found = circuits.roc(scores, half)
    return found, circuits.stability([half, other]), half.share, half.jaccard(other)
