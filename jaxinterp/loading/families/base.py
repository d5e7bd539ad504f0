"""What a family table is made of, and how its config.json is read."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.model import Config, Rotary
from jaxinterp.reading import LoadError

Json = Mapping[str, Any]
Rule = tuple[str, t.Transform]  # the source tensor ("{}": its layer), and what is done to it
Rules = dict[str, Rule]  # by the leaf it fills, as "blocks.attn.W_Q"


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table of architectures.

    model_types: the ``model_type`` values of config.json it reads. config: from config.json
    to `Config`. rules: which tensor fills which leaf; rules of leaves that a config lacks
    are passed over. renames: (pattern, replacement) pairs by which a checkpoint may name the
    same tensors. ignored: regular expressions of tensors that hold no parameter of the
    language model (buffers, other heads).
    """

    model_types: tuple[str, ...]
    config: Callable[[Json], Config]
    rules: Rules
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def spellings(self, name: str) -> list[str]:
        """The names under which a checkpoint may hold a tensor, the usual one first."""
        names = [name]
        for pattern, replacement in self.renames:
            names += [re.sub(pattern, replacement, given) for given in names]
        return list(dict.fromkeys(names))

    def ignores(self, name: str) -> bool:
        """Whether a tensor holds no parameter of the language model."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "identity",
}


def activation(name: str) -> Any:
    """Our name of a Hugging Face activation."""
    if name not in ACTIVATIONS:
        raise LoadError(f"Activation {name!r} is not supported: one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def need(json: Json, key: str) -> Any:
    """A value that config.json must hold."""
    if json.get(key) is None:
        raise LoadError(
            f"config.json of this {json.get('model_type')} model lacks {key!r}: "
            "download the file again or write the value into it."
        )
    return json[key]


def refuse(json: Json, key: str, default: Any, why: str) -> None:
    """An option that must be at its default."""
    value = json.get(key, default)
    if value != default and not (value is None and not default):
        raise LoadError(
            f"{key}={value!r} of this {json.get('model_type')} model is not supported "
            f"({why}); expected {default!r}. Choose another checkpoint."
        )


def rotary(json: Json, d_head: int, layer_type: str = "") -> Rotary:
    """The rotary kind of one type of layer, in the layouts of transformers 4 and 5."""
    given = json.get("rope_parameters") or {}
    p: dict[str, Any] = dict(given.get(layer_type) or given)
    p = p or dict(json.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in p.values()):
        raise LoadError(
            f"rope_parameters of this {json.get('model_type')} model has {', '.join(p)} but not "
            f"the layer type {layer_type or 'full_attention'!r}: check config.json."
        )
    theta = float(p.get("rope_theta") or json.get("rope_theta") or 10_000.0)
    fraction = p.get("partial_rotary_factor") or json.get("partial_rotary_factor") or 1.0
    kind = p.get("rope_type", p.get("type", "default"))
    context = json.get("original_max_position_embeddings") or p.get(
        "original_max_position_embeddings", json.get("max_position_embeddings")
    )
    scaling: tuple[Any, ...] = ()
    if kind == "linear":
        scaling = ("linear", float(p["factor"]))
    elif kind == "llama3":
        numbers = (p["factor"], p["low_freq_factor"], p["high_freq_factor"], context)
        scaling = ("llama3", *map(float, numbers))
    elif kind == "yarn":
        scaling = _yarn(p, json, float(context or need(json, "max_position_embeddings")))
    elif kind != "default":
        raise LoadError(
            f"Rotary scaling {kind!r} of this {json.get('model_type')} model is not supported: "
            "only default, linear, llama3 and yarn are. Choose another checkpoint."
        )
    return Rotary(int(d_head * fraction), theta, scaling=scaling)


def _yarn(p: Json, json: Json, context: float) -> tuple[Any, ...]:
    """YaRN (Peng et al. 2023) with the temperature rules of DeepSeek's variants."""

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    factor = p.get("factor") or need(json, "max_position_embeddings") / context
    attention = p.get("attention_factor")
    if attention is None:
        attention = temperature(factor)
        if p.get("mscale") and p.get("mscale_all_dim"):
            attention = temperature(factor, p["mscale"]) / temperature(factor, p["mscale_all_dim"])
    fast, slow = p.get("beta_fast") or 32, p.get("beta_slow") or 1
    truncate = bool(p.get("truncate", True))
    return ("yarn", float(factor), float(fast), float(slow), context, float(attention), truncate)


def rotary_layers(json: Json, d_head: int, layer_types: list[str]) -> dict[str, Any]:
    """The ``rotary`` and ``rotary_kind`` fields of a model with these layer types."""
    of_type = {name: rotary(json, d_head, name) for name in sorted(set(layer_types))}
    kinds = tuple(dict.fromkeys(of_type.values()))
    per_layer = tuple(kinds.index(of_type[name]) for name in layer_types)
    return {"rotary": kinds, "rotary_kind": per_layer if len(kinds) > 1 else ()}


def windows(layer_types: list[str], window: int | None) -> tuple[int, ...]:
    """The reach of each layer (0: everything), or () when every layer sees everything."""
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise LoadError(
            f"Layer type {min(unknown)!r} is not supported: expected full_attention or "
            "sliding_attention in layer_types. Choose another checkpoint."
        )
    sliding = [name == "sliding_attention" for name in layer_types]
    if any(sliding) and not window:
        raise LoadError("layer_types has sliding_attention but config.json lacks sliding_window.")
    return tuple(int(window or 0) if s else 0 for s in sliding) if any(sliding) else ()


def head(json: Json, default_tied: bool) -> Any:
    """Whether the unembedding is the embedding."""
    return "tied" if json.get("tie_word_embeddings", default_tied) else "untied"


def linear(leaf: str, bias: str, source: str, transform: t.Transform = t.transpose) -> Rules:
    """Weight and bias of a Linear layer that no head axis splits."""
    return {leaf: (f"{source}.weight", transform), bias: (f"{source}.bias", t.same)}


def norm(leaf: str, source: str, gain: t.Transform = t.same) -> Rules:
    """Gain and shift of a norm."""
    return {f"{leaf}.w": (f"{source}.weight", gain), f"{leaf}.b": (f"{source}.bias", t.same)}


def attention(layer: str, q: str, k: str, v: str, o: str) -> Rules:
    """Four Linear layers split into heads, with or without biases."""
    rules: Rules = {
        "blocks.attn.W_O": (f"{layer}{o}.weight", t.heads_out),
        "blocks.attn.b_O": (f"{layer}{o}.bias", t.same),
    }
    for letter, name in zip("QKV", (q, k, v), strict=True):
        rules[f"blocks.attn.W_{letter}"] = (f"{layer}{name}.weight", t.heads)
        rules[f"blocks.attn.b_{letter}"] = (f"{layer}{name}.bias", t.heads_bias)
    return rules
