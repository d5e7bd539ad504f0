"""SAELens before version 6: flat configs, turned into what version 6 would say.

Facts: sae_lens 2.1 to 5.11 (config.py, sae.py) and what 6.54 makes of them
(loading/pretrained_sae_loaders.py: handle_pre_6_0_config). 6.54 reads every activation function but
"topk" as ReLU; here the others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.reading import LoadError
from jaxinterp.sae.arrays import Arrays
from jaxinterp.sae.forms.keys import Keys, Refused, beside, chosen, flag, inner, text

RENAMED = {
    "hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer", "activation_fn_str": "activation_fn",
}  # fmt: skip
OF_MODEL = (  # what version 6 keeps as metadata
    "context_size", "dataset_path", "exclude_special_tokens", "hf_hook_name", "hf_hook_name_out",
    "hook_head_index", "hook_head_index_out", "hook_name", "hook_name_out", "model_class_name",
    "model_from_pretrained_kwargs", "model_name", "neuronpedia_id", "prepend_bos",
    "sae_lens_training_version", "sae_lens_version", "seqpos_slice",
)  # fmt: skip
TANH = "features are tanh of ReLU, which dictionaries here have not"
KEYS = Keys(
    used=frozenset({
        "activation_fn_kwargs", "apply_b_dec_to_input", "architecture", "d_in", "d_out", "d_sae",
        "finetuning_scaling_factor", "hook_layer", "hook_point", "hook_point_head_index",
        "hook_point_layer", "k", "metadata", "normalize_activations",
        "rescale_acts_by_decoder_norm", "reshape_activations", *OF_MODEL,
    }),
    harmless={
        "where SAELens computes, and in which precision": (
            "act_store_device", "autocast", "autocast_lm", "compile_llm", "compile_sae", "device",
            "dtype", "llm_compilation_mode", "sae_compilation_mode",
        ),
        "the text it was trained on": (
            "cached_activations_path", "dataset_trust_remote_code", "hook_eval", "hook_point_eval",
            "is_dataset_tokenized", "model_kwargs", "n_batches_in_buffer",
            "store_batch_size_prompts", "streaming", "tokens_per_buffer", "training_tokens",
            "use_cached_activations",
        ),
        "its training": (
            "adam_beta1", "adam_beta2", "b_dec_init_method", "dead_feature_threshold",
            "dead_feature_window", "decoder_heuristic_init", "decoder_heuristic_init_norm",
            "decoder_orthogonal_init", "eval_batch_size_prompts", "expansion_factor",
            "feature_sampling_window", "finetuning_method", "finetuning_tokens",
            "from_pretrained_path", "init_encoder_as_decoder_transpose", "jumprelu_bandwidth",
            "jumprelu_init_threshold", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "lr",
            "lr_decay_steps", "lr_end", "lr_scheduler_name", "lr_warm_up_steps",
            "mse_loss_normalization", "n_eval_batches", "n_restart_cycles", "noise_scale",
            "normalize_sae_decoder", "scale_sparsity_penalty_by_decoder_norm", "seed",
            "train_batch_size", "train_batch_size_tokens", "use_ghost_grads",
        ),
        "its log": (
            "checkpoint_path", "eval_every_n_wandb_logs", "log_activations_store_to_wandb",
            "log_optimizer_state_to_wandb", "log_to_wandb", "n_checkpoints", "resume", "run_name",
            "verbose", "wandb_entity", "wandb_id", "wandb_log_frequency", "wandb_project",
        ),
    },
    refused={
        name: Refused(
            ("relu", "topk"), "this activation function is not known here", {"tanh-relu": TANH}
        )
        for name in ("activation_fn", "activation_fn_str")
    },
    others="told",
)  # fmt: skip


def is_flat(cfg: Mapping[str, Any], path: Path) -> bool:
    """Whether a config is of before version 6: without a version, or with one below 6."""
    about = inner(cfg, "metadata", path)
    version = text(cfg, "sae_lens_version", path) or text(about, "sae_lens_version", path)
    if not version:
        return True
    found = re.match(r"(\d{1,9})\.", version)
    if not found:
        raise LoadError(f"{path} has sae_lens_version={version!r}, expected one such as '6.0.0'.")
    return int(found[1]) < 6


def unflattened(
    cfg: Mapping[str, Any], arrays: Arrays, path: Path
) -> tuple[dict[str, Any], Arrays]:
    """The config that version 6 would have, and the arrays with scales folded into W_dec.

    Raises `LoadError` for what version 6 has no place for.
    """
    KEYS.check(cfg, path)
    flat = dict(cfg)
    for old, new in RENAMED.items():
        if old in flat:
            value = flat.pop(old)
            if flat.setdefault(new, value) != value:
                raise LoadError(f"{path} has {old}={value!r} and {new}={flat[new]!r}.")
    about = inner(flat, "metadata", path) | {n: flat[n] for n in OF_MODEL if n in flat}
    hook, layer = text(about, "hook_name", path), flat.get("hook_layer")
    stated = re.match(r"blocks\.(\d{1,9})\.", hook)
    if stated and layer is not None and layer != int(stated[1]):
        raise LoadError(f"{path} has hook_layer={layer!r}, and hook_name={hook!r}.")
    kept = ("apply_b_dec_to_input", "d_in", "d_sae", "d_out", "normalize_activations",
            "rescale_acts_by_decoder_norm")  # fmt: skip
    out = {n: flat[n] for n in kept if n in flat}
    out["architecture"] = text(flat, "architecture", path, "standard")
    if out["architecture"].endswith("batchtopk"):
        raise LoadError(f"{path} has architecture={out['architecture']!r}, which is of version 6.")
    out["reshape_activations"] = flat.get(
        "reshape_activations", "hook_z" if "hook_z" in hook else "none"
    )
    _activation(flat, out, arrays, path)
    return out | {"metadata": about}, _scaled(flat, arrays, path)


def _activation(flat: Mapping[str, Any], out: dict[str, Any], arrays: Arrays, path: Path) -> None:
    """Before version 6 TopK was an activation function of the standard architecture."""
    given = inner(flat, "activation_fn_kwargs", path)
    more = sorted(set(given) - {"k"} - ({"signed"} if given.get("signed") is False else set()))
    if more:
        raise LoadError(
            f"{path} has activation_fn_kwargs with {more[0]}={given[more[0]]!r}, expected k only."
        )
    said, architecture = flat.get("activation_fn", "relu"), out["architecture"]
    with beside(
        f"It has architecture={architecture!r}, activation_fn (or activation_fn_str) {said!r} and "
        f"activation_fn_kwargs={given}."
    ):
        if said == "topk" and architecture not in ("standard", "topk"):
            raise LoadError(f"{path} has TopK in an architecture other than 'standard'.")
        if "topk" in (said, architecture):
            out["architecture"] = "topk"
            most = arrays["b_enc"].size if "b_enc" in arrays else 1
            out["k"] = chosen(given if "k" in given else flat, "k", most, path)
        elif "k" in given:
            raise LoadError(f"{path} has k={given['k']!r}, and no TopK that keeps so many.")


def _scaled(flat: Mapping[str, Any], arrays: Arrays, path: Path) -> Arrays:
    """W_dec times what each feature was multiplied by before decoding, where fine-tuning did so."""
    arrays = dict(arrays)
    names = [n for n in ("scaling_factor", "finetuning_scaling_factor") if n in arrays]
    scales = [arrays.pop(name) for name in names]
    used = flag(flat, "finetuning_scaling_factor", False, path)
    if not scales and not used:
        return arrays
    if not scales:
        raise LoadError(f"{path} has finetuning_scaling_factor=true, and its numbers are missing.")
    F = arrays["W_dec"].shape[:1] if "W_dec" in arrays else ()
    if len(scales) > 1 or scales[0].shape != F:
        raise LoadError(f"{path}: {' and '.join(names)} do not fit W_dec's rows.")
    if not used and not np.allclose(scales[0], 1):
        raise LoadError(f"{path} has no finetuning_scaling_factor=true, and {names[0]} is not 1.")
    return {**arrays, "W_dec": arrays["W_dec"] * scales[0][:, None]}
