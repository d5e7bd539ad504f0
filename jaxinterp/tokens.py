"""From text to `Tokens` and back, with the policy on added tokens made explicit.

A doubled or missing BOS shifts every position and changes what a model does, and no error
says so. A `Tokenizer` therefore never lets its backend add anything: what is put around a
prompt is one (prefix, suffix) of token ids that shows in its repr.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from jaxinterp.checks import whole_number
from jaxinterp.files import whole, writable_folder
from jaxinterp.model.inputs import Tokens, as_tokens
from jaxinterp.reading import damage_refused
from jaxinterp.tokenizer_files import POLICY, Template, read_folder

__all__ = ["Tokenizer", "Tokens", "as_tokens"]

Padding = Literal["right", "left", "none"]


class Tokenizer:
    """Text to token ids for one model.

    backend: a ``tokenizers.Tokenizer``; its post-processor, truncation and padding are never
    used. bos, eos, pad: token ids, where the model has them. add_bos: whether prompts begin
    with ``bos``. template: (prefix, suffix) ids around every prompt, for models that need
    more than that (BERT: ``((cls,), (sep,))``); its prefix, if any, stands for the BOS. ends:
    all ids that end a text, for ``generate(stop=)`` (default: ``eos``, where there is one).

    A prompt that already begins with the prefix (or ends with the suffix) gets no second one.

    Raises ``ValueError`` for ids outside the vocabulary, or ``add_bos`` without a ``bos``.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        add_bos: bool = False,
        template: Template = ((), ()),
        ends: Sequence[int] | None = None,
        name: str = "",
    ):
        if backend.truncation or backend.padding:  # the caller's own stays as it is
            backend = tokenizers.Tokenizer.from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        self.backend, self.name = backend, name
        self.bos, self.eos, self.pad = bos, eos, pad
        given = ([] if eos is None else [eos]) if ends is None else ends
        self.ends = tuple(whole_number("ends", i) for i in given)
        prefix, suffix = (tuple(int(i) for i in part) for part in template)
        if add_bos and not prefix:
            prefix = self._bos_prefix()
        self.prefix, self.suffix = prefix, suffix
        self.vocab_size = backend.get_vocab_size()
        decoder = repr(backend.decoder)
        self._byte_level, self._metaspace = "ByteLevel" in decoder, "\u2581" in decoder
        for token in (bos, eos, pad, *prefix, *suffix):
            if token is not None and not self._known(token):
                raise ValueError(f"Special token {token} is outside the {self.vocab_size} known.")

    def _bos_prefix(self) -> tuple[int]:
        if self.bos is None:
            raise ValueError("add_bos=True needs a BOS token: this tokenizer has none; pass bos=.")
        return (self.bos,)

    @property
    def template(self) -> Template:
        """The (prefix, suffix) ids put around every prompt."""
        return self.prefix, self.suffix

    @property
    def add_bos(self) -> bool:
        """Whether something is put before every prompt."""
        return bool(self.prefix)

    def __repr__(self) -> str:
        def show(*ids: int) -> str:
            return " ".join(f"{i}:{self.backend.id_to_token(i)!r}" for i in ids)

        parts = [repr(self.name), f"vocab_size={self.vocab_size}"]
        parts += [f"{k}={show(i)}" for k in ("bos", "eos") if (i := getattr(self, k)) is not None]
        if self.ends not in ((), (self.eos,)):
            parts.append(f"ends={show(*self.ends)}")
        parts.append(f"add_bos={self.add_bos}")
        if self.prefix not in ((), (self.bos,)):
            parts.append(f"prefix={show(*self.prefix)}")
        if self.suffix:
            parts.append(f"suffix={show(*self.suffix)}")
        return f"Tokenizer({', '.join(parts)})"

    def _policy(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("bos", "eos", "pad", "template", "ends", "name")}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        same = self._policy() == other._policy()
        return same and self.backend.to_str() == other.backend.to_str()

    def __hash__(self) -> int:
        return hash((self.name, self.prefix, self.suffix, self.vocab_size))

    # Text to ids

    def _bare(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def _around(self, bare: list[int], add_bos: bool | None) -> Template:
        """The ids to put before and after a prompt."""
        if add_bos is False:
            return (), ()
        prefix, suffix = self.prefix, self.suffix
        if add_bos and not prefix:
            prefix = self._bos_prefix()
        has_prefix = prefix and tuple(bare[: len(prefix)]) == prefix
        has_suffix = suffix and tuple(bare[-len(suffix) :]) == suffix
        return () if has_prefix else prefix, () if has_suffix else suffix

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """The ids of one prompt.

        add_bos: None follows the tokenizer's policy; True also adds a BOS where the policy
        does not; False adds nothing at all, before or after.
        """
        bare = self._bare(text)
        prefix, suffix = self._around(bare, add_bos)
        return [*prefix, *bare, *suffix]

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        padding: Padding = "right",
        add_bos: bool | None = None,
    ) -> Tokens:
        """One prompt or a batch as `Tokens` [B P] (NumPy int32; positions -1 at padding).

        padding: the side that shorter prompts are filled on; "none" refuses unequal lengths.
        add_bos: as in `encode`.

        Raises ``ValueError`` for an empty batch or prompt.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if padding not in ("right", "left", "none"):
            raise ValueError(f"padding={padding!r}, expected 'right', 'left' or 'none'.")
        if not texts:
            raise ValueError("The batch holds no prompts: pass at least one text.")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"Prompt {i} is {type(text).__name__}, expected a str.")
            if not text:
                raise ValueError(f"Prompt {i} is empty: every prompt needs at least one token.")
        rows = [self.encode(text, add_bos=add_bos) for text in texts]
        lengths = [len(row) for row in rows]
        if not all(lengths):
            bad = lengths.index(0)
            raise ValueError(f"Prompt {bad}, {texts[bad]!r}, has no tokens in {self!r}.")
        if padding == "none" and len(set(lengths)) > 1:
            odd = next(i for i, n in enumerate(lengths) if n != lengths[0])
            raise ValueError(
                f"Prompts differ in length: {texts[0]!r} has {lengths[0]} tokens, "
                f"{texts[odd]!r} has {lengths[odd]}. Reword one, or pass padding='right'."
            )
        # Padding is masked out, so its id only has to be one the model can look up.
        fill = next((i for i in (self.pad, self.eos, self.bos) if i is not None), 0)
        ids = np.full((len(rows), max(lengths)), fill, np.int32)
        positions = np.full(ids.shape, -1, np.int32)
        for i, row in enumerate(rows):
            columns = slice(ids.shape[1] - len(row), None) if padding == "left" else slice(len(row))
            ids[i, columns] = row
            positions[i, columns] = np.arange(len(row))
        return Tokens(ids, positions)

    # Ids to text

    def _known(self, token: int) -> bool:
        return token >= 0 and self.backend.id_to_token(token) is not None

    def _token(self, token: int) -> str:
        if token < 0:
            raise ValueError(f"Token id {token} is negative: leave padding out before decoding.")
        piece = self.backend.id_to_token(token)
        if piece is None:  # models often round their vocabulary up
            return f"<unused {token}>"
        if self._byte_level and all(char in _BYTES for char in piece):
            return _show_bytes(bytes(_BYTES[char] for char in piece))
        return piece.replace("\u2581", " ") if self._metaspace else piece

    def decode(self, ids: Any) -> str:
        """The text of ids [P] (or of one id), special tokens included.

        An id beyond the vocabulary, which models have where theirs is padded, reads
        ``<unused 50300>`` as in `str_tokens`. Raises ``ValueError`` for ids that are negative (as
        padding's may be) or no integers.
        """
        ids = np.asarray(ids)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"decode got {ids.dtype}{list(ids.shape)}, expected integer ids.")
        known: list[int] = []
        text = shown = ""
        for real, group in itertools.groupby(ids.reshape(-1).tolist(), self._known):
            if not real:
                text += "".join(map(self._token, group))
                continue
            known += group  # what a token reads as depends on those before it
            so_far = self.backend.decode(known, skip_special_tokens=False)
            text += so_far.removeprefix(shown)
            shown = so_far
        return text

    def str_tokens(self, text_or_ids: Any, *, add_bos: bool | None = None) -> list[str]:
        """Each token's own text, one string per position.

        Bytes that are only part of a character read ``<0xE2>``; the continuation marks of
        WordPiece (``##ing``) stay. Text is encoded as by `encode`.

        Raises ``ValueError`` for a batch, and ids that are negative or no integers.
        """
        if isinstance(text_or_ids, str):
            text_or_ids = self.encode(text_or_ids, add_bos=add_bos)
        ids = np.asarray(text_or_ids)
        if ids.ndim > 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f"str_tokens got {ids.dtype}{list(ids.shape)}, expected text or the integer ids "
                "[position] of one prompt."
            )
        return [self._token(i) for i in ids.reshape(-1).tolist()]

    # Words and places

    def token_texts(self, ids: Any) -> np.ndarray:
        """Each token's text, an array shaped as ``ids``; "" for negative ones (no token)."""
        ids = np.asarray(ids)
        kinds, where = np.unique(ids, return_inverse=True)
        texts = ["" if i < 0 else self.str_tokens([int(i)])[0] for i in kinds]
        return np.asarray(texts)[where].reshape(ids.shape)

    def _pieces(self, text: str) -> list[int]:
        """The ids of a text as it stands in a prompt: " Mary" continues what comes before."""
        if not text.startswith(" "):
            return self._bare(text)
        # SentencePiece puts a space before a prompt, so the word needs a neighbour.
        before, both = self._bare("x"), self._bare("x" + text)
        return both[len(before) :] if both[: len(before)] == before else self._bare(text)

    def single_token(self, text: str) -> int:
        """The id of a text that is exactly one token.

        A leading space means "as it follows other words", in every kind of vocabulary.

        Raises ``ValueError`` naming the pieces, and the remedy, when it is not one token.
        """
        ids = self._pieces(text)
        if len(ids) == 1 and not self.is_unknown(ids[0]):
            return ids[0]
        where = self.name or "this tokenizer"
        what = f"is {len(ids)} tokens in {where}: {self.str_tokens(ids)}"
        what = f"is not in the vocabulary of {where}" if len(ids) == 1 else what
        leads = text.startswith(" ")
        other, remedy = text[1:] if leads else f" {text}", "Choose another word."
        ids = self._pieces(other)
        if len(ids) == 1 and not self.is_unknown(ids[0]):
            remedy = f"{other!r}, {'without its' if leads else 'with a'} leading space, is one."
        raise ValueError(f"{text!r} {what}. {remedy}")

    def is_unknown(self, token: int) -> bool:
        """Whether this id stands for text that the tokenizer has no token for."""
        unk = getattr(self.backend.model, "unk_token", None)
        return self.backend.id_to_token(token) in {unk, "<unk>", "[UNK]"}

    def is_single_token(self, text: str) -> bool:
        """Whether `single_token` has an answer."""
        with contextlib.suppress(ValueError):
            return self.single_token(text) >= 0
        return False

    def positions_of(
        self, text: str, substring: str, occurrence: int = 0, *, add_bos: bool | None = None
    ) -> tuple[int, int]:
        """The (first, last) token positions of a substring of a prompt, BOS counted.

        Tokens that hold any character of it count. ``occurrence`` 1 is the second one.

        Raises ``ValueError`` when the prompt does not hold it that often.
        """
        found = [m.span() for m in re.finditer(re.escape(substring), text)] if substring else []
        if not 0 <= occurrence < len(found):
            raise ValueError(
                f"{substring!r} occurs {len(found)} times in {text!r}; occurrence {occurrence} "
                "(counted from 0) does not exist."
            )
        return self.positions_of_span(text, *found[occurrence], add_bos=add_bos)

    def positions_of_span(
        self, text: str, start: int, stop: int, *, add_bos: bool | None = None
    ) -> tuple[int, int]:
        """The (first, last) token positions of the characters ``text[start:stop]``, BOS counted.

        Raises ``ValueError`` when no token holds any of them.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        prefix, _ = self._around(encoding.ids, add_bos)
        hits = [i for i, (a, b) in enumerate(encoding.offsets) if a < stop and b > start and a < b]
        if not hits:
            raise ValueError(f"No token of {text!r} holds {text[start:stop]!r}.")
        return len(prefix) + hits[0], len(prefix) + hits[-1]

    # Files

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], *, name: str = "") -> Tokenizer:
        """The tokenizer of a model folder as Hugging Face or `save` lays it out.

        Reads tokenizer.json, or vocab.json and merges.txt as the class that tokenizer_config.json
        (or config.json) names splits text, or BERT's vocab.txt; with them added_tokens.json,
        special_tokens_map.json and ``added_tokens_decoder``, whose tokens are never cut up.

        What is put around a prompt is what `save` wrote, or follows transformers 5.24:
        tokenizer.json's post-processor rules, and ``add_bos_token`` and ``add_eos_token`` of
        tokenizer_config.json are without effect beside a tokenizer.json, even one without a
        post-processor. They rule where there are vocab.json and merges.txt. Two classes differ:
        GPTNeoXTokenizer adds nothing to a tokenizer.json, BertTokenizer always its [CLS] and [SEP].

        Raises ``FileNotFoundError`` when the folder holds no tokenizer, and
        `jaxinterp.loading.LoadError` for files that are damaged, do not fit each other, or are of
        a layout that is not read (such as SentencePiece's tokenizer.model alone).
        """
        folder = Path(path)
        with damage_refused(path, "a folder with a tokenizer's files", "Download them again."):
            backend, policy = read_folder(folder)
            policy["name"] = name or policy.get("name", folder.resolve().name)
            return cls(backend, **policy)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `from_folder` reads back to an equal tokenizer."""
        folder = writable_folder(path)
        policy = json.dumps(self._policy(), indent=2) + "\n"
        for file, text in {"tokenizer.json": self.backend.to_str(), POLICY: policy}.items():
            with whole(folder / file) as part:
                part.write_text(text, encoding="utf-8")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted (Radford et al. 2019)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTES = _byte_alphabet()


def _show_bytes(piece: bytes) -> str:
    """Text, with ``<0xE2>`` for each byte that is only part of a character."""
    text = piece.decode("utf-8", "surrogateescape")  # such a byte becomes U+DC00 + byte
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
