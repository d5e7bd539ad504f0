"""Printing that cannot end a run: no terminal, pipe or alphabet is worth more than the results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class Steady:
    """A text stream that goes on whatever becomes of the one below; ``lost`` says what did.

    Characters that the one below cannot write are written as escapes.
    """

    def __init__(self, below: Any):
        self.below = below  # None: it was closed before the program began
        self.lost: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)

    def write(self, text: str) -> int:
        """Write it if that can be."""
        if self.below is None or self.lost is not None:
            return len(text)
        try:
            try:
                self.below.write(text)
            except UnicodeEncodeError:
                self.below.write(_known(text, self.below.encoding or "ascii"))
        except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            self.lost = error
        return len(text)

    def flush(self) -> None:
        """Send what was written on its way, if that can be."""
        if self.below is None or self.lost is not None:
            return
        try:
            self.below.flush()
        except (OSError, ValueError) as error:
            self.lost = error

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self.below is not None and not self.below.closed and bool(self.below.isatty())


def _known(text: str, encoding: str) -> str:
    """The text with escapes in place of the characters that an encoding lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def steady() -> Iterator[Steady]:
    """``sys.stdout`` (which is given) and ``sys.stderr`` are `Steady` for the block."""
    before = sys.stdout, sys.stderr
    out, errors = map(Steady, before)
    sys.stdout, sys.stderr = out, errors  # type: ignore[assignment]
    try:
        yield out
    finally:
        out.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
