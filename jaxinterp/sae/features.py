"""What a dictionary's features mean: what activates them, what they write, what they cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import numbers, whole_number
from jaxinterp.examples import find_examples, labelled
from jaxinterp.grid_runs import Driver, ignore
from jaxinterp.metrics import Metric, check_metric, cross_entropy, evaluate, of_prompts
from jaxinterp.model import Model, Tokens, as_tokens
from jaxinterp.numerics import wide
from jaxinterp.results import claim
from jaxinterp.sae.dictionary import Dictionary, chosen_features, described
from jaxinterp.sae.edits import scale_features
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
    features: Sequence[int] | np.ndarray | None = None,
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
    site, layer = d.config.read_place
    chosen = chosen_features(d, features)
    kept, seen, n_real = find_examples(
        model, batches, Features(d, jnp.asarray(chosen), first), (1, len(chosen)), k=k, order=order,
        window=window, edges=edges, one_per_prompt=one_per_prompt, seed=seed, on_done=on_done,
    )  # fmt: skip
    attrs = claim(
        model, site=site, intervention="none", n_prompts=seen, n_tokens=n_real, order=order,
        dictionary=described(d), **dict(record or {}),
    )  # fmt: skip
    found = labelled(kept, "feature", [layer], edges, window, tokenizer, attrs)
    return found.isel(layer=0).assign_coords(feature=chosen)


def written_tokens(
    model: Model, d: Dictionary, features: Sequence[int] | np.ndarray | None = None, *, k: int = 10,
    tokenizer: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The tokens whose logits a feature raises and lowers most, per unit of activation.

    Returns dims (feature, end, rank) as `jaxinterp.neurons.written_tokens` does.
    """
    chosen = chosen_features(d, features)
    return tokens_along(
        model, np.asarray(d.params.W_dec)[chosen], unit="feature", labels=chosen, k=k,
        tokenizer=tokenizer, attrs=claim(
            model, layer=list(d.config.layers), intervention="none", dictionary=described(d)
        ),
    )  # fmt: skip


def feature_effects(
    model: Model, d: Dictionary, tokens: Any, features: Sequence[int] | np.ndarray | None = None, *,
    factors: Sequence[float] = (0.0, 2.0), metric: Metric | None = None, first: bool = False,
    batch: int | None = None, on_done: Callable[[int], None] = ignore,
    record: Mapping[str, Any] | None = None,
) -> xr.DataArray:  # fmt: skip
    """What ablating features (factor 0) and amplifying them does, as one sweep.

    tokens: prompts [B P]. metric: by default the next-token loss in nats, summed over a prompt.
    first: whether the first token's features change too; dictionaries are trained without it.
    batch: prompts per program; on_done: called with the number of experiments done.

    Returns the metric's change, dims (feature, factor, prompt); the coordinate ``active`` (feature,
    prompt) says at how many tokens a feature is active, that is, changes.

    Raises ``ValueError`` for features that do not exist, and a dictionary without a place.
    """
    import xarray as xr

    site, layer = d.config.place
    tokens = as_tokens(tokens)
    own = cross_entropy() if metric is None else metric
    check_metric(own, model, tokens)
    chosen, factors = chosen_features(d, features), numbers("factors", factors).tolist()
    grid = scale_features(
        d, np.repeat(chosen, len(factors)), np.tile(np.asarray(factors, np.float32), len(chosen)),
        position=None if first else np.arange(tokens.shape[1]) > 0,
    )  # fmt: skip
    reader = Features(d, jnp.asarray(chosen), first)
    driver = Driver.of(model, tokens, (), batch=batch, on_done=on_done)

    def run(rows: np.ndarray) -> np.ndarray:
        part, each = tokens[rows], of_prompts(own, rows)
        base = np.asarray(evaluate(each, model, part))
        active = np.asarray((reader(model, part)[0] > 0).sum(1)).T
        return np.concatenate([wide(driver.sweep(part, grid, each, None)) - wide(base), active])

    found = driver.batches(run, len(chosen) * len(factors))
    change = found[: -len(chosen)].reshape(len(chosen), len(factors), -1)
    if metric is None:
        change = change * (np.asarray(tokens.lengths) - 1)
    return xr.DataArray(
        change, dims=("feature", "factor", "prompt"),
        coords={
            "feature": chosen, "factor": np.asarray(factors, float),
            "active": (("feature", "prompt"), found[-len(chosen) :].astype(int)),
        },
        attrs=claim(
            model, method="features scaled", site=site, layer=layer, dictionary=described(d),
            metric="summed next-token loss" if metric is None else own.describe(), first=first,
            n_prompts=len(tokens), **dict(record or {}),
        ),
    )  # fmt: skip


def nearest(
    d: Dictionary, features: Sequence[int] | np.ndarray | None = None, *, k: int = 5
) -> xr.Dataset:
    """The features whose decoder rows are nearest, by cosine: dims (feature, rank).

    Raises ``ValueError`` for features that do not exist, and k outside 1 to F - 1.
    """
    import xarray as xr

    chosen = chosen_features(d, features)
    W = np.asarray(d.params.W_dec, np.float64)
    unit = W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), 1e-30)
    k = whole_number("k", k, 1, len(unit) - 1)
    cosines = unit[chosen] @ unit.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    order = np.argsort(-cosines, axis=1)[:, :k]
    data = {
        "other": (("feature", "rank"), order),
        "cosine": (("feature", "rank"), np.take_along_axis(cosines, order, 1)),
    }
    coords = {"feature": chosen, "rank": np.arange(k)}
    return xr.Dataset(data, coords, {"dictionary": described(d)})
