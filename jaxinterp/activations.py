"""What a site's values are like over a corpus: moments, covariance, quantiles, in one pass.

(Means by position, role or group of prompts, for ablation: `jaxinterp.mean_activations`. The tokens
with the largest values: `jaxinterp.neurons.top_examples`.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checks import MANY, numbers, random_seed, whole_number
from jaxinterp.model import SITES, Model, Tokens, as_tokens, forward
from jaxinterp.model.compiled import jit
from jaxinterp.model.inputs import check_tokens
from jaxinterp.model.sites import require
from jaxinterp.numerics import wide
from jaxinterp.points import layers_in
from jaxinterp.results import claim

if TYPE_CHECKING:
    import xarray as xr

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def activation_statistics(
    model: Model,
    batches: Iterable[Any],
    site: str = "resid_post",
    *,
    layers: Sequence[int] | None = None,
    covariance: bool = False,
    quantiles: Sequence[float] = QUANTILES,
    sample: int = 2048,
    seed: int = 0,
    on_done: Callable[[int], None] = lambda tokens: None,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Mean, variance, least, largest and quantiles of every unit over the real tokens of a corpus.

    batches: `Tokens` (or ids [B P]), read once; of few shapes, as each shape compiles a program.
    site: one of (position, unit), such as the stream's and the MLP's. covariance: also between
    units, [layer, unit, other]. quantiles: from ``sample`` tokens drawn uniformly from the stream
    (reservoir sampling, Vitter 1985): exact where it is no longer, else of a standard error in rank
    of sqrt(q (1 - q) / sample).

    Batches are summed in float32 or wider about their own mean and merged in float64 (Chan,
    Golub & LeVeque 1979). Returns a Dataset over (layer, unit): ``mean``, ``variance`` (of the
    population), ``least``, ``largest``, ``quantiles`` (with a dim ``q``), ``covariance``.

    Raises ``ValueError`` for sites of other axes, no tokens, quantiles outside [0, 1], and values
    that are not finite, naming the batch.
    """
    import xarray as xr

    axes = require(model.config, site).axes
    if len(axes) != 2 or axes[0] != "position" or not SITES[site].layered:
        raise ValueError(f"{site!r} has axes {axes}, expected a layered site of (position, unit).")
    wanted = numbers("quantiles", quantiles, least=0, most=1, empty=True)
    sample, seed = whole_number("sample", sample, 1, MANY), random_seed(seed)
    chosen = layers_in(model.config.n_layers, layers)
    drawn = _Reservoir(sample, seed)
    n = 0
    mean: Any = 0.0
    spread: Any = 0.0
    least: Any = np.inf
    largest: Any = -np.inf
    for number, given in enumerate(batches):
        tokens = as_tokens(given)
        check_tokens(model.config, tokens)
        values, found = _of_batch(
            model, tokens, jnp.asarray(chosen), site=site, covariance=covariance
        )
        if not np.isfinite(found[0]).all():
            raise ValueError(f"Batch {number} has values at {site!r} that are not finite.")
        own_mean, own_spread, low, high = (np.asarray(x, np.float64) for x in found)
        count = int(np.asarray(tokens.lengths).sum())
        gap, share = own_mean - mean, count / (n + count)
        between = gap[:, :, None] * gap[:, None] if covariance else gap**2
        mean = mean + gap * share
        spread = spread + own_spread + between * n * share
        least, largest = np.minimum(least, low), np.maximum(largest, high)
        drawn.offer(values, np.flatnonzero(np.asarray(tokens.mask)))
        n += count
        on_done(count)
    if not n:
        raise ValueError("There are no tokens: is the stream used up?")
    dims = ("layer", "unit")
    spread = np.asarray(spread) / n
    data: dict[str, Any] = {
        "mean": (dims, mean),
        "variance": (dims, np.diagonal(spread, 0, 1, 2) if covariance else spread),
        "least": (dims, least),
        "largest": (dims, largest),
        "quantiles": (("q", *dims), np.quantile(drawn.kept(), wanted, axis=1)),
    }
    if covariance:
        data["covariance"] = (("layer", "unit", "other"), spread)
    attrs = claim(
        model, site=site, intervention="none", n_tokens=n, n_sampled=drawn.held, seed=seed,
        **dict(record or {}),
    )  # fmt: skip
    return xr.Dataset(data, {"layer": chosen, "q": wanted}, attrs)


class _Reservoir:
    """A uniform sample of a stream's tokens, [L n D]."""

    def __init__(self, size: int, seed: int):
        self.size, self.rng, self.seen = size, np.random.default_rng(seed), 0
        self.rows: np.ndarray | None = None

    @property
    def held(self) -> int:
        return min(self.size, self.seen)

    def kept(self) -> np.ndarray:
        assert self.rows is not None
        return self.rows[:, : self.held]

    def offer(self, values: jax.Array, real: np.ndarray) -> None:
        """values [L N D], of which the rows ``real`` count."""
        at = self.seen + np.arange(len(real))
        # Token t takes a place below `size` with probability size / (t + 1), out of t + 1 places.
        slot = np.where(at < self.size, at, self.rng.integers(0, at + 1))
        self.seen += len(real)
        into, last = np.unique(slot[::-1], return_index=True)  # of one place, the last taker
        taken = into < self.size
        if self.rows is None:
            self.rows = np.zeros((len(values), self.size, values.shape[-1]), values.dtype)
        self.rows[:, into[taken]] = np.asarray(values[:, real[::-1][last[taken]]])


@functools.partial(jit, static=("site", "covariance"))
def _of_batch(
    model: Model, tokens: Tokens, layers: jax.Array, *, site: str, covariance: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
    """Values [L N D]; mean [L D], spread about it [L D (D)], least and largest."""
    x = wide(forward(model, tokens, record=(site,)).activations[site][layers])
    x = x.reshape(len(x), -1, x.shape[-1])
    real = tokens.mask.reshape(-1, 1)
    mean = jnp.where(real, x, 0).sum(1) / real.sum()
    centred = jnp.where(real, x - mean[:, None], 0)
    if covariance:
        spread = jnp.einsum("lnd,lne->lde", centred, centred, precision="highest")
    else:
        spread = jnp.square(centred).sum(1)
    low = jnp.where(real, x, jnp.inf).min(1)
    return x, (mean, spread, low, jnp.where(real, x, -jnp.inf).max(1))
