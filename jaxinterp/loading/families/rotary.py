"""Rotary settings of config.json, as transformers 4 and 5 write them.

Version 5 has ``rope_parameters``; version 4 has ``rope_scaling`` beside ``rope_theta`` and others.
What is said twice has to agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from jaxinterp.loading.families.keys import Json, Key, is_positive, mapping, positive, size
from jaxinterp.model import Rotary
from jaxinterp.reading import LoadError

# The keys of a family with rotary positions, for its table.
ROTARY: dict[str, Key] = {
    "rope_parameters": mapping(),
    "rope_scaling": mapping(),
    "rope_theta": positive(None, null=True),
    "partial_rotary_factor": positive(None, null=True),
    "original_max_position_embeddings": size(None, null=True),
}

# What each kind of scaling reads beside ``rope_type`` and ``rope_theta``.
_READS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
_FREE = ("truncate", "rope_type")  # no numbers


def rotary(
    json: Json,
    model_type: str,
    d_head: int,
    *,
    theta: float = 10_000.0,
    fraction: float = 1.0,
    partial: bool = False,
    kinds: Collection[str] = tuple(_READS),
) -> Rotary:
    """The one rotary kind of a model.

    json: `ROTARY`'s keys and ``max_position_embeddings``. theta, fraction: the family's defaults.
    partial: whether the family rotates a part of a head. kinds: of scaling, what it offers.

    Raises `LoadError` for settings that disagree, are unknown, or that the family does not have.
    """
    of = f"of this {model_type} model"
    new, old = (_plain(json.get(key), of) for key in ("rope_parameters", "rope_scaling"))
    flat = {key: json.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    if new and old:  # each on top of what is said beside them
        flat_said = {key: value for key, value in flat.items() if value is not None}
        _agree({**flat_said, **new}, {**flat_said, **old}, of, both=True)
    p = new or old or {"rope_type": "default"}
    _agree(p, flat, of)
    p = {"rope_theta": theta, "partial_rotary_factor": fraction, **_said(flat), **p}
    return kind_of(p, json, of, d_head, partial=partial, kinds=kinds)


def kind_of(
    p: dict[str, Any],
    json: Json,
    of: str,
    d_head: int,
    *,
    partial: bool = False,
    kinds: Collection[str] = tuple(_READS),
) -> Rotary:
    """The rotary kind that plain settings describe; see `rotary`."""
    kind = p["rope_type"]
    if kind not in kinds or kind not in _READS:
        raise LoadError(
            f"Rotary scaling {kind!r} {of} is not supported: only {', '.join(kinds)} are. Choose "
            "another checkpoint."
        )
    known = {"rope_type", "rope_theta", "partial_rotary_factor", *_READS[kind]}
    if unknown := sorted(p.keys() - known):
        raise LoadError(
            f"The rotary settings {of} hold {unknown[0]!r}, which {kind!r} does not read: expected "
            f"{', '.join(sorted(known))}. Correct config.json."
        )
    for name, value in p.items():
        if name not in _FREE and not is_positive(value):
            raise LoadError(
                f"The rotary setting {name}={value!r} {of} is no finite number above 0: correct "
                "config.json."
            )
    fraction = p.get("partial_rotary_factor", 1.0)
    dim = int(d_head * fraction)
    if fraction > 1 or dim < 2 or dim % 2 or (fraction != 1 and not partial):
        raise LoadError(
            f"partial_rotary_factor={fraction!r} {of} turns {dim} of a head's {d_head} dimensions, "
            f"expected {'an even number of them' if partial else '1 (all of them)'}."
        )
    return Rotary(dim, float(p["rope_theta"]), scaling=_scaling(p, json, of))


def _scaling(p: dict[str, Any], json: Json, of: str) -> tuple[Any, ...]:
    kind = p["rope_type"]
    if kind == "default":
        return ()
    beside, inside = json.get("original_max_position_embeddings"), None
    if "original_max_position_embeddings" in _READS[kind]:
        inside = p.get("original_max_position_embeddings")
        _agree({"original_max_position_embeddings": inside},
               {"original_max_position_embeddings": beside}, of)  # fmt: skip
    context = float(beside or inside or json["max_position_embeddings"])
    needed = [key for key in _READS[kind][:3] if key in ("factor",) or kind == "llama3"]
    for key in needed:
        if key not in p and not (kind == "yarn" and (beside or inside)):
            raise LoadError(f"The rotary scaling {kind!r} {of} lacks {key!r}: correct config.json.")
    if kind == "yarn":
        return _yarn(p, json, context)
    return (kind, *(float(p[key]) for key in needed), *([context] if kind == "llama3" else []))


def _yarn(p: dict[str, Any], json: Json, context: float) -> tuple[Any, ...]:
    """YaRN (Peng et al. 2023) with the temperature rules of DeepSeek's variants."""

    def temperature(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    factor = p.get("factor") or json["max_position_embeddings"] / context
    attention = p.get("attention_factor")
    if attention is None:
        attention = temperature(factor)
        if p.get("mscale") and p.get("mscale_all_dim"):
            attention = temperature(factor, p["mscale"]) / temperature(factor, p["mscale_all_dim"])
    fast, slow = p.get("beta_fast") or 32, p.get("beta_slow") or 1
    truncate = bool(p.get("truncate", True))
    return ("yarn", float(factor), float(fast), float(slow), context, float(attention), truncate)


def _said(p: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in p.items() if value is not None}


def _plain(given: dict[str, Any] | None, of: str) -> dict[str, Any]:
    """Settings without their old names and nulls, {} where there are none."""
    if not given:
        return {}
    p = _said(given)
    if nested := [key for key, value in p.items() if isinstance(value, dict)]:
        raise LoadError(
            f"The rotary settings {of} differ by layer type ({', '.join(nested)}), which this "
            "family does not have: correct config.json."
        )
    old = p.pop("type", None)
    kind = p.setdefault("rope_type", old or "default")
    if old is not None and old != kind:
        raise LoadError(
            f"The rotary settings {of} say rope_type={kind!r} and type={old!r}: remove one."
        )
    return p


def layer_kinds(
    json: Json, of: str, d_head: int, defaults: dict[str, float], global_type: str
) -> dict[str, Rotary]:
    """The rotary kind of each layer type, for families where they differ.

    json: also holds ``rope_local_base_freq``, transformers 4's base of the other type. defaults:
    the base of each layer type; ``rope_scaling`` and ``rope_theta`` are of ``global_type``.
    """
    new = json.get("rope_parameters") or {}
    if set(new) - set(defaults) or not all(isinstance(p, dict) for p in new.values()):
        raise LoadError(
            f"rope_parameters {of} has {', '.join(map(str, new))}, expected settings for each of "
            f"the layer types {', '.join(defaults)}: correct config.json."
        )
    found = {}
    for layer_type, theta in defaults.items():
        at_global = layer_type == global_type
        p = _plain(new.get(layer_type), of)
        old = _plain(json.get("rope_scaling"), of) if at_global else {}
        base = "rope_theta" if at_global else "rope_local_base_freq"
        flat = {key: json.get(key) for key in ("partial_rotary_factor", base)}
        flat["rope_theta"] = flat.pop(base)
        if p and old:
            _agree({**_said(flat), **p}, {**_said(flat), **old}, of, both=True)
        _agree(p or old, flat, of)
        p = {"rope_type": "default", "rope_theta": theta, **_said(flat), **old, **p}
        found[layer_type] = kind_of(p, json, of, d_head)
    return found


def _agree(first: dict[str, Any], second: dict[str, Any], of: str, both: bool = False) -> None:
    """What both say is the same; with ``both``, neither says more than the other."""
    keys = first.keys() | second.keys() if both else first.keys() & second.keys()
    for key in sorted(keys):
        one, other = first.get(key), second.get(key)
        if one != other and (both or (one is not None and other is not None)):
            raise LoadError(
                f"config.json {of} says {key}={one!r} in one place and {key}={other!r} in another "
                "(rope_parameters, rope_scaling, beside them): remove the wrong one."
            )
