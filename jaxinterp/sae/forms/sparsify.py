"""sparsify (EleutherAI): cfg.json and sae.safetensors, TopK dictionaries.

Facts: eai-sparsify 0.0.1 to 1.3.3 (config.py, sparse_coder.py, fused_encoder.py). ``signed`` is of
the versions before.
"""

from __future__ import annotations

from pathlib import Path

from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    build,
    host,
    read_config,
    read_tensors,
    refuse,
    taken,
    turned,
    whole_k,
    with_subtraction,
    write_json,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.forms.keys import Keys, Refused, chosen, flag, sizes

NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
SKIP = {"W_skip": "W_skip"}
KEYS = Keys(
    used=frozenset({"d_in", "k", "num_latents", "skip_connection", "transcode"}),
    harmless={
        "the width, which the weights tell": ("expansion_factor",),
        "whether training kept the decoder's rows at norm 1": ("normalize_decoder",),
        "a second loss, of four times as many features": ("multi_topk",),
    },
    refused={
        "activation": Refused(
            ("topk",), "expected 'topk'",
            {"groupmax": "it keeps the largest of each of k groups of features, expected 'topk'"},
        ),
        "signed": Refused(
            (False,), "it keeps the features of the largest magnitude with their signs, and "
            "features here are never negative",
        ),
    },
)  # fmt: skip


def read_sparsify(folder: Path) -> Dictionary:
    """cfg.json and sae.safetensors: TopK, which subtracts b_dec unless it transcodes."""
    path, weights = folder / "cfg.json", folder / "sae.safetensors"
    cfg, found = read_config(path), read_tensors(weights)
    KEYS.check(cfg, path)
    transcode = flag(cfg, "transcode", False, path)
    skip = flag(cfg, "skip_connection", False, path)
    if skip != ("W_skip" in found):
        raise LoadError(
            f"{path} has skip_connection={skip}, and {weights} has {'no' if skip else 'a'} W_skip."
        )
    if skip and not transcode:
        raise LoadError(
            f"{path} has skip_connection=True and transcode=False: a skip connection is a "
            "transcoder's here."
        )
    arrays = taken(found, NAMES | (SKIP if skip else {}), weights)
    arrays = turned(arrays, weights, "W_enc", *SKIP if skip else ())
    width = arrays["b_enc"].size
    d = build(
        arrays, weights, k=chosen(cfg, "k", width, path), activation="topk", skip=skip,
        subtract_bias=not transcode, kind="transcoder" if transcode else "sae",
    )  # fmt: skip
    sizes(cfg, path, d_in=d.config.d_in)
    if cfg.get("num_latents") != 0 or isinstance(cfg["num_latents"], bool):  # 0: the weights tell
        sizes(cfg, path, num_latents=d.config.n_features)
    return d


def write_sparsify(folder: Path, d: Dictionary) -> None:
    """A folder for ``SparseCoder.load_from_disk``."""
    refuse("sparsify", d, ("sae", "transcoder"), ("topk",))
    c = d.config
    if c.d_in != c.d_out:
        raise ValueError(f"sparsify's d_in is its d_out too; these are {c.d_in} and {c.d_out}.")
    if c.kind == "sae" and not c.subtract_bias:
        d = with_subtraction(d)
    names = NAMES | (SKIP if c.skip else {})
    arrays = turned(host(d), folder, "W_enc", *SKIP if c.skip else ())
    write_tensors(
        folder / "sae.safetensors", {theirs: arrays[ours] for ours, theirs in names.items()}
    )
    write_json(folder / "cfg.json", {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": False,
        "num_latents": c.n_features, "k": whole_k(d), "multi_topk": False,
        "skip_connection": c.skip, "transcode": c.kind == "transcoder", "d_in": c.d_in,
    })  # fmt: skip
