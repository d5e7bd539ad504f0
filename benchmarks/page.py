"""What every result's page says: date, machine, versions, a table."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from roofline import rate

import jaxinterp as ji

RESULTS = Path(__file__).parent / "results"


def stamp(versions: dict[str, str] | None = None) -> str:
    """When and on what something was measured."""
    versions = {
        "jaxinterp": ji.__version__, "jax": jax.__version__, "numpy": np.__version__,
        **(versions or {}),
    }  # fmt: skip
    return (
        f"{datetime.date.today()}; {os.cpu_count()} cores ({platform.machine()}), "
        f"{jax.default_backend()}; float32 matrix products at {rate() / 1e9:.0f} GFLOP/s; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, name: str, title: str, *paragraphs: str) -> None:
    """A page of markdown in a folder of results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n\n".join([f"# {title}", *paragraphs]) + "\n")
