"""Feature pages: thousands of a dictionary's features to look through, in one offline file.

What the list needs of every feature travels as plain JSON: numbers to sort and filter by, tokens
to search in. All else of a feature is JSON, deflated, in base64: the page unpacks one when it is
opened. Texts are kept once each; features refer to them by number.
"""

from __future__ import annotations

import base64
import json
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.reading import parse_json
from jaxinterp.report.html import record_rows, render, write_page

if TYPE_CHECKING:
    import xarray as xr

NEEDED = ("value", "lower", "context", "activation", "count", "width", "density")


def write_features(study: xr.Dataset, path: str | os.PathLike[str], *, title: str) -> Path:
    """Write a page for each feature as one HTML file that needs no network; returns its path.

    study: what `jaxinterp.sae.study_features` returns. Features are listed beside the open one;
    the list sorts by number, density, largest activation or effect, filters by density, and finds
    features by number or by a token they are active on or write. ``#12`` after the file's name
    opens feature 12. Numbers are shown, and kept, to four digits.

    Raises ``ValueError`` for a Dataset that is no such study or has no features, ``OSError`` when
    the file cannot be written.
    """
    lacking = [name for name in NEEDED if name not in study]
    if lacking or not study.sizes.get("feature"):
        said = f"it lacks {lacking[0]!r}" if lacking else "it has no features"
        raise ValueError(
            f"This is not a study of features ({said}): give what jaxinterp.sae.study_features "
            "returns."
        )
    data = {
        "title": title,
        "facts": _facts(study),
        "record": record_rows(study.attrs),
        **_data(study),
    }
    page = render(
        "features.html", title=title, data=data, style=("page.css", "features.css"),
        script=("draw.js", "features.js"),
    )  # fmt: skip
    return write_page(page, path)


def _facts(study: xr.Dataset) -> list[str]:
    said, n = study.attrs, study.sizes["feature"]
    of = said.get("n_features", n)
    facts = [str(said[name]) for name in ("model", "site") if said.get(name)]
    facts += [f"layer {said['layer']}"] if "layer" in said else []
    facts += [f"{n:,} of {of:,} features"]
    return facts + ([f"{said['n_counted']:,} tokens"] if "n_counted" in said else [])


def _data(study: xr.Dataset) -> dict[str, Any]:
    """What all features share, what the list needs of each, and each one packed."""
    texts, number_of = _vocabulary(study)
    context = number_of(study["context"].values)
    numbers = {
        name: study[name].values
        for name in ("value", "prompt", "position", "activation", "lower", "upper", "count",
                     "width", "change", "other", "cosine", "effect", "effect_low", "effect_high",
                     "effect_active")
        if name in study
    }  # fmt: skip
    before = int((study["offset"].values < 0).sum())
    n, ends = study.sizes["feature"], np.zeros((study.sizes["feature"], 2, 0), int)
    written = number_of(study["written"].values) if "written" in study else ends
    peaks = [_distinct(row) for row in context[:, 0, :, before]]
    effect = study.get("effect")
    return {
        "texts": texts,
        "groups": [str(name) for name in study["group"].values],
        "factors": [] if effect is None else _numbers(effect["factor"].values),
        "metric": "" if effect is None else _metric(effect.attrs.get("metric", "metric")),
        "counted": int(study.attrs.get("n_counted", 0)),
        "number": study["feature"].values.tolist(),
        "density": _numbers(study["density"].values),
        "max": _numbers(study["value"].values[:, 0].max(1)),
        "effects": [] if effect is None else [_numbers(row) for row in numbers["effect"].T],
        "peaks": peaks,
        "raised": written[:, 0].tolist(),
        "lowered": written[:, 1].tolist(),
        "features": [
            pack(_feature({name: x[i] for name, x in numbers.items()}, context[i], before))
            for i in range(n)
        ],
    }


def _metric(said: Any) -> str:
    """The name and unit of what `feature_effects` measured, from its claim."""
    try:
        described = parse_json(said, "The metric of a result")
        return f"{described['metric']}, {described['unit']}"
    except (TypeError, ValueError, KeyError):
        return "next-token loss, nats" if said == "summed next-token loss" else str(said)


def _vocabulary(study: xr.Dataset) -> tuple[list[str], Any]:
    """The texts of all tokens that occur, the commonest first, and ids to their numbers there."""
    names = [name for name in ("context", "written") if name in study]
    ids = np.concatenate([study[name].values.ravel() for name in names])
    kinds, counts = np.unique(ids[ids >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    if "text" in study:
        known = study["text"].sel(token=kinds[order]).values.tolist()
    else:
        known = [f"⟨{token}⟩" for token in kinds[order]]

    def number_of(ids: np.ndarray) -> np.ndarray:
        if not len(kinds):
            return np.full(ids.shape, -1)
        return np.where(ids < 0, -1, place[np.searchsorted(kinds, ids).clip(max=len(kinds) - 1)])

    return [str(text) for text in known], number_of


def _feature(one: dict[str, np.ndarray], context: np.ndarray, before: int) -> dict[str, Any]:
    """What a page shows beside the list's numbers. Arrays of one feature, context [G K W].

    An example is [prompt, position, place of the peak, tokens, activations].
    """
    groups = []
    for group, ids in enumerate(context.tolist()):
        rows = []
        for rank, tokens in enumerate(ids):
            if tokens[before] < 0:
                continue
            inside = [at for at, token in enumerate(tokens) if token >= 0]
            values = one["activation"][group, rank, inside]
            rows.append([
                int(one["prompt"][group, rank]), int(one["position"][group, rank]),
                inside.index(before), [tokens[at] for at in inside], _numbers(values),
            ])  # fmt: skip
        groups.append(rows)
    used = int(np.flatnonzero(one["count"])[-1]) + 1 if one["count"].any() else 0
    found = {
        "examples": groups,
        "limits": [_numbers(pair) for pair in zip(one["lower"], one["upper"], strict=True)],
        "width": float(one["width"]),
        "count": one["count"][:used].tolist(),
    }
    if "change" in one:
        found["change"] = [_numbers(row) for row in one["change"]]
    if "other" in one:
        found |= {"other": one["other"].tolist(), "cosine": _numbers(one["cosine"])}
    if "effect" in one:
        effects = zip(one["effect"], one["effect_low"], one["effect_high"], strict=True)
        found |= {"effect": [_numbers(e) for e in effects], "active": int(one["effect_active"])}
    return found


def _distinct(row: np.ndarray) -> list[int]:
    return [token for token in dict.fromkeys(row.tolist()) if token >= 0]


def _numbers(values: Any) -> list[float | int | None]:
    """To four digits; 0 and whole ones short; null for what is no number."""
    found: list[float | int | None] = []
    for value in np.asarray(values, float).tolist():
        short = float(f"{value:.4g}") if value else 0.0
        whole = short.is_integer()
        found.append(None if not math.isfinite(short) else int(short) if whole else short)
    return found


def pack(value: Any) -> str:
    """JSON, deflated (zlib), in base64."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
