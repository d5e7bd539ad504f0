"""The figure of every picture: shown by notebooks as it is, with no `pyplot` and no state."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib figure on white that a notebook displays."""

    def __init__(self, size: tuple[float, float], layout: Any = "constrained"):
        super().__init__(figsize=size, layout=layout, facecolor="white")

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100)
        return stream.getvalue()
