"""SAELens: cfg.json and sae_weights.safetensors, of version 6 or the flat configs before.

Facts: sae_lens 6.54 (saes/*.py, and loading/pretrained_sae_loaders.py for what is flat). A
sparsity.safetensors beside them, how often features were active in training, is not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinterp.checks import real_number
from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import (
    Arrays,
    as_jump,
    build,
    host,
    read_config,
    read_tensors,
    refuse,
    taken,
    turned,
    unit_rows,
    whole_k,
    write_json,
    write_tensors,
)
from jaxinterp.sae.dictionary import Dictionary
from jaxinterp.sae.forms.keys import (
    Keys,
    Refused,
    beside,
    chosen,
    flag,
    inner,
    sizes,
    text,
    told_of,
)
from jaxinterp.sae.forms.places import lens_hook, lens_site
from jaxinterp.sae.forms.saelens_flat import is_flat, unflattened


class Kind(NamedTuple):
    """An architecture of SAELens: what it is here, and its own names of arrays, by ours."""

    kind: str
    activation: str
    skip: bool = False
    names: Mapping[str, str] = {}
    nested: bool = False


PLAIN = {n: n for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {**PLAIN, "b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
JUMP = {**PLAIN, "threshold": "threshold"}
RUNNING = {**PLAIN, "threshold": "topk_threshold"}
SKIP = {"W_skip": "W_skip"}
ARCHITECTURES = {
    "standard": Kind("sae", "relu", names=PLAIN),
    "gated": Kind("sae", "gated", names=GATED),
    "topk": Kind("sae", "topk", names=PLAIN),
    "jumprelu": Kind("sae", "jumprelu", names=JUMP),
    "transcoder": Kind("transcoder", "relu", names=PLAIN),
    "skip_transcoder": Kind("transcoder", "relu", True, PLAIN | SKIP),
    "jumprelu_transcoder": Kind("transcoder", "jumprelu", names=JUMP),
    "jumprelu_skip_transcoder": Kind("transcoder", "jumprelu", True, JUMP | SKIP),
    # saved in the middle of training; after it SAELens saves them as jumprelu
    "batchtopk": Kind("sae", "batch_topk", names=RUNNING),
    "matryoshka_batchtopk": Kind("sae", "batch_topk", names=RUNNING, nested=True),
}
OTHERS = {  # why an architecture of SAELens is not read
    "abstopk": "it keeps the features of the largest magnitude with their signs, and features "
    "here are never negative",
    "matching_pursuit": "it chooses one feature after another by what those before have left, "
    "which is no function of one product with W_enc",
    "temporal": "its features depend on the activations at the tokens before",
}

FOLD_SCALE = (
    "its features are of activations times a factor that is not in the file: fold it into the "
    "weights first (in SAELens: fold_activation_norm_scaling_factor)"
)
RUNNING_NORM = "it normalises each activation while running, which dictionaries here do not"
NORMS = Refused(
    ("none", None, False),
    "this way to normalise activations is not known here",
    {
        "expected_average_only_in": FOLD_SCALE, "True": FOLD_SCALE, "layer_norm": RUNNING_NORM,
        "covariance_whitening": "its features are of whitened activations, and the whitening is "
        "not in the file: fold it into the weights first (in SAELens: fold_activation_whitening)",
        "constant_norm_rescale": RUNNING_NORM, "constant_scalar_rescale": RUNNING_NORM,
    },
)  # fmt: skip
RESHAPED = Refused(
    ("none", None),
    "this way to reshape activations is not known here",
    {"hook_z": "it reads all heads side by side, and sites here keep them apart"},
)
KEYS = Keys(
    used=frozenset({
        "architecture", "d_in", "d_sae", "d_out", "apply_b_dec_to_input", "k",
        "rescale_acts_by_decoder_norm", "matryoshka_widths", "metadata",
    }),
    harmless={
        "where SAELens computes, and in which precision": ("device", "dtype"),
        "what its training minimised, and where it began": (
            "aux_loss_coefficient", "decoder_init_norm", "jumprelu_bandwidth",
            "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input",
            "jumprelu_tanh_scale", "l0_coefficient", "l0_warm_up_steps", "l1_coefficient",
            "l1_warm_up_steps", "lp_norm", "pre_act_loss_coefficient", "target_l0",
            "topk_threshold_lr", "use_matryoshka_aux_loss",
        ),
        "how its training kept features in memory": ("use_sparse_activations",),
    },
    refused={"normalize_activations": NORMS, "reshape_activations": RESHAPED},
)  # fmt: skip
ONE_HEAD = "it reads one head of its hook point, and sites here have all heads"
METADATA = Keys(  # SAELens lets anyone add what it never looks at
    used=frozenset({"model_name", "hook_name", "hook_name_out", "model_from_pretrained_kwargs"}),
    harmless={},
    refused={
        "hook_head_index": Refused((None,), ONE_HEAD),
        "hook_head_index_out": Refused((None,), ONE_HEAD),
    },
    others="passed over",
)


def read_saelens(folder: Path) -> Dictionary:
    """A folder that SAELens has saved, in training or after it.

    Raises `LoadError` for what SAELens does otherwise than dictionaries here can.
    """
    path, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    cfg = read_config(path)
    arrays = read_tensors(weights)
    if is_flat(cfg, path):
        with beside("It is of before version 6 (by metadata's sae_lens_version, or without one)."):
            cfg, arrays = unflattened(cfg, arrays, path)
    architecture = text(cfg, "architecture", path)
    if architecture in OTHERS:
        raise LoadError(f"{path} has architecture={architecture!r}: {OTHERS[architecture]}.")
    if architecture not in ARCHITECTURES:
        raise LoadError(
            f"{path} has architecture={cfg.get('architecture')!r}, expected one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    with beside(f"It has architecture={architecture!r}."):
        return _read(cfg, arrays, ARCHITECTURES[architecture], path, weights)


def _read(
    cfg: Mapping[str, Any], arrays: Arrays, kind: Kind, path: Path, weights: Path
) -> Dictionary:
    """The dictionary of a config of version 6 and the arrays beside it."""
    KEYS.check(cfg, path)
    if kind.activation == "jumprelu" and "log_threshold" in arrays:  # of older training
        arrays["threshold"] = np.exp(arrays.pop("log_threshold"))
    arrays = taken(arrays, kind.names, weights)
    sae = kind.kind == "sae"
    subtract = flag(cfg, "apply_b_dec_to_input", sae, path)
    if subtract and not sae:
        raise LoadError(f"{path} has apply_b_dec_to_input=true, which no transcoder does.")
    if not sae and "d_out" not in cfg:
        raise LoadError(f"{path} has no d_out, and a transcoder's config says what it writes.")
    if kind.skip:
        arrays = turned(arrays, weights, "W_skip")
    F = arrays["b_enc"].size
    fields = {"k": _k(cfg, kind, F, path), "prefixes": _prefixes(cfg, kind, F, path)}
    rescaled = kind.activation == "batch_topk"  # the default of training
    if "topk" in kind.activation and flag(cfg, "rescale_acts_by_decoder_norm", rescaled, path):
        arrays = unit_rows(arrays, weights)
    d = build(
        arrays, weights, kind=kind.kind, activation=kind.activation, skip=kind.skip,
        subtract_bias=subtract, **fields, **_about(inner(cfg, "metadata", path), sae, path),
    )  # fmt: skip
    c = d.config
    sizes(cfg, path, d_in=c.d_in, d_sae=c.n_features, d_out=c.d_out)
    return d


def _k(cfg: Mapping[str, Any], kind: Kind, n_features: int, path: Path) -> Any:
    if kind.activation == "batch_topk":  # of a batch's examples together, so any number
        with told_of(path):
            return real_number("k", cfg.get("k"), above=0, most=n_features)
    return chosen(cfg, "k", n_features, path) if kind.activation == "topk" else None


def _prefixes(cfg: Mapping[str, Any], kind: Kind, n_features: int, path: Path) -> tuple[int, ...]:
    if not kind.nested:
        return ()
    widths = cfg.get("matryoshka_widths")
    if not isinstance(widths, list) or not widths or any(type(w) is not int for w in widths):
        raise LoadError(f"{path} has matryoshka_widths={widths!r}, expected whole numbers.")
    if sorted(set(widths)) != widths or not 0 < widths[0] <= widths[-1] <= n_features:
        raise LoadError(
            f"{path} has matryoshka_widths={widths}, expected increasing numbers from 1 to "
            f"{n_features}."
        )
    return (*widths, *([n_features] if widths[-1] != n_features else []))


def _about(about: Mapping[str, Any], sae: bool, path: Path) -> dict[str, Any]:
    """The config's model, site, layers and target."""
    METADATA.check(about, path)
    changed = about.get("model_from_pretrained_kwargs")
    if changed:
        warnings.warn(
            f"{path} was trained on a model loaded with {changed}: change the model likewise "
            "(jaxinterp.center_writing_weights, fold_norm).", stacklevel=5,
        )  # fmt: skip
    hook, out = text(about, "hook_name", path), text(about, "hook_name_out", path)
    where = lens_site(hook) if hook else {}
    target = lens_site(out)["site"] if out and not sae else ""
    return {"model": text(about, "model_name", path), "target": target, **where}


def write_saelens(folder: Path, d: Dictionary) -> None:
    """A folder for ``SAE.load_from_disk``."""
    refuse("saelens", d, ("sae", "transcoder"), ("relu", "gated", "topk", "batch_topk", "jumprelu"))
    d = as_jump(d)
    c, arrays = d.config, host(d)
    known = {(k.kind, k.activation, k.skip): name for name, k in ARCHITECTURES.items()}
    key = (c.kind, c.activation, c.skip)
    if key not in known:
        raise ValueError(f"SAELens has no {c.kind} with {c.activation} (skip={c.skip}).")
    if c.skip:
        arrays["W_skip"] = arrays["W_skip"].T
    names = ARCHITECTURES[known[key]].names
    out: Arrays = {theirs: arrays[ours] for ours, theirs in names.items()}
    about = {"model_name": c.model, "hook_name": lens_hook(c, c.site), "sae_lens_version": "6.0.0"}
    cfg: dict[str, Any] = {
        "architecture": known[key], "d_in": c.d_in, "d_sae": c.n_features, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": c.subtract_bias, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": about,
    }  # fmt: skip
    if c.kind == "transcoder":
        cfg["d_out"] = c.d_out
        about["hook_name_out"] = lens_hook(c, c.target)
    if c.activation == "topk":
        cfg |= {"k": whole_k(d), "rescale_acts_by_decoder_norm": False}
    write_tensors(folder / "sae_weights.safetensors", out)
    write_json(folder / "cfg.json", cfg)
