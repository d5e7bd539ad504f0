"""Features as sites: interventions that change features and keep all else, the error included.

x' = x + sum over changed features (f' - f) W_dec[feature]: what the dictionary does not say of x
stays. With nothing changed x' is x exactly. Give ``features`` an experiment axis for a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.interventions import Edit, Shared, apply, replace, unshare
from jaxinterp.metrics import Metric, check_metric, evaluate
from jaxinterp.model import Model, as_tokens, forward
from jaxinterp.model.inputs import check_tokens
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, chosen_features

if TYPE_CHECKING:
    import xarray as xr

Operation = Literal["scale", "add", "set"]


class FeatureEdit(struct.PyTreeNode):
    """A function of a site's values, for `jaxinterp.apply`.

    feature: int [] or [K]; amount: the factor, what is added, or what is put: a number, [K], or
    (``set``) another run's features [B P] or [B P K].
    """

    dictionary: Any
    feature: Any
    amount: Any
    operation: Operation = struct.field(pytree_node=False)

    def __call__(self, value: jax.Array, at: Any) -> jax.Array:
        d = unshare(self.dictionary)
        index = jnp.atleast_1d(jnp.asarray(unshare(self.feature)))
        old = d.encode(value)[..., index]  # B P K
        amount = jnp.asarray(unshare(self.amount))
        if amount.ndim == 2:  # [B P]: of one feature
            amount = amount[..., None]
        amount = at.donor(amount) if amount.ndim == 3 else amount
        new = {"scale": old * amount, "add": old + amount}.get(self.operation, amount)
        return value + (new - old).astype(value.dtype) @ d.params.W_dec[index]


def scale_features(
    d: Dictionary, features: Any, factor: Any = 0.0, *, position: Any = None
) -> Edit:
    """Multiply features: 0 ablates them, 2 doubles them. features: int, or a grid [E] or [E K].

    position: as interventions take it. Raises ``ValueError`` for features that do not exist and a
    dictionary that is not an SAE of one site and layer.
    """
    return _edit(d, features, factor, "scale", position)


def add_to_features(d: Dictionary, features: Any, amount: Any, *, position: Any = None) -> Edit:
    """Add to features what would be there more: steering along their decoder rows."""
    return _edit(d, features, amount, "add", position)


def set_features(d: Dictionary, features: Any, values: Any, *, position: Any = None) -> Edit:
    """Put values in place of features': a number, or another run's [B P] (patching), shared."""
    values = Shared(jnp.asarray(values)) if np.ndim(values) >= 2 else values
    return _edit(d, features, values, "set", position)


def _edit(d: Dictionary, features: Any, amount: Any, operation: Operation, position: Any) -> Edit:
    layer = _place(d)
    features = np.asarray(features)
    n = d.config.n_features
    if (
        features.dtype.kind not in "iu"
        or features.size == 0
        or features.min() < 0
        or features.max() >= n
    ):
        raise ValueError(f"features={features.tolist()}, expected integers from 0 to {n - 1}.")
    if features.ndim and np.ndim(amount) == 0 and not isinstance(amount, Shared):
        amount = np.full(len(features), amount, np.float32)
    edit = FeatureEdit(Shared(d), features, amount, operation)
    if features.ndim == 0:
        edit = edit.replace(dictionary=d, amount=unshare(amount))
        return apply(d.config.site, edit, layer=layer, position=position)
    if position is not None and not isinstance(position, Shared):
        position = Shared(np.asarray(position))
    return apply(d.config.site, edit, layer=np.full(len(features), layer), position=position)


def _place(d: Dictionary) -> int:
    c = d.config
    if c.kind != "sae" or not c.site or len(c.layers) != 1:
        raise ValueError(
            f"Features are edited where an SAE reads and writes; this is a {c.kind} at "
            f"{c.site or 'no site'}, layers {c.layers}: set the config's site and layers."
        )
    return c.layers[0]


class Splice(struct.PyTreeNode):
    """A function of a site's values: features and error, each its own or given.

    features [B P F], error [B P D]: None for the run's own.
    """

    dictionary: Any
    features: Any = None
    error: Any = None

    def __call__(self, value: jax.Array, at: Any) -> jax.Array:
        d = unshare(self.dictionary)
        own = d.encode(value)
        error = value - d.decode(own) if self.error is None else at.donor(unshare(self.error))
        features = own if self.features is None else at.donor(unshare(self.features))
        return (d.decode(features) + error).astype(value.dtype)


def attribute_features(
    model: Model, d: Dictionary, tokens: Any, metric: Metric, *, donor: Any = None, steps: int = 1,
    features: Sequence[int] | None = None,
) -> xr.DataArray:  # fmt: skip
    """First-order effects of ablating features, or of patching in another run's, at every token.

    Attribution: the metric's gradient at the site, along each feature's row, times the change of
    the feature (Marks et al. 2024, arXiv:2403.19647, eq. 3). donor: tokens of the run whose
    features are put (default: 0 is). steps: points on the line between, of which the gradients are
    averaged (integrated gradients, their eq. 4); the error stays. features: some only.

    Returns dims (prompt, position, feature), in the metric's units; padding has 0.

    Raises ``ValueError`` for a dictionary without a place, and steps below 1.
    """
    import xarray as xr

    layer, site = _place(d), d.config.site
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    if steps < 1:
        raise ValueError(f"steps={steps}, expected 1 or more.")
    chosen = chosen_features(d, features)
    rival = None if donor is None else as_tokens(donor)
    if rival is not None:
        check_tokens(model.config, rival)
        if rival.shape != tokens.shape:
            raise ValueError(f"The donor is {rival.shape}, the tokens are {tokens.shape}.")

    def of(given: Any) -> jax.Array:
        return forward(model, given, record=(site,)).activations[site][layer]

    x = of(tokens)
    own = d.encode(x)
    other = jnp.zeros_like(own) if rival is None else d.encode(of(rival))
    error = x - d.decode(own)

    def slope(at: jax.Array) -> jax.Array:
        """The gradient [B P D] where the features are ``at`` of the way."""

        def measured(shift: jax.Array) -> jax.Array:
            value = d.decode(own + at * (other - own)) + error + shift
            return evaluate(metric, model, tokens, replace(site, value, layer=layer)).sum()

        return jax.grad(measured)(jnp.zeros_like(x))

    slopes = sum(slope(jnp.asarray(i / steps, x.dtype)) for i in range(steps)) / steps
    change = (other - own)[..., chosen]
    effect = change * (slopes @ d.params.W_dec[chosen].T)
    effect = np.where(np.asarray(tokens.mask)[..., None], effect, 0)
    return xr.DataArray(
        effect, dims=("prompt", "position", "feature"), coords={"feature": chosen},
        attrs=claim(
            model, method="attribution of features", sites=[site], layer=layer,
            metric=metric.describe(), steps=steps, donor=donor is not None,
        ),
    )  # fmt: skip
