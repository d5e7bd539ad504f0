"""What Hugging Face transformers makes of a folder's files, for the tests of loading.

Run by hand, in an environment with torch and transformers (which the library never needs):

    python scripts/make_folder_goldens.py tests/loading/goldens

Writes ``tokenizers.json`` (ids of texts by the folders of tests/loading/tiny_folders.py),
``keys.json`` (the keys of each configuration class with their defaults, and the classes by
model_type) and ``folders.json`` (which unembedding a file's tensors decide on; the frequencies that
rotary settings give).
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers.models.auto import configuration_auto, modeling_auto

TESTS = Path(__file__).parent.parent / "tests/loading"
sys.path.append(str(TESTS))
import tiny_folders  # noqa: E402
import tiny_settings  # noqa: E402

TYPES = (
    "gpt2", "gpt_neox", "gptj", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2",
    "gemma3_text", "gemma3", "phi3", "olmo2", "bert",
)  # fmt: skip


def ids_of(case: dict[str, Any]) -> list[list[int]] | str:
    """The ids of every text, or the kind of error."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_folders.write(Path(folder), case)
        try:
            tokenizer = hf.AutoTokenizer.from_pretrained(folder)
            return [tokenizer(text)["input_ids"] for text in tiny_folders.texts(case)]
        except Exception as error:  # whatever it raises, it reads nothing
            return type(error).__name__


def tokenizers() -> dict[str, Any]:
    return {name: [ids_of(case) for case in cases()] for name, cases in tiny_folders.CASES.items()}


def keys() -> dict[str, Any]:
    """Each class's own keys with their defaults, and what it is called with and without a head."""
    shared = set(hf.PreTrainedConfig().to_dict())
    found: dict[str, Any] = {"shared": sorted(shared), "generation": sorted(
        hf.GenerationConfig._get_default_generation_params()
    )}  # fmt: skip
    for name in TYPES:
        made = configuration_auto.CONFIG_MAPPING[name]()
        own = {k: v for k, v in made.to_dict().items() if k not in shared and "_config" not in k}
        own.pop("layer_types", None)  # it follows from other keys
        heads = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES if name == "bert" else (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        )  # fmt: skip
        found[name] = {
            "defaults": own,
            "model": heads[name],
            "base": modeling_auto.MODEL_MAPPING_NAMES[name],
        }
    return found


def unembedding(source: Path, tied: bool | None, change: str) -> str:
    """Which tensor the unembedding is after a change of the file: the embedding, its own, none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = load_file(source / "model.safetensors")
        config = json.loads((source / "config.json").read_text("utf-8"))
        config.pop("tie_word_embeddings", None)
        if tied is not None:
            config["tie_word_embeddings"] = tied
        embedding, head = tiny_settings.change_head(tensors, config["model_type"], change)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        kind = hf.AutoModelForMaskedLM if "bert" in source.name else hf.AutoModelForCausalLM
        model = kind.from_pretrained(folder)
        used = model.get_output_embeddings().weight
        for said, tensor in (("own", head), ("embedding", embedding)):
            if tensor is not None and torch.equal(used, tensor):
                return said
        return "random"


def heads(goldens: Path) -> dict[str, str]:
    return {
        tiny_settings.label(name, tied, change): unembedding(goldens / name, tied, change)
        for name, tied, change in tiny_settings.head_cases()
    }


def frequencies(name: str, options: dict[str, Any]) -> Any:
    """(inverse frequencies, factor) by layer type, or the kind of error."""
    try:
        config = configuration_auto.CONFIG_MAPPING[name](**copy.deepcopy(options))
        config._attn_implementation = "eager"
        model = hf.AutoModelForCausalLM.from_config(config)
        found = {}
        for module in model.modules():
            if not type(module).__name__.endswith("RotaryEmbedding"):
                continue
            for buffer, _ in module.named_buffers():
                if buffer.endswith("inv_freq") and "original" not in buffer:
                    kind = buffer.removesuffix("inv_freq").removesuffix("_")
                    factor = getattr(
                        module, f"{kind}_attention_scaling" if kind else "attention_scaling"
                    )
                    found[kind] = [getattr(module, buffer).tolist(), factor]
        return found
    except Exception as error:  # whatever it raises, it computes nothing
        return type(error).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    made = {
        "tokenizers": tokenizers(),
        "keys": keys(),
        "folders": {
            "heads": heads(out),
            "rotary": [
                frequencies(name, options) for name, options in tiny_settings.rotary_cases()
            ],
        },
    }
    for name, content in made.items():
        file = out / f"{name}.json"
        file.write_text(json.dumps(content, sort_keys=True) + "\n", "utf-8")
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()
