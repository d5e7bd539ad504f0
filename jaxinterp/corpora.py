"""Text in bulk: rows of a corpus, streamed, and blocks of tokens packed from them.

Nothing is held but the block being filled: a corpus may be longer than memory.
"""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checks import whole_number
from jaxinterp.model import Tokens, as_tokens
from jaxinterp.tokens import Tokenizer

_FORMATS = {
    ".txt": "text", ".raw": "text", ".json": "json", ".jsonl": "json", ".csv": "csv",
    ".parquet": "parquet",
}  # fmt: skip


def open_texts(
    source: str | os.PathLike[str], *, split: str = "train", **options: Any
) -> Iterable[Mapping[str, Any]]:
    """Rows of a corpus, streamed by `datasets`: a local file or folder, or a name on the hub.

    source: .txt (a row per line), .jsonl, .csv or .parquet, also as .gz; a folder of such files;
    else a hub name. split: of a hub dataset. options: for ``datasets.load_dataset``.

    Raises ``ValueError`` for a folder without files of one kind, ``FileNotFoundError`` for what is
    neither a file nor could be a hub name.
    """
    import datasets

    path = Path(source)
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        kinds = {_format(file) for file in files} - {None}
        if len(kinds) != 1:
            raise ValueError(
                f"{source} holds {sorted(map(str, kinds)) or 'no'} text files, expected one kind "
                f"of {', '.join(_FORMATS)}."
            )
        chosen = [str(file) for file in files if _format(file)]
        rows = datasets.load_dataset(
            str(kinds.pop()), data_files=chosen, split="train", streaming=True, **options
        )
    elif path.suffix or str(source).startswith((".", "/")):
        raise FileNotFoundError(f"There is no file or folder {source}.")
    else:
        rows = datasets.load_dataset(str(source), split=split, streaming=True, **options)
    return rows


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a text file, plain or .gz, that hold text; read as they are asked for."""
    path = Path(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from (line.strip() for line in lines if line.strip())


def packed(
    rows: Iterable[Mapping[str, Any] | str],
    tokenizer: Tokenizer,
    length: int,
    batch: int,
    *,
    field: str = "text",
) -> Iterator[Tokens]:
    """Batches [batch, length] of tokens without padding, as language models are trained on.

    rows: texts, or mappings that hold one in ``field``. Texts follow each other with the
    tokenizer's EOS between (if it has one); each block begins with its prefix (BOS) if it puts one
    before prompts. Attention crosses from text to text within a block. What does not fill the
    last batch is left out.

    Raises ``ValueError`` for sizes that are too small, and rows without text, naming the row.
    """
    prefix = list(tokenizer.prefix)
    whole_number("batch", batch, 1)
    room = whole_number("length", length, len(prefix) + 1) - len(prefix)
    blocks = _blocks(rows, tokenizer, room, field)
    while len(held := list(itertools.islice(blocks, batch))) == batch:
        yield as_tokens(np.array([prefix + block for block in held], np.int32))


def _blocks(
    rows: Iterable[Mapping[str, Any] | str], tokenizer: Tokenizer, room: int, field: str
) -> Iterator[list[int]]:
    held: list[int] = []
    for number, row in enumerate(rows):
        text = row if isinstance(row, str) else row.get(field)
        if not isinstance(text, str):
            raise ValueError(f"Row {number} has {text!r} in {field!r}, expected text.")
        if not text:
            continue
        held += tokenizer.encode(text, add_bos=False)
        if tokenizer.eos is not None:
            held.append(tokenizer.eos)
        while len(held) >= room:
            yield held[:room]
            held = held[room:]


def _format(path: Path) -> str | None:
    return _FORMATS.get(Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix)
