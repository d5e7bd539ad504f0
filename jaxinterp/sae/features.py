"""What a dictionary's features mean: what activates them, what they write, what they cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.examples import find_examples, labelled
from jaxinterp.model import Model, Tokens
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, chosen_features
from jaxinterp.sae.harvest import site_values
from jaxinterp.written import tokens_along

if TYPE_CHECKING:
    import xarray as xr


class Features(struct.PyTreeNode):
    """A reader for `find_examples`: a dictionary's features, as one layer. chosen [K]."""

    dictionary: Dictionary
    chosen: jax.Array
    first: bool = struct.field(pytree_node=False)

    def __call__(self, model: Model, tokens: Tokens) -> jax.Array:
        d = self.dictionary
        (layer,) = d.config.layers
        x = site_values(model, tokens, (d.config.site,), (layer,))[d.config.site][0]
        values = d.encode(x)[..., self.chosen]
        counts = (jnp.asarray(tokens.positions) > 0)[:, :, None] | self.first
        return jnp.where(counts & (values > 0), values, -jnp.inf)[None]


def top_examples(
    model: Model,
    d: Dictionary,
    batches: Iterable[Any],
    *,
    features: Sequence[int] | None = None,
    k: int = 10,
    order: str = "top",
    window: tuple[int, int] = (10, 3),
    edges: Any = None,
    one_per_prompt: bool = False,
    first: bool = False,
    seed: int = 0,
    tokenizer: Any = None,
    on_done: Callable[[int], None] = lambda tokens: None,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """The tokens of a corpus that activate each feature most, and how often it is how active.

    batches: tokens of one shape, read once. features: some only. order: ``"top"``, or ``"random"``
    for any tokens that activate it, each as likely: sorted by value they show its whole range.
    first: whether a prompt's first token counts, as in training. Where a feature is active on fewer
    tokens than k, values are -inf and contexts empty. The rest, what is returned (with a dim
    ``feature``) and refused, as in `jaxinterp.neurons.top_examples`.
    """
    c = d.config
    if c.layered or len(c.layers) != 1 or not c.site:
        raise ValueError(f"A {c.kind} at {c.site or 'no site'}, layers {c.layers}: one is needed.")
    chosen = chosen_features(d, features)
    kept, seen, n_real = find_examples(
        model, batches, Features(d, jnp.asarray(chosen), first), (1, len(chosen)), k=k, order=order,
        window=window, edges=edges, one_per_prompt=one_per_prompt, seed=seed, on_done=on_done,
    )  # fmt: skip
    attrs = claim(
        model, site=c.site, intervention="none", n_prompts=seen, n_tokens=n_real, order=order,
        **dict(record or {}),
    )  # fmt: skip
    found = labelled(kept, "feature", list(c.layers), edges, window, tokenizer, attrs)
    return found.isel(layer=0).assign_coords(feature=chosen)


def written_tokens(
    model: Model, d: Dictionary, features: Sequence[int] | None = None, *, k: int = 10,
    tokenizer: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The tokens whose logits a feature raises and lowers most, per unit of activation.

    Returns dims (feature, end, rank) as `jaxinterp.neurons.written_tokens` does.
    """
    chosen = chosen_features(d, features)
    return tokens_along(
        model, np.asarray(d.params.W_dec)[chosen], unit="feature", labels=chosen, k=k,
        tokenizer=tokenizer, attrs=claim(model, layer=list(d.config.layers), intervention="none"),
    )  # fmt: skip


def nearest(d: Dictionary, features: Sequence[int] | None = None, *, k: int = 5) -> xr.Dataset:
    """The features whose decoder rows are nearest, by cosine: dims (feature, rank)."""
    import xarray as xr

    chosen = chosen_features(d, features)
    W = np.asarray(d.params.W_dec, np.float64)
    unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-30)
    if not 1 <= k < len(unit):
        raise ValueError(f"k={k}, expected 1 to {len(unit) - 1}.")
    cosines = unit[chosen] @ unit.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-cosines, axis=1)[:, :k]
    data = {
        "other": (("feature", "rank"), order),
        "cosine": (("feature", "rank"), np.take_along_axis(cosines, order, 1)),
    }
    return xr.Dataset(data, {"feature": chosen, "rank": np.arange(k)})
