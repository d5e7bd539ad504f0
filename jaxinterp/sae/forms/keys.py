"""What each key of another library's config means here: used, without effect, or refused.

A form has one `Keys` for each object in its config. A key that is in none of its lists is refused
by name; it is told in a warning where a form is known to hold whatever its trainer noted, and
passed over where that library's own reader looks at no key but the listed ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxinterp.checks import whole_number
from jaxinterp.reading import LoadError


class Refused(NamedTuple):
    """A key that is read only with one of ``values``; reasons: by another value, or for all."""

    values: tuple[Any, ...]
    reason: str
    reasons: Mapping[str, str] = {}


class Keys(NamedTuple):
    """The keys of a form's config.

    used: those that a reader looks at. harmless: why they do not change features, then the keys.
    refused: those that may have some values only. others: what is done with keys of no list.
    """

    used: frozenset[str]
    harmless: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, Refused] = {}
    others: Literal["refused", "told", "passed over"] = "refused"

    @property
    def without_effect(self) -> frozenset[str]:
        """All that is harmless."""
        return frozenset(name for names in self.harmless.values() for name in names)

    def check(self, cfg: Mapping[str, Any], path: Path) -> None:
        """Raises `LoadError` for what is refused, and warns of what is only noted."""
        for name, refusal in self.refused.items():
            value = cfg.get(name, refusal.values[0])
            if not any(type(value) is type(known) and value == known for known in refusal.values):
                why = refusal.reasons.get(str(value), refusal.reason)
                raise LoadError(f"{path} has {name}={value!r}: {why}.")
        unknown = sorted(set(cfg) - self.used - self.without_effect - set(self.refused))
        if unknown and self.others == "told":
            warnings.warn(
                f"{path} has {', '.join(unknown)}, which are not known here: they were taken to "
                "have no effect on features.", stacklevel=6,
            )  # fmt: skip
        if unknown and self.others == "refused":
            raise LoadError(
                f"{path} has {unknown[0]}={cfg[unknown[0]]!r}, which is not known here and could "
                "change what is computed: if it does not, take it out of the file."
            )


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Within it a ``ValueError`` becomes the `LoadError` that names the file."""
    try:
        yield
    except LoadError:
        raise
    except ValueError as error:
        raise LoadError(f"{path}: {error}") from error


@contextmanager
def beside(sentence: str) -> Iterator[None]:
    """Within it a `LoadError` goes on with what else the file says, which may be the fault."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{error} {sentence}") from error


def flag(cfg: Mapping[str, Any], name: str, default: bool, path: Path) -> bool:
    """A key that is true or false. Raises `LoadError` for anything else."""
    value = cfg.get(name, default)
    if not isinstance(value, bool):
        raise LoadError(f"{path} has {name}={value!r}, expected true or false.")
    return value


def text(cfg: Mapping[str, Any], name: str, path: Path, default: str = "") -> str:
    """A key that is text, or null for ``default``. Raises `LoadError` for anything else."""
    value = cfg.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise LoadError(f"{path} has {name}={value!r}, expected text.")
    return value


def inner(cfg: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A key that is an object; {} where it is not there, or null. Raises `LoadError` otherwise."""
    value = cfg.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise LoadError(f"{path} has {name}={value!r}, expected an object.")
    return value


def chosen(cfg: Mapping[str, Any], name: str, most: int, path: Path) -> int:
    """How many features are kept: a whole number from 1 to ``most``, or `LoadError`."""
    with told_of(path):
        return int(whole_number(name, cfg.get(name), 1, most))


def sizes(cfg: Mapping[str, Any], path: Path, **actual: int) -> None:
    """Raises `LoadError` where a width in the config is not that of the weights."""
    for name, size in actual.items():
        value = cfg.get(name, size)
        if isinstance(value, bool) or value != size:
            raise LoadError(f"{path} has {name}={value!r}, and the weights beside it have {size}.")
