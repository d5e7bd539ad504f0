"""The forward pass: pure functions over a `Model`, in three stages.

    embed:       tokens -> residual stream [B P D]
    run_layers:  residual stream -> residual stream, any range of layers
    unembed:     residual stream -> logits [B P V]

`forward` is their composition. Axis letters: see `jaxinterp.model.params`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.model.block import block
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import Tokens, as_tokens, check_tokens
from jaxinterp.model.layers import Layer, layers_of, make_context
from jaxinterp.model.params import Model, check_model
from jaxinterp.model.parts import activation, einsum, normalize, softcap
from jaxinterp.model.record import Activations, Record, as_record, scan_layers
from jaxinterp.model.taps import Frame, Intervention, Tap, as_interventions, norm_site
from jaxinterp.numerics import wide_dtype


class Output(struct.PyTreeNode):
    """What `forward` returns.

    logits: [B P V], in float32 at least (None for a model without an unembedding).
    activations: recorded values by site, stacked over layers where the site is layered:
    ``activations["z"]`` is [L B P H K], ``activations["blocks.3.attn.hook_z"]`` its layer 3
    [B P H K] (which is also what is kept where ``record`` names that layer alone).
    """

    logits: jax.Array | None
    activations: Activations


def embed(
    model: Model,
    tokens: Any,
    interventions: Iterable[Intervention] = (),
    record: Record | Iterable[str] = (),
    frame: Frame | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Stage 1: tokens [B P] to the residual stream [B P D] before layer 0, and records.

    ``frame`` says which columns the tokens are (by default all of them).
    """
    check_model(model)
    c, p, tokens = model.config, model.params.embed, as_tokens(tokens)
    tap = Tap(c, interventions, as_record(c, record).sites, tokens.positions)
    frame = Frame(tokens.positions) if frame is None else frame
    if tokens.values is None:
        x = p.W_E[tokens.ids]
    else:
        x = einsum(c, "bpv,vd->bpd", tokens.values.astype(p.W_E.dtype), p.W_E)
    if c.embed_scale != 1.0:
        x = x * jnp.asarray(c.embed_scale, x.dtype)
    x = tap("embed", x, frame)
    if p.W_pos is not None:
        x = x + tap("pos_embed", p.W_pos[tokens.positions.clip(0)], frame)
    if p.W_type is not None:
        types = jnp.zeros_like(tokens.ids) if tokens.types is None else tokens.types
        x = x + p.W_type[types]
    return norm_site(c, p.norm, "ln_embed", x, tap, frame), tap.recorded


def run_layers(
    model: Model,
    x: jax.Array,
    tokens: Any,
    start: int | jax.Array = 0,
    stop: int | jax.Array | None = None,
    interventions: Iterable[Intervention] = (),
    record: Record | Iterable[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Stage 2: layers ``start`` to ``stop`` (exclusive) on the stream x [B P D].

    Records are stacked over the layers run. With traced bounds the layers outside them are
    passed over (and their records are zero), so that one program serves every range.

    Raises ``ValueError`` for bounds that are no range of layers, and for a single layer to be
    recorded that is not run; traced bounds pass.
    """
    check_model(model)
    c, tokens = model.config, as_tokens(tokens)
    interventions, record = tuple(interventions), as_record(c, record)
    stop = c.n_layers if stop is None else stop
    context, frame = make_context(model, tokens), Frame(tokens.positions)
    layers = layers_of(model)

    def run(x: jax.Array, layer: Layer) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        tap = Tap(c, interventions, record.sites, context.sources, layer.index)
        x, _ = block(c, layer, x, context, tap, frame)
        return x, None, tap.recorded

    if isinstance(start, (int, np.integer)) and isinstance(stop, (int, np.integer)):
        if not 0 <= start <= stop <= c.n_layers:
            raise ValueError(f"layers {start} to {stop} are not a range within {c.n_layers}.")
        if unrun := [name for name, layer in record.single_names() if not start <= layer < stop]:
            raise ValueError(
                f"{unrun[0]!r} is to be recorded, and layers {start} to {stop} are run."
            )
        layers = jax.tree.map(lambda leaf: leaf[start:stop], layers)
        x, (_, found) = scan_layers(run, x, layers, record)
        return x, found

    def maybe_run(x: jax.Array, layer: Layer) -> tuple[jax.Array, None, dict[str, jax.Array]]:
        def skip(x: jax.Array) -> tuple[jax.Array, None, dict[str, jax.Array]]:
            _, _, records = jax.eval_shape(run, x, layer)
            return x, None, jax.tree.map(lambda r: jnp.zeros(r.shape, r.dtype), records)

        inside = (layer.index >= start) & (layer.index < stop)
        return jax.lax.cond(inside, lambda x: run(x, layer), skip, x)

    x, (_, found) = scan_layers(maybe_run, x, layers, record)
    return x, found


def unembed(
    model: Model,
    x: jax.Array,
    frame: Frame | None = None,
    interventions: Iterable[Intervention] = (),
    record: Record | Iterable[str] = (),
    vocabulary: jax.Array | None = None,
) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    """Stage 3: the stream x [B P D] after the last layer to logits [B P V], and records.

    Logits are float32 at least, whatever the model's dtype.
    ``vocabulary`` [B C] restricts the logits to those tokens of each prompt, [B P C].
    ``frame`` says which columns x holds (by default all of them, unpadded).
    """
    c, p = model.config, model.params
    if frame is None:
        frame = Frame(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))
    tap = Tap(c, interventions, as_record(c, record).sites, frame.positions)
    x = norm_site(c, p.ln_final, "ln_final", x, tap, frame)
    if c.head == "none":
        return None, tap.recorded
    if c.head_transform:
        x = activation(c.act)(einsum(c, "bpd,de->bpe", x, p.head.W) + p.head.b)
        x = normalize(c, p.head.norm, x)
    tied = c.head == "tied"
    # Half-precision models have logits in float32: in bfloat16 one near 15 moves in steps of 0.06.
    dtype = wide_dtype(x)
    b = p.head.b_U
    if vocabulary is None:
        equation, W = ("bpd,vd->bpv", p.embed.W_E) if tied else ("bpd,dv->bpv", p.head.W_U)
        logits = einsum(c, equation, x, W, dtype=dtype)
        logits = logits if b is None else logits + b
    else:
        W = p.embed.W_E[vocabulary] if tied else jnp.moveaxis(p.head.W_U[:, vocabulary], 0, -1)
        logits = einsum(c, "bpd,bcd->bpc", x, W, dtype=dtype)
        logits = logits if b is None else logits + b[vocabulary][:, None]
    return softcap(logits, c.logit_softcap), tap.recorded


def forward(
    model: Model,
    tokens: Any,
    interventions: Any = (),
    record: Iterable[str] = (),
) -> Output:
    """Run the model on tokens [B P]: a pure function with explicit outputs.

    tokens: token ids [B P] or [P], or `Tokens` (which carries padding).
    interventions: one intervention or a tuple of them, applied in order at each site.
    record: the sites to return, all layers of each; ``"blocks.3.attn.hook_z"`` (TransformerLens's
    name of ``"z"`` at layer 3) keeps that layer alone, under that name.

    Raises ``ValueError`` for a site the architecture lacks, an index out of range, tokens
    outside the vocabulary or prompts longer than learned positions reach.
    """
    tokens = as_tokens(tokens)
    interventions = as_interventions(model.config, interventions, tokens)
    kept = as_record(model.config, record)
    check_tokens(model.config, tokens)
    return _forward(model, tokens, interventions, record=kept)


@functools.partial(jit, static=("record",))
def _forward(
    model: Model, tokens: Tokens, interventions: tuple[Intervention, ...], record: Record
) -> Output:
    x, first = embed(model, tokens, interventions, record)
    x, middle = run_layers(model, x, tokens, interventions=interventions, record=record)
    logits, last = unembed(model, x, Frame(tokens.positions), interventions, record)
    return Output(logits, Activations({**first, **middle, **last}))
