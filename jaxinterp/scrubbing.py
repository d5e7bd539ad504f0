"""Causal scrubbing: does the model's behaviour survive all resampling that a hypothesis allows?

Chan et al. 2022 (Redwood Research, "Causal scrubbing: a method for rigorously testing
interpretability hypotheses"). A hypothesis names edges of the model's graph, written as in
`jaxinterp.circuits.graph`, and for each the *feature* of the prompt that what it carries is
claimed to depend on. Edges that are not named are claimed not to matter.

The algorithm is the write-up's, recursive and treeified. To find what a reader of the stream reads
on a reference prompt x:

- A named edge carries what its sender writes on a prompt x' drawn uniformly among the prompts of
  the data set that agree with x on the edge's feature (x itself among them). Every edge of every
  part draws its own x', also where the sender is the same.
- All edges of a part that are not named carry what their senders write in the plain run on one
  prompt drawn uniformly from the data set, one for the part (the queries, keys, values of a head).
- A sender none of whose own inputs is named is not opened: it writes what it writes in the plain
  run on x'. One with named inputs is *opened*: it is computed from inputs found by these rules
  with x' as their reference.

It begins with the logits, whose reference is each prompt itself, and ends after as many levels as
the hypothesis names. The metric of the logits is the prompt's own. So a hypothesis whose edges all
carry the whole input changes nothing, and one that names no edge gives the metric on the logits of
random prompts.

Where a norm follows the heads of a layer (Gemma 2), what one of them adds is scaled as in a run on
its reference prompt with its own inputs replaced. Prompts are only exchanged for others of the same
length and padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, random_seed, whole_number
from jaxinterp.circuits.circuit import Circuit, graph_of
from jaxinterp.circuits.graph import Graph
from jaxinterp.circuits.masked import Reads, measure, walk
from jaxinterp.grid_runs import ignore
from jaxinterp.metrics import Metric, check_metric, of_prompts
from jaxinterp.model import (
    Frame,
    Model,
    Tokens,
    as_tokens,
    block,
    layer_at,
    make_context,
)
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.taps import Tap
from jaxinterp.numerics import wide, wide_dtype
from jaxinterp.results import claim, fingerprint
from jaxinterp.sweep.devices import to_host

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Feature", "Hypothesis", "scrub"]

Feature = str | Sequence[Hashable] | np.ndarray | Callable[[tuple[int, ...]], Hashable]

INPUT = "input"  # the feature that is the whole prompt
MOST = 5000  # opened parts, at most


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the tree of one scrubbed computation, for every draw and prompt [n].

    sender: whose value it is, as the graph counts them; the root's is `logits`, None. reference:
    the prompts it stands for. rest: the prompts that its unnamed inputs come from, and inputs:
    (receiver, `Part`) of each named edge; both None for a part that is not opened.
    """

    sender: int | None
    reference: np.ndarray
    rest: np.ndarray | None = None
    inputs: tuple[tuple[int, Part], ...] | None = None

    def of(self, rows: Any) -> Part:
        """For some of the draws and prompts."""
        if self.inputs is None or self.rest is None:
            return Part(self.sender, self.reference[rows])
        inputs = tuple((receiver, part.of(rows)) for receiver, part in self.inputs)
        return Part(self.sender, self.reference[rows], self.rest[rows], inputs)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """Named edges of a graph, and the prompts that agree on what they carry.

    edges: the features' classes [n] (equal numbers agree) by (receiver, sender). alike [n]: equal
    for prompts that can stand in for each other at all.
    """

    graph: Graph
    edges: Mapping[tuple[int, int], np.ndarray]
    alike: np.ndarray

    def named(self, sender: int | None) -> list[tuple[int, int]]:
        """The named edges (receiver, sender) into a part."""
        last = self.graph.n_receivers - 1
        reads = {last} if sender is None else set(np.flatnonzero(self.graph.readers[sender]))
        return [edge for edge in self.edges if edge[0] in reads]

    @functools.cached_property
    def n_opened(self) -> int:
        """How many parts of the tree are computed, the logits included."""

        @functools.cache
        def count(sender: int | None) -> int:
            named = self.named(sender)
            return bool(named or sender is None) + sum(count(s) for _, s in named)

        return count(None)

    def draw(self, reference: np.ndarray, rng: np.random.Generator) -> Part:
        """The prompts of one scrubbed computation for each reference prompt [n]."""

        def part(sender: int | None, reference: np.ndarray) -> Part:
            named = self.named(sender)
            if sender is not None and not named:
                return Part(sender, reference)
            rest = agreeing(self.alike, reference, rng)
            inputs = tuple(
                (edge[0], part(edge[1], agreeing(self.edges[edge], reference, rng)))
                for edge in named
            )
            return Part(sender, reference, rest, inputs)

        return part(None, reference)


def scrub(
    model: Model,
    *,
    tokens: Any,
    metric: Metric,
    hypothesis: Mapping[str, Feature],
    draws: int = 10,
    seed: int = 0,
    batch: int = 32,
    record: Mapping[str, Any] | None = None,
    on_done: Callable[[int], None] = ignore,
) -> xr.DataArray:
    """The metric of each prompt in scrubbed computations, several draws of them.

    tokens: the data set; its prompts are scrubbed and resampled from. hypothesis: features by
    edge (``"a0.h1->a1.h0<k>"``, ``"a1.h0->logits"``), or by sender (``"a1.h0"``), which names its
    edges to the logits and to all other senders so named. A feature is a label for each prompt
    (any hashable), a function from the prompt's token ids to one, or "input": the whole prompt.
    batch: computations at a time. on_done: called with draws x prompts done.

    Costs, for each draw and prompt, one layer for every opened part; and one plain pass per prompt.
    The plain run's values at named senders are held: [S n P D].

    Returns an ``xarray.DataArray`` with dims ("draw", "prompt"). Coordinates: ``clean``, the
    metric as it is [n]; ``corrupted``, with everything resampled (the logits of the prompt that
    the unnamed edges into the logits came from) [draw n]. ``attrs["recovered"]``: (scrubbed -
    corrupted) / (clean - corrupted), of means over all draws and prompts; `jaxinterp.share` gives
    it per draw. A true hypothesis recovers 1 up to what its features leave to chance; more than 1
    or less than 0 is a hypothesis that is wrong about what lowers or raises the metric.

    Raises ``ValueError`` for edges there are not, claims about the inputs of a part that nothing
    leads from to the logits, features that do not fit, and trees of more than 5000 parts.
    """
    import xarray as xr

    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    draws, batch = whole_number("draws", draws, 1, MANY), whole_number("batch", batch, 1)
    seed = random_seed(seed)
    claims = state(model, tokens, hypothesis)
    n = len(tokens)
    tree = claims.draw(np.tile(np.arange(n), draws), np.random.default_rng(seed))
    plain = Plain.of(model, tokens, claims, min(batch, n))
    values, everything = [], []
    for begin in range(0, draws * n, batch):
        rows = np.arange(begin, begin + batch).clip(max=draws * n - 1)  # one shape for all
        own = tree.of(rows)
        values.append(plain.score(metric, own.reference, plain.read(own)))
        streams = plain.stream[own.rest]
        everything.append(plain.score(metric, own.reference, streams))
        on_done(min(batch, draws * n - begin))
    scrubbed, corrupted = (
        np.concatenate(each)[: draws * n].reshape(draws, n) for each in (values, everything)
    )
    clean = plain.clean(metric)
    gap = float(clean.mean() - corrupted.mean())
    attrs = claim(
        model, intervention="causal scrubbing", hypothesis=said(claims), opened=claims.n_opened,
        draws=draws, seed=seed, metric=metric.describe(), n_prompts=n, prompts=fingerprint(tokens),
        recovered=float(scrubbed.mean() - corrupted.mean()) / gap if gap else float("nan"),
        **dict(record or {}),
    )  # fmt: skip
    coords = {
        "draw": np.arange(draws), "prompt": np.arange(n), "clean": ("prompt", clean),
        "corrupted": (("draw", "prompt"), corrupted),
    }  # fmt: skip
    return xr.DataArray(scrubbed, coords, ("draw", "prompt"), metric.name, attrs)


def state(model: Model, tokens: Tokens, hypothesis: Mapping[str, Feature]) -> Hypothesis:
    """A hypothesis as it is meant for these prompts. Raises ``ValueError`` as `scrub` does."""
    graph, classes = graph_of(model), Classes(tokens)
    nodes = [name for name in hypothesis if "->" not in name]
    for name in nodes:
        graph.sender_index(name)
    between = Circuit.of_nodes(graph, nodes).names
    owners = {edge: edge.partition("->")[0] for edge in between}
    features = {edge: hypothesis[name] for edge, name in owners.items() if name in nodes}
    features |= {name: given for name, given in hypothesis.items() if "->" in name}
    edges = {graph.place(name): classes(name, given) for name, given in features.items()}
    claims = Hypothesis(graph, edges, classes.alike)
    heard: set[int | None] = {None}
    while new := {s for reader in heard for _, s in claims.named(reader)} - heard:
        heard |= new
    for reader, sender in edges:
        if not any((reader, sender) in claims.named(part) for part in heard):
            raise ValueError(
                f"'{graph.senders[sender]}->{graph.receivers[reader]}' is named, but no named "
                "edges lead from there to the logits: name those too, or leave it out."
            )
    if claims.n_opened > MOST:
        raise ValueError(
            f"The hypothesis opens {claims.n_opened} parts, one for each path to the logits, more "
            f"than {MOST}: name the inputs of fewer parts."
        )
    return claims


class Classes:
    """From features to classes of prompts: integers [n], equal where prompts agree."""

    def __init__(self, tokens: Tokens) -> None:
        mask = np.asarray(tokens.mask)
        ids = np.asarray(tokens.ids)
        self.prompts = [tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
        self.alike = numbered([tuple(row) for row in np.asarray(tokens.positions).tolist()])
        kinds = None if tokens.types is None else np.asarray(tokens.types).tolist()
        self.whole = [
            (own, None if kinds is None else tuple(kinds[row]))
            for row, own in enumerate(self.prompts)
        ]

    def __call__(self, name: str, feature: Feature) -> np.ndarray:
        if isinstance(feature, str):
            if feature != INPUT:
                raise ValueError(
                    f"The feature of {name!r} is {feature!r}, expected a label for each prompt, a "
                    f"function of its token ids, or {INPUT!r} (the whole prompt)."
                )
            labels: list[Any] = list(self.whole)
        elif callable(feature):
            labels = [feature(own) for own in self.prompts]
        else:
            array = feature.tolist() if hasattr(feature, "tolist") else list(feature)  # type: ignore[union-attr]
            labels = [tuple(each) if isinstance(each, list) else each for each in array]
        if len(labels) != len(self.prompts):
            raise ValueError(
                f"The feature of {name!r} has {len(labels)} labels for {len(self.prompts)} prompts."
            )
        try:
            return numbered(list(zip(self.alike.tolist(), labels, strict=True)))
        except TypeError:
            raise ValueError(
                f"The feature of {name!r} gives {type(labels[0]).__name__}, which is not hashable: "
                "make it a tuple, a number or a text."
            ) from None


def numbered(labels: Sequence[Hashable]) -> np.ndarray:
    """Equal labels as equal integers, [n]."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(each, len(seen)) for each in labels])


def agreeing(classes: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each reference prompt [m] one of its class, drawn uniformly (itself among them)."""
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes)
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    own = classes[reference]
    return order[first[own] + rng.integers(sizes[own])]


@dataclasses.dataclass(frozen=True)
class Plain:
    """What the plain runs of the data set leave: all that a scrubbed computation starts from.

    written: of named senders, [n P D] each. reads: what the readers of opened parts read,
    ("resid_pre" or "mlp_in", layer) to [n P D]. stream [n P D]: the last one.
    """

    model: Model
    tokens: Tokens
    graph: Graph
    written: Mapping[int, np.ndarray]
    reads: Mapping[tuple[str, int], np.ndarray]
    stream: np.ndarray

    @classmethod
    def of(cls, model: Model, tokens: Tokens, claims: Hypothesis, batch: int) -> Plain:
        """One pass over the data set, batch by batch."""
        graph, last = claims.graph, claims.graph.n_receivers - 1
        senders = sorted({sender for _, sender in claims.edges})
        opened = {graph.where(receiver)[:2] for receiver, _ in claims.edges if receiver != last}
        layers = sorted({layer for _, layer in opened})
        parts = []
        for begin in range(0, len(tokens), batch):
            rows = np.arange(begin, begin + batch).clip(max=len(tokens) - 1)
            found = _observed(
                model, tokens[rows], jnp.asarray(senders, int), jnp.asarray(layers, int)
            )
            parts.append(jax.tree.map(to_host, found))
        whole = jax.tree.map(
            lambda *each: np.concatenate(each, -3)[..., : len(tokens), :, :], *parts
        )
        written, resid_pre, mlp_in, stream = whole
        reads = {("resid_pre", layer): resid_pre[i] for i, layer in enumerate(layers)}
        if mlp_in is not None:
            reads |= {("mlp_in", layer): mlp_in[i] for i, layer in enumerate(layers)}
        return cls(model, tokens, graph, dict(zip(senders, written, strict=True)), reads, stream)

    def value(self, part: Part) -> Any:
        """What a part writes, [b P D]."""
        assert part.sender is not None
        if part.inputs is None:
            return self.written[part.sender][part.reference]
        layer = self.graph.layer_of(part.sender)
        changes: dict[str, tuple[int, Any]] = {}
        for kind, head, receiver in self._readers(part.sender):
            site = "mlp_in" if kind == "mlp" else "resid_pre"
            change = self._input(part, receiver, self.reads[site, layer])
            changes[kind] = head, wide(change) - wide(self.reads[site, layer][part.reference])
        slot = part.sender - self.graph.sender(layer, 0)
        x = self.reads["resid_pre", layer][part.reference]
        tokens = self.tokens[part.reference]
        return _part(self.model, tokens, x, jnp.int32(layer), jnp.int32(slot), changes)

    def read(self, root: Part) -> Any:
        """The last stream [b P D] of a scrubbed computation."""
        return self._input(root, self.graph.n_receivers - 1, self.stream)

    def _input(self, part: Part, receiver: int, plain: np.ndarray) -> Any:
        """What a receiver of a part reads [b P D]; ``plain`` [n P D]: in the plain runs."""
        assert part.inputs is not None
        value: Any = wide(jnp.asarray(plain[part.rest]))
        for own, each in part.inputs:
            if own == receiver:
                theirs = self.written[each.sender][part.rest]  # type: ignore[index]
                value = value + (wide(self.value(each)) - wide(theirs))
        return value.astype(plain.dtype)

    def _readers(self, sender: int) -> list[tuple[str, int, int]]:
        """(kind, head, receiver) of all that a sender reads by."""
        found = np.flatnonzero(self.graph.readers[sender]).tolist()
        named = [(*self.graph.where(receiver), receiver) for receiver in found]
        return [(kind, head, receiver) for kind, _, head, receiver in named]

    def score(self, metric: Metric, prompts: np.ndarray, stream: Any) -> np.ndarray:
        """The metric [b] of those prompts on a stream [b P D]."""
        own = of_prompts(metric, prompts)
        return to_host(_measured(self.model, self.tokens[prompts], own, jnp.asarray(stream)))

    def clean(self, metric: Metric) -> np.ndarray:
        """The metric [n] of the plain runs."""
        return self.score(metric, np.arange(len(self.tokens)), self.stream)


_measured = jit(measure)


@jit
def _observed(
    model: Model, tokens: Tokens, senders: jax.Array, layers: jax.Array
) -> tuple[Any, ...]:
    run = walk(model, tokens)
    mlp_in = None if run.mlp_in is None else run.mlp_in[layers]
    return run.written[senders], run.resid_pre[layers], mlp_in, run.stream


@jit
def _part(
    model: Model, tokens: Tokens, x: jax.Array, index: jax.Array, slot: jax.Array,
    changes: dict[str, tuple[int, Any]],
) -> jax.Array:  # fmt: skip
    """What one sender of a layer writes [B P D], its inputs changed.

    x [B P D]: the stream before the layer. slot: the sender's place in the layer. changes: by kind
    of receiver, its head, and what is added to what it reads [B P D].
    """
    graph, context = Graph(model.config), make_context(model, tokens)
    layer, frame = layer_at(model, index), Frame(tokens.positions)

    def come(place: slice) -> jax.Array:
        out = jnp.zeros((place.stop - place.start, *x.shape), wide_dtype(x))
        for kind, (head, change) in changes.items():
            out = out.at[head].add(change) if graph.slots[kind] == place else out
        return out

    reads = Reads(graph, layer, None, come)
    tap = Tap(model.config, (reads,), (), context.sources, index)
    block(model.config, layer, x, context, tap, frame)
    written = reads.heads if reads.mlp is None else jnp.concatenate([reads.heads, reads.mlp[None]])
    return written[slot]


def said(claims: Hypothesis) -> dict[str, Any]:
    """For the claim: every named edge, into how many classes its feature parts the prompts."""
    graph = claims.graph
    return {
        f"{graph.senders[s]}->{graph.receivers[r]}": {
            "classes": len(np.unique(classes)), "labels": fingerprint(classes),
        }
        for (r, s), classes in claims.edges.items()
    }  # fmt: skip
