"""Every edge by itself, exactly: one receiver reads one sender's other value.

An edge into a head's query (key, value) changes that query, at one layer, and what follows from
it: the new query is what the head computes from ``stream + gap``, the gap being the difference of
what the sender writes in the two runs. All senders' queries of a layer are one product; then the
sweep engine runs the suffixes of all edges, whatever they enter, together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.circuits.circuit import Circuit, graph_of
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import added
from jaxinterp.circuits.runs import Direction, Part, edge_result, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.interventions import Shared
from jaxinterp.metrics import Metric
from jaxinterp.model import At, Config, Model, layer_at
from jaxinterp.model.compiled import jit
from jaxinterp.model.parts import einsum, normalize
from jaxinterp.sweep import Ledger
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh


def patch_edges(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    edges: Circuit | Iterable[str] | None = None,
    direction: Direction = "noise",
    alternative: Any = "run",
    tokenizer: Any = None,
    record: dict[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    parts: str | None = None,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """Exact edge patching: the metric when one edge alone carries the other run's value.

    The sender's contribution is exchanged in what this one receiver reads, at all positions, and
    all that follows is recomputed (Conmy et al. 2023, arXiv:2304.14997). Default: every edge.

    direction: "noise" puts the corrupted run's values into the clean run, "denoise" the clean
    ones into the corrupted run. alternative: "run" (the other run), "zero", or an array
    [S B P D] (or broadcastable) of what senders write instead, such as means. With "zero" what
    ``input`` writes is zero too, its learned positions included (other code keeps those). parts,
    ledger, on_done and the rest: as in `patch`.

    Returns dims ("edge", "prompt"); coordinates ``sender``, ``receiver``, and the baselines
    ``clean`` and ``corrupted`` as in `patch`.

    Raises ``ValueError`` for names that are no edges, post-norm streams (BERT), and prompts that
    do not match.
    """
    chosen = chosen_edges(graph_of(model), edges)
    runs = prepare(
        model, clean, corrupted, metric, direction, alternative, batch, (chosen,), memory=memory,
        mesh=mesh, parts=parts, ledger=ledger, on_done=on_done,
    )  # fmt: skip
    number = np.cumsum(chosen.reshape(-1)).reshape(chosen.shape) - 1

    def run(part: Part) -> np.ndarray:
        values = np.empty((int(chosen.sum()), len(part.tokens)), part.baselines.dtype)
        for experiments, edit in grids(part, chosen, memory // 4):
            values[number[tuple(experiments.T)]] = part.sweep(edit)
        return values

    values, ends = runs.batches(run, int(chosen.sum()))
    names = Circuit(runs.graph, chosen).names
    return edge_result(runs, names, values, ends, tokenizer, intervention="edge", **(record or {}))


def chosen_edges(graph: Graph, edges: Circuit | Iterable[str] | None) -> np.ndarray:
    """bool [R S]."""
    if edges is None:
        return graph.exists
    if isinstance(edges, Circuit):
        chosen = np.asarray(edges.edges if edges.edges.ndim == 2 else edges.edges.any(-1))
    else:
        chosen = graph.mask([edges] if isinstance(edges, str) else edges)
    if not chosen.any():
        raise ValueError("No edges are given: name at least one, or leave edges= out for all.")
    return chosen


SITES = ("q", "k", "v", "mlp_in", "resid_post")  # where each kind of receiver is changed


class Exchange(struct.PyTreeNode):
    """One edge: at its receiver, what comes of the sender's other value.

    kind: an index of `SITES`. layer, head: the receiver's. sender. received [B P K]: the query,
    key or value that a head computes then. gap [S B P D]: what is added for other receivers.
    changes: bool [P], the positions at which anything can differ.
    """

    kind: Any
    layer: Any
    head: Any
    sender: Any
    received: Any
    gap: Any
    changes: Any
    sites: tuple[str, ...] = struct.field(pytree_node=False, default=SITES)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        kind = SITES.index(at.site)
        here = (self.kind == kind) & (self.layer == at.layer)
        real = self.changes[at.positions.clip(0)] & (at.positions >= 0) & here  # B P
        if kind < 3:
            heads = jnp.arange(value.shape[2]) == self.head
            new = at.donor(self.received[:, :, None])
            return jnp.where(real[:, :, None, None] & heads[:, None], new, value)
        new = added(value, at.donor(self.gap[self.sender]))
        return jnp.where(real[:, :, None], new, value)

    def begins(self, config: Config) -> tuple[Any, Any]:
        """As `jaxinterp.Edit.begins`."""
        first = np.asarray(self.changes.value).argmax()
        return np.asarray(self.layer), np.full(len(self.layer), first)


def grids(part: Part, chosen: np.ndarray, budget: int) -> Iterator[tuple[np.ndarray, Exchange]]:
    """(receiver, sender) [E 2] of some edges and their grid, about ``budget`` bytes at a time."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, kind, places in _by_layer(part.graph, chosen):
        held.append((places, _received(part, kind, layer, places)))
        if sum(values.nbytes for _, values in held) > budget:
            yield _grid(part, held)
            held = []
    if held:
        yield _grid(part, held)


def _by_layer(graph: Graph, chosen: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """The chosen edges (receiver, sender) [n 2], by the layer and kind of the receiver."""
    for layer in range(graph.config.n_layers):
        for kind, slot in graph.slots.items():
            first = layer * graph.reads + slot.start
            found = np.argwhere(chosen[first : layer * graph.reads + slot.stop])
            if len(found):
                yield layer, kind, found + np.array([first, 0])
    found = np.argwhere(chosen[-1:]) + np.array([graph.n_receivers - 1, 0])
    if len(found):
        yield graph.config.n_layers - 1, "logits", found


def _received(part: Part, kind: str, layer: int, places: np.ndarray) -> np.ndarray:
    """[n B P K]: what heads compute from the stream and each edge's gap; 0 for other receivers."""
    batch, length, _ = part.run.stream.shape
    if kind in ("mlp", "logits"):
        shape = (len(places), batch, length, part.graph.config.d_head)
        return np.zeros(shape, part.run.stream.dtype)
    heads = places[:, 0] - part.graph.receiver(layer, kind)
    read = added(part.run.resid_pre[layer], part.gap)
    found = received(part.model, jnp.int32(layer), read, kind=kind)
    return np.asarray(found)[places[:, 1], :, :, heads]


def _grid(part: Part, held: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, Exchange]:
    places = np.concatenate([each for each, _ in held])
    where = [part.graph.where(int(receiver)) for receiver in places[:, 0]]
    kinds = ("q", "k", "v", "mlp", "logits")
    everywhere = np.ones(part.tokens.shape[1], bool)
    return places, Exchange(
        kind=np.array([kinds.index(kind) for kind, _, _ in where]),
        layer=np.array([layer for _, layer, _ in where]),
        head=np.array([head for _, _, head in where]),
        sender=places[:, 1],
        received=np.concatenate([values for _, values in held]),
        gap=Shared(part.gap),
        changes=Shared(everywhere if part.changes is None else part.changes),
        sites=tuple(s for s in SITES if s != "mlp_in" or not part.graph.config.attention_only),
    )


@functools.partial(jit, static=("kind",))
def received(model: Model, index: jax.Array, read: jax.Array, *, kind: str) -> jax.Array:
    """The queries, keys or values [N B P H K] of a layer's heads that read streams [N B P D]."""
    c, layer = model.config, layer_at(model, index)
    attn = layer.params.attn
    W, b = getattr(attn, f"W_{kind.upper()}"), getattr(attn, f"b_{kind.upper()}")
    normed = normalize(c, layer.params.ln1 if c.norm_input else None, read)
    y = einsum(c, "nbpd,hdk->nbphk", normed, W)
    return y if b is None else y + b
