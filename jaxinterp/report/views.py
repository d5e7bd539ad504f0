"""Tokens and attention to point at: small offline pages that notebooks show in place.

A view is a whole HTML document that may load nothing. Every text reaches it as text.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.report.html import render, write_page

if TYPE_CHECKING:
    import xarray as xr

MOST = 8_000_000  # weights in one page of attention


@dataclasses.dataclass(frozen=True)
class View:
    """A page; notebooks show it in a frame of ``height`` pixels."""

    page: str
    height: int = 600

    def __post_init__(self) -> None:
        whole_number("height", self.height, 1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one HTML file that needs no network; whole or not at all."""
        return write_page(self.page, path)

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


def token_view(
    tokens: Sequence[Sequence[str]] | Sequence[str],
    values: Mapping[str, Any],
    *,
    labels: Sequence[str] | None = None,
    title: str = "Tokens",
    facts: str = "",
) -> View:
    """Text coloured token by token, the numbers on hover: red above 0, blue below.

    tokens: of one prompt or several. values: by name, one number for each token, in the tokens'
    own form; NaN leaves a token blank. With several names the page lets choose. labels: of the
    prompts. A colour means the same in all prompts of the page.

    Raises ``ValueError`` for values that do not match the tokens.
    """
    one = bool(tokens) and isinstance(tokens[0], str)
    prompts: Any = [tokens] if one else tokens
    if not len(prompts) or not values:
        raise ValueError("There is nothing to show: give tokens and at least one set of values.")
    given = {name: ([v] if one else v) for name, v in values.items()}
    labels = [str(i) for i in range(len(prompts))] if labels is None else list(labels)
    rows = []
    for name, each in given.items():
        if len(each) != len(prompts) or any(
            np.shape(v) != (len(t),) for v, t in zip(each, prompts, strict=True)
        ):
            raise ValueError(
                f"{name!r} has values of lengths {[len(np.atleast_1d(v)) for v in each]} for "
                f"prompts of {[len(t) for t in prompts]} tokens."
            )
    for p, prompt in enumerate(prompts):
        numbers = [_short(each[p]) for each in given.values()]
        rows.append({"label": str(labels[p]), "tokens": list(map(str, prompt)), "values": numbers})
    data = {"kind": "tokens", "names": list(given), "prompts": rows, "facts": facts}
    longest = sum(len("".join(prompt)) // 90 + 2 for prompt in prompts)
    return View(_page(title, data), min(800, 140 + 30 * longest))


def attention_view(
    pattern: xr.DataArray, *, title: str = "Attention", facts: str | None = None
) -> View:
    """Every head's attention on one prompt: choose a head, point at a token or at the pattern.

    pattern: (layer, head, query, source) with a coordinate ``token``, as
    `jaxinterp.heads.attention` returns it. A head that looks somewhere need not matter there:
    ``by_value`` shows shares of what is moved, and a patch is the test.

    Raises ``ValueError`` for other dims and for more weights than a page can hold.
    """
    dims = ("layer", "head", "query", "source")
    if set(pattern.dims) != set(dims) or "token" not in pattern.coords:
        raise ValueError(
            f"The pattern has dims {list(pattern.dims)}, expected {', '.join(dims)} and a "
            "coordinate token: take it from jaxinterp.heads.attention."
        )
    if pattern.size > MOST:
        raise ValueError(
            f"{pattern.size} weights are too many for a page (at most {MOST}): choose layers, "
            "pattern.sel(layer=[...])."
        )
    values = np.asarray(pattern.transpose(*dims).values, float)
    if facts is None:
        moved = pattern.attrs.get("by_value") in (True, 1, "true", "True")
        facts = f"{pattern.attrs.get('model', '')} · " + (
            "attention times the norm of what is moved, as shares" if moved else "attention"
        )
    data = {
        "kind": "attention", "facts": facts, "tokens": list(map(str, pattern.token.values)),
        "layers": pattern.layer.values.tolist(), "heads": pattern["head"].values.tolist(),
        "weights": [[_short(head.ravel(), 3) for head in layer] for layer in values],
    }  # fmt: skip
    return View(_page(title, data), 720)


def _short(values: Any, digits: int = 5) -> list[float]:
    return np.round(np.asarray(values, float), digits).tolist()


def _page(title: str, data: Mapping[str, Any]) -> str:
    return render(
        "views.html", title=title, data=data, style=("page.css", "views.css"),
        script=("draw.js", "views.js"),
    )  # fmt: skip
