"""Tiny random models in hub layout, with a tokenizer to which IOI's words are single tokens."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from jaxinterp.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES

GOLDENS = Path(__file__).parents[1] / "loading" / "goldens"


def words(names=NAMES, places=PLACES, objects=OBJECTS) -> tokenizers.Tokenizer:
    """Words with their leading space; what is left out is unknown."""
    plain = re.findall(r"\w+|,", " ".join(re.sub(r"\{\w+\}", "", t) for t in TEMPLATES))
    spaced = [f" {word}" for word in (*plain, *names, *places, *objects)]
    vocabulary = dict.fromkeys(["[PAD]", "<s>", "</s>", "[UNK]", "x", *plain, *spaced])
    ids = {word: i for i, word in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?\w+|,"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def make_folder(folder: Path, family: str = "llama") -> Path:
    """A copy of a golden model whose vocabulary has grown to that of `words`."""
    backend = words()
    shutil.copytree(GOLDENS / family, folder)
    (folder / "golden.npz").unlink()
    backend.save(str(folder / "tokenizer.json"))
    change_config(folder, vocab_size=backend.get_vocab_size())

    rng = np.random.default_rng(0)

    def grow(tensors):
        for name, old in tensors.items():
            if re.search(r"embed_tokens|lm_head|word_embeddings", name):
                shape = (backend.get_vocab_size(), *old.shape[1:])
                tensors[name] = rng.standard_normal(shape).astype(old.dtype)

    change_tensors(folder, grow)
    return folder


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
