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

from jaxinterp.checks import MANY, whole_number
from jaxinterp.interventions import Edit, Shared, apply, unshare
from jaxinterp.metrics import Metric, check_metric
from jaxinterp.model import Model, as_tokens, forward
from jaxinterp.model.inputs import check_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, chosen_features, described
from jaxinterp.sae.gradients import slopes

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
        """The value [B P D], moved along the changed features' decoder rows."""
        d = unshare(self.dictionary)
        index = jnp.atleast_1d(jnp.asarray(unshare(self.feature)))
        old = d.encode(value)[..., index]  # B P K
        amount = jnp.asarray(unshare(self.amount))
        if amount.ndim == 2:  # [B P]: of one feature
            amount = amount[..., None]
        amount = at.donor(amount) if amount.ndim == 3 else amount
        new = {"scale": old * amount, "add": old + amount}.get(self.operation, amount)
        moved = jnp.asarray(new - old, old.dtype) @ d.params.W_dec[index]
        return (value + moved).astype(value.dtype)


def scale_features(
    d: Dictionary, features: Any, factor: Any = 0.0, *, position: Any = None
) -> Edit:
    """Multiply features: 0 ablates them, 2 doubles them.

    features: one (int); or a grid of experiments, of one feature each [E] or of sets [E K]: to
    change 3 and 7 at once is a grid of one, [[3, 7]]. position: as interventions take it.

    Raises ``ValueError`` for features that do not exist, amounts that do not fit them, and a
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
    site, layer = d.config.place
    features = np.asarray(features)
    n = d.config.n_features
    if (
        features.dtype.kind not in "iu"
        or features.size == 0
        or features.min() < 0
        or features.max() >= n
    ):
        raise ValueError(f"features={features.tolist()}, expected integers from 0 to {n - 1}.")
    if not isinstance(amount, Shared):
        if np.ndim(amount) and np.shape(amount) not in (features.shape[:1], features.shape):
            raise ValueError(
                f"Amounts of shape {list(np.shape(amount))} for features of shape "
                f"{list(features.shape)}: expected a number, one per experiment, or one per "
                "feature."
            )
        if features.ndim and np.ndim(amount) == 0:
            amount = np.full(len(features), amount, np.float32)
    edit = FeatureEdit(Shared(d), features, amount, operation)
    if features.ndim == 0:
        edit = edit.replace(dictionary=d, amount=unshare(amount))
        return apply(site, edit, layer=layer, position=position)
    if position is not None and not isinstance(position, Shared):
        position = Shared(np.asarray(position))
    return apply(site, edit, layer=np.full(len(features), layer), position=position)


class Splice(struct.PyTreeNode):
    """A function of a site's values: features and error, each its own or given.

    features [B P F], error [B P D]: None for the run's own; a number stands everywhere, and
    ``error=0.0`` leaves the reconstruction.
    """

    dictionary: Any
    features: Any = None
    error: Any = None

    def __call__(self, value: jax.Array, at: Any) -> jax.Array:
        """The sum [B P D] of what the features stand for and the error."""
        d = unshare(self.dictionary)
        own = d.encode(value)

        def given(other: Any, mine: jax.Array) -> jax.Array:
            if other is None:
                return mine
            return jnp.broadcast_to(at.donor(jnp.asarray(unshare(other))), mine.shape)

        features = given(self.features, own)
        error = given(self.error, value - d.decode(own))
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

    site, layer = d.config.place
    tokens = as_tokens(tokens)
    check_tokens(model.config, tokens)
    check_metric(metric, model, tokens)
    steps = whole_number("steps", steps, 1, MANY)
    chosen = chosen_features(d, features)
    rival = None if donor is None else as_tokens(donor)
    if rival is not None:
        check_tokens(model.config, rival)
        if rival.shape != tokens.shape:
            raise ValueError(f"The donor is {rival.shape}, the tokens are {tokens.shape}.")

    def of(given: Any) -> jax.Array:
        return wide(forward(model, given, record=(site,)).activations[site][layer])

    x = of(tokens)
    own = d.encode(x)
    other = jnp.zeros_like(own) if rival is None else d.encode(of(rival))
    change = other - own
    line = change @ d.params.W_dec
    (found,) = slopes(model, tokens, metric, [(site, layer)], [line], steps=steps)
    effect = change[..., chosen] * (found @ d.params.W_dec[chosen].T)
    effect = np.where(np.asarray(tokens.mask)[..., None], effect, 0)
    return xr.DataArray(
        effect, dims=("prompt", "position", "feature"), coords={"feature": chosen},
        attrs=claim(
            model, method="attribution of features", sites=[site], layer=layer,
            metric=metric.describe(), steps=steps, donor=donor is not None,
            dictionary=described(d),
        ),
    )  # fmt: skip
