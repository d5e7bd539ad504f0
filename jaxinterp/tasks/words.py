"""What tasks are made of: words that are one token, templates, and where their words stand."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxinterp.tokens import Tokenizer

Span = tuple[int, int]


def single(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words that are one token of their own after a space, and the pieces of the others."""
    kept: dict[int, str] = {}
    dropped = {}
    for word in words:
        if tokenizer.is_single_token(f" {word}"):
            kept.setdefault(tokenizer.single_token(f" {word}"), word)
        else:
            dropped[word] = tokenizer.str_tokens(f" {word}", add_bos=False)
    return list(kept.values()), dropped


def single_kinds(
    tokenizer: Tokenizer,
    task: str,
    kinds: Mapping[str, Collection[str]],
    least: Mapping[str, int] | None = None,
) -> tuple[dict[str, list[str]], dict[str, dict[str, list[str]]]]:
    """`single` of several lists: the words kept, and those dropped, by kind.

    Raises ``ValueError`` when fewer than ``least`` (by default 1) of a kind remain.
    """
    words: dict[str, list[str]] = {}
    dropped: dict[str, dict[str, list[str]]] = {}
    for kind, listed in kinds.items():
        words[kind], dropped[kind] = single(tokenizer, listed)
        need = (least or {}).get(kind, 1)
        if len(words[kind]) < need:
            raise ValueError(
                f"Only {len(words[kind])} of {len(listed)} {kind} are single tokens in "
                f"{tokenizer!r}; {task} needs {need}: it cannot be measured with this tokenizer."
            )
    return words, dropped


def single_pairs(
    tokenizer: Tokenizer, task: str, kind: str, pairs: Iterable[tuple[str, str]], least: int = 1
) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """The pairs whose words are both one token, and the pieces of the words that are not.

    Raises ``ValueError`` when fewer than ``least`` pairs remain.
    """
    pairs = list(pairs)
    words, dropped = single(tokenizer, [word for pair in pairs for word in pair])
    kept = [pair for pair in pairs if set(pair) <= set(words)]
    if len(kept) < least:
        raise ValueError(
            f"Only {len(kept)} of {len(pairs)} pairs of {kind} are two single tokens in "
            f"{tokenizer!r}; {task} needs {least}: it cannot be measured with this tokenizer."
        )
    return kept, dropped


def fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """The template's text, and the characters (start, stop) where each field's word stands.

    Of a field that occurs twice, the last place.
    """
    text, spans = "", {}
    for before, field, _, _ in string.Formatter().parse(template):
        text += before
        if field is not None:
            spans[field] = (len(text), len(text) + len(words[field]))
            text += words[field]
    return text, spans


def commonest(lengths: Mapping[Any, int]) -> int:
    """The commonest length; the shortest of equally common ones."""
    return min(Counter(lengths.values()).items(), key=lambda item: (-item[1], item[0]))[0]


def position(tokenizer: Tokenizer, text: str, span: Span, role: str, add_bos: bool | None) -> int:
    """The position of the one token that holds these characters.

    Raises ``ValueError`` when they are several.
    """
    first, last = tokenizer.positions_of_span(text, *span, add_bos=add_bos)
    if first != last:
        raise ValueError(f"{role} of {text!r} is more than one token there.")
    return last


def following(
    tokenizer: Tokenizer, text: str, ids: list[int], answer: str, bos: bool | None
) -> int:
    """The id of the one token that is added to a prompt (``ids``) when ``answer`` follows.

    Raises ``ValueError`` when it is several tokens, or changes how the prompt is cut.
    """
    *before, last = tokenizer.encode(text + answer, add_bos=bos)
    (piece,) = tokenizer.str_tokens([last])
    if before != ids or answer.strip().casefold() not in piece.casefold():
        raise ValueError(
            f"{text!r} is cut differently when its answer {answer!r} follows, or that is not one "
            f"token: {tokenizer.str_tokens([*before, last])[-3:]}."
        )
    return last
