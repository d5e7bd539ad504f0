"""Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365): slopes averaged over a path.

The average is Gauss-Legendre's, which is exact for metrics that are polynomials of degree
below 2 ``steps`` along the path; the published Riemann sums need more steps for the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.attribution.gradients import Pair, Toward, slopes_of
from jaxinterp.metrics import evaluate, read_columns, read_out
from jaxinterp.model import SITES, Frame, run_layers
from jaxinterp.sweep import observe


def activations(pair: Pair, steps: int) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B] and attributions [*over, B], integrated at the site itself.

    Each layer has its own path: all of the site's values there move together from the base
    run's to the donor's, those of other layers are left to follow. The sum over a layer's
    entries is therefore the effect of patching the whole layer (completeness).
    """
    at, weights = path(steps, pair.amounts.dtype)
    base, _ = observe(pair.model, pair.base, pair.metric)
    amounts = pair.amounts
    if not SITES[pair.site].layered:

        def slope(amount: jax.Array) -> jax.Array:
            return slopes_of(pair.measure, amounts + amount)[1]

        return base.metric, pair.cells(average(jax.lax.map(slope, at), weights))

    def of_layer(layer: jax.Array) -> jax.Array:
        def slope(amount: jax.Array) -> jax.Array:
            def measure(own: jax.Array) -> jax.Array:
                edit = Toward(pair.site, amounts.at[layer].set(own), pair.values)
                return from_layer(pair, base.resid_pre[layer], layer, edit)

            return slopes_of(measure, amounts[layer] + amount)[1]

        return average(jax.lax.map(slope, at), weights)

    layers = pair.axes["layer"]
    return base.metric, pair.cells(amounts.at[layers].set(jax.lax.map(of_layer, layers)))


def inputs(pair: Pair, steps: int, donor_embed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The base run's metric [B] and attributions [*over, B], integrated over the inputs.

    The token embeddings move from the base run's to the donor's; at each step the gradient at
    the site is taken where they put the model, and its average is dotted with donor - base
    (as EAP-IG does for edges: Hanna et al. 2024, arXiv:2403.17806). Complete for the
    embeddings, not for sites above them.
    """
    at, weights = path(steps, pair.amounts.dtype)
    base, recorded = observe(pair.model, pair.base, pair.metric, record=(pair.site,))
    amounts, whole = pair.amounts, jnp.ones_like(donor_embed[..., :1])

    def slope(amount: jax.Array) -> jax.Array:
        def measure(own: jax.Array) -> jax.Array:
            moved = Toward("embed", whole * amount, donor_embed)
            edit = Toward(pair.site, own, pair.values, recorded[pair.site])
            return evaluate(pair.metric, pair.model, pair.base, (moved, edit))

        return slopes_of(measure, amounts)[1]

    return base.metric, pair.cells(average(jax.lax.map(slope, at), weights))


def path(steps: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Points and weights [steps] of the Gauss-Legendre rule on (0, 1)."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return jnp.asarray((points + 1) / 2, dtype), jnp.asarray(weights / 2, dtype)


def average(slopes: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum over the leading axis."""
    return jnp.tensordot(weights, slopes, 1, precision="highest")


def from_layer(pair: Pair, x: jax.Array, layer: jax.Array, edit: Toward) -> jax.Array:
    """The metric [B] of the layers from a (traced) one on, given the stream x [B P D] there."""
    model, tokens, metric, edits = pair.model, pair.base, pair.metric, (edit,)
    x, _ = run_layers(model, x, tokens, start=layer, interventions=edits)
    columns = read_columns(tokens, metric)
    x = jnp.take_along_axis(x, columns[:, :, None], axis=1)
    return read_out(model, x, tokens, metric, Frame(tokens.positions).read(columns), edits)
