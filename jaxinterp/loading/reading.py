"""Small files read with errors that say which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp.checks import whole_number
from jaxinterp.reading import LoadError, damage_refused, read_json_object, regular_file

if TYPE_CHECKING:
    from jaxinterp.loading.families import Family
    from jaxinterp.model import Config
    from jaxinterp.tokens import Tokenizer

LAYERS = 10_000  # more than any model has; a config lists some of its choices by layer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is none."""
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}


def config_of(family: Family, json: dict[str, Any], label: str) -> Config:
    """The architecture that a config.json describes; ``label`` says in errors whose it is.

    Raises `LoadError` for numbers that no model has, and values of another kind than expected.
    """
    with damage_refused(
        f"The config of {label}", "that of a model", "Download it again, or mend the value."
    ):
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            whole_number(name, json.get(name), 1, LAYERS, optional=True)
        return family.config(json)


def own_config(fields: Any, source: Path) -> Config:
    """The architecture that a file of ours describes, by `Config.to_dict`.

    Raises `LoadError` for fields of which no model can be made.
    """
    from jaxinterp.model import Config, shapes

    with damage_refused(source, "a file with a model's config", "Save it again."):
        config = Config.from_dict(fields)
        shapes(config)  # words that no choice has
    return config


def read_tokenizer(folder: Path, name: str = "") -> Tokenizer | None:
    """The tokenizer of a folder, None where it holds none."""
    from jaxinterp.tokens import Tokenizer

    try:
        return Tokenizer.from_folder(folder, name=name)
    except FileNotFoundError:
        return None
    except Exception as error:  # the backend and damaged settings raise many kinds
        raise LoadError(f"The tokenizer in {folder} cannot be read: {error}") from error


def sha256(files: Iterable[Path]) -> str:
    """The SHA-256 of the files' bytes, one after another."""
    digest = hashlib.sha256()
    for file in files:
        with regular_file(file).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
