"""What a transformer is made of: one frozen, hashable description."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxinterp.checks import LONG, MANY, one_of, real_number, whole_number

Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "silu", "tanh", "identity"
]
GAIN_HELD = ", gain held"  # after an activation's name: see `jaxinterp.model.parts.held_gain`


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

    def __post_init__(self) -> None:
        whole_number("dim", self.dim, 2, MANY)
        if self.dim % 2:
            raise ValueError(f"dim={self.dim}, expected an even number: dimensions turn in pairs.")
        real_number("theta", self.theta, above=0)
        if self.scaling:
            _check_scaling(self.scaling)


# The numbers of each kind of rotary scaling, in order.
_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low", "high", "original_context"),
    "yarn": ("factor", "beta_fast", "beta_slow", "original_context", "attention_factor"),
}


def _check_scaling(scaling: tuple[Any, ...]) -> None:
    """Refuse a rotary scaling of another kind, or with numbers that no model has."""
    kind, *numbers = scaling
    one_of("scaling", kind, _SCALINGS)
    if kind == "yarn" and len(numbers) == 6:
        *numbers, truncate = numbers
        one_of("truncate", truncate, (True, False))
    names = _SCALINGS[kind]
    if len(numbers) != len(names):
        raise ValueError(f"scaling={scaling!r}, expected {kind!r} and {', '.join(names)}.")
    for name, number in zip(names, numbers, strict=True):
        real_number(name, number, above=0, optional=name == "attention_factor")


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
        self._check_numbers()
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

    def _check_numbers(self) -> None:
        """Refuse choices that do not exist and numbers that no model has."""
        for name, (least, most) in _SIZES.items():
            value = whole_number(name, getattr(self, name), least, most)
            object.__setattr__(self, name, value)
        for name in ("attn_scale", "attn_softcap", "logit_softcap"):
            real_number(name, getattr(self, name), least=0)
        real_number("embed_scale", self.embed_scale)
        real_number("norm_eps", self.norm_eps, least=0)
        for name, choices in _choices().items():
            value = getattr(self, name)
            held = name == "act" and isinstance(value, str)
            one_of(name, value.removesuffix(GAIN_HELD) if held else value, choices)
        kinds = max(len(self.rotary), 1)
        for name, most in (("windows", LONG), ("rotary_kind", kinds - 1)):
            given = tuple(whole_number(name, each, 0, most) for each in getattr(self, name))
            object.__setattr__(self, name, given)
        for kind in self.rotary:
            if not isinstance(kind, Rotary) or kind.dim > self.d_head:
                raise ValueError(f"rotary={kind!r}, expected a Rotary of at most {self.d_head}.")

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
        """The inverse of :meth:`to_dict`.

        Raises ``ValueError`` for fields that are missing, unknown, or hold what none may hold.
        """
        fields = _known(cls, fields, "A config")
        for name in ("windows", "rotary_kind", "rotary"):
            fields[name] = _tuple(name, fields.get(name, ()))
        kinds = [_known(Rotary, kind, "A kind of rotary layer") for kind in fields["rotary"]]
        fields["rotary"] = tuple(
            Rotary(**{**kind, "scaling": _tuple("scaling", kind.get("scaling", ()))})
            for kind in kinds
        )
        return cls(**fields)


@functools.cache
def _choices() -> dict[str, tuple[Any, ...]]:
    """What each field may be that has a closed list of values, by its annotation."""
    hints = get_type_hints(Config)
    closed = {name: get_args(kind) for name, kind in hints.items() if get_origin(kind) is Literal}
    return closed | {name: (True, False) for name, kind in hints.items() if kind is bool}


# The least and the most of each size.
_SIZES = {
    "n_layers": (0, 100_000), "d_model": (1, MANY), "n_heads": (1, MANY), "d_head": (1, MANY),
    "d_mlp": (0, MANY), "vocab_size": (1, LONG), "n_ctx": (1, LONG), "n_kv_heads": (0, MANY),
    "n_token_types": (0, MANY), "n_outputs": (0, LONG),
}  # fmt: skip


def _known(kind: type, fields: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass, from another's dict."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"{what} is {fields!r}, expected a mapping of its fields.")
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [repr(name) for name in fields if name not in known]
    if unknown:
        raise ValueError(f"{what} has no field {', '.join(unknown)}: expected {', '.join(known)}.")
    needed = [n for n, field in known.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in fields]:
        raise ValueError(f"{what} lacks {', '.join(missing)}: expected at least {needed}.")
    return dict(fields)


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}={value!r}, expected a list.")
    return tuple(value)
