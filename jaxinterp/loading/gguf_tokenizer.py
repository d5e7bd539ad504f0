"""Tokenizers from the metadata of GGUF files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxinterp.reading import LoadError, damage_refused

if TYPE_CHECKING:
    from jaxinterp.tokens import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
LETTERS = 16 << 20  # of all tokens together
SPLITS = 1 << 28  # sum of the squares of their lengths: what finding the merges takes
MERGED = 64 << 20  # letters of all merges together

# How text is split before byte-level BPE, by tokenizer.ggml.pre. None: GPT-2's own pattern.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = "digits"  # every digit alone, then GPT-2's pattern
PRE_TOKENIZERS: dict[str, str | None] = {
    "gpt-2": None,
    "olmo": None,
    "phi-2": None,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}


def tokenizer_of(metadata: dict[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    Raises `LoadError` for a tokenizer model or a way of splitting text that is not known, and for
    tokens, merges and numbers that no tokenizer has.
    """
    with damage_refused(f"The tokenizer of {name}", "one that can be rebuilt"):
        return _rebuilt(metadata, name)


def _rebuilt(metadata: dict[str, Any], name: str) -> Tokenizer:
    """The tokenizer; damaged metadata raise errors of many kinds."""
    from jaxinterp.tokens import Tokenizer

    get = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    kind, pre = get.get("model"), get.get("pre")
    if kind not in ("gpt2", "llama") or "tokens" not in get:
        raise LoadError(
            f"The tokenizer {kind!r} of {name} is not supported: expected 'gpt2' (byte-level "
            "BPE) or 'llama' (SentencePiece BPE) with its tokens. Load the safetensors instead."
        )
    _check(get)
    architecture = metadata.get("general.architecture", "")
    backend = _byte_level(get, pre) if kind == "gpt2" else _sentencepiece(get, architecture)
    _add_special(backend, get, byte_level=kind == "gpt2")
    # What llama.cpp assumes of files that do not say.
    add_bos = get.get("add_bos_token", kind == "llama" or PRE_TOKENIZERS.get(pre or "") == _LLAMA3)
    bos = get.get("bos_token_id")
    ends = [get.get(f"{kind}_token_id") for kind in ("eos", "eot", "eom")]  # of text, turn, message
    return Tokenizer(
        backend,
        bos=bos,
        eos=get.get("eos_token_id"),
        pad=get.get("padding_token_id"),
        add_bos=bool(add_bos) and bos is not None,
        ends=tuple(dict.fromkeys(end for end in ends if end is not None)),
        name=name,
    )


def _check(get: dict[str, Any]) -> None:
    """Raises ``ValueError`` for lists of other kinds, and numbers of tokens that are not there."""
    kinds = {"tokens": str, "merges": str, "scores": float, "token_type": int}
    for field, kind in kinds.items():
        given = get.get(field, [])
        if not isinstance(given, list) or not all(type(each) is kind for each in given):
            raise ValueError(f"its {field} are no list of {kind.__name__}")
    tokens = get["tokens"]
    if sum(map(len, tokens)) > LETTERS or sum(map(len, get.get("merges", ()))) > MERGED:
        raise ValueError(f"its tokens have more than {LETTERS} letters, or its merges {MERGED}")
    for field in ("bos", "eos", "eot", "eom", "padding", "unknown"):
        index = get.get(f"{field}_token_id")
        if index is not None and (type(index) is not int or not 0 <= index < len(tokens)):
            raise ValueError(f"its {field}_token_id is {index!r:.40} of {len(tokens)} tokens")


def _byte_level(get: dict[str, Any], pre: str | None) -> Any:
    """GPT-2's kind: bytes written as printable characters, merges from the file."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if pre not in PRE_TOKENIZERS:
        raise LoadError(
            f"The pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not known: expected one of "
            f"{', '.join(PRE_TOKENIZERS)}. Load the safetensors instead."
        )
    vocab = {token: index for index, token in enumerate(get["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in get["merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    split = PRE_TOKENIZERS[pre]
    steps: list[Any] = []
    if split == _DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif split is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"))
    own = split in (None, _DIGITS)
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(get: dict[str, Any], architecture: str) -> Any:
    """SentencePiece's BPE with byte fallback; its merges follow from the vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    gemma = architecture.startswith("gemma")
    tokens = get["tokens"]
    if gemma:  # runs of spaces are stored as spaces, looked up as U+2581
        tokens = ["▁" * len(s) if " " in s and not s.strip() else s for s in tokens]
    vocab = {token: index for index, token in enumerate(tokens)}
    # Gemma's merges are ordered by token id, the others' by score.
    score = (
        {s: -float(i) for s, i in vocab.items()}
        if gemma
        else dict(zip(tokens, get["scores"], strict=True))
    )
    unknown = get.get("unknown_token_id")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, score),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
    elif architecture == "phi3":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        decode.append(decoders.Strip(content=" ", left=1))
    else:
        prefix = get.get("add_space_prefix", True)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first" if prefix else "never", split=False
        )
        if prefix:
            decode.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(decode)
    return backend


def _merges(vocab: dict[str, int], score: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a token from two tokens, best score first, as transformers derives it.

    Raises ``ValueError`` where these are more than any tokenizer has.
    """
    if sum(len(token) ** 2 for token in vocab) > SPLITS:
        raise ValueError("its tokens are too long to be made from others")
    found, letters = [], 0
    for token, value in score.items():
        pairs = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab
        ]
        letters += len(pairs) * len(token)
        if letters > MERGED:
            raise ValueError(f"its merges have more than {MERGED} letters")
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(*pair, value) for pair in pairs]
    found.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return [(left, right) for left, right, _ in found]


def _add_special(backend: Any, get: dict[str, Any], byte_level: bool) -> None:
    """Control tokens are special, user-defined ones plain; neither is ever cut in pieces."""
    import tokenizers

    def added(kind: int) -> list[Any]:
        return [
            tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, its in zip(get["tokens"], get.get("token_type") or (), strict=False)
            if its == kind and backend.token_to_id(token) is not None
        ]

    backend.add_special_tokens(added(CONTROL))
    backend.add_tokens(added(USER_DEFINED))
