"""Any circuit in one pass: the input of each reader is changed, edge by edge.

    receiver's input += sum over senders of mask[receiver, sender] * (alternative - current)

where *current* is what the sender writes in this very pass, so that changes flow on along the
edges that stay. ``mask`` 0 everywhere is the plain forward pass, 1 everywhere the run that the
alternatives come from.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.circuits.graph import Graph
from jaxinterp.metrics import Metric, read_columns, read_out
from jaxinterp.model import At, Frame, Model, Tokens, block, embed, layers_of, make_context
from jaxinterp.model.compiled import jit
from jaxinterp.model.layers import Layer
from jaxinterp.model.parts import einsum, normalize
from jaxinterp.model.taps import Tap
from jaxinterp.numerics import wide, wide_dtype


class Held(struct.PyTreeNode):
    """Senders that write given values whatever they read.

    where: bool [S]. value [S B P D].
    """

    where: jax.Array
    value: jax.Array


class Pass(struct.PyTreeNode):
    """What a pass leaves: the final stream [B P D], what every sender wrote [S B P D], and
    what the sublayers of each layer read before any edge changed it, [L B P D]."""

    stream: jax.Array
    written: jax.Array
    resid_pre: jax.Array
    mlp_in: jax.Array | None


def walk(
    model: Model,
    tokens: Tokens,
    mask: jax.Array | None = None,
    alternative: Any = None,
    shift: jax.Array | None = None,
    held: Held | None = None,
) -> Pass:
    """One pass over all layers.

    mask [R S] or [R S P] and alternative [S B P D]: as above. shift [R B P D] is added to the
    receivers' inputs as it is (its gradient is that of the inputs).
    """
    c, graph = model.config, Graph(model.config)
    context, frame = make_context(model, tokens), Frame(tokens.positions)
    x, _ = embed(model, tokens)
    size = (graph.n_senders, *x.shape)
    n = graph.per_layer
    if held is not None:
        x = jnp.where(held.where[0], held.value[0], x)
    written = jnp.zeros(size, x.dtype).at[0].set(x)
    gap: Any = None  # alternative - written, of those that have
    theirs: Any = None  # each layer's alternatives
    if mask is not None:
        gap = jnp.zeros(size, wide_dtype(x)).at[0].set(wide(alternative[0]) - wide(x))
        theirs = alternative[1:].reshape(c.n_layers, n, *x.shape)
    heads = slice(0, graph.slots["mlp"].start)

    def by_layer(leaf: jax.Array | None) -> jax.Array | None:
        return None if leaf is None else leaf[:-1].reshape(c.n_layers, graph.reads, *leaf.shape[1:])

    def run(carry: tuple[Any, ...], each: tuple[Any, ...]) -> tuple[Any, Any]:
        x, written, gap = carry
        layer, rows, shifts, theirs = each
        first = 1 + layer.index * n
        own = None
        if held is not None:
            own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, n), held)
        # One product for all heads' inputs: reading the gaps is most of the work.
        into_heads: Any = None if rows is None else mix(c, rows[heads], gap)

        def come(slot: slice) -> Any:
            """What the edges add to the inputs of some receivers: [r B P D], or 0."""
            out: Any = 0 if shifts is None else shifts[slot]
            if rows is None:
                return out
            if slot != graph.slots["mlp"]:
                return out + into_heads[slot]
            near = jax.lax.dynamic_slice_in_dim(rows[slot], first, c.n_heads, 1)
            out = out + mix(c, rows[slot], gap)
            return out + mix(c, near, wide(theirs[: c.n_heads]) - wide(reads.heads))

        reads = Reads(graph, layer, own, None if mask is None and shift is None else come)
        tap = Tap(c, (reads,), (), context.sources, layer.index)
        x_out, _ = block(c, layer, x, context, tap, frame)
        written = jax.lax.dynamic_update_slice_in_dim(written, reads.wrote, first, 0)
        if gap is not None:
            new = wide(theirs) - wide(reads.wrote)
            gap = jax.lax.dynamic_update_slice_in_dim(gap, new, first, 0)
        return (x_out, written, gap), (x, reads.mlp_in)

    (x, written, gap), (resid_pre, mlp_in) = jax.lax.scan(
        run, (x, written, gap), (layers_of(model), by_layer(mask), by_layer(shift), theirs)
    )
    if shift is not None:
        x = added(x, shift[-1])
    if mask is not None:
        x = added(x, mix(c, mask[-1:], gap)[0])
    return Pass(x, written, resid_pre, mlp_in)


class Reads:
    """The intervention of one layer: edges into its readers, and what its senders write.

    Lives only while that layer is traced. ``come`` gives what is added to the inputs of some
    receivers (None: nothing ever is).
    """

    def __init__(self, graph: Graph, layer: Layer, held: Held | None, come: Any):
        self.graph, self.layer, self.held, self.come = graph, layer, held, come
        self.result: Any = None
        self.scale: Any = None
        self.heads: Any = None  # [H B P D]
        self.mlp: Any = None
        self.mlp_in: Any = None
        writers = ("result", "ln1_post_scale", "attn_out", "mlp_out")
        readers = ("q_input", "k_input", "v_input") if come else ()
        self.sites = (*readers, "mlp_in", *writers)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        if at.site.endswith("_input"):
            return added(value, jnp.moveaxis(self.come(self.graph.slots[at.site[0]]), 0, 2))
        return getattr(self, f"_{at.site}")(value)

    def _mlp_in(self, value: jax.Array) -> jax.Array:
        self.mlp_in = value
        return added(value, self.come(self.graph.slots["mlp"])[0]) if self.come else value

    def _result(self, value: jax.Array) -> jax.Array:
        self.result = value
        return value

    def _ln1_post_scale(self, value: jax.Array) -> jax.Array:
        self.scale = value
        return value

    def _attn_out(self, value: jax.Array) -> jax.Array:
        self.heads = jnp.moveaxis(self._shares(), 2, 0)
        if self.held is None:
            return value
        n = len(self.heads)
        given = jnp.where(self.held.where[:n, None, None, None], self.held.value[:n], self.heads)
        change = (wide(given) - wide(self.heads)).sum(0)
        value, self.heads = added(value, change), given
        return value

    def _shares(self) -> jax.Array:
        """What each head adds to the stream [B P H D].

        Where a norm follows, its scale in this pass is taken as given, which makes it linear; the
        output bias, which it scales too, is shared evenly.
        """
        p, config = self.layer.params, self.graph.config
        if p.ln1_post is None:
            return self.result
        result = self.result
        if p.attn.b_O is not None:
            result = result + p.attn.b_O / config.n_heads
        bare = p.ln1_post.replace(b=None)
        return normalize(config, bare, result, lambda _: self.scale[:, :, None])

    def _mlp_out(self, value: jax.Array) -> jax.Array:
        if self.held is not None:
            value = jnp.where(self.held.where[-1], self.held.value[-1], value)
        self.mlp = value
        return value

    @property
    def wrote(self) -> jax.Array:
        """What this layer's senders wrote [n B P D], in the graph's order."""
        return self.heads if self.mlp is None else jnp.concatenate([self.heads, self.mlp[None]])


def mix(config: Any, mask: jax.Array, gap: jax.Array) -> jax.Array:
    """What edges add: mask [r S] or [r S P], gap [S B P D] (wide) -> [r B P D], as wide."""
    equation = "rs,sbpd->rbpd" if mask.ndim == 2 else "rsp,sbpd->rbpd"
    return einsum(config, equation, mask.astype(gap.dtype), gap)


def added(value: jax.Array, change: jax.Array) -> jax.Array:
    """The value plus a (wide) change, rounded to the value's dtype once."""
    return (wide(value) + change).astype(value.dtype)


@jit
def written_by(model: Model, tokens: Tokens) -> jax.Array:
    """What every sender writes in a plain pass, [S B P D]."""
    return walk(model, tokens).written


@jit
def masked_metric(
    model: Model, tokens: Tokens, metric: Metric, mask: jax.Array, alternative: jax.Array
) -> jax.Array:
    """The metric [B] of one masked pass."""
    return measure(model, tokens, metric, walk(model, tokens, mask, alternative).stream)


def measure(model: Model, tokens: Tokens, metric: Metric, stream: jax.Array) -> jax.Array:
    """The metric [B] of a final stream [B P D]."""
    columns = read_columns(tokens, metric)
    read = jnp.take_along_axis(stream, columns[:, :, None], axis=1)
    return read_out(model, read, tokens, metric, Frame(tokens.positions).read(columns))
