"""dictionary_learning: ae.pt and config.json, as its ``load_dictionary`` reads them.

Facts: dictionary-learning 0.1.0 (utils.py, dictionary.py, trainers/*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.loading.torch_file import read_torch, write_torch
from jaxinterp.model.sites import SITES
from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    Arrays,
    build,
    host,
    numbers,
    read_config,
    refuse,
    taken,
    turned,
    unit_rows,
    whole_k,
    with_subtraction,
    without_subtraction,
    write_json,
)
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.forms.keys import Keys, beside, chosen, inner, sizes, text

COLUMNS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}  # transposed there
OWN = {n: n for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
THRESHOLD = {"threshold": "threshold"}
CLASSES = {  # dict_class: activation, and its names for ours
    "AutoEncoder": ("relu", COLUMNS | {"b_dec": "bias", "b_enc": "encoder.bias"}),
    "GatedAutoEncoder": ("gated", COLUMNS | {
        "b_dec": "decoder_bias", "b_enc": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"
    }),
    "AutoEncoderNew": ("relu", COLUMNS | {"b_dec": "decoder.bias", "b_enc": "encoder.bias"}),
    "AutoEncoderTopK": ("topk", COLUMNS | {"b_dec": "b_dec", "b_enc": "encoder.bias"}),
    "BatchTopKSAE": (
        "batch_topk", COLUMNS | THRESHOLD | {"b_dec": "b_dec", "b_enc": "encoder.bias"}
    ),
    "MatryoshkaBatchTopKSAE": ("batch_topk", OWN | THRESHOLD),
    "JumpReluAutoEncoder": ("jumprelu", OWN | THRESHOLD),
}  # fmt: skip
UNSUBTRACTED = ("JumpReluAutoEncoder", "AutoEncoderNew")
KEYS = Keys(
    used=frozenset({"trainer"}),
    harmless={"the activations it was trained on": ("buffer",)},
    others="passed over",  # load_dictionary looks at trainer's dict_class and k alone
)
TRAINER = Keys(
    used=frozenset({
        "dict_class", "k", "activation_dim", "dict_size", "lm_name", "layer", "submodule_name",
    }),
    harmless={},
    others="passed over",
)  # fmt: skip


def read_dictionary_learning(folder: Path) -> Dictionary:
    """ae.pt and config.json.

    Raises `LoadError` for a class that is not known, and a file that is another class's.
    """
    path, weights = folder / "config.json", folder / "ae.pt"
    whole = read_config(path)
    KEYS.check(whole, path)
    cfg = inner(whole, "trainer", path)
    TRAINER.check(cfg, path)
    kind = text(cfg, "dict_class", path)
    if kind not in CLASSES:
        raise LoadError(
            f"{path} has trainer.dict_class={kind!r}, expected one of {', '.join(CLASSES)}."
        )
    try:
        found = numbers(read_torch(weights), weights)
    except FileNotFoundError as error:
        raise LoadError(str(error)) from error
    with beside(f"It has dict_class={kind!r}."):
        return _read(cfg, found, kind, path, weights)


def _read(
    cfg: Mapping[str, Any], found: Arrays, kind: str, path: Path, weights: Path
) -> Dictionary:
    """The dictionary of the trainer's config and the tensors beside it."""
    activation, names = CLASSES[kind]
    k, prefixes = _chosen(cfg, found, kind, path)
    arrays = taken(found, names, weights)
    if names["W_enc"] != "W_enc":
        arrays = turned(arrays, weights, "W_enc", "W_dec")
    if kind == "AutoEncoder":  # features in their units, as that library loads them
        arrays = unit_rows(arrays, weights)
    d = build(
        arrays, weights, k=k, activation=activation, prefixes=prefixes,
        subtract_bias=kind not in UNSUBTRACTED, model=text(cfg, "lm_name", path),
        **_submodule(cfg, path),
    )  # fmt: skip
    sizes(cfg, path, activation_dim=d.config.d_in, dict_size=d.config.n_features)
    return d


def _chosen(
    cfg: Mapping[str, Any], found: Arrays, kind: str, path: Path
) -> tuple[int | None, tuple[int, ...]]:
    """k and a Matryoshka's prefixes; they are taken out of the tensors found."""
    if "TopK" not in kind:
        return None, ()
    width = found.get("encoder.bias", found.get("b_enc", np.zeros(1))).size
    k = chosen(cfg, "k", width, path)
    stored = found.pop("k", np.asarray(k))
    if stored.size != 1 or stored.item() != k:
        raise LoadError(f"{path} has trainer.k={k}, and the k beside the weights is {stored}.")
    if kind == "AutoEncoderTopK":  # of a way to encode that its library does not take by itself
        found.pop("threshold", None)
    if not kind.startswith("Matryoshka"):
        return k, ()
    groups = found.pop("group_sizes", np.zeros(0, int))
    if groups.ndim != 1 or groups.dtype.kind not in "iu" or not (groups > 0).all():
        raise LoadError(f"{path.parent}: group_sizes is {groups}, expected positive numbers.")
    if groups.sum() != width:
        raise LoadError(f"{path.parent}: group_sizes is {groups}, which are not {width} together.")
    return k, tuple(np.cumsum(groups).tolist())


def _submodule(cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """resid_post_layer_8 and the like, as that library calls what it hooks."""
    name = text(cfg, "submodule_name", path)
    site, _, layer = name.rpartition("_layer_")
    if site in SITES and layer.isdecimal() and len(layer) < 10:
        if cfg.get("layer", int(layer)) != int(layer):
            raise LoadError(f"{path} has trainer.layer={cfg['layer']!r}, submodule_name={name!r}.")
        return {"site": site, "layers": (int(layer),)}
    return {"site": name} if name else {}


def write_dictionary_learning(folder: Path, d: Dictionary) -> None:
    """A folder for ``load_dictionary``."""
    refuse("dictionary-learning", d, ("sae",), ("relu", "gated", "topk", "batch_topk", "jumprelu"))
    c = d.config
    unit = np.allclose(np.linalg.norm(d.params.W_dec, axis=-1), 1, atol=1e-8)
    kind = {
        "relu": "AutoEncoder" if c.subtract_bias and unit else "AutoEncoderNew",
        "gated": "GatedAutoEncoder",
        "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder",
        "batch_topk": "MatryoshkaBatchTopKSAE" if c.prefixes else "BatchTopKSAE",
    }[c.activation]  # fmt: skip
    if kind in UNSUBTRACTED:
        d = without_subtraction(d)
    elif not c.subtract_bias:
        d = with_subtraction(d)
    names, arrays = CLASSES[kind][1], host(d)
    if names["W_enc"] != "W_enc":
        arrays = turned(arrays, folder, "W_enc", "W_dec")
    out: dict[str, Any] = {theirs: arrays[ours] for ours, theirs in names.items()}
    trainer: dict[str, Any] = {
        "dict_class": kind, "activation_dim": c.d_in, "dict_size": c.n_features,
        "lm_name": c.model,
    }  # fmt: skip
    if c.layers:
        trainer |= {"layer": c.layers[0], "submodule_name": f"{c.site}_layer_{c.layers[0]}"}
    if "topk" in c.activation:
        out["k"] = np.int32(whole_k(d))
        trainer["k"] = whole_k(d)
        out.setdefault("threshold", np.float32(-1))
    if kind == "MatryoshkaBatchTopKSAE":
        out["group_sizes"] = np.diff((0, *c.prefixes)).astype(np.int64)
    write_torch(folder / "ae.pt", {n: np.array(a, order="C") for n, a in out.items()})
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {}})
