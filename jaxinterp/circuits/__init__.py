"""Circuits: edges of a model's graph, measured exactly, estimated, found and judged."""

from jaxinterp.circuits.circuit import Circuit
from jaxinterp.circuits.criteria import (
    incompleteness,
    minimality,
    specificity,
    without,
    worst_incompleteness,
)  # fmt: skip
from jaxinterp.circuits.discovery import acdc, greedy_edges, importance, stability, top_edges
from jaxinterp.circuits.edges import patch_edges
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.measures import (
    FRACTIONS,
    cmd,
    cpr,
    evaluate_circuits,
    faithfulness,
    faithfulness_curve,
    roc,
)  # fmt: skip
from jaxinterp.circuits.paths import patch_paths
from jaxinterp.circuits.pruning import prune_edges
from jaxinterp.circuits.scores import attribute_edges

__all__ = [
    "FRACTIONS", "Circuit", "Graph", "acdc", "attribute_edges", "cmd", "cpr", "evaluate_circuits",
    "faithfulness", "faithfulness_curve", "greedy_edges", "importance", "incompleteness",
    "minimality", "patch_edges", "patch_paths", "prune_edges", "roc", "specificity", "stability",
    "top_edges", "without", "worst_incompleteness",
]  # fmt: skip
