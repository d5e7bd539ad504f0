"""Gemma Scope, of both generations: JumpReLU dictionaries that do not subtract b_dec.

Facts: the files of google/gemma-scope-* and google/gemma-scope-2-*, as sae_lens 6.54 and
circuit-tracer 0.5 read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.reading import LoadError, read_npz
from jaxinterp.sae.arrays import (
    as_jump,
    build,
    host,
    numbers,
    read_config,
    read_tensors,
    refuse,
    taken,
    without_subtraction,
    write_json,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.forms.keys import Keys, Refused, flag, sizes, text
from jaxinterp.sae.forms.places import hf_hook, hf_site

FIRST = {n: n for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
SECOND = FIRST | {"W_enc": "w_enc", "W_dec": "w_dec"}
SKIP = {"W_skip": "affine_skip_connection"}
ONE_LAYER = "only dictionaries of one layer are read from this form"
KEYS = Keys(
    used=frozenset({
        "hf_hook_point_in", "hf_hook_point_out", "width", "model_name", "affine_connection", "type",
    }),
    harmless={"how many features are active, as measured": ("l0",)},
    refused={
        "architecture": Refused(
            ("jump_relu",), "the files of this form are JumpReLU dictionaries, 'jump_relu'"
        ),
    },
    others="told",
)  # fmt: skip


def read_gemma_scope(folder: Path) -> Dictionary:
    """params.npz: a JumpReLU that does not subtract b_dec."""
    path = folder / "params.npz"
    return build(taken(numbers(read_npz(path), path), FIRST, path), path, activation="jumprelu")


def write_gemma_scope(folder: Path, d: Dictionary) -> None:
    """params.npz, with b_enc making up for a subtraction."""
    refuse("gemma-scope", d, ("sae",), ("jumprelu", "batch_topk"))
    arrays: dict[str, Any] = {**host(without_subtraction(as_jump(d)))}
    np.savez(folder / "params.npz", **arrays)


def read_gemma_scope_2(folder: Path) -> Dictionary:
    """config.json and params.safetensors; a transcoder where the two hook points differ.

    Raises `LoadError` for a config that says otherwise than the arrays.
    """
    path, weights = folder / "config.json", folder / "params.safetensors"
    cfg, arrays = read_config(path), read_tensors(weights)
    KEYS.check(cfg, path)
    skip = SKIP["W_skip"] in arrays
    if flag(cfg, "affine_connection", skip, path) != skip:
        raise LoadError(
            f"{path} has affine_connection={not skip}, and {weights} has "
            f"{'an' if skip else 'no'} affine_skip_connection."
        )
    read = text(cfg, "hf_hook_point_in", path)
    wrote = text(cfg, "hf_hook_point_out", path, read)
    sae = read == wrote and not skip
    kind = "sae" if sae else "transcoder"
    if text(cfg, "type", path, kind) != kind:
        raise LoadError(
            f"{path} has type={cfg['type']!r}, and hf_hook_point_in, hf_hook_point_out and the "
            f"arrays are those of one of the kind {kind!r}: {ONE_LAYER}."
        )
    d = build(
        taken(arrays, SECOND | (SKIP if skip else {}), weights), weights, activation="jumprelu",
        skip=skip, kind=kind, model=text(cfg, "model_name", path),
        target="" if sae else hf_site(wrote)["site"], **hf_site(read),
    )  # fmt: skip
    sizes(cfg, path, width=d.config.n_features)
    return d


def write_gemma_scope_2(folder: Path, d: Dictionary) -> None:
    """config.json and params.safetensors."""
    refuse("gemma-scope-2", d, ("sae", "transcoder"), ("jumprelu", "batch_topk"))
    if d.config.kind == "transcoder" and not d.config.target:
        raise ValueError("gemma-scope-2 tells a transcoder by its target: set the config's.")
    d = without_subtraction(as_jump(d))
    c, arrays = d.config, host(d)
    names = SECOND | (SKIP if c.skip else {})
    write_tensors(
        folder / "params.safetensors", {theirs: arrays[ours] for ours, theirs in names.items()}
    )
    write_json(folder / "config.json", {
        "hf_hook_point_in": hf_hook(c, c.site),
        "hf_hook_point_out": hf_hook(c, c.target or c.site),
        "width": c.n_features, "model_name": c.model, "architecture": "jump_relu",
        "affine_connection": c.skip, "type": c.kind,
    })  # fmt: skip
