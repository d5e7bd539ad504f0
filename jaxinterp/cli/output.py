"""Where a command writes: a folder for one run at a time, with a marker of what made it.

The marker lists the files, the command and its settings. Results without a marker are refused
before anything is computed; with the same settings the command goes on, or does the same again;
with others it takes --overwrite, which deletes what the marker lists and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxinterp.files import content, discard, locked, mark, marked, tidy
from jaxinterp.version import __version__

# What commands write: a folder that holds any of it and no marker is somebody else's.
WRITTEN = (
    "*.nc", "*.png", "report.html", "attention.html", "circuit.json", "faithfulness.json",
    "evaluation.json", "log.jsonl", "activations", "checkpoint", "dictionaries", ".parts",
)  # fmt: skip
FREE = ("out", "overwrite", "tensorboard")  # settings that leave the results what they are


class Output:
    """The folder of a run; ``out / name`` is the place of a file, which the marker then lists."""

    def __init__(self, folder: Path, run: dict[str, Any], overwrite: bool):
        self.folder, self.run, self.overwrite = folder, run, overwrite
        self.facts: dict[str, Any] = {}
        self.files: list[str] = []
        self.folders: list[str] = []
        self.before = marked(folder) or {}
        strange = [path.name for path in folder.iterdir() if any(map(path.match, WRITTEN))]
        if strange and not self.before:
            raise FileExistsError(
                f"{folder} holds {min(strange)!r}, and nothing shows that jaxinterp wrote it: give "
                "another --out, or move it away."
            )
        self._compare("run", run)
        self.facts = dict(self.before.get("facts", {}))
        self.files = list(self.before.get("files", []))
        self.folders = list(self.before.get("folders", []))

    def __truediv__(self, name: str) -> Path:
        path = self.folder / name
        if name not in self.files:
            if path.exists():
                raise FileExistsError(
                    f"{path} is there, and nothing shows that jaxinterp wrote it: move it away, "
                    "then give the same command again."
                )
            self.files.append(name)
            self._mark()
        return path

    def __str__(self) -> str:
        return str(self.folder)

    def inner(self, name: str) -> Path:
        """The place of a folder that has a marker of its own, or whose folders have."""
        if name not in self.folders:
            self.folders.append(name)
            self._mark()
        return self.folder / name

    def also(self, **facts: Any) -> None:
        """Compare what decides the results beside the settings, such as the model's weights."""
        self._compare("facts", {**self.before.get("facts", {}), **facts})
        self.facts |= facts
        self._mark()

    def _compare(self, name: str, now: dict[str, Any]) -> None:
        """Refuse, or with --overwrite delete, results that were made of something else."""
        differ = _difference(self.before.get(name, {}), now)
        if differ is None:
            return
        if self.holds() and not self.overwrite:
            key, before, said = differ
            raise FileExistsError(
                f"{self.folder} holds the results of another run, of {key} {before!r:.99}, here it "
                f"is {said!r:.99}: give another --out, or --overwrite."
            )
        for inner in self.before.get("folders", []):
            discard(self.folder / inner)
        discard(self.folder, deep=False)
        self.before, self.facts, self.files, self.folders = {}, {}, [], []

    def holds(self) -> bool:
        """Whether anything that is listed is there."""
        listed = {*self.files, *self.before.get("files", [])}
        folders = {*self.folders, *self.before.get("folders", [])}
        there = any((self.folder / name).exists() for name in listed)
        return there or any(content(self.folder / name) for name in folders)

    def _mark(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mark(
            self.folder, self.files, folders=self.folders, run=self.run, facts=self.facts,
            version=__version__,
        )  # fmt: skip

    def tidy(self) -> None:
        """Leave nothing where nothing was made."""
        for name in self.folders:
            if not content(self.folder / name):
                discard(self.folder / name)
        if not self.holds():
            discard(self.folder, deep=False)


@contextlib.contextmanager
def output(
    folder: Path, command: str, given: Mapping[str, Any], overwrite: bool
) -> Iterator[Output]:
    """The folder of a command, from its start to its end.

    given: what decides the results, by name (a command's arguments).

    Raises ``FileExistsError`` where the folder holds something else, or results of other settings
    unless ``overwrite``; ``BlockingIOError`` while another run writes there.
    """
    with locked(folder) as place:
        tidy(place)
        out = Output(place, {"command": command, **_plain(given)}, overwrite)
        out.also()
        try:
            yield out
        finally:
            out.tidy()


def _plain(value: Any) -> Any:
    """Settings for JSON: files by their hash, so that a changed one is another setting."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if name not in FREE}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return f"{value} {_digest(value)}".strip()
    return value


def _digest(path: Path) -> str:
    """Of a file, or of all files of a folder; "" where there is none."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for each in paths:
        with each.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{each.relative_to(path)} {digest}\n".encode())
    return whole.hexdigest()[:16] if paths else ""


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its name, what it was and what it is; None without any.

    Where nothing is known from before, nothing differs. A setting that one side lacks is None.
    """
    old, new = _flat(before), _flat(now)
    if not before:
        return None
    found = ((key, old.get(key), new.get(key)) for key in new | old)
    return next((each for each in found if each[1] != each[2]), None)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A tree of mappings as one, names joined by dots; an empty mapping is a value."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= _flat(each, f"{name}.{key}" if name else key)
    return found


def begin(folder: Path, script: str, given: Mapping[str, Any]) -> None:
    """The folder of a script, which writes names of its own: made, and for one setting only.

    Ends the program in a sentence where it holds what the script made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    run = json.loads(json.dumps({"command": script, **_plain(given)}, default=str))
    differ = _difference((marked(folder) or {}).get("run", {}), run)
    if differ is not None:
        key, before, now = differ
        raise SystemExit(
            f"{folder} holds what was made with {key} {before!r}, here it is {now!r}: give another "
            "--out, or move it away."
        )
    mark(folder, [], run=run)
