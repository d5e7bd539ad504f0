"""Path patching: what a sender tells a set of receivers, along chosen paths.

Goldowsky-Dill et al. 2023 (arXiv:2304.05969), Wang et al. 2022. Two passes for each sender:

1. The sender writes the other run's value; nodes that paths may run ``through`` are recomputed;
   all others write what they wrote. What the receivers then read is taken down.
2. In the plain run the receivers read that, and all that follows is recomputed.

With nothing to run through, paths are the direct edges to all receivers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.circuits.circuit import graph_of
from jaxinterp.circuits.edges import received
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import Held, walk
from jaxinterp.circuits.runs import Direction, Part, prepare
from jaxinterp.grid_runs import ignore
from jaxinterp.interventions import Edit, Shared, replace
from jaxinterp.metrics import Metric
from jaxinterp.model import Model, Tokens
from jaxinterp.model.compiled import jit
from jaxinterp.sweep import Ledger
from jaxinterp.sweep.schedule import MEMORY

if TYPE_CHECKING:
    import xarray as xr
    from jax.sharding import Mesh


def patch_paths(
    model: Model,
    *,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    receivers: Sequence[str],
    senders: Sequence[str] | None = None,
    through: Sequence[str] = (),
    together: bool = False,
    direction: Direction = "noise",
    alternative: Any = "run",
    record: dict[str, Any] | None = None,
    batch: int | None = None,
    memory: int = MEMORY,
    mesh: Mesh | None = None,
    parts: str | None = None,
    ledger: Ledger | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """Exact path patching: the metric when paths from a sender carry the other run's value.

    receivers: names such as ``a9.h6<q>``, ``m10``, ``logits``. senders: names such as ``a5.h1``;
    by default all that write before the last receiver reads. through: nodes on the way that
    answer to what they read, by name, or "heads" or "mlps" for all of a kind (Wang et al. let
    paths run through all MLPs); none: direct edges only. together: all senders at once, as one
    experiment.

    Returns dims ("sender", "prompt") with the baselines ``clean`` and ``corrupted``.

    Raises ``ValueError`` for names this model lacks, and for a sender that writes only after all
    receivers have read.
    """
    import xarray as xr

    graph = graph_of(model)
    into = _receivers(graph, receivers)
    rows = _senders(graph, senders, into)
    passing = _through(graph, through)
    sets = np.zeros((len(rows), graph.n_senders), bool)
    sets[np.arange(len(rows)), rows] = True
    names = [graph.senders[i] for i in rows]
    if together:
        sets, names = np.asarray(sets.any(0, keepdims=True)), [" + ".join(names)]
    runs = prepare(
        model, clean, corrupted, metric, direction, alternative, batch, (sets, passing, into),
        memory=memory, mesh=mesh, parts=parts, ledger=ledger, on_done=on_done,
    )  # fmt: skip

    def run(part: Part) -> np.ndarray:
        read = _read(part, sets, passing)
        return part.sweep(tuple(_edit(part, receiver, read) for receiver in into))

    values, ends = runs.batches(run, len(sets))
    coords = {
        "sender": names,
        "prompt": np.arange(len(runs)),
        "clean": ("prompt", ends[0]),
        "corrupted": ("prompt", ends[1]),
    }
    attrs = runs.claim(
        intervention="path", receivers=list(receivers), through=list(through), **(record or {})
    )
    return xr.DataArray(values, coords, ("sender", "prompt"), metric.name, attrs)


def _receivers(graph: Graph, names: Sequence[str]) -> list[int]:
    found = [graph.receiver_index(n) for n in ([names] if isinstance(names, str) else names)]
    if not found:
        raise ValueError("No receivers are given: name at least one, such as 'logits'.")
    if len(set(found)) < len(found):
        raise ValueError(f"receivers={list(names)} names one of them twice.")
    return found


def _senders(graph: Graph, names: Sequence[str] | None, into: list[int]) -> list[int]:
    heard = np.asarray(graph.exists[into].any(0))
    if names is None:
        return np.flatnonzero(heard).tolist()
    found = [graph.sender_index(n) for n in ([names] if isinstance(names, str) else names)]
    if not found:
        raise ValueError("No senders are given: name at least one, or leave senders= out for all.")
    for i in found:
        if not heard[i]:
            shown = ", ".join(graph.receivers[r] for r in into)
            raise ValueError(
                f"{graph.senders[i]} writes only after {shown} has read: no path leads there."
            )
    return found


def _through(graph: Graph, names: Sequence[str]) -> np.ndarray:
    """bool [S]."""
    out = np.zeros(graph.n_senders, bool)
    for name in [names] if isinstance(names, str) else names:
        if name in ("heads", "mlps"):
            out |= np.array([s.startswith("a" if name == "heads" else "m") for s in graph.senders])
        else:
            out[graph.sender_index(name)] = True
    out[0] = False
    return out


@jit
def _first_pass(
    model: Model, tokens: Tokens, other: jax.Array, written: jax.Array, sets: jax.Array,
    passing: jax.Array,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:  # fmt: skip
    """What sublayers read [N L B P D] (attention, MLP) and the final stream [N B P D]."""

    def one(sends: jax.Array) -> Any:
        value = jnp.where(sends[:, None, None, None], other, written)
        run = walk(model, tokens, held=Held(sends | ~passing, value))
        return run.resid_pre, run.mlp_in, run.stream

    return jax.vmap(one)(sets)


def _read(part: Part, sets: np.ndarray, passing: np.ndarray) -> tuple[Any, ...]:
    """`_first_pass` for all sets of senders, a number of them at a time."""
    c = part.model.config
    of_one = 8 * (part.graph.n_senders + 2 * c.n_layers) * part.run.stream.size
    n = int(min(len(sets), max(1, part.driver.memory // of_one)))
    found = []
    for begin in range(0, len(sets), n):
        some = sets[np.arange(begin, begin + n).clip(max=len(sets) - 1)]
        out = _first_pass(
            part.model, part.tokens, part.other, part.run.written, some, jnp.asarray(passing)
        )
        found.append(jax.tree.map(np.asarray, out))
    return tuple(
        None if parts[0] is None else np.concatenate(parts)[: len(sets)]
        for parts in zip(*found, strict=True)
    )


def _edit(part: Part, receiver: int, read: tuple[Any, ...]) -> Edit:
    """The receiver reads what the first pass showed, in each experiment."""
    kind, layer, head = part.graph.where(receiver)
    attention, mlp, stream = read
    count = len(stream)
    position = {} if part.changes is None else {"position": Shared(part.changes)}
    at = np.full(count, layer)
    if kind == "logits":
        return replace("resid_post", stream, layer=at, **position)
    if kind == "mlp":
        return replace("mlp_in", mlp[:, layer], layer=at, **position)
    value = received(part.model, jnp.int32(layer), jnp.asarray(attention[:, layer]), kind=kind)
    heads = np.full(count, head)
    return replace(kind, np.asarray(value)[:, :, :, [head]], layer=at, head=heads, **position)
