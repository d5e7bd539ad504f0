"""What all forms of files share: dictionaries from arrays and back, and the same ones elsewhere.

Libraries differ in whether b_dec is taken off what is read; b_enc can make up for either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.reading import LoadError, damage_refused, read_json_object, regular_file
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
    """A dictionary of one layer, of arrays under our names; the widths are theirs.

    Raises `LoadError` for arrays and fields that do not make a dictionary.
    """
    with np.errstate(over="ignore"):  # what is too large is not finite, and refused below
        given = {n: np.asarray(a, np.float32) for n, a in arrays.items()}
    for name in ("W_enc", "W_dec"):
        if name not in given or given[name].ndim != 2:
            raise LoadError(f"{where} has no matrix {name}.")
    d_in, n_features = given["W_enc"].shape
    try:
        config = DictionaryConfig(d_in, n_features, d_out=given["W_dec"].shape[1], **fields)
    except ValueError as error:
        raise LoadError(f"{where} holds no dictionary: {error}") from error
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
    """A safetensors file. Raises `LoadError` where it is damaged, or holds other than numbers."""
    from safetensors.numpy import load_file

    with damage_refused(path, "a file of tensors"):
        found = load_file(regular_file(path))
    return numbers(found, path)


def numbers(found: Mapping[str, Any], path: Path) -> Arrays:
    """Arrays that are all of real numbers; `LoadError` names one that is not."""
    for name, array in found.items():
        if np.asarray(array).dtype.kind not in "fiu" and "float" not in str(array.dtype):
            raise LoadError(f"{path}: {name} is of {array.dtype}, expected real numbers.")
    return dict(found)


def taken(found: Mapping[str, Any], names: Mapping[str, str], path: Path) -> Arrays:
    """The arrays of a file under our names: ``names`` has theirs, by ours; all must be there.

    Raises `LoadError` for one that is missing, and for one that nobody asked for.
    """
    for name in names.values():
        if name not in found:
            raise LoadError(f"{path} has no {name}.")
    more = sorted(set(found) - set(names.values()))
    if more:
        raise LoadError(f"{path} has {more[0]}, which is not known here: is the config another's?")
    return {ours: np.asarray(found[theirs]) for ours, theirs in names.items()}


def turned(arrays: Mapping[str, np.ndarray], path: Path, *names: str) -> Arrays:
    """The arrays, some of them transposed. Raises `LoadError` for one that is no matrix."""
    for name in names:
        if arrays[name].ndim != 2:
            raise LoadError(f"{path}: {name} is {list(arrays[name].shape)}, expected a matrix.")
    return {n: a.T if n in names else a for n, a in arrays.items()}


def unit_rows(arrays: Arrays, path: Path) -> Arrays:
    """W_enc, b_enc and W_dec of the same function with decoder rows of norm 1, or 0.

    A feature becomes what it writes: pre-activations are multiplied by the rows' norms.

    Raises `LoadError` for shapes that do not fit.
    """
    W_enc, b_enc, W_dec = (np.asarray(arrays[n], np.float64) for n in ("W_enc", "b_enc", "W_dec"))
    if not W_enc.shape[-1:] == b_enc.shape == W_dec.shape[:1]:
        shapes = [list(a.shape) for a in (W_enc, b_enc, W_dec)]
        raise LoadError(f"{path}: W_enc, b_enc and W_dec are {shapes}, of different widths.")
    norms = np.linalg.norm(W_dec, axis=-1)
    norms[np.abs(norms - 1) < 1e-6] = 1  # rounded only: what is folded already stays as it is
    rows = W_dec / np.where(norms > 0, norms, 1)[:, None]
    return {**arrays, "W_enc": W_enc * norms, "b_enc": b_enc * norms, "W_dec": rows}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object that must be there: without it numbers may mean anything.

    Raises `LoadError` where there is none, and as `jaxinterp.reading.read_json_object` does.
    """
    if not path.exists():
        raise LoadError(f"There is no {path}: it says what the numbers beside it mean.")
    return read_json_object(path)


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
