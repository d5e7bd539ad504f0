"""One offline page: every site of a sweep, to look at and to question, in a single file.

The page holds its own style, script and numbers and may load nothing (its content policy
forbids it). Numbers travel as JSON that is exact for the result's dtype; every text reaches
the page as text, so a token cannot become markup.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.files import whole
from jaxinterp.reading import parse_json
from jaxinterp.report.tables import Axis, Study, arrange, study, summary_of, summary_table, visible

if TYPE_CHECKING:
    import xarray as xr

TOP = 12  # rows in each table of top cells
MOST_VALUES = 4_000_000  # beyond it a page would choke: means only


def write_report(
    results: Mapping[str, xr.DataArray],
    path: str | os.PathLike[str],
    *,
    title: str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the results, by name, as one HTML file that needs no network; returns its path.

    Each result gets a heat map (hover, click or arrow keys to read a cell, its interval and
    its prompts), a choice of prompt and of unit, a slider per further axis, the top cells and
    the record of the claim. extra: more facts for the head of the page.

    Raises ``ValueError`` without results, ``OSError`` when the file cannot be written.
    """
    if not results:
        raise ValueError("There are no results to report on: give at least one.")
    sections = [_section(name, result) for name, result in results.items()]
    data = {"title": title, "extra": record_rows(extra or {}), "sections": sections}
    plain = "\n\n".join(f"{name}\n{summary_table(r)}" for name, r in results.items())
    page = render(
        "page.html", title=title, data=data, style=("page.css",), script=("draw.js", "page.js"),
        plain=plain,
    )  # fmt: skip
    return write_page(page, path)


def render(
    body: str, *, title: str, data: Any, style: Sequence[str], script: Sequence[str],
    plain: str = "",
) -> str:  # fmt: skip
    """A page around a body, with its own style, script and numbers; texts stay texts."""
    template = _asset("frame.html").replace("{{body}}", _asset(body))
    fields = {
        "title": html.escape(title),
        "style": "".join(map(_asset, style)),
        "script": "".join(map(_asset, script)),
        "data": _json(data),
        "plain": html.escape(plain),
    }
    # One pass: a value that looks like a field is left as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], template)


_GENERATOR = b'<meta name="generator" content="jaxinterp">'


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a page that was written here."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return _GENERATOR in file.read(1000)


def write_page(page: str, path: str | os.PathLike[str]) -> Path:
    """Write it, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def _section(name: str, result: xr.DataArray) -> dict[str, Any]:
    """What the page knows of one result. Cells are flat, in the order of the axes."""
    found = study(result)
    up, across, rest = arrange([axis.name for axis in found.axes])
    held = _as_stored(result, found)
    whole_result = held.size <= MOST_VALUES
    baselines = {
        key: {"values": _exact(_stored_baseline(result, key)), **summary}
        for key, summary in _baselines(found).items()
    }
    return {
        "name": name,
        "metric": found.metric,
        "facts": found.facts(),
        "axes": [_axis(axis) for axis in found.axes],
        "up": up,
        "across": across,
        "rest": rest,
        "noising": found.noising,
        "defined": found.defined,
        "gap": found.gap,
        "notes": found.notes,
        **baselines,
        "prompts": _prompts(result),
        "values": _exact(held) if whole_result else None,
        "metric_stats": _stats(found.mean, found.mean_interval, found.mean_std),
        "share_stats": _stats(found.share, found.share_interval, found.share_std),
        "top": [row["cell"] for row in summary_of(found, TOP)["cells"]],
        "record": record_rows(result.attrs),
    }


def _as_stored(result: xr.DataArray, found: Study) -> np.ndarray:
    """The values [C P] in the result's own precision, so that they print short and exact."""
    array = result.transpose(*(axis.name for axis in found.axes), "prompt")
    return np.asarray(array.values).reshape(found.values.shape)


def _stored_baseline(result: xr.DataArray, key: str) -> np.ndarray:
    """[P]; of a result with one baseline, that one."""
    return np.asarray(result.coords[key if key in result.coords else "clean"].values)


def _axis(axis: Axis) -> dict[str, Any]:
    tokens = None if axis.tokens is None else [visible(token, 16) for token in axis.tokens]
    return {
        "name": axis.name,
        "labels": [visible(str(label), 16) for label in axis.labels],
        "tokens": tokens,
        "exact": axis.tokens,
    }


def _baselines(found: Study) -> dict[str, dict[str, float]]:
    summary = summary_of(found, 0)
    return {key: summary[key] for key in ("clean", "corrupted")}


def _prompts(result: xr.DataArray) -> list[dict[str, str]]:
    """The label of every prompt, and its two texts where they are known."""
    count = result.sizes["prompt"]
    known = result.coords["prompt"].values if "prompt" in result.coords else range(count)
    texts = {
        key: [str(text) for text in result.coords[f"{key}_text"].values]
        for key in ("clean", "corrupted")
        if f"{key}_text" in result.coords
    }
    return [
        {"label": str(label), **{key: values[i] for key, values in texts.items()}}
        for i, label in enumerate(known)
    ]


def _stats(mean: np.ndarray, bounds: np.ndarray, std: np.ndarray) -> dict[str, list[Any]]:
    """Six digits are more than a screen can show."""
    arrays = {"mean": mean, "low": bounds[0], "high": bounds[1], "std": std}
    return {key: [float(f"{v:.6g}") for v in array] for key, array in arrays.items()}


def _exact(values: np.ndarray) -> list[float]:
    """Floats whose shortest text reads back as the same number in the array's dtype."""
    values = values.ravel()
    if values.dtype != np.float64:
        # numpy prints the shortest digits of each dtype; a plain cast would print them all
        return values.astype(np.float32).astype(str).astype(np.float64).tolist()
    return values.tolist()


def record_rows(fields: Mapping[str, Any]) -> list[list[str]]:
    """Names and values as text; nested values as indented JSON."""
    return [[str(name), _readable(value)] for name, value in fields.items()]


def _readable(value: Any) -> str:
    if isinstance(value, str):
        try:
            nested = parse_json(value, "A field of a result")
        except ValueError:
            return value
        return json.dumps(nested, indent=1) if isinstance(nested, (dict, list)) else value
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, indent=1, default=str)
    return str(value)


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in; not-a-number becomes null."""
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data


def _asset(name: str) -> str:
    return resources.files("jaxinterp.report").joinpath(name).read_text(encoding="utf-8")
