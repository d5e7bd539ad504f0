"""The parameters: one pytree, every per-layer leaf stacked on a leading layer axis.

Axis letters, used by every tensor line of the package:

    B batch         P position       Q query position    S source (key) position
    L layer         D d_model        H head              G key/value head
    R heads per key/value head       K d_head            M d_mlp (neuron)     V vocabulary
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinterp.checks import real_number
from jaxinterp.model.config import Config

Leaf = Any  # a jax.Array, a ShapeDtypeStruct or a sharding: whatever the tree maps over


class Norm(struct.PyTreeNode):
    """Gain and shift of a LayerNorm or RMSNorm; ``b`` is None for RMSNorm."""

    w: Leaf
    b: Leaf = None


class Attention(struct.PyTreeNode):
    """Heads: W_Q [L H D K], W_K, W_V [L G D K], W_O [L H K D]; biases without the D axis."""

    W_Q: Leaf
    W_K: Leaf
    W_V: Leaf
    W_O: Leaf
    b_Q: Leaf = None
    b_K: Leaf = None
    b_V: Leaf = None
    b_O: Leaf = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


class MLP(struct.PyTreeNode):
    """W_in, W_gate [L D M] (gate: the half that passes through the activation), W_out [L M D]."""

    W_in: Leaf
    W_out: Leaf
    W_gate: Leaf = None
    b_in: Leaf = None
    b_gate: Leaf = None
    b_out: Leaf = None


class Blocks(struct.PyTreeNode):
    """All layers. ``ln1``/``ln2`` belong to attention/MLP; ``*_post`` norm what they write."""

    attn: Attention
    mlp: MLP | None = None
    ln1: Norm | None = None
    ln2: Norm | None = None
    ln1_post: Norm | None = None
    ln2_post: Norm | None = None


class Embed(struct.PyTreeNode):
    """W_E [V D]; W_pos [n_ctx D] of learned positions; W_type [types D] (BERT); its norm."""

    W_E: Leaf
    W_pos: Leaf = None
    W_type: Leaf = None
    norm: Norm | None = None


class Head(struct.PyTreeNode):
    """W_U [D V] (None when tied to W_E), b_U [V]; the dense layer and norm of BERT's head."""

    W_U: Leaf = None
    b_U: Leaf = None
    W: Leaf = None
    b: Leaf = None
    norm: Norm | None = None


class Params(struct.PyTreeNode):
    """All parameters of a transformer."""

    embed: Embed
    blocks: Blocks
    ln_final: Norm | None
    head: Head


class Model(struct.PyTreeNode):
    """A transformer as a value: arrays in ``params``, the architecture in ``config``.

    A pytree: it can be jitted over, differentiated, donated, sharded and saved.
    ``name`` says where the weights came from and ``revision`` which they are (a hash).
    """

    params: Params
    config: Config = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="unnamed")
    revision: str = struct.field(pytree_node=False, default="")

    @property
    def W_U(self) -> jax.Array:
        """The unembedding [D V], also when it is tied to the embedding.

        Raises ``ValueError`` where there is none.
        """
        if self.config.head == "none":
            raise ValueError(f"{self.name} has no unembedding (config.head is 'none').")
        tied = self.config.head == "tied"
        return self.params.embed.W_E.T if tied else self.params.head.W_U


def shapes(config: Config, dtype: Any = jnp.float32) -> Params:
    """The parameter tree of a config as ``jax.ShapeDtypeStruct`` leaves: no memory is used.

    The one place that says which arrays a config has: `init`, every loader and the
    checkpoints are checked against it.
    """
    c = config
    L, D, H, G, K, M, V = (
        c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.d_head, c.d_mlp, c.vocab_size,
    )  # fmt: skip

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def leaf_if(present: bool, *shape: int) -> jax.ShapeDtypeStruct | None:
        return leaf(*shape) if present else None

    def norm_if(present: bool, *shape: int) -> Norm | None:
        if not present or c.norm == "none":
            return None
        return Norm(leaf(*shape), leaf_if(c.norm == "layer", *shape))

    def qk_norm(heads: int) -> Norm | None:
        shape = {"none": None, "head": (L, K), "joint": (L, heads, K)}[c.qk_norm]
        return None if shape is None else Norm(leaf(*shape))

    has_mlp = not c.attention_only
    has_ln = c.norm_input or c.norm_stream
    has_head = c.head != "none"
    attn = Attention(
        W_Q=leaf(L, H, D, K),
        W_K=leaf(L, G, D, K),
        W_V=leaf(L, G, D, K),
        W_O=leaf(L, H, K, D),
        b_Q=leaf_if(c.bias_qkv, L, H, K),
        b_K=leaf_if(c.bias_qkv, L, G, K),
        b_V=leaf_if(c.bias_qkv, L, G, K),
        b_O=leaf_if(c.bias_o, L, D),
        q_norm=qk_norm(H),
        k_norm=qk_norm(G),
    )
    mlp = MLP(
        W_in=leaf(L, D, M),
        W_out=leaf(L, M, D),
        W_gate=leaf_if(c.gated, L, D, M),
        b_in=leaf_if(c.bias_mlp, L, M),
        b_gate=leaf_if(c.bias_mlp and c.gated, L, M),
        b_out=leaf_if(c.bias_mlp, L, D),
    )
    return Params(
        embed=Embed(
            W_E=leaf(V, D),
            W_pos=leaf_if(c.positions == "learned", c.n_ctx, D),
            W_type=leaf_if(c.n_token_types > 0, c.n_token_types, D),
            norm=norm_if(c.norm_embed, D),
        ),
        blocks=Blocks(
            attn=attn,
            mlp=mlp if has_mlp else None,
            ln1=norm_if(has_ln, L, D),
            ln2=norm_if(has_ln and has_mlp, L, D),
            ln1_post=norm_if(c.norm_output, L, D),
            ln2_post=norm_if(c.norm_output and has_mlp, L, D),
        ),
        ln_final=norm_if(c.norm_final, D),
        head=Head(
            W_U=leaf_if(c.head == "untied", D, c.n_logits),
            b_U=leaf_if(has_head and c.bias_head, c.n_logits),
            W=leaf_if(has_head and c.head_transform, D, D),
            b=leaf_if(has_head and c.head_transform, D),
            norm=norm_if(has_head and c.head_transform, D),
        ),
    )


def check_model(model: Model) -> None:
    """Refuse parameters that are not those of the model's config, by the leaf's name.

    Which arrays there are and their shapes have to be as `shapes` says. They are of any
    floating-point dtypes, also of several, and may be traced or abstract. A batch of models, with
    an axis before all others, is one for ``jax.vmap``: what is inside it is checked.
    """
    wanted, found = _by_name(shapes(model.config)), _by_name(model.params)
    for name in [*wanted, *found]:
        leaf, expected = found.get(name), wanted.get(name)
        if leaf is None or expected is None:
            told = "has no" if leaf is None else "has a"
            raise ValueError(
                f"{model.name} {told} params{name}, and its config "
                f"{'needs one of shape ' + str(list(expected.shape)) if expected else 'has none'}: "
                "are the parameters and the config of one model?"
            )
        if np.shape(leaf) != expected.shape:
            raise ValueError(
                f"params{name} of {model.name} has shape {list(np.shape(leaf))}, expected "
                f"{list(expected.shape)}: are the parameters and the config of one model?"
            )
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params{name} of {model.name} is {dtype}, expected a floating-point dtype."
            )


def _by_name(params: Any) -> dict[str, Any]:
    """The leaves by their paths, such as ``.blocks.attn.W_Q``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def init(config: Config, key: jax.Array, scale: float = 1.0) -> Model:
    """A randomly initialised model: weights normal with std ``scale / sqrt(fan_in)``.

    Embeddings have std ``scale``, gains are 1, biases and shifts 0. The outputs of both
    sublayers are divided by sqrt(2 L), as in GPT-2.
    """
    scale = real_number("scale", scale, least=0)
    tree = shapes(config)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    keys = jax.random.split(key, len(leaves))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        name, owner = path[-1].name, path[-2].name
        if name == "w" and owner != "head":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name.startswith("b"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        std = scale
        if name not in ("W_E", "W_pos", "W_type"):
            fan_in = config.n_heads * config.d_head if name == "W_O" else leaf.shape[-2]
            std = scale * fan_in**-0.5
        if name in ("W_O", "W_out"):
            std *= (2 * max(config.n_layers, 1)) ** -0.5
        return std * jax.random.normal(key, leaf.shape, leaf.dtype)

    drawn = [draw(path, leaf, k) for (path, leaf), k in zip(leaves, keys, strict=True)]
    return Model(jax.tree.unflatten(treedef, drawn), config, name=f"random-{config.family}")


def n_params(tree: Any) -> int:
    """The number of numbers in a tree of arrays."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
