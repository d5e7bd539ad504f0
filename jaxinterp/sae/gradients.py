"""What attributions of features are made of: the metric's slopes where dictionaries read.

A dictionary splits a value x [B P D] into nodes: features, and the error x - decode(features). A
feature's slope is that of x along the feature's row, the error's is that of x itself: a gradient
[B P D] at each place tells those of all of its nodes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.interventions import Edit, add, apply
from jaxinterp.metrics import Metric, evaluate
from jaxinterp.model import Frame, Layer, Model, Tokens, block, layers_of, make_context
from jaxinterp.model.compiled import jit
from jaxinterp.model.sites import axis_size, require
from jaxinterp.model.taps import Tap
from jaxinterp.numerics import wide
from jaxinterp.points import layers_in
from jaxinterp.sae.dictionary import Dictionary

Place = tuple[str, int]  # a site and a layer
# In the order of the forward pass; what runs through a layer runs through those of the stream.
ORDER = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_post", "mlp_out", "resid_post")
STREAM = ("resid_pre", "resid_mid", "resid_post")


def places_of(model: Model, dictionaries: Sequence[Dictionary]) -> tuple[Place, ...]:
    """Where dictionaries read and write, each once, in the order of the forward pass.

    Raises ``ValueError`` for none, other kinds than SAEs, sites and layers that the model lacks or
    that are not one vector per token, another width, two at one place, and another order.
    """
    if not dictionaries:
        raise ValueError("There are no dictionaries: give one at least.")
    places = tuple(d.config.place for d in dictionaries)
    for d, (site, layer) in zip(dictionaries, places, strict=True):
        if site not in ORDER:
            raise ValueError(f"A dictionary is at {site!r}, expected one of {', '.join(ORDER)}.")
        spec = require(model.config, site)
        layers_in(model.config.n_layers, [layer], f"layers of {site}")
        width = axis_size(model.config, spec, spec.axes[-1])
        if d.config.d_in != width:
            raise ValueError(
                f"The dictionary at {named((site, layer))} reads width {d.config.d_in}, the "
                f"model's values there have width {width}."
            )
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"Two dictionaries are at {named(place)}: give one of them.")
    for a, b in itertools.pairwise(places):
        if (a[1], ORDER.index(a[0])) > (b[1], ORDER.index(b[0])):
            raise ValueError(
                f"The dictionary at {named(b)} comes after that at {named(a)}: give them in the "
                "order of the forward pass."
            )
    return places


def named(place: Place) -> str:
    """``"resid_post.5"``"""
    return f"{place[0]}.{place[1]}"


def bare(d: Dictionary) -> Dictionary:
    """A dictionary that does not say where it is: those of one kind share programs."""
    return d.replace(config=dataclasses.replace(d.config, model="", site="", layers=()))


def split(d: Dictionary, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [... F] and error [... D] of values [... D], in float32 or wider."""
    x = wide(x)
    features = d.encode(x)
    return features, x - d.decode(features)


def responses(d: Dictionary, features: jax.Array) -> jax.Array:
    """The slope [... F] of each feature in x . W_enc: every activation is piecewise linear."""
    slope = jnp.where(features > 0, jnp.ones_like(features), 0)
    return slope if d.params.r_mag is None else slope * jnp.exp(wide(d.params.r_mag))


def slopes(
    model: Model, tokens: Tokens, metric: Metric, places: Sequence[Place],
    changes: Sequence[jax.Array], *, others: tuple[Edit, ...] = (), steps: int = 1,
) -> list[jax.Array]:  # fmt: skip
    """The metric's gradient [B P D] at each place, averaged over points of a line.

    changes [B P D]: from the run's own value to the other end of each place's line. The points
    are the shares 0, 1 / steps, ... of it (Marks et al. 2024, arXiv:2403.19647, eq. 4); only one
    place moves at a time, and what comes after it follows. With one step nothing moves (eq. 3),
    and all places share one backward pass. others: edits beside.

    Raises ``ValueError`` for layers that the model lacks.
    """
    layers_in(model.config.n_layers, [layer for _, layer in places])
    if steps > 1:
        return [
            _average(
                model, tokens, metric, (add(site, change, layer=layer),), others, steps=steps
            )[0]
            for (site, layer), change in zip(places, changes, strict=True)
        ]  # fmt: skip
    shape = (model.config.n_layers,)
    still = {
        site: jnp.zeros(shape + change.shape, change.dtype)  # [L B P D]: of every layer at once
        for (site, _), change in zip(places, changes, strict=True)
    }
    edits = tuple(add(site, value) for site, value in still.items())
    found = _average(model, tokens, metric, edits, others, steps=1)
    by_site = dict(zip(still, found, strict=True))
    return [by_site[site][layer] for site, layer in places]


@functools.partial(jit, static=("steps",))
def _average(
    model: Model, tokens: Tokens, metric: Metric, lines: tuple[Edit, ...],
    others: tuple[Edit, ...], *, steps: int,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """The gradients in what ``lines`` add, averaged over shares of it in float32 or wider."""
    ends = tuple(wide(line.value) for line in lines)

    def slope(share: jax.Array) -> tuple[jax.Array, ...]:
        def total(values: tuple[jax.Array, ...]) -> jax.Array:
            edits = (line.replace(value=v) for line, v in zip(lines, values, strict=True))
            return evaluate(metric, model, tokens, (*edits, *others)).sum()

        return jax.grad(total)(tuple(share * end for end in ends))

    shares = jnp.arange(steps, dtype=ends[0].dtype) / steps
    return jax.tree.map(lambda found: found.mean(0), jax.lax.map(slope, shares))


class Stop(struct.PyTreeNode):
    """A function of a site's values, for `jaxinterp.apply`: held as they are in derivatives."""

    def __call__(self, value: jax.Array, at: Any) -> jax.Array:
        return jax.lax.stop_gradient(value)


def held(model: Model, places: Sequence[Place], among: Sequence[Place]) -> tuple[Edit, ...]:
    """Edits that let no gradient through some places; the same programs whichever of ``among``."""
    masks = {site: np.zeros(model.config.n_layers, bool) for site, _ in among}
    for site, layer in places:
        masks[site][layer] = True
    return tuple(apply(site, Stop(), layer=mask) for site, mask in masks.items())


def pull_back(
    model: Model, tokens: Tokens, stream: jax.Array, width: int, begin: Place, end: Place,
    others: tuple[Edit, ...], cotangents: jax.Array,
) -> jax.Array:  # fmt: skip
    """Cotangents [K B P D] at one place, as those at an earlier one.

    stream [L B P D]: before each layer. width: of the values at ``begin``. Only the layers from
    one to the other are run.
    """
    site, layer = begin
    if site == "resid_post" and not model.config.norm_stream and layer < end[1]:
        site, layer = "resid_pre", layer + 1  # the same value, and a layer less
    still = jnp.zeros((*stream.shape[1:-1], width), cotangents.dtype)
    shift = add(site, still, layer=layer)
    return _pulled(
        model, tokens, stream[layer], shift, others, cotangents, site=end[0],
        n=end[1] - layer + 1,
    )  # fmt: skip


@functools.partial(jit, static=("site", "n"))
def _pulled(
    model: Model, tokens: Tokens, x: jax.Array, shift: Edit, others: tuple[Edit, ...],
    cotangents: jax.Array, *, site: str, n: int,
) -> jax.Array:  # fmt: skip
    """From ``site`` in the last of n layers to what ``shift`` adds in the first."""
    c, frame, context = model.config, Frame(tokens.positions), make_context(model, tokens)

    def own(leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, shift.where.layer, n)

    layers = jax.tree.map(own, layers_of(model))

    def read(amount: jax.Array) -> jax.Array:
        edits = (shift.replace(value=amount), *others)

        def run(x: jax.Array, layer: Layer) -> tuple[jax.Array, jax.Array]:
            tap = Tap(c, edits, (site,), context.sources, layer.index)
            x, _ = block(c, layer, x, context, tap, frame)
            return x, tap.recorded[site]

        return jax.lax.scan(run, x, layers)[1][-1]

    value, pull = jax.vjp(read, shift.value)
    return jax.vmap(lambda each: pull(each)[0])(cotangents.astype(value.dtype))
