"""The tokenizer that a model's folder describes, read as transformers 5.24 reads it.

tokenizer.json says everything, or vocab.json and merges.txt (vocab.txt) say the vocabulary and the
class of the tokenizer how text is split. Other layouts are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jaxinterp.reading import JSON_BYTES, LoadError, read_json_object, regular_file

Template = tuple[tuple[int, ...], tuple[int, ...]]
Files = dict[str, dict[str, Any]]  # the JSON files beside a vocabulary, {} where there is none

LARGEST = 10_000_000  # id of a token
POLICY = "jaxinterp_tokenizer.json"  # beside tokenizer.json: what `Tokenizer.save` adds

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_FILES = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "added_tokens")
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

# The class that the reference takes for a model_type where the folder names none, or (`_FORCED`)
# whatever it names; a backend reads tokenizer.json as it stands.
_BACKENDS = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")
_CLASSES = {
    "gpt2": "GPT2Tokenizer", "gptj": "GPT2Tokenizer", "opt": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "gemma2": "GemmaTokenizer", "gemma3": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
    "bert": "BertTokenizer", "phi3": _BACKENDS[0], "olmo2": _BACKENDS[0], "mistral": _BACKENDS[0],
}  # fmt: skip
_FORCED = ("qwen2",)

# Special tokens that a class has where the folder names none.
_END = "<|endoftext|>"
_DEFAULTS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "GPTNeoXTokenizer": {
        "bos_token": _END, "eos_token": _END, "unk_token": _END, "pad_token": "<|padding|>",
    },
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "BertTokenizer": {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
}  # fmt: skip
_TWO_FILES = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
_ELSEWHERE = ("*.model", "tekken.json", "*.tiktoken")  # vocabularies in other formats

# Options that change how text is split, at the one value that is supported.
_FIXED: dict[str, Any] = {
    "split_special_tokens": False, "do_basic_tokenize": True, "never_split": None,
    "word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece",
}  # fmt: skip


def read_folder(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The backend of a folder's tokenizer, and the options that `Tokenizer` takes with it.

    Raises ``FileNotFoundError`` where the folder holds no tokenizer, and `LoadError` for one that
    is damaged, contradicts itself, or is of a kind that is not read.
    """
    if (folder / POLICY).exists():
        if not (folder / "tokenizer.json").exists():
            raise LoadError(
                f"{folder} has {POLICY} but lacks the tokenizer.json that belongs to it."
            )
        own = _tokenizer_json(folder / "tokenizer.json")
        _check_ids(own, folder)
        return own, read_json_object(folder / POLICY)
    files = {name: _json(folder / f"{name}.json") for name in _FILES}
    options = files["tokenizer_config"]
    for key, value in _FIXED.items():
        if options.get(key, value) not in (value, [] if value is None else value):
            raise LoadError(
                f"{folder / 'tokenizer_config.json'} says {key}={options[key]!r}, which is not "
                f"supported; expected {value!r}."
            )
    kind = _class(files)
    backend = _backend(folder, kind, options)
    _check_ids(backend, folder)
    named = _special(files, kind, backend)
    _add(backend, [*_declared(files, named), *_extra(named)], folder)
    ids = {key: backend.token_to_id(_content(token)) for key, token in named.items()
           if key in _NAMED}  # fmt: skip
    rules = (folder / "tokenizer.json").exists()
    policy: dict[str, Any] = {
        key: ids.get(f"{key}_token", _id_in(files, key, backend)) for key in ("bos", "eos", "pad")
    }
    policy["template"] = _template(backend, kind, options, ids, from_backend=rules)
    policy["ends"] = _ends(files, policy["eos"], backend)
    return backend, policy


def _check_ids(backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Raises `LoadError` for an id beyond all vocabularies: the backend makes lists as long."""
    largest = max(backend.get_vocab().values(), default=0)
    if largest > LARGEST:
        raise LoadError(f"{folder} has a token with the id {largest}, expected at most {LARGEST}.")


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _class(files: Files) -> str:
    """The class that the reference reads a folder with."""
    model_type = files["config"].get("model_type")
    said = files["tokenizer_config"].get("tokenizer_class") or files["config"].get(
        "tokenizer_class"
    )
    if model_type is None and said is None:  # GPT-2's two files, or tokenizer.json alone
        return "GPT2Tokenizer" if not files["tokenizer_config"] else _BACKENDS[0]
    usual = _CLASSES.get(model_type) if isinstance(model_type, str) else None
    if not isinstance(said, str) or (usual and model_type in _FORCED):
        return usual or _BACKENDS[0]
    said = said.removesuffix("Fast")
    return _BACKENDS[0] if said in _BACKENDS or usual == _BACKENDS[0] else said


# Vocabularies


def _backend(folder: Path, kind: str, options: dict[str, Any]) -> tokenizers.Tokenizer:
    """What splits text, without the tokens that other files add."""
    vocab, merges, words = (folder / f for f in ("vocab.json", "merges.txt", "vocab.txt"))
    if (folder / "tokenizer.json").exists():
        return _tokenizer_json(folder / "tokenizer.json")
    if vocab.exists() and merges.exists() and kind in _TWO_FILES:
        return _byte_level(vocab, merges, kind, options)
    if words.exists() and kind == "BertTokenizer":
        return _word_piece(words, options)
    there = [path for path in (vocab, merges, words) if path.exists()]
    there += sorted(path for pattern in _ELSEWHERE for path in folder.glob(pattern))
    if there:
        raise LoadError(
            f"{folder} describes a {kind} by {', '.join(path.name for path in there)}, which is "
            "not supported: expected tokenizer.json, or vocab.json and merges.txt of "
            f"{', '.join(_TWO_FILES)}, or vocab.txt of BertTokenizer. Load it once with "
            "transformers and save it (save_pretrained), which writes tokenizer.json, or move "
            "these files away to load a model without its tokenizer."
        )
    raise FileNotFoundError(
        f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt."
    )


def _tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    text = regular_file(path, JSON_BYTES).read_text(encoding="utf-8")
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the backend raises bare Exception
        raise LoadError(f"{path} is not a tokenizer file: {error}") from error


def _byte_level(
    vocab: Path, merges: Path, kind: str, options: dict[str, Any]
) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2, GPT-NeoX and Qwen 2 split text."""
    model = models.BPE.from_file(str(regular_file(vocab)), str(regular_file(merges)))
    backend = tokenizers.Tokenizer(model)
    space = bool(options.get("add_prefix_space"))
    if kind != "GPT2Tokenizer":
        backend.normalizer = normalizers.NFC()
    if kind == "Qwen2Tokenizer":
        split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_piece(words: Path, options: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's WordPiece."""
    unknown = _content(options.get("unk_token") or "[UNK]")
    model = models.WordPiece.from_file(str(regular_file(words)), unk_token=unknown)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


# Special and added tokens


def _content(token: Any) -> str:
    """The text of a token, as a string or as the object that files write."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        raise LoadError(f"A tokenizer's file names the token {token!r}, expected its text.")
    return text


def _special(files: Files, kind: str, backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The named tokens and the lists of further ones, by key.

    special_tokens_map.json counts where tokenizer_config.json has no ``added_tokens_decoder``; a
    class's defaults count where the vocabulary holds them.
    """
    given = dict(files["tokenizer_config"])
    if "added_tokens_decoder" not in given:
        given |= files["special_tokens_map"]
    found = {
        key: token
        for key, token in _DEFAULTS.get(kind, {}).items()
        if key not in given and backend.token_to_id(token) is not None
    }
    for key, value in given.items():
        listed = key in ("additional_special_tokens", "extra_special_tokens")
        if value and (listed or (key.endswith("_token") and not isinstance(value, bool))):
            found[key] = value
    return {key: found[key] for key in (*_NAMED, *found) if key in found}


def _extra(named: dict[str, Any]) -> Iterator[tuple[None, tokenizers.AddedToken]]:
    """Every special token there is a name for, in the order in which the reference adds them."""
    for value in named.values():
        if isinstance(value, dict) and "content" not in value:
            value = list(value.values())
        for token in value if isinstance(value, list) else [value]:
            yield None, _token(token, special=True)


def _declared(files: Files, named: dict[str, Any]) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    """The added tokens that files give ids, in their order."""
    decoder = files["tokenizer_config"].get("added_tokens_decoder")
    if decoder is not None:
        try:
            entries = sorted((int(index), token) for index, token in decoder.items())
        except (AttributeError, TypeError, ValueError) as error:
            raise LoadError(
                f"added_tokens_decoder of tokenizer_config.json is no table of tokens: {error}."
            ) from error
        for index, token in entries:
            yield index, _token(token, special=False)
        return
    special = {token.content for _, token in _extra(named)}
    for text, index in files["added_tokens"].items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise LoadError(
                f"added_tokens.json gives {text!r} the id {index!r}, expected a whole number: "
                "download it again."
            )
    for text, index in sorted(files["added_tokens"].items(), key=lambda entry: entry[1]):
        its = text in special
        yield index, tokenizers.AddedToken(text, normalized=not its, special=its)


def _token(token: Any, special: bool) -> tokenizers.AddedToken:
    """A token as a file writes it: a string, or an object with its flags."""
    text, flags = _content(token), dict(token) if isinstance(token, dict) else {}
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    given = {name: bool(flags[name]) for name in names if name in flags}
    return tokenizers.AddedToken(
        text, **{**given, "special": special or given.get("special", False)}
    )


def _add(
    backend: tokenizers.Tokenizer,
    wanted: list[tuple[int | None, tokenizers.AddedToken]],
    folder: Path,
) -> None:
    """Add tokens that the backend does not have, which are then never cut in pieces."""
    there = {known.content for known in backend.get_added_tokens_decoder().values()}
    new: dict[str, tokenizers.AddedToken] = {}
    for _, token in wanted:
        if token.content not in there:
            new.setdefault(token.content, token)
    backend.add_tokens(list(new.values()))  # at once: the backend goes over all for each call
    for index, token in wanted:
        if index is not None and (got := backend.token_to_id(token.content)) != index:
            raise LoadError(
                f"The files of {folder} give {token.content!r} the id {index}, which the "
                f"vocabulary gives {got}: they do not belong together."
            )


# Around a prompt, and at its end


def _template(
    backend: tokenizers.Tokenizer,
    kind: str,
    options: dict[str, Any],
    ids: dict[str, int | None],
    from_backend: bool,
) -> Template:
    """The ids around every prompt; see `Tokenizer.from_folder`."""

    def one(key: str, flag: str) -> tuple[int, ...]:
        if not options.get(flag, False):
            return ()
        if (found := ids.get(key)) is None:
            raise LoadError(f"tokenizer_config.json says {flag}, but no file names a {key}.")
        return (found,)

    if kind == "BertTokenizer":
        first, last = (ids.get(f"{key}_token") for key in ("cls", "sep"))
        if first is not None and last is not None:
            return (first,), (last,)
    if kind == "GPTNeoXTokenizer" and from_backend:
        return (), ()
    if from_backend:
        return _added_by(backend)
    return one("bos_token", "add_bos_token"), one("eos_token", "add_eos_token")


def _added_by(backend: tokenizers.Tokenizer) -> Template:
    """The (prefix, suffix) that a post-processor of any kind adds, found by asking it."""
    if backend.post_processor is None:
        return (), ()
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    for probe in ("a", *sorted(backend.get_vocab())):
        if backend.encode(probe, add_special_tokens=False).ids:
            break
    encoding = backend.encode(probe)
    real = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return tuple(encoding.ids[: real[0]]), tuple(encoding.ids[real[-1] + 1 :])


def _listed(files: Files, kind: str) -> list[Any]:
    """The ids of a kind in generation_config.json, or else in config.json."""
    for file in ("generation_config", "config"):
        value = files[file].get(f"{kind}_token_id")
        if value is not None:
            return value if isinstance(value, list) else [value]
    return []


def _id_in(files: Files, kind: str, backend: tokenizers.Tokenizer) -> int | None:
    """The id of a kind that the model's own files give, where the tokenizer's name none."""
    first = next(iter(_listed(files, kind)), None)
    known = isinstance(first, int) and first >= 0 and backend.id_to_token(first) is not None
    return first if known else None


def _ends(files: Files, eos: int | None, backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Every id that ends a text: the tokenizer's, and all that the model's files list.

    An id beyond both the vocabulary and the model is no token and left out.
    """
    width = files["config"].get("vocab_size")
    size = max(backend.get_vocab_size(), width if isinstance(width, int) else 0)
    listed = [i for i in _listed(files, "eos") if isinstance(i, int) and 0 <= i < size]
    return tuple(dict.fromkeys([*([] if eos is None else [eos]), *listed]))
