"""Reference outputs from Hugging Face transformers for the loading tests.

Run by hand, in an environment with torch, transformers and gguf (which the library itself
never needs):

    python scripts/make_goldens.py tests/loading/goldens                 # tiny models
    python scripts/make_goldens.py tests/loading/goldens --smollm2 FILE.gguf \\
        --gemma FILE.gguf --minilm FOLDER                                # real weights too

A tiny model has random weights, norm gains and biases, and its family's quirks switched
on: grouped heads, partial or scaled rotary, windows shorter than the prompt, soft caps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import pre_tokenizers

TESTS = Path(__file__).parent.parent / "tests/loading"
sys.path.append(str(TESTS))
import tiny_gguf  # noqa: E402

VOCAB, LENGTH = tiny_gguf.VOCAB, 12
TEXTS = json.loads((TESTS / "texts.json").read_text("utf-8"))
TINY_TEXTS = json.loads((TESTS / "tiny_texts.json").read_text("utf-8"))
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OLD_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENDS = ("sliding_attention", "full_attention", "sliding_attention")


def rope(kind: str, theta: float = 100.0, **numbers: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **numbers}


LLAMA3 = rope(
    "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
GEMMA3 = {
    "sliding_attention": rope("default", 50.0),
    "full_attention": rope("linear", 1000.0, factor=4.0),
}
GEMMA = {
    **GROUPED,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": list(ENDS),
    "query_pre_attn_scalar": 5,
    "final_logit_softcapping": 3.0,
}

# name: (config class, options, model class of the config's family)
TINY: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", OLD_SIZES, "GPT2LMHeadModel"),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            **SIZES,
            "num_attention_heads": 2,
            "rope_parameters": rope("default", partial_rotary_factor=0.5),
        },
        "GPTNeoXForCausalLM",
    ),
    "gpt_neox_sequential": (
        "GPTNeoXConfig",
        {
            **SIZES,
            "use_parallel_residual": False,
            "rope_parameters": rope("default", partial_rotary_factor=1.0),
        },
        "GPTNeoXForCausalLM",
    ),
    "gptj": ("GPTJConfig", {**OLD_SIZES, "n_head": 2, "rotary_dim": 4}, "GPTJForCausalLM"),
    "opt": (
        "OPTConfig",
        {
            **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
        },
        "OPTForCausalLM",
    ),
    "llama": (
        "LlamaConfig",
        {**GROUPED, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
        "LlamaForCausalLM",
    ),
    "llama_linear": (
        "LlamaConfig",
        {**GROUPED, "rope_parameters": rope("linear", factor=3.0)},
        "LlamaForCausalLM",
    ),
    "llama_llama3_sharded": (
        "LlamaConfig",
        {**GROUPED, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
        "LlamaForCausalLM",
    ),
    "llama_yarn": (
        "LlamaConfig",
        {
            **GROUPED,
            "head_dim": 16,
            "rope_parameters": rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                beta_fast=4.0,
                beta_slow=0.5,
            ),
        },
        "LlamaForCausalLM",
    ),
    "mistral_bf16": ("MistralConfig", {**GROUPED, "sliding_window": 4}, "MistralForCausalLM"),
    "qwen2": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "Qwen2ForCausalLM",
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 2.0}, "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "rope_parameters": GEMMA3}, "Gemma3ForCausalLM"),
    "phi3": (
        "Phi3Config",
        {
            **GROUPED,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "original_max_position_embeddings": 32,
            "rope_parameters": rope("default", partial_rotary_factor=0.5),
        },
        "Phi3ForCausalLM",
    ),
    "olmo2": ("Olmo2Config", GROUPED, "Olmo2ForCausalLM"),
    "bert": ("BertConfig", SIZES, "BertForMaskedLM"),
    "bert_encoder": ("BertConfig", SIZES, "BertModel"),
}

# Rows of whole quantisation blocks.
WIDE = {**GROUPED, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
GGUF: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", WIDE, "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", WIDE, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", {**WIDE, "head_dim": 32}, "Qwen3ForCausalLM"),
    "gemma2": (
        "Gemma2Config",
        {
            **WIDE, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 4,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        },
        "Gemma2ForCausalLM",
    ),
    "phi3": ("Phi3Config", WIDE, "Phi3ForCausalLM"),
}  # fmt: skip


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that make attention peaked, and gains and biases far from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            if "norm" in name.lower() or "ln_" in name:
                centred = gemma or name.endswith("bias")
                p.copy_(0.3 * draw + (0.0 if centred else 1.0))
            elif p.ndim == 1:
                p.copy_(0.3 * draw)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(draw)
            else:
                p.copy_(1.5 * draw / p.shape[-1] ** 0.5)


def build(case: tuple[str, dict[str, Any], str], seed: int) -> Any:
    config_class, options, model_class = case
    config = getattr(hf, config_class)(**options)
    config._attn_implementation = "eager"
    model = getattr(hf, model_class)(config)
    randomize(model, seed)
    return model.eval()


def run(model: Any, **inputs: Any) -> dict[str, np.ndarray]:
    """Everything the tests compare: logits, hidden states and attention patterns."""
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    found = {
        "hidden_states": torch.stack(out.hidden_states).numpy(),
        "attentions": torch.stack(out.attentions).numpy(),
    }
    if "logits" in out:
        found["logits"] = out.logits.numpy()
    return found


def tiny_outputs(model: Any, seed: int) -> dict[str, np.ndarray]:
    """A batch of two full prompts, and one prompt twice: padded on the left and on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=generator)
    bert = model.config.model_type == "bert"
    types = torch.randint(0, 2, (2, LENGTH), generator=generator) if bert else None
    inputs = {"input_ids": ids, **({"token_type_ids": types} if bert else {})}
    found = {"tokens": ids.numpy(), **run(model, **inputs)}
    if bert:
        found["types"] = types.numpy()
    short = ids[0, :7]
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    padded[0, -7:], padded[1, :7] = short, short
    mask[0, -7:], mask[1, :7] = 1, 1
    inputs = {"input_ids": padded, "attention_mask": mask}
    if model.config.model_type not in ("bert", "opt"):  # OPT counts the mask itself
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if bert:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    padded_out = run(model, **inputs)
    last = padded_out.get("logits", padded_out["hidden_states"][-1])
    return {**found, "padded_tokens": padded.numpy(), "padded_mask": mask.numpy(), "padded": last}


def make_tiny(out: Path) -> None:
    for seed, (name, case) in enumerate(TINY.items()):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        model = build(case, seed)
        if name.endswith("bf16"):
            model.to(torch.bfloat16)
        shard = {"max_shard_size": 16_000} if name.endswith("sharded") else {}
        model.save_pretrained(folder, **shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = type(model).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        np.savez_compressed(folder / "golden.npz", **tiny_outputs(model.eval(), seed))
        print(name, sum(f.stat().st_size for f in folder.iterdir()))


def make_gguf(out: Path) -> None:
    """Tiny GGUF files, with the outputs of transformers' own GGUF loader."""
    folder = out / "gguf"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seed, (name, case) in enumerate(GGUF.items(), 100):
        file = folder / f"{name}.gguf"
        written = build(case, seed)
        tensors = {key: x.numpy() for key, x in written.state_dict().items()}
        tiny_gguf.write(file, written.config.to_dict(), tensors, quantise=True)
        # The loader reads the tensors only: its own config leaves out head sizes and soft caps.
        model = read_gguf(file, config=written.config)
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        ids = {f"text{i}": np.array(tokenizer(t)["input_ids"]) for i, t in enumerate(TINY_TEXTS)}
        np.savez_compressed(folder / f"{name}.npz", **tiny_outputs(model, seed), **ids)
        print("gguf", name, file.stat().st_size)


def read_gguf(file: Path, **options: Any) -> Any:
    model = hf.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        attn_implementation="eager",
        **options,
    )
    return model.eval()


def summary(model: Any, ids: list[int], key: str, positions: list[int]) -> dict[str, np.ndarray]:
    """Top logits everywhere; hidden states and attention rows at a few positions."""
    found = run(model, input_ids=torch.tensor([ids]))
    out = {f"{key}/tokens": np.array(ids, np.int32)}
    if "logits" in found:
        logits = torch.from_numpy(found["logits"][0])
        values, indices = logits.topk(20)
        out[f"{key}/top_values"] = values.numpy()
        out[f"{key}/top_indices"] = indices.numpy().astype(np.int32)
        out[f"{key}/logsumexp"] = logits.logsumexp(-1).numpy()
    if positions:
        out[f"{key}/positions"] = np.array(positions)
        out[f"{key}/hidden_states"] = found["hidden_states"][:, 0, positions]
        out[f"{key}/attentions"] = found["attentions"][:, 0][:, :, positions]
        if "logits" in found and model.config.vocab_size < 100_000:
            out[f"{key}/last_logits"] = found["logits"][0, -1]
    return out


def in_float64(model: Any, ids: list[int], key: str) -> dict[str, np.ndarray]:
    """The same weights in float64, where rounding cannot hide a difference."""
    plain = type(model.config)(
        **{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain._attn_implementation = "eager"
    wide = hf.AutoModelForCausalLM.from_config(plain)
    wide.load_state_dict(model.state_dict())
    found = summary(wide.double().eval(), ids, key, [])
    return {name: value for name, value in found.items() if "tokens" not in name}


def split_digits(tokenizer: Any) -> None:
    """What SmolLM2's own tokenizer.json does and transformers leaves out when it reads a GGUF:
    every digit alone, so that the spaces before a number are one token."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def make_real(out: Path, name: str, model: Any, tokenizer: Any, detail: int) -> None:
    """Every text; all layers of the short one at ``detail`` positions."""
    found = {}
    for key, text in TEXTS.items():
        ids = tokenizer(text)["input_ids"][: 512 if name == "minilm" else None]
        places = np.linspace(0, len(ids) - 1, detail).round().astype(int).tolist()
        found.update(summary(model, ids, key, places if key == "short" else []))
        if name == "smollm2":
            found.update(in_float64(model, ids, f"{key}64"))
        if name == "minilm":
            states = run(model, input_ids=torch.tensor([ids]))["hidden_states"]
            found[f"{key}/last"] = states[-1, 0, ::8]
    np.savez_compressed(out / f"{name}.npz", **found)
    print(name, (out / f"{name}.npz").stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-tiny", action="store_true", help="keep the tiny models as they are")
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--gemma", type=Path)
    parser.add_argument("--minilm", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.no_tiny:
        make_tiny(args.out)
        make_gguf(args.out)
    for name, detail in (("smollm2", 6), ("gemma", 2)):
        file = getattr(args, name)
        if file:
            tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            if name == "smollm2":
                split_digits(tokenizer)
            make_real(args.out, name, read_gguf(file), tokenizer, detail)
    if args.minilm:
        model = hf.BertModel.from_pretrained(args.minilm, attn_implementation="eager")
        tokenizer = hf.AutoTokenizer.from_pretrained(args.minilm)
        make_real(args.out, "minilm", model.float().eval(), tokenizer, 2)


if __name__ == "__main__":
    main()
