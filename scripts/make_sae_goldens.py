"""Small dictionaries written by other libraries, and what their features are there.

    python benchmarks/make_peer_env.py PEERS sae-lens
    PYTHONHASHSEED=0 PEERS/bin/python scripts/make_sae_goldens.py tests/sae/goldens

Needs that environment, not jaxinterp; SAELens writes some keys in the order of a set. Beside the
dictionaries the folder then holds:

    seen.npz       x, and of each dictionary the features and the reconstruction of x
    changes.json   of each dictionary, what its library makes of its config when a key is taken out,
                   changed or added: "same" numbers, "refused", or the number of a row in
    changed.npz    features and reconstructions that are not those of the unchanged dictionary
    fields.json    the fields of SAELens's and sparsify's configs

With ``--check FOLDER`` it reads what jaxinterp has written there (a folder per dictionary beside
``x.npy`` and the dictionary's ``.npz``) with the libraries' own code, and tells the largest
differences of each as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

D, F, K = 6, 10, 3
Saved = dict[str, Callable[[Path], Any]]


def randomized(module: Any, seed: int) -> Any:
    """Every number drawn anew; thresholds positive."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        if tensor.dtype.is_floating_point:
            tensor.data.copy_(torch.randn(tensor.shape, generator=draw))
            if "threshold" in name:
                tensor.data.abs_()
    return module.eval()


# SAELens ------------------------------------------------------------------------------------------


def lens_fields(kind: str) -> dict[str, Any]:
    """What has no default, or a default that no tiny dictionary can have."""
    fields: dict[str, Any] = {"k": K} if "topk" in kind else {}
    if "transcoder" in kind:
        fields |= {"d_out": D, "apply_b_dec_to_input": False}
    if kind == "temporal":
        fields |= {"n_heads": 2, "bottleneck_factor": 1, "kval_topk": K}
    if kind.startswith("matryoshka"):
        fields |= {"matryoshka_widths": [2, 5, F]}
    if kind.startswith("matching"):
        fields |= {"decoder_init_norm": 1.0}
    return fields


def lens_made(kind: str, number: int, training: bool = False, **fields: Any) -> Any:
    """A dictionary of SAELens with random numbers."""
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config = (get_sae_training_class if training else get_sae_class)(kind)
    known = {f.name for f in dataclasses.fields(config)}
    given = {n: v for n, v in (lens_fields(kind) | fields).items() if n in known}
    about = SAEMetadata(
        model_name="tiny", hook_name=fields.get("hook_name", "blocks.2.hook_resid_pre")
    )
    return randomized(cls(config(d_in=D, d_sae=F, metadata=about, **given)), number)


def saelens() -> Saved:
    """Every architecture, as made for inference and as saved by training, and the variants."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    out: Saved = {}
    for number, kind in enumerate(SAE_CLASS_REGISTRY):
        out[f"saelens-{kind}"] = lens_made(kind, number).save_model
    for number, kind in enumerate(SAE_TRAINING_CLASS_REGISTRY, 20):
        made = lens_made(kind, number, training=True)
        out[f"saelens-training-{kind}"] = made.save_model
        out[f"saelens-inference-{kind}"] = made.save_inference_model
    variants: dict[str, dict[str, Any]] = {
        f"{kind}-raw_input": {"apply_b_dec_to_input": False}
        for kind in ("standard", "gated", "topk", "jumprelu")
    }
    variants |= {
        "topk-rescaled": {"rescale_acts_by_decoder_norm": True},
        "standard-hook_z": {
            "reshape_activations": "hook_z", "hook_name": "blocks.2.attn.hook_z"
        },
    } | {
        f"standard-{norm}": {"normalize_activations": norm}
        for norm in (
            "expected_average_only_in", "layer_norm", "constant_norm_rescale",
            "covariance_whitening",
        )
    }  # fmt: skip
    for number, (name, fields) in enumerate(variants.items(), 40):
        out[f"saelens-{name}"] = lens_made(name.split("-")[0], number, **fields).save_model
    return out | lens_flat()


def lens_flat() -> Saved:
    """Files as before version 6: one flat config; SAELens reads them still."""
    common = {
        "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "model_name": "tiny",
        "hook_name": "blocks.2.hook_resid_pre", "hook_layer": 2, "hook_head_index": None,
        "activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "normalize_activations": "none",
        "context_size": 128, "prepend_bos": True, "dataset_path": "some/text",
        "dataset_trust_remote_code": True, "sae_lens_training_version": "3.1.0",
        "neuronpedia_id": None, "model_from_pretrained_kwargs": {},
    }  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "standard": {}, "gated": {}, "jumprelu": {},
        "topk": {"architecture": "standard", "activation_fn_str": "topk",
                 "activation_fn_kwargs": {"k": K}},
    }  # fmt: skip

    def save(kind: str, number: int, path: Path) -> None:
        lens_made(kind, number).save_model(path)
        cfg = common | {"architecture": kind} | kinds[kind]
        (path / "cfg.json").write_text(json.dumps(cfg))

    return {
        f"saelens-flat-{kind}": lambda path, kind=kind, number=number: save(kind, number, path)
        for number, kind in enumerate(kinds, 60)
    }


def lens_loaded(path: Path) -> Any:
    """With the class that reads it; what training saved, as it is after training."""
    from sae_lens import SAE, TrainingSAE
    from sae_lens.registry import SAE_CLASS_REGISTRY

    kind = json.loads((path / "cfg.json").read_text()).get("architecture", "standard")
    if kind in SAE_CLASS_REGISTRY:
        return SAE.load_from_disk(path)
    with tempfile.TemporaryDirectory() as folder:
        TrainingSAE.load_from_disk(path).save_inference_model(folder)
        return SAE.load_from_disk(folder)


# The others ---------------------------------------------------------------------------------------


def learned() -> Saved:
    """dictionary_learning's classes, with the configs that its trainers write."""
    from dictionary_learning import dictionary as room
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    made = {
        "AutoEncoder": room.AutoEncoder(D, F), "GatedAutoEncoder": room.GatedAutoEncoder(D, F),
        "AutoEncoderNew": room.AutoEncoderNew(D, F),
        "JumpReluAutoEncoder": room.JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(
            D, F, K, group_sizes=[2, 3, 5]
        ),
    }  # fmt: skip

    def save(module: Any, kind: str, path: Path) -> None:
        path.mkdir(exist_ok=True)
        torch.save(module.state_dict(), path / "ae.pt")
        trainer = {
            "dict_class": kind, "lm_name": "tiny", "layer": 2, "lr": 1e-3, "seed": 0,
            "activation_dim": D, "dict_size": F, "submodule_name": "resid_pre_layer_2",
        } | ({"k": K} if "TopK" in kind else {})  # fmt: skip
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))

    for number, module in enumerate(made.values()):
        randomized(module, number)
    return {
        f"dictionary-learning-{kind}": lambda path, m=module, kind=kind: save(m, kind, path)
        for kind, module in made.items()
    }


def sparsified() -> Saved:
    """sparsify's dictionaries."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    out: Saved = {}
    for number, (name, fields) in enumerate({
        "sae": {}, "transcoder": {"transcode": True},
        "skip": {"transcode": True, "skip_connection": True},
        "normalized": {"normalize_decoder": True}, "multi": {"multi_topk": True},
        "groupmax": {"activation": "groupmax", "k": 5}, "skip_sae": {"skip_connection": True},
    }.items()):  # fmt: skip
        given = {"num_latents": F, "k": 2, "normalize_decoder": False, **fields}
        out[f"sparsify-{name}"] = randomized(
            SparseCoder(D, SparseCoderConfig(**given)), number
        ).save_to_disk
    return out


def traced() -> Saved:
    """circuit-tracer's transcoders of one layer."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

    out: Saved = {}
    for number, (name, skip, jump) in enumerate(
        (("relu", False, False), ("jumprelu", False, True), ("skip", True, True))
    ):
        activation = JumpReLU(torch.ones(F), 0.1) if jump else torch.nn.functional.relu
        made = SingleLayerTranscoder(
            D, F, activation, 2, skip_connection=skip, device=torch.device("cpu"),
            dtype=torch.float32,
        )  # fmt: skip
        randomized(made, number)

        def save(path: Path, made: Any = made) -> None:
            path.mkdir(exist_ok=True)
            made.to_safetensors(str(path / "layer_2.safetensors"))

        out[f"circuit-tracer-{name}"] = save
    return out


def loaders() -> dict[str, Callable[[Path], Any]]:
    """How each library reads a folder."""
    from circuit_tracer.transcoder import single_layer_transcoder as room
    from dictionary_learning.utils import load_dictionary
    from sparsify import SparseCoder

    cpu = torch.device("cpu")
    return {
        "saelens": lens_loaded,
        "dictionary-learning": lambda path: load_dictionary(str(path), "cpu")[0],
        "sparsify": SparseCoder.load_from_disk,
        "circuit-tracer": lambda path: room.load_relu_transcoder(
            str(next(path.glob("layer_*"))), 2, device=cpu, lazy_encoder=False, lazy_decoder=False
        ),
        "gemma-scope-2": lambda path: room.load_gemma_scope_2_transcoder(
            str(path / "params.safetensors"), 2, device=cpu
        ),
        "gemma-scope": lambda path: room.load_gemma_scope_transcoder(
            str(path / "params.npz"), 2, device=cpu
        ),
    }  # fmt: skip


def form_of(name: str, known: Any) -> str:
    """The form that a folder's name begins with."""
    return next(form for form in known if name.startswith(form))


def measured(module: Any, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features [n F] and reconstruction [n D], as the library defines them."""
    with torch.no_grad():
        if type(module).__name__ == "TemporalSAE":  # reads texts
            return module.encode(x[None])[0].numpy(), module(x[None])[0].numpy()
        if getattr(getattr(module, "cfg", None), "reshape_activations", "none") == "hook_z":
            heads = x.reshape(len(x), 2, -1)
            return module.encode(heads).numpy(), module(heads).reshape(x.shape).numpy()
        found = module.encode(x)
        if hasattr(found, "top_acts"):  # sparsify's: values and where they are
            dense = torch.zeros(len(x), F).scatter(1, found.top_indices, found.top_acts)
            made = module.decode(found.top_acts, found.top_indices)
            if module.W_skip is not None:  # forward's, but for the one that multi_topk's loss is of
                made = made + x @ module.W_skip.mT
            return dense.numpy(), made.numpy()
        made = module(x)
    return found.numpy(), (made[0] if isinstance(made, tuple) else made).numpy()


# What changes of a config do ----------------------------------------------------------------------

OTHERS: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("expected_average_only_in", "layer_norm", "constant_norm_rescale",
                              "covariance_whitening", True, "batch_norm"),
    "reshape_activations": ("hook_z", "other"), "dtype": ("float64", "int7"), "device": (),
    "activation_fn_str": ("tanh-relu", "topk", "gelu"), "activation": ("groupmax", "relu"),
    "architecture": ("standard", "gated", "topk", "jumprelu", "abstopk", "transcoder",
                     "skip_transcoder", "jumprelu_transcoder", "batchtopk", "temporal", "other"),
    "dict_class": ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK",
                   "BatchTopKSAE", "JumpReluAutoEncoder", "IdentityDict"),
    "hook_name": ("blocks.1.hook_resid_post", "some.module"), "hook_head_index": (1,),
    "sae_lens_version": ("5.1.0", "7.0.0", "x"),
}  # fmt: skip


def others(name: str, value: Any) -> tuple[Any, ...]:
    """Values that a key could have instead."""
    if name in OTHERS:
        return tuple(v for v in OTHERS[name] if v != value)
    if isinstance(value, bool):
        return (not value, "no")
    if isinstance(value, int):
        return (value + 1, -1)
    if isinstance(value, float):
        return (value * 2,)
    if isinstance(value, str):
        return ("other",)
    return ([], 7)


Change = tuple[list[str], str, Any]


def changes(cfg: dict[str, Any]) -> Iterator[Change]:
    """Of every key, also of the objects inside: taken out, changed; and a new one, changed."""
    inner = [n for n in ("metadata", "trainer") if isinstance(cfg.get(n), dict)]
    paths = [[name] for name in cfg] + [[outer, name] for outer in inner for name in cfg[outer]]
    for path in paths:
        value = cfg[path[0]] if len(path) == 1 else cfg[path[0]][path[1]]
        yield path, "without", None
        for other in () if isinstance(value, dict) else others(path[-1], value):
            yield path, "changed", other
    for outer in ([], *([name] for name in inner)):
        yield [*outer, "never_heard_of"], "added", True


def apply(cfg: dict[str, Any], change: Change) -> dict[str, Any]:
    """The config with one change."""
    path, kind, value = change
    out = json.loads(json.dumps(cfg))
    inside = out if len(path) == 1 else out[path[0]]
    if kind == "without":
        inside.pop(path[-1])
    else:
        inside[path[-1]] = value
    return out


def outcomes(
    folder: Path, load: Callable[[Path], Any], x: torch.Tensor, rows: list[np.ndarray]
) -> list[list[Any]]:
    """What each change does there; numbers that are new are appended to rows [n F + D]."""
    file = next((p for p in folder.iterdir() if p.suffix == ".json"), None)
    if file is None:
        return []
    cfg, plain = json.loads(file.read_text()), np.hstack(measured(load(folder), x))
    out = []
    for change in changes(cfg):
        with tempfile.TemporaryDirectory() as copy:
            new = Path(copy) / folder.name
            shutil.copytree(folder, new)
            (new / file.name).write_text(json.dumps(apply(cfg, change)))
            try:
                found = np.hstack(measured(load(new), x))
            except Exception:  # libraries refuse with errors of any kind
                out.append([*change, "refused"])
                continue
        if found.shape == plain.shape and np.allclose(found, plain, atol=1e-6):
            out.append([*change, "same"])
            continue
        known = [i for i, row in enumerate(rows) if np.array_equal(row, found)]
        if not known:
            rows.append(found)
        out.append([*change, known[0] if known else len(rows) - 1])
    return out


def field_names() -> dict[str, list[str]]:
    """Of every config class, what it keeps."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from sparsify.config import SparseCoderConfig

    classes = {f"saelens-{n}": c[1] for n, c in SAE_CLASS_REGISTRY.items()}
    classes |= {f"saelens-training-{n}": c[1] for n, c in SAE_TRAINING_CLASS_REGISTRY.items()}
    classes["sparsify"] = SparseCoderConfig
    return {n: [f.name for f in dataclasses.fields(c)] for n, c in classes.items()}


def make(out: Path) -> None:
    """Write the goldens."""
    torch.manual_seed(0)
    x = torch.randn(8, D)
    out.mkdir(parents=True, exist_ok=True)
    seen, found, rows, known = {"x": x.numpy()}, {}, [], loaders()
    for name, save in {**saelens(), **learned(), **sparsified(), **traced()}.items():
        shutil.rmtree(out / name, ignore_errors=True)
        save(out / name)
        load = known[form_of(name, known)]
        seen[f"{name}/features"], seen[f"{name}/reconstruction"] = measured(load(out / name), x)
        found[name] = outcomes(out / name, load, x, rows)
        print(name, float((seen[f"{name}/features"] != 0).mean()), len(found[name]))
    np.savez_compressed(out / "seen.npz", **seen)
    np.savez_compressed(out / "changed.npz", rows=np.stack(rows))
    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, each)) + "\n]"
        for name, each in found.items()
    ]
    (out / "changes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    (out / "fields.json").write_text(json.dumps(field_names(), indent=1) + "\n")


def check(folder: Path) -> None:
    """Differences of features and reconstructions of what jaxinterp wrote."""
    x = torch.from_numpy(np.load(folder / "x.npy"))
    known, found = loaders(), {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        there = measured(known[form_of(path.name, known)](path), x)
        here = np.load(folder / f"{path.name}.npz")
        found[path.name] = [
            float(np.abs(a - here[n]).max())
            for a, n in zip(there, ("features", "reconstruction"), strict=True)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    (check if arguments.check else make)(arguments.folder)
