"""How good a feature circuit is: what the model does with its nodes alone, and without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.circuits import measures
from jaxinterp.metrics import Metric, evaluate, of_prompts
from jaxinterp.model import At, Model
from jaxinterp.model.compiled import jit
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.gradients import bare, split
from jaxinterp.sae.nodes import Chosen, Runs, chosen_nodes

if TYPE_CHECKING:
    import xarray as xr


class Exchange(struct.PyTreeNode):
    """An intervention: features and the error of a dictionary, but for some, are exchanged.

    What stays: features bool [F], error bool []; or by position [P F], [P]. What is put in: of
    values [B P D] (donor), or the same by position, features [P F] and error [P D] (means);
    else 0. With all kept the value is as it was exactly.
    """

    site: str = struct.field(pytree_node=False)
    layer: Any
    dictionary: Dictionary
    features: Any
    error: Any
    donor: Any = None
    means: Any = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Just one: the dictionary's."""
        return (self.site,)

    def __call__(self, value: jax.Array, at: At) -> jax.Array:
        """The value [B P D], another at its own layer; elsewhere the dictionary does not run."""

        def change(value: jax.Array) -> jax.Array:
            return value + self._change(value, at).astype(value.dtype)

        # Dictionaries are large: those of other layers do not run.
        return jax.lax.cond(at.layer == self.layer, change, lambda value: value, value)

    def _change(self, value: jax.Array, at: At) -> jax.Array:
        d, place = self.dictionary, at.positions.clip(0)
        other: Any = (0.0, 0.0)
        if self.means is not None:
            other = [mean[place] for mean in self.means]
        elif self.donor is not None:
            other = split(d, at.donor(self.donor))
        features, error = (b - a for a, b in zip(split(d, value), other, strict=True))
        stays, error_stays = jnp.asarray(self.features), jnp.asarray(self.error)
        if stays.ndim == 2:
            stays, error_stays = stays[place], error_stays[place]
        written = jnp.where(stays, 0, features) @ d.params.W_dec
        return written + jnp.where(error_stays[..., None], 0, error)


def evaluate_feature_circuit(
    model: Model, circuit: xr.DataArray | xr.Dataset, dictionaries: Sequence[Dictionary],
    tokens: Any, metric: Metric, *, donor: Any = None, mean: bool = False,
    complement: bool = False, batch: int | None = None,
) -> xr.DataArray:  # fmt: skip
    """m(C): the metric with all features and errors outside of a circuit exchanged, in one pass.

    Nodes of the circuit are what they come to be in that pass. circuit: what `feature_circuit` or
    `select_nodes` returns. What is put in: features and errors of the prompts ``donor``, token by
    token (default: 0); with ``mean`` their mean over those prompts (over ``tokens``, where there
    is no donor) at each position, as in the paper. complement: exchange those inside instead.

    Returns dims (circuit, prompt) of length 1 and B, with the coordinates ``clean``, m(M) of the
    whole model, and ``corrupted``, m(0) with every node exchanged, as
    `jaxinterp.circuits.evaluate_circuits` has them.

    Raises ``ValueError`` as `feature_nodes` does, and for nodes of dictionaries not given.
    """
    import xarray as xr

    runs = Runs.of(model, dictionaries, tokens, metric, donor, 1, batch)
    chosen = chosen_nodes(runs, circuit)
    stays = [
        _stays(some, d, "position" in circuit.coords)
        for some, d in zip(chosen, dictionaries, strict=True)
    ]
    none = [tuple(np.zeros_like(each) for each in own) for own in stays]
    if complement:
        stays = [(~features, ~error) for features, error in stays]
    means = _means(runs) if mean else [None] * len(stays)

    def run(rows: np.ndarray) -> np.ndarray:
        part, own = runs.tokens[rows], of_prompts(metric, rows)
        given: list[Any] = [None] * len(stays)
        if runs.donors is not None and not mean:
            given = runs.values(runs.donors[rows])[0]

        def with_only(kept: Sequence[Any]) -> jax.Array:
            edits = tuple(
                Exchange(site, layer, d, features, error, x, m)
                for (site, layer), d, (features, error), x, m in zip(
                    runs.places, runs.dictionaries, kept, given, means, strict=True
                )
            )  # fmt: skip
            return evaluate(own, model, part, edits)

        found = with_only(stays), evaluate(own, model, part), with_only(none)
        return np.stack(jax.device_get(found))

    values = runs.driver.batches(run, 1)
    coords = {
        "circuit": ["complement" if complement else "circuit"],
        "nodes": ("circuit", [sum(map(len, chosen))]),
        "prompt": np.arange(values.shape[1]),
        "clean": ("prompt", values[1]),
        "corrupted": ("prompt", values[2]),
    }
    attrs = runs.claim(
        intervention="feature circuit", direction="noise", mean=mean, complement=complement
    )
    return xr.DataArray(values[:1], coords, ("circuit", "prompt"), metric.name, attrs)


def faithfulness(
    model: Model, circuit: xr.DataArray | xr.Dataset, dictionaries: Sequence[Dictionary],
    tokens: Any, metric: Metric, *, donor: Any = None, mean: bool = False,
    complement: bool = False, batch: int | None = None,
) -> xr.DataArray:  # fmt: skip
    """(m(C) - m(0)) / (m(M) - m(0)) of means over prompts (Marks et al. 2024), a number.

    1: as the whole model; 0: as with no node left. With ``complement`` it is that of all nodes but
    the circuit's: near 0 where the circuit is complete. Arguments and errors as in
    `evaluate_feature_circuit`, whose result holds each prompt's values.
    """
    found = measures.faithfulness(
        evaluate_feature_circuit(
            model, circuit, dictionaries, tokens, metric, donor=donor, mean=mean,
            complement=complement, batch=batch,
        )
    )  # fmt: skip
    return found.isel(circuit=0)


def _stays(chosen: Chosen, d: Dictionary, by_position: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the chosen nodes keep: features bool [F] and error bool [], or [P F] and [P]."""
    length = chosen.where.shape[1]
    features, error = np.zeros((length, d.config.n_features), bool), np.zeros(length, bool)
    for feature, where in zip(chosen.features[~chosen.is_error], chosen.where[~chosen.is_error],
                              strict=True):  # fmt: skip
        features[:, feature] |= where
    error |= chosen.where[chosen.is_error].any(0)
    return (features, error) if by_position else (features[0], error[0])


def _means(runs: Runs) -> list[tuple[jax.Array, ...]]:
    """Mean features [P F] and error [P D] of each dictionary at each position."""
    tokens = runs.tokens if runs.donors is None else runs.donors
    length, size = tokens.shape[1], runs.driver.size
    sums: list[Any] = [(0.0, 0.0)] * len(runs.places)
    count: Any = 0.0
    for begin in range(0, len(tokens), size):
        part = tokens[np.arange(begin, min(begin + size, len(tokens)))]
        at = jnp.asarray(part.positions)[:, :, None] == jnp.arange(length)  # B P Q
        count = count + at.sum((0, 1))
        for i, (d, x) in enumerate(zip(runs.dictionaries, runs.values(part)[0], strict=True)):
            sums[i] = tuple(a + b for a, b in zip(sums[i], _summed(bare(d), x, at), strict=True))
    return [tuple(s / jnp.maximum(count, 1)[:, None] for s in own) for own in sums]


@jit
def _summed(d: Dictionary, x: jax.Array, at: jax.Array) -> list[jax.Array]:
    """Features [Q F] and error [Q D], summed over the tokens at each position."""
    return [
        jnp.einsum("bpq,bpf->qf", at.astype(each.dtype), each, precision="highest")
        for each in split(d, x)
    ]
