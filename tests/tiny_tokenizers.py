"""Tokenizers small enough to check by hand."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxinterp.tokens import Tokenizer


def word_tokenizer(bos: bool = False, eos: bool = False, words: int = 9) -> Tokenizer:
    """w0 to w8 are the ids 0 to 8, 9 is unknown; BOS is 10 and EOS 11 where asked for."""
    names = [f"w{i}" for i in range(words)] + ["[UNK]", "[BOS]", "[EOS]"]
    ids = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return Tokenizer(
        backend, bos=ids["[BOS]"] if bos else None, eos=ids["[EOS]"] if eos else None, add_bos=bos
    )
