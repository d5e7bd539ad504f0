"""Tokenizers to which the words of every task are single tokens, one for each way to cut years."""

import importlib
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxinterp.tokens import Tokenizer

# Most modules have the name of the function that `jaxinterp.tasks` exports in their place.
IOI, GREATER, DOC, GENDER, AGREEMENT, FACTS, CHOICE = (
    importlib.import_module(f"jaxinterp.tasks.{name}")
    for name in (
        "ioi", "greater_than", "docstring", "gendered_pronouns", "subject_verb",
        "factual_recall", "multiple_choice",
    )
)  # fmt: skip

PIECES = r" ?[A-Za-z]+|'t| ?\d\d|\d|\n *|\"\"\"|."
SINGLE_DIGITS = PIECES.replace(r" ?\d\d|\d", r"\d")


def texts():
    """Every template and every word of every task, as they stand in prompts."""
    templates = [
        *IOI.TEMPLATES, GREATER.TEMPLATE, DOC.TEMPLATE, *GENDER.TEMPLATES, *AGREEMENT.TEMPLATES,
        *(one for group in FACTS.TEMPLATES.values() for one in group),
        "The {x} is {x}. What color is the {x}?\nA. {x}\nB. {x}\nC. {x}\nD. {x}\nAnswer: A",
        "Words: {x}",
    ]  # fmt: skip
    words = [
        *IOI.NAMES, *IOI.PLACES, *IOI.OBJECTS, *GREATER.NOUNS, *DOC.WORDS, *GENDER.NOUNS,
        *(word for pair in (*AGREEMENT.SUBJECTS, *AGREEMENT.ATTRACTORS) for word in pair),
        *(part for table in FACTS.FACTS.values() for fact in table.items() for part in fact),
        *CHOICE.COLORS, *CHOICE.OBJECTS, *CHOICE.LETTERS, "he", "she", "is", "are",
    ]  # fmt: skip
    years = [f"x {century}{year:02d}" for century in GREATER.CENTURIES for year in range(100)]
    filled = [re.sub(r"\{\w+\}", "x", template) for template in templates]
    return [*filled, *(f"x {word}" for word in dict.fromkeys(words)), *years]


def word_level(pieces=PIECES, without=(), **policy):
    """Words with their leading space as tokens, but for those left out."""
    split = pre_tokenizers.Split(tokenizers.Regex(pieces), "isolated")
    found = ["[UNK]", "<s>", "</s>"]
    found += [piece for text in texts() for piece, _ in split.pre_tokenize_str(text)]
    left = [piece for piece in dict.fromkeys(found) if piece.strip() not in without]
    backend = tokenizers.Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(left)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend, bos=1, eos=2, name="words", **policy)


def byte_level():
    """A trained byte-level BPE, which joins the first three digits of a year."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2200, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    backend.train_from_iterator(texts(), trainer)
    return Tokenizer(backend, bos=0, name="bytes")


TOKENIZERS = {
    "two digits": word_level(),
    "digits and bos": word_level(SINGLE_DIGITS, add_bos=True),
    "bytes": byte_level(),
}
