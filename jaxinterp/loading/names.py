"""Which tensor of a checkpoint is which: prefixes of wrappers, other spellings, doubles."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jaxinterp.loading.families import Family
from jaxinterp.reading import LoadError

# What data parallelism and torch.compile put before a module's own name.
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
# Modules that hold a whole model; inside, its tensors have their usual names.
_HOLDERS = ("", "model.", "transformer.")


class Names:
    """The tensors of one checkpoint by the names of its family's table.

    Raises `LoadError` for two tensors that are one without their wrappers' prefixes.
    """

    def __init__(self, family: Family, given: Iterable[str], label: str):
        self.family, self.label = family, label
        self._given: dict[str, str] = {}
        for name in given:
            plain = _WRAPPED.sub("", name)
            if plain in self._given:
                raise self._double(self._given[plain], name)
            self._given[plain] = name
        self.used: set[str] = set()

    def find(self, name: str) -> str | None:
        """The checkpoint's own name of a tensor, None where it holds none.

        Raises `LoadError` where it holds two under different names.
        """
        spelled = (holder + s for s in self.family.spellings(name) for holder in _HOLDERS)
        found = [self._given[s] for s in dict.fromkeys(spelled) if s in self._given]
        if len(found) > 1:
            raise self._double(*found[:2])
        return found[0] if found else None

    def use(self, name: str) -> str | None:
        """The same, and the tensor counts as used."""
        found = self.find(name)
        if found is not None:
            self.used.add(found)
        return found

    def left(self) -> list[str]:
        """The tensors that were not used and that no rule of the family passes over."""
        return sorted(
            given
            for plain, given in self._given.items()
            if given not in self.used
            and not any(
                self.family.ignores(plain.removeprefix(holder))
                for holder in _HOLDERS
                if plain.startswith(holder)
            )
        )

    def _double(self, first: str, second: str) -> LoadError:
        return LoadError(
            f"{self.label} holds {first!r} and {second!r}, which are two tensors for one "
            "parameter: remove the wrong one."
        )
