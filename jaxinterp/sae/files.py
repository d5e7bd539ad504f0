"""Dictionaries on disk: our own folder, and those of other libraries (`forms`)."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from jaxinterp.checks import real_number
from jaxinterp.files import whole_folder
from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    assembled,
    host,
    read_config,
    read_tensors,
    write_json,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig
from jaxinterp.sae.forms import FORMS

ARRAYS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"
PLACES = ("kind", "model", "site", "layers", "target")


def save(
    path: str | os.PathLike[str], d: Dictionary, *, form: str = "jaxinterp", overwrite: bool = False
) -> Path:
    """Write a dictionary as a folder; it appears whole or not at all.

    form: ``"jaxinterp"`` holds every dictionary; else ``"saelens"``, ``"gemma-scope"``,
    ``"gemma-scope-2"``, ``"dictionary-learning"``, ``"sparsify"`` or ``"circuit-tracer"``. Where a
    library always subtracts b_dec from what is read, or never, b_enc makes up for it; a BatchTopK
    is written as the JumpReLU that it is after training where there is no other place for it.

    Raises ``FileExistsError`` if there is something at ``path``, unless ``overwrite``;
    ``ValueError`` for a form that is not known or has no place for this dictionary.
    """
    path = Path(path).absolute()
    if form != "jaxinterp" and form not in FORMS:
        raise ValueError(f"form={form!r}, expected one of jaxinterp, {', '.join(FORMS)}.")
    with whole_folder(path, overwrite=overwrite) as folder:
        if form == "jaxinterp":
            k = None if d.k is None else float(d.k)
            write_tensors(folder / ARRAYS, host(d))
            write_json(folder / DESCRIPTION, {"config": dataclasses.asdict(d.config), "k": k})
        else:
            FORMS[form].write(folder, d)
    return path


def load(
    path: str | os.PathLike[str], *, form: str | None = None, **about: Any
) -> Dictionary:  # fmt: skip
    """Read a dictionary from a folder; which form it has is seen from its files.

    Features come out as the library that wrote it defines them. about: what files of some forms do
    not tell (``kind``, ``model``, ``site``, ``layers``, ``target``), for the config. Of a set that
    circuit-tracer keeps in one folder, give each file.

    Raises ``FileNotFoundError``, ``ValueError`` for other fields, and `LoadError` for a folder of
    no known form, one that is damaged, and one whose config asks for what dictionaries here do not
    do, or has a key that is not known and could change what is computed: the key is named.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is no folder {path}.")
    for name in about:
        if name not in PLACES:
            raise ValueError(f"{name}={about[name]!r}: expected some of {', '.join(PLACES)}.")
    if form is None:
        form = _recognised(path)
    if form == "jaxinterp":
        found = _load_own(path)
    elif form in FORMS:
        found = FORMS[form].read(path)
    else:
        raise ValueError(f"form={form!r}, expected one of jaxinterp, {', '.join(FORMS)}.")
    return found.replace(config=dataclasses.replace(found.config, **about))


def _recognised(path: Path) -> str:
    files = {"jaxinterp": ARRAYS, **{name: form.file for name, form in FORMS.items()}}
    if path.is_file():  # of a set
        files = {n: file for n, file in files.items() if "*" in file and path.match(file)}
        if not files:
            raise LoadError(f"{path} is a file: give the folder that holds it and its config.")
        return next(iter(files))
    found = [name for name, file in files.items() if any(path.glob(file))]
    if len(found) != 1:
        raise LoadError(
            f"{path} has the files of {' and '.join(found) or 'no'} form, expected one of "
            f"{', '.join(files.values())}."
        )
    return found[0]


def _load_own(path: Path) -> Dictionary:
    described, arrays = read_config(path / DESCRIPTION), read_tensors(path / ARRAYS)
    try:
        if more := sorted(set(described) - {"config", "k"}):
            raise ValueError(f"{more[0]} is not known, expected config and k.")
        fields: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in described["config"].items()
        }
        config = DictionaryConfig(**fields)
        topk = "topk" in config.activation
        most = math.prod(config.shapes["b_enc"])
        k = real_number("k", described.get("k"), above=0, most=most, optional=not topk)
        if k is not None and not topk:
            raise ValueError(f"k={k}, and the activation is {config.activation}.")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LoadError(f"The config in {path / DESCRIPTION} is not valid: {error}") from error
    return assembled(arrays, config, path, k)
