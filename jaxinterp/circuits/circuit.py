"""Circuits as values: sets of edges of a model's graph."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxinterp.checks import one_of, whole_number
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.mib import Shared, from_mib, to_mib
from jaxinterp.files import whole
from jaxinterp.model import Config, Model
from jaxinterp.reading import JSON_BYTES, LoadError, damage_refused, read_json_object

_FORMAT = "jaxinterp-circuit-1"
MOST_POSITIONS = 1 << 20  # of a circuit that is read
MOST_PLACES = 1 << 30  # receivers times senders times positions
_SCORES = ("scores", "node_scores")
_EDGE_BYTES = 400  # of a file for each edge at most, if that is more than `JSON_BYTES`
_NEEDED = ("n_layers", "n_heads")  # in a file's cfg; other keys count where it has them


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
    """Some of the edges of a graph: ``edges`` bool [R S], or [R S P] per position.

    scores: of all edges, whether in the circuit or not, [R S] or [E] in the graph's order, by which
    it was chosen. node_scores: of the senders, [S], NaN for one without. Both are kept in files and
    by `pruned`.

    Circuits of one graph are sets: ``|``, ``&``, ``-``, ``~``, ``<=``, ``==``, ``in``, ``len``.
    These look at the edges alone, and what they return has no scores.

    Raises ``ValueError`` for a mask or scores of another shape, a mask that has what is no edge,
    and scores that are NaN.
    """

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray | None = None
    node_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        edges = np.array(self.edges, bool)
        shape = self.graph.exists.shape
        if edges.shape[:2] != shape or edges.ndim not in (2, 3):
            raise ValueError(
                f"The edges have shape {list(edges.shape)}, expected {list(shape)} "
                "(receivers, senders), or that and positions."
            )
        flat = edges if edges.ndim == 2 else edges.any(-1)
        if (flat & ~self.graph.exists).any():
            r, s = np.argwhere(flat & ~self.graph.exists)[0]
            raise ValueError(
                f"{self.graph.senders[s]} writes only after {self.graph.receivers[r]} has read: "
                "they have no edge."
            )
        edges.flags.writeable = False
        object.__setattr__(self, "edges", edges)
        if self.scores is not None:
            object.__setattr__(self, "scores", placed_scores(self.graph, self.scores, 0.0))
        if self.node_scores is not None:
            given = np.array(self.node_scores, np.float64)
            if given.shape != (self.graph.n_senders,):
                raise ValueError(
                    f"node_scores has shape {list(given.shape)}, expected one per sender "
                    f"[{self.graph.n_senders}]."
                )
            object.__setattr__(self, "node_scores", given)

    @classmethod
    def full(cls, model: Model | Config | Graph) -> Circuit:
        """All edges: the whole model."""
        graph = graph_of(model)
        return cls(graph, graph.exists)

    @classmethod
    def of(cls, model: Model | Config | Graph, edges: Iterable[str]) -> Circuit:
        """From the edges' names."""
        graph = graph_of(model)
        return cls(graph, graph.mask(edges))

    @classmethod
    def of_nodes(cls, model: Model | Config | Graph, nodes: Iterable[str]) -> Circuit:
        """Everything between these nodes (``a5.h1``, ``m3``); ``input`` and ``logits`` belong.

        A key/value head belongs where one of its query heads does.
        """
        graph = graph_of(model)
        kept = np.zeros(graph.n_senders, bool)
        kept[[0, *(graph.sender_index(n) for n in nodes if n not in ("input", "logits"))]] = True
        read = np.asarray(graph.readers[kept].any(0))
        read[-1] = True
        return cls(graph, graph.exists & kept & read[:, None])

    # Sets

    def _other(self, other: Circuit) -> tuple[np.ndarray, np.ndarray]:
        if self.graph.to_dict() != other.graph.to_dict():
            raise ValueError("The two circuits belong to models of different shapes.")
        a, b = self.edges, other.edges
        return (a[..., None], b) if a.ndim < b.ndim else (a, b[..., None] if b.ndim < a.ndim else b)

    def __or__(self, other: Circuit) -> Circuit:
        a, b = self._other(other)
        return Circuit(self.graph, a | b)

    def __and__(self, other: Circuit) -> Circuit:
        a, b = self._other(other)
        return Circuit(self.graph, a & b)

    def __sub__(self, other: Circuit) -> Circuit:
        a, b = self._other(other)
        return Circuit(self.graph, a & ~b)

    def __invert__(self) -> Circuit:
        exists = self.graph.exists
        return Circuit(
            self.graph, (exists if self.edges.ndim == 2 else exists[..., None]) & ~self.edges
        )

    def __le__(self, other: Circuit) -> bool:
        a, b = self._other(other)
        return bool((~a | b).all())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        a, b = self._other(other)
        return bool((a == b).all())

    def __len__(self) -> int:
        return int(self._flat.sum())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, edge: str) -> bool:
        return bool(self._flat[self.graph.place(edge)])

    def __repr__(self) -> str:
        return f"Circuit({len(self)} of {self.graph.n_edges} edges, {len(self.nodes)} nodes)"

    @property
    def _flat(self) -> np.ndarray:
        return self.edges if self.edges.ndim == 2 else np.asarray(self.edges.any(-1))

    @property
    def names(self) -> tuple[str, ...]:
        """The edges' names, in the graph's order."""
        rows, columns = np.nonzero(self._flat)
        g = self.graph
        return tuple(
            f"{g.senders[s]}->{g.receivers[r]}"
            for r, s in zip(rows.tolist(), columns.tolist(), strict=True)
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Senders with an edge, in order, and ``logits`` if it has one.

        A key or value that several heads share is none of them by itself.
        """
        g = self.graph
        own = self._flat.any(1) & (g.readers.sum(0) == 1)
        writes, reads = self._flat.any(0), (g.readers & own).any(1)
        names = [g.senders[i] for i in np.flatnonzero(writes | reads)]
        return (*names, *(["logits"] if self._flat[-1].any() else []))

    @property
    def share(self) -> float:
        """The fraction of the graph's edges."""
        return len(self) / self.graph.n_edges

    def jaccard(self, other: Circuit) -> float:
        """|A and B| / |A or B|; 1 for two empty circuits."""
        union = len(self | other)
        return len(self & other) / union if union else 1.0

    def pruned(self) -> Circuit:
        """Without dangling edges: those not on a path from ``input`` to ``logits``."""
        g, flat = self.graph, self._flat
        while True:
            fed = flat.any(1)  # receivers that get something
            alive = np.asarray((g.readers & fed).any(1))  # senders that read something
            alive[0] = True
            heard = flat.any(0)  # senders that somebody reads
            wanted = np.asarray(g.readers[heard].any(0))  # receivers whose owner is heard
            wanted[-1] = True
            new = flat & alive & wanted[:, None]
            if (new == flat).all():
                break
            flat = new
        edges = self.edges & (flat if self.edges.ndim == 2 else flat[..., None])
        return dataclasses.replace(self, edges=edges)

    # Files

    def save(self, path: str | os.PathLike[str], format: str = "own") -> Path:
        """Write JSON: our own format ("own"), or the MIB benchmark's and EAP-IG's ("mib").

        The MIB format names keys and values by query head: under grouped heads an edge of a
        key/value head is written once for each of its queries, its score in equal parts. Its
        readers need a score of every edge: without any, those of the circuit get 1, others 0.

        Raises ``ValueError`` for another format, and for what the MIB format has no place for:
        positions, and scores that are not finite. Also raises it for a file that ``load`` would
        refuse as too large, which a circuit of very many positions makes.
        """
        if format not in ("own", "mib"):
            raise ValueError(f"format={format!r}, expected 'own' or 'mib'.")
        if format == "mib" and self.edges.ndim == 3:
            raise ValueError(
                "The MIB format knows no positions: save Circuit(graph, edges.any(-1))."
            )
        data = self._to_dict()
        if format == "mib":
            data = to_mib(self.graph, self.edges, self.scores, self.node_scores)
        text, most = json.dumps(data), _most_bytes(self.graph)
        if len(text) > most:  # of ASCII
            raise ValueError(
                f"The file would have {len(text)} bytes, of which at most {most} are read again: "
                "save fewer positions."
            )
        with whole(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
        return Path(path)

    def _to_dict(self) -> dict[str, Any]:
        g = self.graph
        edges: Any = list(self.names)
        if self.edges.ndim == 3:
            edges = {e: np.flatnonzero(self.edges[g.place(e)]).tolist() for e in edges}
        size = None if self.edges.ndim == 2 else self.edges.shape[2]
        out = {"format": _FORMAT, "cfg": g.to_dict(), "positions": size, "edges": edges}
        if self.scores is not None:
            out["scores"] = self.scores[g.exists].tolist()
        if self.node_scores is not None:
            out["node_scores"] = [None if s != s else s for s in self.node_scores.tolist()]
        return out

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Model | Config | Graph, shared: Shared = "same"
    ) -> Circuit:
        """Read either format, with its scores.

        Of a MIB file an edge that is not listed is outside, with score 0; under grouped heads the
        score of a key/value head's edge is the sum of its queries'. shared: when such an edge is in
        the circuit: where it is of "any" of its queries, or of "all"; "same" refuses a file with it
        for some only. It has no effect on a file of our own format, which has one edge for all
        queries of a key/value head.

        Raises ``FileNotFoundError``, and `jaxinterp.loading.LoadError` for other files, other
        models' circuits, names that are none of this model's, and what a circuit here has no place
        for: single neurons, or a shared key or value for some of its queries only.
        """
        graph = graph_of(model)
        one_of("shared", shared, get_args(Shared))
        with damage_refused(path, "a circuit file", "Save the circuit again."):
            data = read_json_object(path, _most_bytes(graph))
            cfg, own = data["cfg"], graph.to_dict()
            if not isinstance(cfg, dict):
                raise LoadError(f"{path} has cfg={cfg!r}, expected an object.")
            for key, value in own.items():
                if (key in cfg or key in _NEEDED) and cfg.get(key) != value:
                    raise LoadError(
                        f"{path} is of a model with {key} {cfg.get(key)}, this one has {value}."
                    )
            if "format" not in data:
                return cls(graph, *from_mib(graph, data, path, shared))
            if data["format"] != _FORMAT:
                raise LoadError(f"{path} has the format {data['format']!r}, expected {_FORMAT!r}.")
            more = sorted(set(data) - {"format", "cfg", "positions", "edges", *_SCORES})
            if more:
                raise LoadError(f"{path} has {more[0]}, which is not known here.")
            edges = _from_own(graph, data["edges"], data["positions"])
            return cls(graph, edges, *(data.get(name) for name in _SCORES))


def _most_bytes(graph: Graph) -> int:
    """The bytes that a file of a graph's circuit may have."""
    return max(JSON_BYTES, _EDGE_BYTES * graph.n_edges)


def _from_own(graph: Graph, edges: Any, positions: Any) -> np.ndarray:
    """bool [R S] or [R S P] of our own format. Raises ``ValueError`` for what it never holds."""
    kind: Any = list if positions is None else dict
    if not isinstance(edges, kind) or not all(isinstance(edge, str) for edge in edges):
        raise ValueError(f"its edges are no {kind.__name__} of names")
    if positions is None:
        return graph.mask(edges)
    most = min(MOST_POSITIONS, MOST_PLACES // graph.exists.size)
    positions = whole_number("positions", positions, 1, most)
    mask = np.zeros((*graph.exists.shape, positions), bool)
    for edge, at in edges.items():
        for position in at:
            mask[graph.place(edge)][whole_number("position", position, 0, positions - 1)] = True
    return mask


def placed_scores(graph: Graph, scores: Any, elsewhere: float) -> np.ndarray:
    """Scores [R S] of [E] in the graph's order, or of [R S]; ``elsewhere`` where there is no edge.

    Raises ``ValueError`` for another shape, and for scores that are NaN.
    """
    given = np.asarray(scores, np.float64)
    if given.shape == (graph.n_edges,):
        out = np.full(graph.exists.shape, elsewhere)
        out[graph.exists] = given
    elif given.shape == graph.exists.shape:
        out = np.where(graph.exists, given, elsewhere)
    else:
        raise ValueError(
            f"The scores have shape {list(given.shape)}, expected one per edge "
            f"[{graph.n_edges}], in the graph's order."
        )
    if np.isnan(out).any():
        raise ValueError("Some scores are NaN.")
    return out


def graph_of(model: Model | Config | Graph) -> Graph:
    """The graph of a model."""
    if isinstance(model, Graph):
        return model
    return Graph(model if isinstance(model, Config) else model.config)
