"""The one error of this room."""

from __future__ import annotations


class LoadError(ValueError):
    """A model that cannot be loaded: names the value, what was expected and what to do."""
