"""Writing weights by hand: named subspaces of the residual stream, and maps between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model import Config, Model, shapes

SHARP = 30.0  # a match's attention score; all others are 0, and exp(-30) is 1e-13
GAIN = 10.0  # logits per unit of the residual stream


class Layout(dict[str, slice]):
    """The coordinates of the residual stream by variable, in the order given.

    >>> layout = Layout(token=3, position=4)
    >>> layout["position"], layout.d_model
    (slice(3, 7, None), 7)
    """

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.d_model = 0
        for name, size in sizes.items():
            self[name] = slice(self.d_model, self.d_model + size)
            self.d_model += size


class Writer:
    """The weights of one model, all zero until written.

    Matrices are [size of the subspace, up to d_head] for q, k and v, and [up to d_head, size of
    the subspace] for o; what is written twice is replaced. ``choices`` are those of `Config`; by
    default two layers without norms, positions or biases, ReLU, and scores that are not scaled.
    """

    def __init__(self, layout: Layout, **choices: Any) -> None:
        defaults: dict[str, Any] = {
            "n_layers": 2, "d_mlp": 0, "family": "handbuilt", "attn_scale": 1.0,
            "positions": "none", "norm": "none", "act": "relu", "gated": False,
        }  # fmt: skip
        self.layout = layout
        self.config = Config(**{**defaults, **choices, "d_model": layout.d_model})
        self.params = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, np.float32), shapes(self.config)
        )
        self._units = [0] * self.config.n_layers

    def q(self, layer: int, head: int, reads: str, matrix: np.ndarray) -> None:
        """What a head looks for."""
        W = self.params.blocks.attn.W_Q
        W[layer, head, self.layout[reads], : matrix.shape[1]] = matrix

    def k(self, layer: int, kv_head: int, reads: str, matrix: np.ndarray) -> None:
        """By what a position is found."""
        W = self.params.blocks.attn.W_K
        W[layer, kv_head, self.layout[reads], : matrix.shape[1]] = matrix

    def v(self, layer: int, kv_head: int, reads: str, matrix: np.ndarray) -> None:
        """What is taken from there."""
        W = self.params.blocks.attn.W_V
        W[layer, kv_head, self.layout[reads], : matrix.shape[1]] = matrix

    def o(self, layer: int, head: int, writes: str, matrix: np.ndarray) -> None:
        """Where it is put."""
        W = self.params.blocks.attn.W_O
        W[layer, head, : matrix.shape[0], self.layout[writes]] = matrix

    def unit(
        self,
        layer: int,
        reads: Mapping[tuple[str, int], float],
        writes: Mapping[tuple[str, int], float],
        bias: float = 0.0,
    ) -> None:
        """The MLP's next neuron; coordinates are (variable, index within it)."""
        mlp, neuron = self.params.blocks.mlp, self._units[layer]
        self._units[layer] += 1
        for (name, index), weight in reads.items():
            mlp.W_in[layer, self.layout[name].start + index, neuron] = weight
        for (name, index), weight in writes.items():
            mlp.W_out[layer, neuron, self.layout[name].start + index] = weight
        if bias:
            mlp.b_in[layer, neuron] = bias

    def embed(self) -> None:
        """Symbols as one-hot vectors in ``token``, learned positions in ``position``."""
        embed = self.params.embed
        embed.W_E[:, self.layout["token"]] = np.eye(self.config.vocab_size)
        if embed.W_pos is not None:
            embed.W_pos[:, self.layout["position"]] = np.eye(self.config.n_ctx)

    def unembed(self, reads: str, matrix: np.ndarray) -> None:
        """Logits from a variable: matrix [its size, vocabulary]."""
        self.params.head.W_U[self.layout[reads]] = matrix

    def model(self, name: str) -> Model:
        """What was written, as a model."""
        return Model(jax.tree.map(jnp.asarray, self.params), self.config, f"handbuilt-{name}")


def selector(rows: int, chosen: Any) -> np.ndarray:
    """[rows, 1]: 1 in the chosen rows."""
    matrix = np.zeros((rows, 1))
    matrix[chosen] = 1
    return matrix


def table(shape: tuple[int, int], entries: Mapping[tuple[int, int], float]) -> np.ndarray:
    """A matrix that is zero but for these entries."""
    matrix = np.zeros(shape)
    for place, value in entries.items():
        matrix[place] = value
    return matrix
