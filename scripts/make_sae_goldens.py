"""Small dictionaries written by other libraries, and what their features are there.

    python benchmarks/make_peer_env.py PEERS sae-lens
    PEERS/bin/python scripts/make_sae_goldens.py tests/sae/goldens

Needs that environment, not jaxinterp. With ``--check FOLDER`` it reads what jaxinterp has written
there (a folder per form beside ``x.npy`` and ``FORM.npy``, the features) with the libraries' own
code, and tells the largest difference of each as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

D, F, K = 6, 10, 3


def randomized(module: Any, seed: int) -> Any:
    """Every number drawn anew; thresholds positive."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        if tensor.dtype.is_floating_point:
            tensor.data.copy_(torch.randn(tensor.shape, generator=draw))
            if "threshold" in name:
                tensor.data.abs_()
    return module.eval()


def saelens() -> dict[str, tuple[Any, Callable[[Path], None]]]:
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    out = {}
    kinds = (
        "standard", "gated", "topk", "jumprelu", "transcoder", "skip_transcoder",
        "jumprelu_transcoder",
    )  # fmt: skip
    for number, kind in enumerate(kinds):
        cls, config = get_sae_class(kind)
        fields = {"k": K} if kind == "topk" else {}
        if "transcoder" in kind:
            fields |= {"d_out": D, "apply_b_dec_to_input": False}
        about = SAEMetadata(model_name="tiny", hook_name="blocks.2.hook_resid_pre")
        made = randomized(cls(config(d_in=D, d_sae=F, metadata=about, **fields)), number)
        out[f"saelens-{kind}"] = made, made.save_model
    return out


def learned() -> dict[str, tuple[Any, Callable[[Path], None]]]:
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
        torch.save(module.state_dict(), path / "ae.pt")
        trainer = {
            "dict_class": kind, "lm_name": "tiny", "layer": 2, "k": K,
            "submodule_name": "resid_pre_layer_2",
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
        if kind == "AutoEncoder":  # as that library's loader does
            module.normalize_decoder()

    out = {}
    for number, (kind, module) in enumerate(made.items()):
        randomized(module, number)
        out[f"dictionary-learning-{kind}"] = (
            module, lambda path, m=module, kind=kind: save(m, kind, path)
        )  # fmt: skip
    return out


def sparsified() -> dict[str, tuple[Any, Callable[[Path], None]]]:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    out = {}
    for number, (name, fields) in enumerate({
        "sae": {}, "transcoder": {"transcode": True},
        "skip": {"transcode": True, "skip_connection": True},
    }.items()):  # fmt: skip
        config = SparseCoderConfig(num_latents=F, k=K, normalize_decoder=False, **fields)
        made = randomized(SparseCoder(D, config), number)
        out[f"sparsify-{name}"] = made, made.save_to_disk
    return out


def traced() -> dict[str, tuple[Any, Callable[[Path], None]]]:
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
    from safetensors.torch import save_file

    def save(module: Any, path: Path) -> None:
        save_file({n: t.contiguous() for n, t in module.state_dict().items()},
                  path / "layer_2.safetensors")  # fmt: skip

    out = {}
    for number, (name, skip, jump) in enumerate(
        (("relu", False, False), ("jumprelu", False, True), ("skip", True, True))
    ):
        activation = JumpReLU(torch.ones(F), 0.1) if jump else torch.nn.functional.relu
        made = SingleLayerTranscoder(
            D, F, activation, 2, skip_connection=skip, device=torch.device("cpu"),
            dtype=torch.float32,
        )  # fmt: skip
        randomized(made, number)
        out[f"circuit-tracer-{name}"] = made, lambda path, m=made: save(m, path)
    return out


def features(module: Any, x: torch.Tensor) -> np.ndarray:
    """[n F], as the library defines them."""
    with torch.no_grad():
        found = module.encode(x)
    if hasattr(found, "top_acts"):  # sparsify's: values and where they are
        dense = torch.zeros(len(x), F)
        return dense.scatter(1, found.top_indices, found.top_acts).numpy()
    return (found[0] if isinstance(found, tuple) else found).numpy()


def reconstruction(module: Any, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found = module(x)
    found = getattr(found, "sae_out", found)
    return (found[0] if isinstance(found, tuple) else found).numpy()


def make(out: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, D)
    out.mkdir(parents=True, exist_ok=True)
    seen = {"x": x.numpy()}
    for name, (module, save) in {**saelens(), **learned(), **sparsified(), **traced()}.items():
        (out / name).mkdir(exist_ok=True)
        save(out / name)
        seen[f"{name}/features"] = features(module, x)
        seen[f"{name}/reconstruction"] = reconstruction(module, x)
        print(name, float((seen[f"{name}/features"] != 0).mean()))
    np.savez(out / "seen.npz", **seen)


def loaders() -> dict[str, Callable[[Path], Any]]:
    from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder
    from dictionary_learning.utils import load_dictionary
    from sae_lens import SAE
    from sparsify import SparseCoder

    return {
        "saelens": SAE.load_from_disk,
        "dictionary-learning": lambda path: load_dictionary(str(path), "cpu")[0],
        "sparsify": SparseCoder.load_from_disk,
        "circuit-tracer": lambda path: load_relu_transcoder(
            str(next(path.glob("layer_*"))), 2, device=torch.device("cpu"), lazy_encoder=False,
            lazy_decoder=False,
        ),
    }  # fmt: skip


def check(folder: Path) -> None:
    """Differences of features and reconstructions of what jaxinterp wrote."""
    x = torch.from_numpy(np.load(folder / "x.npy"))
    known, found = loaders(), {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        form = next(name for name in known if path.name.startswith(name))
        module = known[form](path)
        expected = np.load(folder / f"{path.name}.npz")
        found[path.name] = [
            float(np.abs(features(module, x) - expected["features"]).max()),
            float(np.abs(reconstruction(module, x) - expected["reconstruction"]).max()),
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    (check if arguments.check else make)(arguments.folder)
