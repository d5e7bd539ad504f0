"""What a family table is made of, and how its config.json is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any

from jaxinterp.loading import transforms as t
from jaxinterp.loading.families.keys import Json, Keys
from jaxinterp.model import Config
from jaxinterp.reading import LoadError

Rule = tuple[str, t.Transform]  # the source tensor ("{}": its layer), and what is done to it
Rules = dict[str, Rule]  # by the leaf it fills, as "blocks.attn.W_Q"
Values = dict[str, Any]  # every used key of config.json, with its value or its default


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table of architectures.

    model_type: the value of config.json that it reads. keys: what else config.json may say.
    build: from the used keys and ``architectures`` to `Config`. models: the classes of the
    reference that have this head. bases: those without any. rules: which tensor fills which leaf;
    rules of leaves that a config lacks are passed over. ties: (tensor, the one it is the same as)
    in models whose ``tie_word_embeddings`` is true. renames: (pattern, replacement) pairs by which
    a checkpoint may name the same tensors. ignored: (regular expression, reason) of tensors that
    hold no parameter of the language model.
    """

    model_type: str
    keys: Keys
    build: Callable[[Values, tuple[str, ...]], Config]
    models: tuple[str, ...]
    bases: tuple[str, ...]
    rules: Rules
    ties: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()

    def config(self, json: Json, ignore: Collection[str] = ()) -> Config:
        """Our config from Hugging Face's ``config.json``.

        ignore: unknown keys that are passed over. Raises `LoadError` for a key that is unknown,
        has a value that is not supported, or is missing, and for a class with another head.
        """
        values = self.keys.read(json, ignore)
        try:
            return self.build(values, self._architectures(json))
        except LoadError:
            raise
        except ValueError as error:
            raise LoadError(
                f"config.json of this {self.model_type} model describes no model: {error}"
            ) from error

    def _architectures(self, json: Json) -> tuple[str, ...]:
        given = json.get("architectures") or []
        known = (*self.models, *self.bases)
        for name in given if isinstance(given, list) else [given]:
            if name not in known:
                raise LoadError(
                    f"The architecture {name!r} of this {self.model_type} model is not supported: "
                    f"expected one of {', '.join(known)}. Its head is of another kind; to read "
                    f"the transformer alone, save it as {self.bases[0]}."
                )
        return tuple(given)

    def only_base(self, json: Json) -> bool:
        """Whether config.json says that the file was written without a head."""
        given = json.get("architectures") or []
        return bool(given) and all(name in self.bases for name in given)

    def spellings(self, name: str) -> list[str]:
        """The names under which a checkpoint may hold a tensor, the usual one first."""
        names = [name]
        for pattern, replacement in self.renames:
            names += [re.sub(pattern, replacement, given) for given in names]
        return list(dict.fromkeys(names))

    def ignores(self, name: str) -> bool:
        """Whether a tensor holds no parameter of the language model."""
        return any(re.fullmatch(pattern, name) for pattern, _ in self.ignored)


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


def split(width: int, heads: int, model_type: str) -> int:
    """The size of a head where the heads share the stream's width."""
    if width % heads:
        raise LoadError(
            f"config.json of this {model_type} model shares a width of {width} among {heads} "
            "heads, which does not come out even: correct it."
        )
    return width // heads


def windows(layer_types: list[str], layers: int, window: int | None) -> tuple[int, ...]:
    """The reach of each layer (0: everything), or () when every layer sees everything."""
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise LoadError(
            f"Layer type {min(unknown)!r} is not supported: expected full_attention or "
            "sliding_attention in layer_types. Choose another checkpoint."
        )
    if len(layer_types) != layers:
        raise LoadError(
            f"layer_types of config.json has {len(layer_types)} entries for {layers} layers: "
            "correct it."
        )
    sliding = [name == "sliding_attention" for name in layer_types]
    if any(sliding) and not window:
        raise LoadError(
            "layer_types of config.json has sliding_attention, but no sliding_window is in use: "
            "correct one of the two."
        )
    return tuple(int(window or 0) if s else 0 for s in sliding) if any(sliding) else ()


def head(tied: bool) -> Any:
    """Whether the unembedding is the embedding."""
    return "tied" if tied else "untied"


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
