"""The graph of a transformer: who writes to the residual stream, and who reads it.

Senders are the embedding (``input``), every head (``a5.h1``) and every MLP (``m3``); receivers
are the queries, keys and values of every head (``a5.h1<q>``), every MLP (``m3``) and the final
stream (``logits``). An edge ``a0.h1->a5.h5<k>`` exists where the sender writes before the receiver
reads. Names are those of the MIB benchmark (Mueller et al. 2025, arXiv:2504.13151). Under
grouped-query attention, keys and values are received once per key/value head, and named by it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxinterp.checks import one_of, whole_number
from jaxinterp.model import Config


@dataclasses.dataclass(frozen=True)
class Graph:
    """Senders S and receivers R of an architecture; edges are places in a matrix [R S].

    Senders are ordered as they write: ``input``, then layer by layer the heads and the MLP.
    Receivers are ordered layer by layer: q of each head, k and v of each key/value head, MLP;
    ``logits`` comes last.

    Raises ``ValueError`` for architectures that norm the stream itself (BERT): what
    reaches a reader there is no sum of what was written.
    """

    config: Config

    def __post_init__(self) -> None:
        if self.config.norm_stream:
            raise ValueError(
                f"A {self.config.family} model norms its residual stream after every sublayer: "
                "what a reader gets is not a sum over senders, so it has no graph of edges."
            )

    @property
    def per_layer(self) -> int:
        """Senders of one layer."""
        return self.config.n_heads + (not self.config.attention_only)

    @property
    def n_senders(self) -> int:
        """S: ``input``, and the heads and MLPs."""
        return 1 + self.config.n_layers * self.per_layer

    @functools.cached_property
    def slots(self) -> dict[str, slice]:
        """Where each kind of receiver stands among those of one layer."""
        c = self.config
        sizes = {"q": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads, "mlp": not c.attention_only}
        ends = np.cumsum(list(sizes.values()))
        return {
            kind: slice(int(end) - size, int(end))
            for (kind, size), end in zip(sizes.items(), ends, strict=True)
        }

    @property
    def reads(self) -> int:
        """Receivers of one layer."""
        return self.slots["mlp"].stop

    @property
    def n_receivers(self) -> int:
        """R: every layer's, and ``logits``."""
        return self.config.n_layers * self.reads + 1

    def sender(self, layer: int, head: int | None = None) -> int:
        """The index of a head, or of a layer's MLP. Raises ``ValueError`` for one not there."""
        whole_number("layer", layer, 0, self.config.n_layers - 1)
        whole_number("head", head, 0, self.config.n_heads - 1, optional=True)
        return 1 + layer * self.per_layer + (self.config.n_heads if head is None else head)

    def receiver(self, layer: int, kind: str, head: int = 0) -> int:
        """The index of a receiver within the blocks. Raises ``ValueError`` for one not there."""
        slot = self.slots[one_of("kind", kind, self.slots)]
        whole_number("layer", layer, 0, self.config.n_layers - 1)
        whole_number("head", head, 0, slot.stop - slot.start - 1)
        return layer * self.reads + slot.start + head

    @functools.cached_property
    def senders(self) -> tuple[str, ...]:
        """Names, in order."""
        c = self.config
        names = ["input"]
        for layer in range(c.n_layers):
            names += [f"a{layer}.h{head}" for head in range(c.n_heads)]
            names += [] if c.attention_only else [f"m{layer}"]
        return tuple(names)

    @functools.cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names, in order."""
        c = self.config
        names: list[str] = []
        for layer in range(c.n_layers):
            for kind, count in (("q", c.n_heads), ("k", c.n_kv_heads), ("v", c.n_kv_heads)):
                names += [f"a{layer}.h{head}<{kind}>" for head in range(count)]
            names += [] if c.attention_only else [f"m{layer}"]
        return (*names, "logits")

    @functools.cached_property
    def exists(self) -> np.ndarray:
        """bool [R S]: the edges."""
        c = self.config
        out = np.zeros((self.n_receivers, self.n_senders), bool)
        for layer in range(c.n_layers):
            rows = slice(layer * self.reads, (layer + 1) * self.reads)
            out[rows, : 1 + layer * self.per_layer] = True
            if not (c.attention_only or c.parallel):  # the MLP also reads this layer's heads
                out[self.receiver(layer, "mlp"), : self.sender(layer, 0) + c.n_heads] = True
        out[-1] = True
        out.flags.writeable = False
        return out

    @property
    def n_edges(self) -> int:
        """E: the places [R S] where a sender writes before a receiver reads."""
        return int(self.exists.sum())

    @functools.cached_property
    def edges(self) -> tuple[str, ...]:
        """The names of all edges, in the order of ``exists[exists]``."""
        rows, columns = np.nonzero(self.exists)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return tuple(f"{self.senders[s]}->{self.receivers[r]}" for r, s in pairs)

    @functools.cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return (
            {name: i for i, name in enumerate(self.receivers)},
            {name: i for i, name in enumerate(self.senders)},
        )

    def place(self, edge: str) -> tuple[int, int]:
        """(receiver, sender) of an edge's name. Raises ``ValueError`` for one that is not there."""
        receivers, senders = self._places
        sender, arrow, receiver = edge.partition("->")
        if not arrow or sender not in senders or receiver not in receivers:
            raise ValueError(
                f"{edge!r} is not an edge of this model: expected a name such as "
                f"{self.edges[0]!r} or {self.edges[-1]!r}."
            )
        place = receivers[receiver], senders[sender]
        if not self.exists[place]:
            raise ValueError(
                f"{edge!r} cannot be an edge: {sender} writes only after {receiver} has read."
            )
        return place

    def mask(self, edges: Iterable[str]) -> np.ndarray:
        """bool [R S] of edges by name."""
        out = np.zeros(self.exists.shape, bool)
        for edge in edges:
            out[self.place(edge)] = True
        return out

    def sender_index(self, name: str) -> int:
        """The index of a sender's name. Raises ``ValueError`` for one that is not there."""
        if name not in self._places[1]:
            raise ValueError(
                f"{name!r} does not write to this model's stream: expected 'input', "
                f"{self.senders[1]!r} to {self.senders[-1]!r}."
            )
        return self._places[1][name]

    def receiver_index(self, name: str) -> int:
        """The index of a receiver's name. Raises ``ValueError`` for one that is not there."""
        if name not in self._places[0]:
            raise ValueError(
                f"{name!r} does not read this model's stream: expected {self.receivers[0]!r} (q, k "
                f"or v; key/value heads for k and v), {self.receivers[-2]!r} or 'logits'."
            )
        return self._places[0][name]

    @functools.cached_property
    def readers(self) -> np.ndarray:
        """bool [S R]: what each sender itself reads, so that paths can be followed.

        A head reads by its own query and the keys and values of its group; ``input`` reads nothing.
        """
        c = self.config
        out = np.zeros((self.n_senders, self.n_receivers), bool)
        group = c.n_heads // c.n_kv_heads
        for layer in range(c.n_layers):
            for head in range(c.n_heads):
                row = out[self.sender(layer, head)]
                row[self.receiver(layer, "q", head)] = True
                row[self.receiver(layer, "k", head // group)] = True
                row[self.receiver(layer, "v", head // group)] = True
            if not c.attention_only:
                out[self.sender(layer), self.receiver(layer, "mlp")] = True
        out.flags.writeable = False
        return out

    def where(self, receiver: int) -> tuple[str, int, int]:
        """(kind, layer, head) of a receiver; ``logits`` is ("logits", last layer, 0).

        Raises ``ValueError`` for a number that is none.
        """
        receiver = whole_number("receiver", receiver, 0, self.n_receivers - 1)
        if receiver == self.n_receivers - 1:
            return "logits", self.config.n_layers - 1, 0
        layer, slot = divmod(receiver, self.reads)
        kind = next(kind for kind, place in self.slots.items() if slot < place.stop)
        return kind, layer, slot - self.slots[kind].start

    def layer_of(self, sender: int) -> int:
        """The layer a sender is in; -1 for ``input``. Raises ``ValueError`` for one not there."""
        sender = whole_number("sender", sender, 0, self.n_senders - 1)
        return (sender - 1) // self.per_layer if sender else -1

    def to_dict(self) -> dict[str, Any]:
        """The fields that fix the graph, as in a MIB file's ``cfg``."""
        c = self.config
        return {
            "n_layers": c.n_layers, "n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads,
            "parallel_attn_mlp": c.parallel, "d_model": c.d_model, "attn_only": c.attention_only,
        }  # fmt: skip
