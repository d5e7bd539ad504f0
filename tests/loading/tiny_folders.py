"""Folders with a tokenizer's files, small and varied: the tests and the script of goldens write
them alike."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")
MERGES = (
    ("Ġ", "c"), ("a", "t"), ("Ġc", "at"), ("T", "h"), ("Th", "e"), ("1", "2"), ("Ġ", "12"),
    ("c", "at"), ("Ã", "©"), ("e", "Ì"), ("eÌ", "ģ"), ("'", "S"),
)  # fmt: skip
TEXTS = (
    "The cat", "</s>The cat", " a  cat\n\nThe 1212", "<s>The</s>", "cafe\u0301 caf\u00e9",
    "IT'S it's", "The<new>cat <|im|> end", "<|endoftext|>The", "x<pad> <unk>y", "The [CLS] cat",
)  # fmt: skip
WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "a", "it", "'", "s", "12",
    "cafe", "café", "The", "x", "y", "<", ">", "/",
)  # fmt: skip

Case = dict[str, Any]  # layout, and the contents of the JSON files by name


def vocabulary() -> dict[str, int]:
    """Special tokens first, as OPT's, then bytes, then merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [left + right for left, right in MERGES]
    return {token: i for i, token in enumerate([*SPECIAL, *alphabet, *merged])}


def backend(post: str) -> tokenizers.Tokenizer:
    """A tokenizer.json whose post-processor adds what ``post`` names."""
    vocab = vocabulary()
    found = tokenizers.Tokenizer(models.BPE(vocab, list(MERGES)))
    found.normalizer = normalizers.NFC()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<s>", "</s>"])
    single = {"bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>"}.get(post)
    if single:
        tokens = [("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
        found.post_processor = processors.TemplateProcessing(
            single=single, pair="$A $B", special_tokens=tokens
        )
    if post == "byte_level":
        found.post_processor = processors.ByteLevel(trim_offsets=False)
    return found


def texts(case: Case) -> tuple[str, ...]:
    """The texts that a case is tried on: one, where only what is put around it varies."""
    return TEXTS[:1] if case["layout"] == "json" else TEXTS


def write(folder: Path, case: Case) -> Path:
    """The folder of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    if case["layout"] == "json":
        backend(case["post"]).save(str(folder / "tokenizer.json"))
    elif case["layout"] == "two":
        (folder / "vocab.json").write_text(json.dumps(vocabulary()), "utf-8")
        merges = ["#version: 0.2", *(f"{left} {right}" for left, right in MERGES)]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    for name, content in case["files"].items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def policies() -> Iterator[Case]:
    """tokenizer.json: its post-processor against both flags, by class."""
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    classes = (
        ("gpt2", "GPT2Tokenizer"), ("gpt2", None), ("opt", "GPT2Tokenizer"),
        ("gpt_neox", "GPTNeoXTokenizerFast"), ("gpt_neox", None), ("llama", "LlamaTokenizer"),
        ("llama", "PreTrainedTokenizerFast"), ("qwen2", "Qwen2Tokenizer"),
        ("olmo2", "GPT2Tokenizer"), ("mistral", "LlamaTokenizerFast"), (None, None),
    )  # fmt: skip
    flags = list(itertools.product((None, False, True), repeat=2))
    posts = ("none", "byte_level", "bos", "eos", "both")
    for (model_type, name), post, (bos, eos) in itertools.product(classes, posts, flags):
        config = {**named, "tokenizer_class": name, "add_bos_token": bos, "add_eos_token": eos}
        files = {"tokenizer_config": {k: v for k, v in config.items() if v is not None}}
        if model_type:
            files["config"] = {"model_type": model_type}
        yield {"layout": "json", "post": post, "files": files}


def token(content: str, **flags: bool) -> dict[str, Any]:
    """An added token as the files write it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **plain, **flags}


def two_files() -> Iterator[Case]:
    """vocab.json and merges.txt, by class, flags and where added tokens are named."""
    ends = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    last, both = len(vocabulary()), token("</s>", rstrip=True, lstrip=True)
    new = {str(last): token("<new>", special=False), str(last + 1): token("<|im|>", special=True)}
    old = {"added_tokens": {"<new>": last, "<|im|>": last + 1},
           "special_tokens_map": {"bos_token": token("<s>", normalized=True),
                                  "additional_special_tokens": ["<|im|>"]}}  # fmt: skip
    classes = (("opt", "GPT2Tokenizer"), ("gpt2", None), ("qwen2", "Qwen2Tokenizer"),
               ("qwen3", None), ("gpt_neox", "GPTNeoXTokenizer"), ("gptj", "GPT2TokenizerFast"),
               (None, "GPT2Tokenizer"), (None, "Qwen2TokenizerFast"))  # fmt: skip
    for model_type, name in classes:
        config = {**ends, **({"tokenizer_class": name} if name else {})}
        variants: list[Case] = [
            {"tokenizer_config": config},
            {"tokenizer_config": {**config, "add_bos_token": True}},
            {"tokenizer_config": {**config, "add_bos_token": True, "add_eos_token": True}},
            {"tokenizer_config": {**config, "add_prefix_space": True}},
            {"tokenizer_config": {**config, "added_tokens_decoder": new}},
            {"tokenizer_config": {**config, "added_tokens_decoder": new}, **old},
            {"tokenizer_config": config, **old},
            {"tokenizer_config": {**config, "eos_token": {"__type": "AddedToken", **both}}},
        ]
        for files in variants:
            if model_type:
                files = {**files, "config": {"model_type": model_type}}
            yield {"layout": "two", "files": files}


def word_pieces() -> Iterator[Case]:
    """vocab.txt of BERT."""
    for options in ({}, {"do_lower_case": False}, {"strip_accents": False},
                    {"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]"}):  # fmt: skip
        files = {"config": {"model_type": "bert"}, "tokenizer_config": options}
        yield {"layout": "txt", "files": files}


CASES = {"policies": policies, "two_files": two_files, "word_pieces": word_pieces}
