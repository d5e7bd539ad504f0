"""MLP neurons: what activates them, and what they write. (What they cause: `ji.ablate`.)

All neurons of all layers are looked at in one pass over a corpus; what is kept is k examples each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import whole_number
from jaxinterp.examples import find_examples, labelled
from jaxinterp.model import Model, Tokens, forward
from jaxinterp.model.sites import require
from jaxinterp.numerics import wide
from jaxinterp.points import layers_in
from jaxinterp.results import claim
from jaxinterp.written import through_norm, tokens_along

if TYPE_CHECKING:
    import xarray as xr


def top_examples(
    model: Model,
    batches: Iterable[Any],
    *,
    k: int = 10,
    site: str = "mlp_post",
    layers: Sequence[int] | None = None,
    window: tuple[int, int] = (10, 3),
    edges: Any = None,
    one_per_prompt: bool = False,
    tokenizer: Any = None,
    on_done: Callable[[int], None] = lambda tokens: None,
    record: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """The tokens of a corpus that activate each neuron most, and how often it is how active.

    batches: `Tokens` (or ids [B P]) of one shape, read once. site: ``"mlp_post"`` or
    ``"mlp_pre"``. window: tokens of context kept before and after. edges: of a histogram's bins,
    rising; none is counted by default. one_per_prompt: at most one example of each prompt.

    Returns a Dataset over (layer, neuron, rank): ``value``, ``prompt`` and ``position`` (counted
    over the stream, and within the prompt), and ``context`` with a dim ``offset`` (token ids, -1
    outside the prompt); with a tokenizer ``text``. With edges, ``count`` over (layer, neuron, bin);
    the first and last bins are open.

    Raises ``ValueError`` for an empty stream, batches of other shapes, and fewer real tokens in
    the first batch than k (prompts, if one each).
    """
    spec = require(model.config, site)
    if spec.axes != ("position", "neuron"):
        raise ValueError(f"{site!r} has axes {spec.axes}, expected 'mlp_post' or 'mlp_pre'.")
    chosen = layers_in(model.config.n_layers, layers)
    kept, seen, n_real = find_examples(
        model, batches, Neurons(jnp.asarray(chosen), site), (len(chosen), model.config.d_mlp), k=k,
        window=window, edges=edges, one_per_prompt=one_per_prompt, on_done=on_done,
    )  # fmt: skip
    attrs = claim(
        model, site=site, intervention="none", n_prompts=seen, n_tokens=n_real,
        **dict(record or {}),
    )  # fmt: skip
    return labelled(kept, "neuron", chosen, edges, window, tokenizer, attrs)


class Neurons(struct.PyTreeNode):
    """A reader for `find_examples`: a site's neurons at some layers."""

    layers: jax.Array
    site: str = struct.field(pytree_node=False)

    def __call__(self, model: Model, tokens: Tokens) -> jax.Array:
        """Values [L B P M], L being the chosen layers."""
        return forward(model, tokens, record=(self.site,)).activations[self.site][self.layers]


def written_tokens(
    model: Model, layer: int, neurons: Sequence[int] | None = None, *, k: int = 10,
    tokenizer: Any = None,
) -> xr.Dataset:  # fmt: skip
    """The tokens whose logits a neuron's output raises and lowers most, per unit of activation.

    Through the norms after it with their scales taken as 1: comparable within a layer, not between
    layers. neurons: default all of the layer.

    Returns a Dataset over (neuron, end, rank), end being "raised" and "lowered": ``token`` and
    ``change`` (of the logit); with a tokenizer ``text``.
    """
    c, p = model.config, model.params
    if c.head == "none" or c.head_transform or c.attention_only:
        raise ValueError(f"A {c.family} model's neurons (if any) write to no logits directly.")
    layer = whole_number("layer", layer, 0, c.n_layers - 1)
    chosen = np.arange(c.d_mlp) if neurons is None else np.asarray(neurons)
    if chosen.ndim != 1 or not ((chosen >= 0) & (chosen < c.d_mlp)).all():
        raise ValueError(f"neurons={neurons}, expected numbers from 0 to {c.d_mlp - 1}.")
    post, mlp = p.blocks.ln2_post, p.blocks.mlp
    assert mlp is not None
    norm = None if post is None else jax.tree.map(lambda leaf: leaf[layer], post)
    rows = through_norm(model, norm, wide(mlp.W_out[layer][chosen]))
    return tokens_along(
        model, rows, unit="neuron", labels=chosen, k=k, tokenizer=tokenizer,
        attrs=claim(model, layer=layer, intervention="none"),
    )  # fmt: skip
