"""Other libraries' files of dictionaries: what they name things, and what their numbers mean.

Each form is a pair of functions on a folder. Features mean what they mean there: scales that a
library has folded into its weights stay folded, and those it applies while running are refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinterp.loading.torch_file import read_torch, write_torch
from jaxinterp.model.sites import SITES, parse
from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    as_jump,
    build,
    host,
    read_config,
    read_tensors,
    refuse,
    whole_k,
    with_subtraction,
    without_subtraction,
    write_json,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary, DictionaryConfig


class Form(NamedTuple):
    """file: by which a folder is recognised."""

    file: str
    read: Callable[[Path], Dictionary]
    write: Callable[[Path, Dictionary], None]


# SAELens ------------------------------------------------------------------------------------------

LENS = {  # architecture: kind, activation, skip
    "standard": ("sae", "relu", False), "gated": ("sae", "gated", False),
    "topk": ("sae", "topk", False), "jumprelu": ("sae", "jumprelu", False),
    "transcoder": ("transcoder", "relu", False),
    "skip_transcoder": ("transcoder", "relu", True),
    "jumprelu_transcoder": ("transcoder", "jumprelu", False),
    "jumprelu_skip_transcoder": ("transcoder", "jumprelu", True),
}  # fmt: skip
LENS_NAMES = {"b_gate": "b_enc"}


def _hook(c: DictionaryConfig, site: str) -> str:
    """TransformerLens's name of a place; "" where it is not known."""
    if site in SITES:
        return f"blocks.{c.layers[0]}.{SITES[site].hook}" if c.layers else ""
    return site


def _site(hook: Any) -> dict[str, Any]:
    """Our site and layer of TransformerLens's name, where we have it."""
    try:
        site, layer = parse(str(hook))
    except ValueError:
        return {}
    return {"site": site, "layers": () if layer is None else (layer,)}


def read_saelens(folder: Path) -> Dictionary:
    """cfg.json and sae_weights.safetensors, of version 6 or the flat ones before."""
    cfg, path = read_config(folder / "cfg.json"), folder / "sae_weights.safetensors"
    about = cfg.get("metadata") or cfg  # before version 6 everything is flat
    architecture = cfg.get("architecture", "standard")
    activation = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if architecture not in LENS:
        raise LoadError(
            f"{folder} has the architecture {architecture!r}, expected one of {', '.join(LENS)}."
        )
    norm = cfg.get("normalize_activations", "none")
    if norm not in ("none", None, False):
        raise LoadError(
            f"{folder} normalises activations while running ({norm!r}): fold its scale into the "
            "weights first (in SAELens: fold_activation_norm_scaling_factor)."
        )
    if cfg.get("rescale_acts_by_decoder_norm") and architecture == "topk":
        raise LoadError(
            f"{folder} chooses by activations times decoder norms (rescale_acts_by_decoder_norm): "
            "fold the norms first (in SAELens: fold_W_dec_norm)."
        )
    for name in ("reshape_activations", "hook_head_index"):
        value = about.get(name, cfg.get(name))
        if value not in ("none", None):
            raise LoadError(f"{folder} reads one head, or heads side by side ({name}={value!r}).")
    changed = about.get("model_from_pretrained_kwargs")
    if changed:
        warnings.warn(
            f"{folder} was trained on a model loaded with {changed}: change the model likewise "
            "(jaxinterp.center_writing_weights, fold_norm).", stacklevel=3,
        )  # fmt: skip
    kind, activation, skip = LENS[architecture]
    arrays = {LENS_NAMES.get(n, n): a for n, a in read_tensors(path).items()}
    if "scaling_factor" in arrays:
        raise LoadError(f"{folder} scales features while running (scaling_factor): fold it first.")
    if skip:
        arrays["W_skip"] = arrays["W_skip"].T
    k = (
        cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k"))
        if activation == "topk"
        else None
    )
    where = _site(about.get("hook_name", ""))
    target = _site(about.get("hook_name_out", "")).get("site", "") if kind != "sae" else ""
    return build(
        arrays, path, k=k, kind=kind, activation=activation, skip=skip, target=target,
        subtract_bias=kind == "sae" and bool(cfg.get("apply_b_dec_to_input", True)),
        model=str(about.get("model_name") or ""), **where,
    )  # fmt: skip


def write_saelens(folder: Path, d: Dictionary) -> None:
    """A folder for ``SAE.load_from_disk``."""
    refuse("saelens", d, ("sae", "transcoder"), ("relu", "gated", "topk", "batch_topk", "jumprelu"))
    d = as_jump(d)
    c, arrays = d.config, host(d)
    known = {value: name for name, value in LENS.items()}
    key = (c.kind, c.activation, c.skip)
    if key not in known:
        raise ValueError(f"SAELens has no {c.kind} with {c.activation} (skip={c.skip}).")
    if c.skip:
        arrays["W_skip"] = arrays["W_skip"].T
    if c.activation == "gated":
        arrays["b_gate"] = arrays.pop("b_enc")
    about = {"model_name": c.model, "hook_name": _hook(c, c.site), "sae_lens_version": "6.0.0"}
    cfg: dict[str, Any] = {
        "architecture": known[key], "d_in": c.d_in, "d_sae": c.n_features, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": c.subtract_bias, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": about,
    }  # fmt: skip
    if c.kind == "transcoder":
        cfg["d_out"] = c.d_out
        about["hook_name_out"] = _hook(c, c.target)
    if c.activation == "topk":
        cfg |= {"k": whole_k(d), "rescale_acts_by_decoder_norm": False}
    write_tensors(folder / "sae_weights.safetensors", arrays)
    write_json(folder / "cfg.json", cfg)


# Gemma Scope --------------------------------------------------------------------------------------

HF_HOOKS = {  # what follows model.layers.N: the site
    "output": "resid_post", "post_feedforward_layernorm.output": "mlp_out",
    "post_attention_layernorm.output": "attn_out",
}  # fmt: skip


def _hf_site(hook: str) -> dict[str, Any]:
    """Our site and layer of the name of a module's output; the name itself where it is no site."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", hook)
    if not found:
        return _site(hook)
    return {"site": HF_HOOKS.get(found[2], hook), "layers": (int(found[1]),)}


def _hf_hook(c: DictionaryConfig, site: str) -> str:
    known = {site: hook for hook, site in HF_HOOKS.items()}
    return f"model.layers.{c.layers[0]}.{known[site]}" if site in known and c.layers else site


def read_gemma_scope(folder: Path) -> Dictionary:
    """params.npz: a JumpReLU that does not subtract b_dec."""
    path = folder / "params.npz"
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise LoadError(f"{path} cannot be read ({error}): fetch it again.") from error
    return build(arrays, path, activation="jumprelu")


def write_gemma_scope(folder: Path, d: Dictionary) -> None:
    """params.npz, with b_enc making up for a subtraction."""
    refuse("gemma-scope", d, ("sae",), ("jumprelu", "batch_topk"))
    arrays: dict[str, Any] = {**host(without_subtraction(as_jump(d)))}
    np.savez(folder / "params.npz", **arrays)


def read_gemma_scope_2(folder: Path) -> Dictionary:
    """config.json and params.safetensors; a transcoder where the two hook points differ."""
    cfg, path = read_config(folder / "config.json"), folder / "params.safetensors"
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
    arrays = {names.get(n, n): a for n, a in read_tensors(path).items()}
    skip = "W_skip" in arrays
    read = str(cfg.get("hf_hook_point_in", ""))
    wrote = str(cfg.get("hf_hook_point_out") or read)
    sae = read == wrote and not skip
    return build(
        arrays, path, activation="jumprelu", skip=skip, kind="sae" if sae else "transcoder",
        model=str(cfg.get("model_name", "")),
        target="" if sae else _hf_site(wrote).get("site", wrote), **_hf_site(read),
    )  # fmt: skip


def write_gemma_scope_2(folder: Path, d: Dictionary) -> None:
    """config.json and params.safetensors."""
    refuse("gemma-scope-2", d, ("sae", "transcoder"), ("jumprelu", "batch_topk"))
    if d.config.kind == "transcoder" and not d.config.target:
        raise ValueError("gemma-scope-2 tells a transcoder by its target: set the config's.")
    d = without_subtraction(as_jump(d))
    c, arrays = d.config, host(d)
    names = {"W_enc": "w_enc", "W_dec": "w_dec", "W_skip": "affine_skip_connection"}
    write_tensors(folder / "params.safetensors", {names.get(n, n): a for n, a in arrays.items()})
    write_json(folder / "config.json", {
        "hf_hook_point_in": _hf_hook(c, c.site),
        "hf_hook_point_out": _hf_hook(c, c.target or c.site),
        "width": c.n_features, "model_name": c.model, "architecture": "jump_relu",
    })  # fmt: skip


# dictionary_learning ------------------------------------------------------------------------------

LEARNED = {  # dict_class: activation, and its names for ours
    "AutoEncoder": ("relu", {"b_dec": "bias", "b_enc": "encoder.bias"}),
    "GatedAutoEncoder": (
        "gated",
        {"b_dec": "decoder_bias", "b_enc": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"},
    ),
    "AutoEncoderNew": ("relu", {"b_dec": "decoder.bias", "b_enc": "encoder.bias"}),
    "AutoEncoderTopK": ("topk", {"b_dec": "b_dec", "b_enc": "encoder.bias"}),
    "BatchTopKSAE": (
        "batch_topk", {"b_dec": "b_dec", "b_enc": "encoder.bias", "threshold": "threshold"}
    ),
    "MatryoshkaBatchTopKSAE": (
        "batch_topk", {n: n for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    ),
    "JumpReluAutoEncoder": (
        "jumprelu", {n: n for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    ),
}  # fmt: skip


def read_dictionary_learning(folder: Path) -> Dictionary:
    """ae.pt and config.json, as that library's ``load_dictionary`` reads them."""
    cfg, path = read_config(folder / "config.json").get("trainer", {}), folder / "ae.pt"
    kind = str(cfg.get("dict_class"))
    if kind not in LEARNED:
        raise LoadError(f"{folder} holds a {kind}, expected one of {', '.join(LEARNED)}.")
    activation, names = LEARNED[kind]
    found = read_torch(path)
    arrays = {ours: found.get(theirs) for ours, theirs in names.items()}
    if "W_enc" not in names:
        for ours, theirs in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
            arrays[ours] = found[theirs].T if theirs in found else None
    if kind == "AutoEncoder":
        arrays = _unit_rows(arrays)
    k = int(found["k"]) if "k" in found else cfg.get("k")
    prefixes = ()
    if kind == "MatryoshkaBatchTopKSAE" and "group_sizes" in found:
        prefixes = tuple(np.cumsum(found["group_sizes"]).tolist())
    return build(
        arrays, path, k=k if "topk" in activation else None, activation=activation,
        subtract_bias=kind not in ("JumpReluAutoEncoder", "AutoEncoderNew"), prefixes=prefixes,
        model=str(cfg.get("lm_name", "")), **_submodule(cfg),
    )  # fmt: skip


def _unit_rows(arrays: dict[str, Any]) -> dict[str, Any]:
    """Decoder rows of norm 1, features in their units: as that library loads them."""
    if any(arrays[name] is None for name in ("W_enc", "b_enc", "W_dec")):
        return arrays
    norms = np.linalg.norm(arrays["W_dec"], axis=1)
    if np.allclose(norms, 1, atol=1e-8):
        return arrays
    return arrays | {
        "W_dec": arrays["W_dec"] / norms[:, None], "W_enc": arrays["W_enc"] * norms,
        "b_enc": arrays["b_enc"] * norms,
    }  # fmt: skip


def _submodule(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """resid_post_layer_8 and the like, as that library calls what it hooks."""
    site, _, layer = str(cfg.get("submodule_name", "")).rpartition("_layer_")
    if site in SITES and layer.isdigit():
        return {"site": site, "layers": (int(layer),)}
    return {}


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
    if kind in ("JumpReluAutoEncoder", "AutoEncoderNew"):
        d = without_subtraction(d)
    elif not c.subtract_bias:
        d = with_subtraction(d)
    names, arrays = LEARNED[kind][1], host(d)
    out: dict[str, Any] = {theirs: arrays[ours] for ours, theirs in names.items()}
    if "W_enc" not in names:
        out |= {"encoder.weight": arrays["W_enc"].T, "decoder.weight": arrays["W_dec"].T}
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


# sparsify -----------------------------------------------------------------------------------------


def read_sparsify(folder: Path) -> Dictionary:
    """cfg.json and sae.safetensors: TopK, which subtracts b_dec unless it transcodes."""
    cfg, path = read_config(folder / "cfg.json"), folder / "sae.safetensors"
    if cfg.get("activation", "topk") != "topk":
        raise LoadError(f"{folder} has the activation {cfg['activation']!r}, expected 'topk'.")
    found = read_tensors(path)
    arrays = {
        "W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"],
        "W_dec": found.get("W_dec"), "b_dec": found.get("b_dec"),
    }  # fmt: skip
    skip, transcode = "W_skip" in found, bool(cfg.get("transcode"))
    if skip and not transcode:
        raise LoadError(f"{folder}: a skip connection without transcode is not known here.")
    if skip:
        arrays["W_skip"] = found["W_skip"].T
    return build(
        arrays, path, k=cfg.get("k"), activation="topk", skip=skip, subtract_bias=not transcode,
        kind="transcoder" if transcode else "sae",
    )  # fmt: skip


def write_sparsify(folder: Path, d: Dictionary) -> None:
    """A folder for ``SparseCoder.load_from_disk``."""
    refuse("sparsify", d, ("sae", "transcoder"), ("topk",))
    c = d.config
    if c.d_in != c.d_out:
        raise ValueError(f"sparsify's d_in is its d_out too; these are {c.d_in} and {c.d_out}.")
    if c.kind == "sae" and not c.subtract_bias:
        d = with_subtraction(d)
    arrays = host(d)
    out = {
        "encoder.weight": arrays["W_enc"].T, "encoder.bias": arrays["b_enc"],
        "W_dec": arrays["W_dec"], "b_dec": arrays["b_dec"],
    }  # fmt: skip
    if c.skip:
        out["W_skip"] = arrays["W_skip"].T
    write_tensors(folder / "sae.safetensors", out)
    write_json(folder / "cfg.json", {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": False,
        "num_latents": c.n_features, "k": whole_k(d), "multi_topk": False,
        "skip_connection": c.skip, "transcode": c.kind == "transcoder", "d_in": c.d_in,
    })  # fmt: skip


# circuit-tracer -----------------------------------------------------------------------------------


def read_circuit_tracer(folder: Path) -> Dictionary:
    """A layer_N.safetensors, or a folder with one: a set of transcoders has one for each layer."""
    path = folder
    if folder.is_dir():
        files = sorted(folder.glob("layer_*.safetensors"))
        if len(files) != 1:
            raise LoadError(f"{folder} has {len(files)} files layer_*.safetensors: load each file.")
        (path,) = files
    found = read_tensors(path)
    arrays = {**found, "W_enc": found["W_enc"].T}
    threshold = arrays.pop("activation_function.threshold", None)
    if "W_skip" in arrays:
        arrays["W_skip"] = arrays["W_skip"].T
    return build(
        {**arrays, "threshold": threshold}, path, kind="transcoder",
        activation="relu" if threshold is None else "jumprelu", skip="W_skip" in arrays,
        layers=(int(path.stem.removeprefix("layer_")),),
    )  # fmt: skip


def write_circuit_tracer(folder: Path, d: Dictionary) -> None:
    """layer_N.safetensors, N the layer of the config."""
    refuse("circuit-tracer", d, ("transcoder",), ("relu", "jumprelu", "batch_topk"))
    d = as_jump(d)
    arrays = host(d)
    out = {n: arrays[n] for n in ("b_enc", "W_dec", "b_dec")} | {"W_enc": arrays["W_enc"].T}
    if "threshold" in arrays:
        out["activation_function.threshold"] = arrays["threshold"]
    if d.config.skip:
        out["W_skip"] = arrays["W_skip"].T
    if not d.config.layers:
        raise ValueError("circuit-tracer names files by their layer: set the config's layers.")
    write_tensors(folder / f"layer_{d.config.layers[0]}.safetensors", out)


FORMS = {
    "saelens": Form("sae_weights.safetensors", read_saelens, write_saelens),
    "gemma-scope": Form("params.npz", read_gemma_scope, write_gemma_scope),
    "gemma-scope-2": Form("params.safetensors", read_gemma_scope_2, write_gemma_scope_2),
    "dictionary-learning": Form("ae.pt", read_dictionary_learning, write_dictionary_learning),
    "sparsify": Form("sae.safetensors", read_sparsify, write_sparsify),
    "circuit-tracer": Form("layer_*.safetensors", read_circuit_tracer, write_circuit_tracer),
}
