"""circuit-tracer: layer_N.safetensors, a transcoder of one layer; a set has one for each layer.

Facts: circuit-tracer 0.5.0 (transcoder/single_layer_transcoder.py). There is no config beside a
file: its arrays tell what it is. A set's config.yaml, which names its places, is not read.
"""

from __future__ import annotations

from pathlib import Path

from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    as_jump,
    build,
    host,
    read_tensors,
    refuse,
    taken,
    turned,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary

NAMES = {n: n for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
JUMP = {"threshold": "activation_function.threshold"}
SKIP = {"W_skip": "W_skip"}


def read_circuit_tracer(folder: Path) -> Dictionary:
    """A layer_N.safetensors, or a folder with one.

    Raises `LoadError` for a folder of several, and arrays that this form has not.
    """
    path = folder
    if folder.is_dir():
        files = sorted(folder.glob("layer_*.safetensors"))
        if len(files) != 1:
            raise LoadError(f"{folder} has {len(files)} files layer_*.safetensors: load each file.")
        (path,) = files
    layer = path.stem.removeprefix("layer_")
    if not (layer.isascii() and layer.isdecimal() and len(layer) < 10):
        raise LoadError(f"{path} names no layer, expected a name such as layer_5.safetensors.")
    found = read_tensors(path)
    jump, skip = (n in found for n in (*JUMP.values(), *SKIP.values()))
    arrays = taken(found, NAMES | (JUMP if jump else {}) | (SKIP if skip else {}), path)
    arrays = turned(arrays, path, "W_enc", *SKIP if skip else ())
    if jump and (arrays["threshold"] < 0).any():  # negative features pass there
        raise LoadError(
            f"{path}: {JUMP['threshold']} has values below 0, with which features are negative."
        )
    return build(
        arrays, path, kind="transcoder", activation="jumprelu" if jump else "relu", skip=skip,
        layers=(int(layer),),
    )  # fmt: skip


def write_circuit_tracer(folder: Path, d: Dictionary) -> None:
    """layer_N.safetensors, N the layer of the config."""
    refuse("circuit-tracer", d, ("transcoder",), ("relu", "jumprelu", "batch_topk"))
    d = as_jump(d)
    skip, jump = d.config.skip, d.config.activation == "jumprelu"
    names = NAMES | (JUMP if jump else {}) | (SKIP if skip else {})
    arrays = turned(host(d), folder, "W_enc", *SKIP if skip else ())
    if not d.config.layers:
        raise ValueError("circuit-tracer names files by their layer: set the config's layers.")
    write_tensors(
        folder / f"layer_{d.config.layers[0]}.safetensors",
        {theirs: arrays[ours] for ours, theirs in names.items()},
    )
