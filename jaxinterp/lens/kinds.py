"""Lenses: what is done to a residual stream before the model's own final norm and head read it.

The stream is seen at L + 1 points: point l is the input of block l (0: the embedding), point L
what the last block leaves. Every lens leaves point L as it is: there it is the model.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxinterp.model import Config
from jaxinterp.numerics import wide


class Lens(Protocol):
    """What is done to the streams of all points, and which models it fits."""

    def __call__(self, streams: jax.Array) -> jax.Array:
        """Streams [L+1 ... D] to streams of the last point's basis, same shape."""
        ...

    def check(self, config: Config) -> None:
        """Raise ``ValueError`` for a model that it was not made for."""
        ...


class LogitLens(struct.PyTreeNode):
    """Every stream as if it were the last one (nostalgebraist 2020)."""

    def __call__(self, streams: jax.Array) -> jax.Array:
        """Streams [L+1 ... D], as they are."""
        return streams

    def check(self, config: Config) -> None:
        """It fits every model."""


class TunedLens(struct.PyTreeNode):
    """One affine translator per block input: h + h W + b (Belrose et al. 2023, arXiv:2303.08112).

    W [L D D], b [L D]. Zeros are the logit lens.
    """

    W: jax.Array
    b: jax.Array

    def __call__(self, streams: jax.Array) -> jax.Array:
        """Streams [L+1 ... D], all but the last translated."""
        moved = translate(self, streams[:-1]).astype(streams.dtype)
        return jnp.concatenate([moved, streams[-1:]])

    def check(self, config: Config) -> None:
        """Raise ``ValueError`` for another number of layers, or width."""
        check_shape("tuned lens", self.W.shape, config)


class JacobianLens(struct.PyTreeNode):
    """The mean derivative of the last stream by each block input: h J^T.

    J [L D D], its second axis the last stream's: the derivative summed over later positions,
    averaged over positions and prompts. Others index it by block outputs: J[l] is the output of
    block l - 1.
    """

    J: jax.Array

    def __call__(self, streams: jax.Array) -> jax.Array:
        """Streams [L+1 ... D], all but the last mapped by their J."""
        moved = jnp.einsum("l...d,led->l...e", wide(streams[:-1]), self.J)
        return jnp.concatenate([moved.astype(streams.dtype), streams[-1:]])

    def check(self, config: Config) -> None:
        """Raise ``ValueError`` for another number of layers, or width."""
        check_shape("Jacobian lens", self.J.shape, config)


def translate(lens: TunedLens, streams: jax.Array) -> jax.Array:
    """The tuned lens at the points it changes, [L ... D] to [L ... D], in float32 or wider."""
    streams = wide(streams)
    b = lens.b.reshape(len(lens.b), *[1] * (streams.ndim - 2), -1)
    return streams + jnp.einsum("l...d,lde->l...e", streams, lens.W) + b


def check_shape(what: str, shape: tuple[int, ...], config: Config) -> None:
    """A lens [L D D] must fit the model it reads."""
    expected = (config.n_layers, config.d_model, config.d_model)
    if tuple(shape) != expected:
        raise ValueError(
            f"The {what} is {list(shape)}, this {config.family} model needs {list(expected)} "
            "(layers, width, width): was it made for another model?"
        )
