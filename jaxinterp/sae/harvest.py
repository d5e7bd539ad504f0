"""Activations from the model inside the training program, shuffled in a buffer on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.checks import random_seed
from jaxinterp.model import Model, Tokens, as_tokens, embed, run_layers
from jaxinterp.results import weights_digest
from jaxinterp.sae.dictionary import DictionaryConfig


class Harvest(struct.PyTreeNode):
    """A source whose batches are tokens: what stands at a dictionary's sites.

    Examples wait in a buffer [M ...], which each batch changes for as many drawn from it at
    random: every one is used once, beside those of other texts. key: of the draws.
    """

    model: Model
    inputs: jax.Array
    targets: Any
    key: jax.Array
    config: DictionaryConfig = struct.field(pytree_node=False)
    first: bool = struct.field(pytree_node=False)

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from other sources."""
        return {"weights": weights_digest(self.model), "first": self.first}

    @property
    def kept(self) -> dict[str, jax.Array]:
        """What changes from batch to batch: the buffer [M ...] and the key."""
        found = {"inputs": self.inputs, "targets": self.targets, "key": self.key}
        return {name: value for name, value in found.items() if value is not None}

    def take(self, batch: Tokens) -> tuple[Harvest, jax.Array, jax.Array]:
        """The source afterwards, n examples [n ...] for the batch's n, and their targets."""
        x, y = values_at(self.model, batch, self.config, first=self.first)
        key, draw = jax.random.split(jax.random.wrap_key_data(self.key))
        chosen = jax.random.permutation(draw, len(self.inputs))[: len(x)]
        out_x, inputs = self.inputs[chosen], self.inputs.at[chosen].set(x)
        if self.targets is None:
            return self.replace(inputs=inputs, key=jax.random.key_data(key)), out_x, out_x
        out_y, targets = self.targets[chosen], self.targets.at[chosen].set(y)
        return (
            self.replace(inputs=inputs, targets=targets, key=jax.random.key_data(key)),
            out_x,
            out_y,
        )


def harvest(
    model: Model, config: DictionaryConfig, first_batches: Sequence[Any], *, seed: int = 0,
    first: bool = False,
) -> Harvest:  # fmt: skip
    """A source for `train`, its buffer filled from some batches of tokens without padding.

    More batches shuffle farther. first: whether a block's first token counts; its norm is often
    tens of times the others'.

    Raises ``ValueError`` for padded batches, and where the dictionary's sites are not the model's.
    """
    seed = random_seed(seed)
    if not first_batches:
        raise ValueError("Give one batch of tokens at least to fill the buffer.")
    found = []
    for given in first_batches:
        tokens = as_tokens(given)
        if not bool(jnp.asarray(tokens.mask).all()):
            raise ValueError("Batches must not be padded: pack texts into blocks (corpora.packed).")
        found.append(values_at(model, tokens, config, first=first))
    inputs = jnp.concatenate([x for x, _ in found])
    same = found[0][1] is found[0][0]
    targets = None if same else jnp.concatenate([y for _, y in found])
    return Harvest(model, inputs, targets, jax.random.key_data(jax.random.key(seed)), config, first)


def values_at(
    model: Model, tokens: Tokens, config: DictionaryConfig, *, first: bool
) -> tuple[jax.Array, jax.Array]:
    """What a dictionary reads [n D] ([n L D]) and writes, at every token; NaN at padding.

    first: whether a prompt's first column counts.
    """
    target = config.target or config.site
    tokens = as_tokens(tokens)
    out = site_values(model, tokens, (config.site, target), config.layers)

    def rows(site: str) -> jax.Array:
        # Padding is no example: training names batches that are not finite.
        values = jnp.where(jnp.asarray(tokens.mask)[:, :, None], out[site], jnp.nan)
        values = values if first else values[:, :, 1:]
        flat = values.reshape(len(config.layers), -1, values.shape[-1]).swapaxes(0, 1)
        return flat if config.layered else flat[:, 0]

    read = rows(config.site)
    return read, read if target == config.site else rows(target)


def site_values(
    model: Model, tokens: Tokens, sites: tuple[str, ...], layers: tuple[int, ...]
) -> dict[str, jax.Array]:
    """Values [L B P D] at some layers of sites inside the blocks; later layers do not run."""
    x, _ = embed(model, tokens)
    record = tuple(dict.fromkeys(sites))
    _, out = run_layers(model, x, tokens, 0, max(layers) + 1, record=record)
    return {site: values[jnp.asarray(layers)] for site, values in out.items()}
