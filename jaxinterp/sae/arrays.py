"""What all forms of files share: dictionaries from arrays and back, and the same ones elsewhere.

Libraries differ in whether b_dec is taken off what is read; b_enc can make up for either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.loading.reading import read_json
from jaxinterp.reading import LoadError
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig, Parameters

Arrays = dict[str, np.ndarray]


def whole_k(d: Dictionary) -> int:
    """k as other libraries' files hold it. Raises ``ValueError`` where it is not whole."""
    k = float(d.k)
    if k % 1:
        raise ValueError(f"k={k}: other libraries' files hold whole numbers only.")
    return int(k)


def build(
    arrays: Mapping[str, Any], where: Path, *, k: Any = None, **fields: Any
) -> Dictionary:  # fmt: skip
    """A dictionary of one layer, of arrays under our names; the widths are theirs."""
    given = {n: np.asarray(a, np.float32) for n, a in arrays.items() if a is not None}
    for name in ("W_enc", "W_dec"):
        if name not in given or given[name].ndim != 2:
            raise LoadError(f"{where} has no matrix {name}.")
    d_in, n_features = given["W_enc"].shape
    config = DictionaryConfig(d_in, n_features, d_out=given["W_dec"].shape[1], **fields)
    if config.activation == "jumprelu":
        threshold = given.get("threshold", np.zeros(0, np.float32))
        if threshold.size == 1:
            given["threshold"] = np.full(n_features, threshold.item(), np.float32)
    return assembled(given, config, where, k)


def assembled(
    arrays: Mapping[str, np.ndarray], config: DictionaryConfig, where: Path, k: Any = None
) -> Dictionary:
    """The dictionary of arrays under our names.

    Raises `LoadError` for arrays that are missing, of other shapes, or not finite.
    """
    more = sorted(set(arrays) - set(config.shapes))
    if more:
        raise LoadError(
            f"{where} has {more[0]}, which a {config.kind} with {config.activation} has not: is "
            "the config another's?"
        )
    for name, shape in config.shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = list(arrays[name].shape) if name in arrays else "nothing"
            raise LoadError(f"{where}: {name} is {found}, expected {list(shape)}.")
        if not np.isfinite(arrays[name]).all():
            raise LoadError(f"{where}: {name} has values that are not finite.")
    return Dictionary(Parameters(**{n: arrays[n] for n in config.shapes}), config, k)


def host(d: Dictionary) -> Arrays:
    """The arrays there are, float32."""
    return {
        name: np.asarray(value, np.float32)
        for name, value in vars(d.params).items() if value is not None
    }  # fmt: skip


def refuse(form: str, d: Dictionary, kinds: tuple[str, ...], activations: tuple[str, ...]) -> None:
    """Raises ``ValueError`` where a form has no place for a dictionary."""
    c = d.config
    if c.kind not in kinds or c.activation not in activations:
        raise ValueError(
            f"The form {form!r} holds {' or '.join(kinds)} dictionaries with "
            f"{', '.join(activations)}; this is a {c.kind} with {c.activation}."
        )


def as_jump(d: Dictionary) -> Dictionary:
    """A BatchTopK's, with its threshold, as the JumpReLU that it is once trained."""
    c, p = d.config, d.params
    if c.activation != "batch_topk":
        return d
    threshold = np.full(c.n_features, np.asarray(p.threshold), np.float32)
    fields = {**vars(c), "activation": "jumprelu", "prefixes": ()}
    return Dictionary(p.replace(threshold=threshold), DictionaryConfig(**fields))


def read_tensors(path: Path) -> Arrays:
    """A safetensors file. Raises `LoadError` where it is damaged."""
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise LoadError(f"{path} cannot be read ({error}): fetch it again.") from error


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file that must be there: without it numbers may mean anything."""
    if not path.is_file():
        raise LoadError(f"There is no {path}: it says what the numbers beside it mean.")
    return read_json(path)


def write_tensors(path: Path, arrays: Arrays) -> None:
    """A safetensors file of arrays, whatever their strides."""
    from safetensors.numpy import save_file

    save_file({n: np.array(a, order="C") for n, a in arrays.items()}, path)


def write_json(path: Path, value: Any) -> None:
    """A readable JSON file."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def without_subtraction(d: Dictionary) -> Dictionary:
    """The same function for a library that never subtracts b_dec: b_enc takes it in."""
    c, p = d.config, d.params
    if not c.subtract_bias:
        return d
    moved = np.asarray(p.b_dec, np.float64) @ np.asarray(p.W_enc, np.float64)
    more = {}
    if c.activation == "gated":
        more = {"b_mag": np.asarray(p.b_mag - moved * np.exp(p.r_mag), np.float32)}
    params = p.replace(b_enc=np.asarray(p.b_enc - moved, np.float32), **more)
    return Dictionary(params, DictionaryConfig(**{**vars(c), "subtract_bias": False}), d.k)


def with_subtraction(d: Dictionary) -> Dictionary:
    """The same function for a library that always subtracts b_dec: b_enc gives it back."""
    c, p = d.config, d.params
    negated = Dictionary(
        p.replace(b_dec=-np.asarray(p.b_dec)),
        DictionaryConfig(**{**vars(c), "subtract_bias": True}), d.k,
    )  # fmt: skip
    moved = without_subtraction(negated).params.replace(b_dec=p.b_dec)
    return Dictionary(moved, negated.config, d.k)
