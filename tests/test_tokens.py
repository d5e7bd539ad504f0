"""Text to tokens and back, against a trained byte-level BPE and small hand-made vocabularies."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxinterp.tokens import Tokenizer, as_tokens

END = "<|endoftext|>"
CORPUS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "naïve café 日本",
] * 20


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def sentencepiece() -> tokenizers.Tokenizer:
    """Llama 2's kind: a space before every prompt, bytes as a fallback, BOS by post-processor."""
    words = ["▁Mary", "▁gave", "▁x", "▁", "M", "a", "r", "y", "g", "v", "e", "x"]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *words])}
    vocab |= {f"<0x{b:02X}>": len(vocab) + b for b in range(256)}
    merges = []
    for word in words[:3]:
        for i in range(2, len(word) + 1):
            vocab.setdefault(word[:i], len(vocab))
            merges.append((word[: i - 1], word[i - 1]))
    merges = list(dict.fromkeys(merges))
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    return backend


def wordpiece() -> tokenizers.Tokenizer:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "mary", "gave", "a", "drink", "##ing", ",", "b"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(vocab[:4])
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    backend = byte_level()
    end = backend.token_to_id(END)
    return Tokenizer(backend, bos=end, eos=end, name="tiny")


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return Tokenizer(sentencepiece(), bos=1, eos=2, add_bos=True, name="sp")


# The policy on added tokens


def test_bos_is_added_exactly_once_and_shows(bpe):
    with_bos = Tokenizer(bpe.backend, bos=bpe.bos, add_bos=True)
    bare = bpe.encode("Mary gave")
    assert bpe.bos not in bare
    assert with_bos.encode("Mary gave") == [bpe.bos, *bare]
    assert with_bos.encode(END + "Mary gave") == [bpe.bos, *bare]
    assert bpe.encode("Mary gave", add_bos=True) == [bpe.bos, *bare]
    assert with_bos.encode("Mary gave", add_bos=False) == bare
    assert "add_bos=True" in repr(with_bos)
    assert "add_bos=False" in repr(bpe)
    assert END in repr(bpe)


def test_a_post_processor_is_never_relied_on(llama):
    without = Tokenizer(sentencepiece(), bos=1)
    assert llama.encode("Mary")[0] == 1
    assert llama.encode("Mary").count(1) == 1
    assert 1 not in without.encode("Mary")


def test_template_surrounds_the_prompt():
    bert = Tokenizer(wordpiece(), template=((2,), (3,)))
    assert bert.encode("Mary gave") == [2, 4, 5, 3]
    assert bert.encode("[CLS] mary gave [SEP]") == [2, 4, 5, 3]
    assert bert.encode("Mary gave", add_bos=False) == [4, 5]
    assert "prefix=2:'[CLS]'" in repr(bert)
    assert "suffix=3:'[SEP]'" in repr(bert)


def test_bos_that_does_not_exist_is_refused(bpe):
    with pytest.raises(ValueError, match="needs a BOS"):
        Tokenizer(bpe.backend, add_bos=True)
    with pytest.raises(ValueError, match="needs a BOS"):
        Tokenizer(bpe.backend)("Mary", add_bos=True)
    for bad in (99999, -1):
        with pytest.raises(ValueError, match=f"Special token {bad} is outside"):
            Tokenizer(bpe.backend, bos=bad)


def test_truncation_and_padding_of_the_backend_are_off():
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    assert Tokenizer(backend).decode(Tokenizer(backend).encode("Mary gave")) == "Mary gave"
    assert len(Tokenizer(backend).encode("Mary gave")) > 2
    assert backend.truncation is not None  # the caller's own is left alone


# Batches


@pytest.mark.parametrize("padding", ["right", "left"])
def test_batches_carry_their_padding(bpe, padding):
    texts = ["Mary", "Mary gave a drink to John"]
    tokens = bpe(texts, padding=padding)
    assert tokens.ids.dtype == tokens.positions.dtype == np.int32
    for row, text in enumerate(texts):
        real = tokens.mask[row]
        assert tokens.ids[row][real].tolist() == bpe.encode(text)
        assert tokens.positions[row][real].tolist() == list(range(real.sum()))
        assert (tokens.positions[row][~real] == -1).all()
        assert (tokens.ids[row][~real] == bpe.eos).all()
    assert tokens.mask[0][0 if padding == "right" else -1]
    assert as_tokens(tokens) is tokens


def test_one_text_is_a_batch_of_one(bpe):
    assert bpe("Mary").shape[0] == 1
    assert bpe(["Mary", "Mary"], padding="none").mask.all()


def test_bad_batches_are_refused(bpe):
    with pytest.raises(ValueError, match="no prompts"):
        bpe([])
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        bpe(["Mary", ""])
    with pytest.raises(TypeError, match="Prompt 0 is int"):
        bpe([3])
    with pytest.raises(ValueError, match="padding='both'"):
        bpe("Mary", padding="both")
    with pytest.raises(ValueError, match=r"'Mary' has \d+ tokens, 'Mary gave a' has") as error:
        bpe(["Mary", "Mary gave a"], padding="none")
    assert "padding='right'" in str(error.value)
    with pytest.raises(ValueError, match="has no tokens"):
        Tokenizer(wordpiece())([" "])


# Text of tokens


def test_split_characters_show_as_bytes(bpe):
    shown = bpe.str_tokens("Mary 😀")
    assert shown[-4:] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert len(shown) == len(bpe.encode("Mary 😀"))
    assert bpe.decode(bpe.encode("Mary 😀")) == "Mary 😀"


def test_pieces_keep_their_spaces(bpe, llama):
    assert "".join(bpe.str_tokens("When Mary and John went")) == "When Mary and John went"
    assert bpe.str_tokens(END + "Mary")[0] == END
    assert llama.str_tokens("Mary gave") == ["<s>", " Mary", " gave"]
    assert llama.str_tokens("é", add_bos=False)[-2:] == ["<0xC3>", "<0xA9>"]
    assert Tokenizer(wordpiece()).str_tokens("drinking") == ["drink", "##ing"]


def test_ids_outside_the_vocabulary(bpe):
    assert bpe.str_tokens([bpe.vocab_size + 5]) == [f"<unused {bpe.vocab_size + 5}>"]
    assert bpe.str_tokens(bpe.bos) == [END]
    assert bpe.decode([bpe.vocab_size + 5]) == f"<unused {bpe.vocab_size + 5}>"
    with pytest.raises(ValueError, match="negative"):
        bpe.str_tokens([-1])
    with pytest.raises(ValueError, match="one prompt"):
        bpe.str_tokens(bpe(["Mary", "John"]).ids)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_byte_level_text_survives(text):
    tokenizer = Tokenizer(_SHARED)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.str_tokens(text)) == len(tokenizer.encode(text))


_SHARED = byte_level()


# Words and places


def test_single_tokens(bpe, llama):
    assert bpe.str_tokens([bpe.single_token(" Mary")]) == [" Mary"]
    assert bpe.is_single_token(" John")
    assert not bpe.is_single_token(" Zebedee")
    with pytest.raises(ValueError, match="tokens in tiny") as error:
        bpe.single_token(" Zebedee")
    assert "Choose another word" in str(error.value)
    # SentencePiece: the word after a space, although a prompt gets a space of its own.
    assert llama.single_token(" Mary") == llama.encode("x Mary")[-1]
    assert len(llama.backend.encode(" Mary", add_special_tokens=False)) > 1


def test_the_remedy_is_named():
    vocab = {"[UNK]": 0, " Mary": 1, "John": 2}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r" ?\w+"), "isolated")
    words = Tokenizer(backend)
    assert words.single_token(" Mary") == 1
    with pytest.raises(ValueError, match="' Mary', with a leading space, is one"):
        words.single_token("Mary")
    with pytest.raises(ValueError, match="'John', without its leading space, is one"):
        words.single_token(" John")
    with pytest.raises(ValueError, match="not in the vocabulary"):
        words.single_token("Zed")
    with pytest.raises(ValueError, match="0 tokens"):
        words.single_token("")


@pytest.mark.parametrize("kind", ["bpe", "llama"])
def test_positions_of_counts_the_bos(kind, request):
    tokenizer = request.getfixturevalue(kind)
    text = "Mary gave x to Mary"
    pieces = tokenizer.str_tokens(text)
    first, last = tokenizer.positions_of(text, "Mary", 1)
    assert "".join(pieces[first : last + 1]).strip() == "Mary"
    assert last == len(pieces) - 1
    begin, end = tokenizer.positions_of(text, "Mary")
    assert "".join(pieces[begin : end + 1]).strip() == "Mary"
    assert begin == int(tokenizer.add_bos)


def test_positions_of_covers_every_piece(bpe):
    text = "a 😀 b"
    first, last = bpe.positions_of(text, "😀")
    assert bpe.str_tokens(text)[last] == "<0x80>"
    shown = bpe.positions_of(text, "😀", add_bos=True)
    assert shown == (first + 1, last + 1)
    for substring, occurrence in [("Zed", 0), ("a", 1), ("a", -1), ("", 0)]:
        with pytest.raises(ValueError, match="occurs"):
            bpe.positions_of(text, substring, occurrence)
    with pytest.raises(ValueError, match="No token"):
        Tokenizer(wordpiece()).positions_of("mary gave", " ")


# Files


def test_saved_tokenizers_reload_equal(bpe, llama, tmp_path):
    for i, tokenizer in enumerate([bpe, llama, Tokenizer(wordpiece(), template=((2,), (3,)))]):
        tokenizer.save(tmp_path / str(i))
        again = Tokenizer.from_folder(tmp_path / str(i))
        assert again == tokenizer
        assert hash(again) == hash(tokenizer)
        assert again.encode("Mary gave") == tokenizer.encode("Mary gave")
    assert bpe != llama
    assert bpe != "bpe"


def write(folder, backend, **config):
    backend.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(folder)


def test_folder_policies(tmp_path):
    plain = write(tmp_path, byte_level(), bos_token={"content": END}, eos_token=END)
    assert (plain.bos, plain.add_bos) == (plain.eos, False)
    assert plain.bos == plain.backend.token_to_id(END)
    # As in the reference, the flags are without effect beside a tokenizer.json.
    flags = {"add_bos_token": True, "add_eos_token": True}
    assert write(tmp_path, byte_level(), bos_token=END, **flags).template == ((), ())
    assert write(tmp_path, sentencepiece(), bos_token="<s>").prefix == (1,)
    assert write(tmp_path, sentencepiece(), bos_token="<s>", add_bos_token=False).prefix == (1,)
    bert = write(tmp_path, wordpiece(), cls_token="[CLS]", pad_token="[PAD]")
    assert (bert.template, bert.pad, bert.name) == (((2,), (3,)), 0, tmp_path.name)


def test_config_json_is_the_last_resort(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [0, 3]}))
    tokenizer = write(tmp_path, byte_level())
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 0, None)


def test_gpt2_layout(bpe, tmp_path):
    bpe.backend.model.save(str(tmp_path))
    tokenizer = Tokenizer.from_folder(tmp_path, name="gpt2")
    assert (tokenizer.bos, tokenizer.add_bos, tokenizer.name) == (bpe.bos, False, "gpt2")
    text = f"When Mary{END} and 😀"
    assert tokenizer.encode(text) == bpe.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":')
    with pytest.raises(ValueError, match="not a tokenizer file"):
        Tokenizer.from_folder(tmp_path)
