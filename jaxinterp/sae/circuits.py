"""Sparse feature circuits: which features cause a behaviour, and through which others.

Marks et al. 2024 (arXiv:2403.19647). The effect of a node u (`jaxinterp.sae.nodes`): the metric's
slope in u, all that follows u moving, times u's change. Of an edge from u to d: the metric's slope
in d, times the *direct* slope of d in u, times u's change, where the features and errors of all
dictionaries between the two are held (no gradient passes them): what runs through them is theirs.
So the edges from u to all nodes of later dictionaries, and straight to the metric, add up to u's
effect where all slopes are taken at the run itself (``steps=1``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import real_number
from jaxinterp.metrics import Metric
from jaxinterp.model import Model
from jaxinterp.model.compiled import jit
from jaxinterp.model.parts import einsum
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.gradients import STREAM, bare, held, pull_back, responses, slopes
from jaxinterp.sae.nodes import (
    Aggregate,
    Chosen,
    Part,
    Runs,
    along_rows,
    chosen_nodes,
    exchanged,
    node_effects,
    select_nodes,
)

if TYPE_CHECKING:
    import xarray as xr

METRIC = "metric"  # where edges end that pass no other dictionary
TOGETHER = 8  # nodes per program whose edges are pulled back


def feature_edges(
    model: Model, dictionaries: Sequence[Dictionary], tokens: Any, metric: Metric,
    nodes: xr.DataArray | xr.Dataset, *, donor: Any = None, steps: int = 1,
    batch: int | None = None,
) -> xr.DataArray:  # fmt: skip
    """The effects of some nodes on the metric through each other, and straight.

    nodes: some of `feature_nodes` (as `select_nodes` gives them), or a circuit. An edge leads from
    a node to one of a later dictionary, or to ``"metric"``; none leads past a dictionary of the
    residual stream, which all paths pass. Nodes without a position stand for all positions
    together, at both ends. steps: for the metric's slopes; the direct slope between two nodes is
    that of the run itself. Other arguments as in `feature_nodes`.

    Returns dims (edge, prompt), with coordinates ``upstream`` and ``downstream``, the nodes' names.

    Raises ``ValueError`` as `feature_nodes` does, and for nodes of dictionaries not given.
    """
    runs = Runs.of(model, dictionaries, tokens, metric, donor, steps, batch)
    return _edges(runs, chosen_nodes(runs, nodes))


def feature_circuit(
    model: Model, dictionaries: Sequence[Dictionary], tokens: Any, metric: Metric, *,
    donor: Any = None, node_threshold: float, edge_threshold: float, steps: int = 10,
    aggregate: Aggregate = "sum", batch: int | None = None,
) -> xr.Dataset:  # fmt: skip
    """The nodes and the edges whose mean effects over prompts reach a threshold in size.

    Prompts of one template may have their positions told apart (``aggregate="none"``). Other
    arguments as in `feature_nodes`.

    Returns ``node_effect`` (node, prompt) and ``edge_effect`` (edge, prompt), labelled as by
    `select_nodes` and `feature_edges`. The nodes alone are what
    `jaxinterp.sae.evaluate_feature_circuit` runs.

    Raises ``ValueError`` as `feature_nodes` does, and where no node passes.
    """
    import xarray as xr

    edge_threshold = real_number("edge_threshold", edge_threshold, least=0)
    node_threshold = real_number("node_threshold", node_threshold, least=0)
    runs = Runs.of(model, dictionaries, tokens, metric, donor, steps, batch)
    nodes = select_nodes(node_effects(runs, aggregate), node_threshold)
    edges = _edges(runs, chosen_nodes(runs, nodes))
    edges = edges[np.abs(edges.mean("prompt").values) >= edge_threshold]
    attrs = {**nodes.attrs, "method": "feature circuit", "edge_threshold": edge_threshold}
    return xr.Dataset({"node_effect": nodes, "edge_effect": edges}, attrs=attrs)


@dataclasses.dataclass(frozen=True)
class _End:
    """The chosen nodes of one dictionary as ends of edges, in one batch of prompts.

    As the earlier end: features' rows write [K D] and changes [K B P], the error's [B P D]. As
    the later: features' columns read [K D] and weights [K B P] (the metric's slope in a feature,
    times the feature's in what it reads), the error's weight [B P D].
    """

    chosen: Chosen
    write: jax.Array
    read: jax.Array
    change: jax.Array
    error_change: jax.Array
    weight: jax.Array
    error_weight: jax.Array

    @classmethod
    def of(cls, runs: Runs, part: Part, i: int, chosen: Chosen) -> _End:
        d, index = runs.dictionaries[i], chosen.features
        change, error_change, weight, error_weight = _ends(
            bare(d), part.values[i], part.donors[i], part.slopes[i], part.tokens.mask
        )  # fmt: skip
        return cls(
            chosen, d.params.W_dec[index], d.params.W_enc[:, index].T,
            jnp.moveaxis(change[..., index], -1, 0), error_change,
            jnp.moveaxis(weight[..., index], -1, 0), error_weight,
        )  # fmt: skip

    def effects(self, config: Any, gradients: jax.Array) -> jax.Array:
        """slope . change [N K B], of the slopes that gradients [N B P D] give."""
        along = einsum(config, "nbpd,kd->nkbp", gradients, self.write) * self.change
        of_error = (gradients * self.error_change).sum(-1)[:, None]
        each = jnp.where(self.chosen.is_error[:, None, None], of_error, along)
        return jnp.where(self.chosen.where[:, None], each, 0).sum(-1)

    def cotangents(self, rows: np.ndarray) -> jax.Array:
        """The metric's slopes [N B P D] in what the dictionary reads, through single nodes."""
        along = self.weight[rows][..., None] * self.read[rows][:, None, None]
        is_error = self.chosen.is_error[rows][:, None, None, None]
        each = jnp.where(is_error, self.error_weight, along)
        return jnp.where(self.chosen.where[rows][:, None, :, None], each, 0)


@jit
def _ends(
    d: Dictionary, x: jax.Array, donor: jax.Array | None, slope: jax.Array, mask: jax.Array
) -> tuple[jax.Array, ...]:
    """How features [B P F] and the error [B P D] change; their weights, alike."""
    features, error = exchanged(d, x, donor, mask)
    weights = responses(d, d.encode(x)) * along_rows(d, slope)
    rest = jnp.einsum("bpf,df->bpd", weights, d.params.W_enc, precision="highest")
    return features, error, weights, slope - rest


def _edges(runs: Runs, chosen: Sequence[Chosen]) -> xr.DataArray:
    """What `feature_edges` returns."""
    import xarray as xr

    last = len(runs.places)
    pairs = [
        (i, j)
        for i in range(last)
        for j in range(i + 1, last + 1)
        if len(chosen[i]) and (j == last or len(chosen[j]))
        if not any(site in STREAM for site, _ in runs.places[i + 1 : j])
    ]
    sides = []
    for i, j in pairs:
        later = [METRIC] if j == last else chosen[j].names
        sides.append(np.stack(np.meshgrid(chosen[i].names, later)).reshape(2, -1))
    names = np.concatenate(sides, 1) if sides else np.empty((2, 0), str)

    def run(part: Part) -> np.ndarray:
        ends = {i: _End.of(runs, part, i, some) for i, some in enumerate(chosen) if len(some)}
        found = [np.empty((0, len(part.tokens)))]
        for i, j in pairs:
            slopes_at = _straight(runs, part, i) if j == last else _between(runs, part, i, j, ends)
            effects = [np.asarray(ends[i].effects(runs.model.config, g)) for g in slopes_at]
            n = 1 if j == last else len(chosen[j])
            found.append(np.concatenate(effects)[:n].reshape(-1, len(part.tokens)))
        return np.concatenate(found)

    values = runs.batches(run)
    coords = {
        "upstream": ("edge", names[0]),
        "downstream": ("edge", names[1]),
        "prompt": np.arange(values.shape[-1]),
    }
    attrs = runs.claim(method="attribution of edges between nodes", steps=runs.steps)
    return xr.DataArray(values, coords, ("edge", "prompt"), "effect", attrs)


def _straight(runs: Runs, part: Part, i: int) -> Iterator[jax.Array]:
    """The metric's slopes [1 B P D] at a place, all later dictionaries held."""
    later, found = runs.places[i + 1 :], part.slopes[i]
    if later:
        (found,) = slopes(
            runs.model, part.tokens, part.metric, runs.places[i : i + 1], part.changes[i : i + 1],
            others=held(runs.model, later, runs.places), steps=runs.steps,
        )  # fmt: skip
    yield found[None]


def _between(
    runs: Runs, part: Part, i: int, j: int, ends: dict[int, _End]
) -> Iterator[jax.Array]:  # fmt: skip
    """The metric's slopes at a place through single nodes of a later one, [TOGETHER B P D] each.

    The last ones are filled up, so that all share a program.
    """
    stops = held(runs.model, runs.places[i + 1 : j], runs.places)
    n = len(ends[j].chosen)
    for first in range(0, n, TOGETHER):
        rows = np.arange(first, first + TOGETHER).clip(max=n - 1)
        yield pull_back(
            runs.model, part.tokens, part.stream, part.values[i].shape[-1], runs.places[i],
            runs.places[j], stops, ends[j].cotangents(rows),
        )  # fmt: skip
