"""Circuits in the JSON of the MIB benchmark and of EAP-IG, read and written.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h1": {"in_graph": true, "score"?, "neurons"?, "neurons_scores"?}},
     "edges": {"a0.h1->m2": {"score": 0.25, "in_graph": true}}}

Both of their readers need a score of every edge (MIB-circuit-track, and ``Graph.from_json`` of
hannamw/EAP-IG). They name keys and values by query head, also where several heads share one: what
such an edge of ours scores is there the sum of its queries' scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxinterp.circuits.graph import Graph
from jaxinterp.reading import LoadError

Shared = Literal["same", "any", "all"]


class Found(NamedTuple):
    """What a file holds: edges bool [R S], scores [R S] and node_scores [S], None without any.

    node_scores is NaN for a node that has none.
    """

    edges: np.ndarray
    scores: np.ndarray | None
    node_scores: np.ndarray | None


def by_query(graph: Graph, edge: str) -> list[str]:
    """The names of an edge where keys and values are named by query head."""
    sender, _, receiver = edge.partition("->")
    if not receiver.endswith(("<k>", "<v>")):
        return [edge]
    head, kind = receiver[:-3], receiver[-3:]
    layer, number = head.split(".h")
    size = graph.config.n_heads // graph.config.n_kv_heads
    queries = range(int(number) * size, (int(number) + 1) * size)
    return [f"{sender}->{layer}.h{query}{kind}" for query in queries]


def to_mib(
    graph: Graph, edges: np.ndarray, scores: np.ndarray | None, node_scores: np.ndarray | None
) -> dict[str, Any]:
    """The JSON of a circuit, bool [R S], with scores [R S] and node_scores [S] if there are any.

    Without scores an edge of the circuit has 1, any other 0. A node is in the graph where it has an
    edge.

    Raises ``ValueError`` for scores that JSON has no number for.
    """
    weight = edges.astype(float) if scores is None else scores
    entries: dict[str, Any] = {}
    inside = {"logits"}
    for edge in graph.edges:
        place = graph.place(edge)
        names = by_query(graph, edge)
        score = float(weight[place]) / len(names)
        if not math.isfinite(score):
            raise ValueError(f"The score of {edge} is {score}: JSON has finite numbers only.")
        for name in names:
            entries[name] = {"score": score, "in_graph": bool(edges[place])}
            if edges[place]:
                inside |= _ends(name)
    nodes: dict[str, Any] = {
        name: {"in_graph": name in inside} for name in (*graph.senders, "logits")
    }
    if node_scores is not None:
        for name, score in zip(graph.senders, node_scores.tolist(), strict=True):
            if not math.isnan(score):
                nodes[name]["score"] = score
    return {"cfg": graph.to_dict(), "nodes": nodes, "edges": entries}


def from_mib(graph: Graph, data: Mapping[str, Any], source: Any, shared: Shared = "same") -> Found:
    """What the JSON says of a graph. An edge that is not listed is outside, with score 0.

    source: the file, for errors. shared: whether a key or value head's edge is in where it is for
    "any" of its queries, for "all", or must be the "same" for all of them.

    Raises `LoadError` for names that are none of this model's, for values of the wrong kind, for
    scores that some listed edges have and others lack, for a circuit that has a shared key or value
    of some of its queries and not of others, that has single neurons, or whose nodes and edges
    contradict one another.
    """
    for key in ("nodes", "edges"):
        if not isinstance(data.get(key), dict):
            raise LoadError(f"{source} has {key} that are no object.")
    more = sorted(set(data) - {"cfg", "nodes", "edges"})
    if more:
        raise LoadError(f"{source} has {more[0]}, which is not known here.")
    marks, node_scores = _nodes(graph, data["nodes"], source)
    edges, scores = _edges(graph, data["edges"], source, shared)
    for name, entry in data["edges"].items():
        if _marked(entry, name, source):
            for node in sorted(_ends(name)):
                if not marks.get(node, True):
                    raise LoadError(
                        f"{source} has the edge {name} in the graph and its node {node} outside: "
                        "prune the graph before it is saved."
                    )
    return Found(edges, scores, node_scores)


def _ends(name: str) -> set[str]:
    """The two nodes of an edge."""
    sender, _, receiver = name.partition("->")
    return {sender, receiver.partition("<")[0]}


def _marked(entry: Any, name: str, source: Any) -> bool:
    """in_graph of a node or an edge, which older files have alone."""
    mark = entry.get("in_graph") if isinstance(entry, dict) else entry
    if not isinstance(mark, bool):
        raise LoadError(f"{source}: {name} has in_graph={mark!r}, expected true or false.")
    return mark


def _score(entry: Any, name: str, source: Any) -> float:
    """The score of an entry, NaN where it has none. Raises `LoadError` for what is no number."""
    value = entry.get("score") if isinstance(entry, dict) else None
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise LoadError(f"{source}: {name} has score={value!r}, expected a finite number.")
    return float(value)


def _only(entry: Any, known: set[str], name: str, source: Any) -> None:
    """Raises `LoadError` where an entry has a key that is not known."""
    more = sorted(set(entry) - known) if isinstance(entry, dict) else []
    if more:
        raise LoadError(f"{source}: {name} has {more[0]}={entry[more[0]]!r}, not known here.")


def _nodes(
    graph: Graph, nodes: Mapping[str, Any], source: Any
) -> tuple[dict[str, bool], np.ndarray | None]:
    """in_graph by name (of all but logits, which always is), and the scores [S]."""
    marks: dict[str, bool] = {}
    scores = np.full(graph.n_senders, math.nan)
    for name, entry in nodes.items():
        _only(entry, {"in_graph", "score", "neurons", "neurons_scores"}, name, source)
        mark, score = _marked(entry, name, source), _score(entry, name, source)
        if isinstance(entry, dict):
            _whole_node(entry, name, source)
        if name == "logits":
            continue
        try:
            scores[graph.sender_index(name)] = score
        except ValueError as error:
            raise LoadError(f"{source} has the node {name!r}: {error}") from error
        marks[name] = mark
    return marks, None if np.isnan(scores).all() else scores


def _whole_node(entry: Mapping[str, Any], name: str, source: Any) -> None:
    """Raises `LoadError` for a node of which some neurons only are in, or that scores neurons."""
    neurons, scores = entry.get("neurons"), entry.get("neurons_scores")
    some = neurons is not None and not (
        isinstance(neurons, list) and all(n is True for n in neurons)
    )
    scored = scores is not None and not (
        isinstance(scores, list) and all(s is None or s != s for s in scores)
    )
    if some or scored:
        key = "neurons" if some else "neurons_scores"
        raise LoadError(
            f"{source}: {name} has {key}, and circuits here have whole nodes and no single neurons."
        )


def _edges(
    graph: Graph, entries: Mapping[str, Any], source: Any, shared: Shared
) -> tuple[np.ndarray, np.ndarray | None]:
    """The circuit bool [R S] and the scores [R S], or None where no edge has one."""
    size = graph.config.n_heads // graph.config.n_kv_heads
    count, scores = np.zeros(graph.exists.shape, int), np.zeros(graph.exists.shape)
    first: dict[tuple[int, int], str] = {}
    without = []
    for name, entry in entries.items():
        _only(entry, {"in_graph", "score"}, name, source)
        place = _place(graph, name, size, source)
        first.setdefault(place, name)
        count[place] += _marked(entry, name, source)
        score = _score(entry, name, source)
        if math.isnan(score):
            without.append(name)
        else:
            scores[place] += score
    if without and len(without) < len(entries):
        raise LoadError(f"{source}: {without[0]} has no score, which other edges have.")
    inside = count > 0
    for place, name in first.items():
        needed = size if name.endswith(("<k>", "<v>")) else 1
        if 0 < count[place] < needed:
            if shared == "same":
                raise LoadError(
                    f"{source} has {count[place]} of {needed} edges in the graph that are one "
                    f"here: {name}, and those of the query heads that share its key or value head "
                    "(load it with shared='any' or 'all')."
                )
            inside[place] = shared == "any"
    return inside, None if without or not entries else scores


def _place(graph: Graph, name: str, size: int, source: Any) -> tuple[int, int]:
    """(receiver, sender) of an edge whose key or value is named by query head."""
    own = name
    if name.endswith(("<k>", "<v>")):
        stem, _, number = name[:-3].rpartition(".h")
        if number.isascii() and number.isdecimal() and len(number) < 10:
            own = f"{stem}.h{int(number) // size}{name[-3:]}"
    try:
        return graph.place(own)
    except ValueError as error:
        raise LoadError(f"{source} has the edge {name!r}: {error}") from error
