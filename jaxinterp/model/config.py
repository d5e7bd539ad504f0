"""What a transformer is made of: one frozen, hashable description."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "tanh", "identity"
]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021) of one kind of layer.

    ``dim`` is the number of leading head dimensions that rotate. ``interleaved`` pairs
    neighbouring dimensions (GPT-J) in place of the two halves (GPT-NeoX, Llama).
    ``scaling`` is ``()`` or a kind followed by its numbers: ``("linear", factor)``,
    ``("llama3", factor, low, high, original_context)``, or
    ``("yarn", factor, beta_fast, beta_slow, original_context, attention_factor, truncate)``.
    """

    dim: int
    theta: float = 10_000.0
    interleaved: bool = False
    scaling: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    """The architecture: a set of orthogonal choices, no subclasses.

    Sizes: L ``n_layers``, D ``d_model``, H ``n_heads``, G ``n_kv_heads``, K ``d_head``,
    M ``d_mlp`` (0 for attention-only models), V ``vocab_size`` (or the width of inputs that are
    no tokens: `Tokens.values`).
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    n_ctx: int
    family: str = "custom"
    n_kv_heads: int = 0  # 0: as many as n_heads

    # Attention
    causal: bool = True
    attn_scale: float = 0.0  # 0: 1/sqrt(d_head)
    attn_softcap: float = 0.0  # 0: none
    windows: tuple[int, ...] = ()  # per layer; 0: the layer sees everything
    qk_norm: Literal["none", "head", "joint"] = "none"  # joint: over all heads at once (OLMo-2)
    bias_qkv: bool = False
    bias_o: bool = False

    # Positions
    positions: Literal["rotary", "learned", "none"] = "rotary"
    rotary: tuple[Rotary, ...] = ()  # the kinds that occur
    rotary_kind: tuple[int, ...] = ()  # per layer, an index into `rotary`; (): all 0

    # Norms: of what a sublayer reads, of what it writes, of the stream after it was added
    norm: Literal["layer", "rms", "none"] = "rms"
    norm_eps: float = 1e-5
    norm_input: bool = True
    norm_output: bool = False
    norm_stream: bool = False
    norm_embed: bool = False
    norm_final: bool = True
    parallel: bool = False  # attention and MLP read the same stream

    # MLP
    act: Activation = "silu"
    gated: bool = True
    bias_mlp: bool = False

    # Both ends
    embed_scale: float = 1.0
    n_token_types: int = 0
    head: Literal["tied", "untied", "none"] = "untied"
    head_transform: bool = False  # BERT: dense, activation and norm before the unembedding
    bias_head: bool = False
    n_outputs: int = 0  # logits, where they are not the vocabulary's (0: they are)
    logit_softcap: float = 0.0

    # Numerics: of every matrix product (the arrays' dtype is the parameters')
    precision: Literal["highest", "high", "default"] = "highest"

    def __post_init__(self) -> None:
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if not self.attn_scale:
            object.__setattr__(self, "attn_scale", self.d_head**-0.5)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}."
            )
        if self.positions == "rotary" and not self.rotary:
            object.__setattr__(self, "rotary", (Rotary(self.d_head),))
        for name in ("windows", "rotary_kind"):
            given = getattr(self, name)
            if given and len(given) != self.n_layers:
                raise ValueError(f"{name} has {len(given)} entries for {self.n_layers} layers.")
        if len({(kind.dim, kind.interleaved) for kind in self.rotary}) > 1:
            raise ValueError("all rotary kinds of a model share dim and interleaved.")
        if self.n_outputs and self.head == "tied":
            raise ValueError(
                f"n_outputs={self.n_outputs}: a tied head has the vocabulary's logits."
            )
        if self.parallel and self.norm_stream:
            raise ValueError("parallel blocks have no stream norm: set norm_stream=False.")

    @property
    def n_logits(self) -> int:
        """The size of what the unembedding gives."""
        return self.n_outputs or self.vocab_size

    @property
    def attention_only(self) -> bool:
        """True when the blocks hold no MLP."""
        return self.d_mlp == 0

    def replace(self, **changes: Any) -> Config:
        """A copy with some choices changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts and lists, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`."""
        fields = dict(fields)
        fields["rotary"] = tuple(
            Rotary(**{**kind, "scaling": tuple(kind["scaling"])}) for kind in fields["rotary"]
        )
        for name in ("windows", "rotary_kind"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
