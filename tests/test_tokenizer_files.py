"""A folder's tokenizer files against transformers: every layout, flag and class, or refused."""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

import pytest

from jaxinterp.loading import LoadError
from jaxinterp.loading.gguf_tokenizer import tokenizer_of
from jaxinterp.tokens import Tokenizer

LOADING = Path(__file__).parent / "loading"
sys.path.append(str(LOADING))
import tiny_folders  # noqa: E402

GOLDENS = json.loads((LOADING / "goldens/tokenizers.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", sorted(tiny_folders.CASES))
def test_folders_read_as_in_the_reference(kind, tmp_path):
    cases, goldens = list(tiny_folders.CASES[kind]()), GOLDENS[kind]
    assert len(cases) == len(goldens)
    read = 0
    for i, (case, expected) in enumerate(zip(cases, goldens, strict=True)):
        assert not isinstance(expected, str), f"the reference refuses case {i}: {expected}"
        tokenizer = Tokenizer.from_folder(tiny_folders.write(tmp_path / str(i), case))
        got = [_with_both(tokenizer, text) for text in tiny_folders.texts(case)]
        assert got == expected, (i, case["files"])
        read += len(got)
    print(f"{kind}: {len(cases)} folders, {read} texts")


def _with_both(tokenizer, text):
    """The ids as the reference makes them, which also doubles what a prompt begins with."""
    bare = tokenizer.encode(text, add_bos=False)
    return [*tokenizer.prefix, *bare, *tokenizer.suffix]


def test_flags_are_without_effect_beside_a_post_processor():
    """The rule itself, on the reference's own numbers: 11 classes x 5 post-processors."""
    by = collections.defaultdict(set)
    for case, ids in zip(tiny_folders.policies(), GOLDENS["policies"], strict=True):
        files = case["files"]
        key = (files.get("config", {}).get("model_type"), case["post"],
               files["tokenizer_config"].get("tokenizer_class"))  # fmt: skip
        by[key].add(tuple(ids[0]))
    assert len(by) == 55
    assert all(len(found) == 1 for found in by.values())
    added = {key[0] for key, found in by.items() if key[1] == "bos" and next(iter(found))[0] == 0}
    assert added == {"gpt2", "opt", "llama", "qwen2", "olmo2", "mistral", None}  # no gpt_neox


def test_an_opt_folder(tmp_path):
    """Special tokens are matched whole, and a BOS comes in front of them all the same."""
    case = next(
        case
        for case in tiny_folders.two_files()
        if case["files"]["tokenizer_config"].get("add_bos_token")
    )
    tokenizer = Tokenizer.from_folder(tiny_folders.write(tmp_path, case))
    assert tokenizer.encode("</s>The cat", add_bos=False) == [2, 265, 263]
    assert tokenizer.encode("The cat") == [2, 265, 263]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (2, 2, 1)


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        (("tokenizer.model",), {"tokenizer_class": "LlamaTokenizer"}, "Tokenizer by tokenizer.mod"),
        (("vocab.json", "merges.txt"), {"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer"),
        (("vocab.json", "merges.txt"), {"tokenizer_class": "CLIPTokenizer"}, "a CLIPTokenizer"),
        (("vocab.json",), {"tokenizer_class": "GPT2Tokenizer"}, "by vocab.json, which is not"),
        (("vocab.txt",), {"tokenizer_class": "EsmTokenizer"}, "an? EsmTokenizer by vocab.txt"),
        (("tekken.json",), {}, "by tekken.json"),
        (("vocab.json", "merges.txt"), {"tokenizer_class": "GPT2Tokenizer",
                                        "split_special_tokens": True}, "split_special_tokens=True"),
        (("vocab.json", "merges.txt"), {"tokenizer_class": "GPT2Tokenizer", "bos_token": None,
                                        "add_bos_token": True}, "no file names a bos_token"),
        (("vocab.json", "merges.txt"), {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder":
                                        {"999": {"content": "<new>"}}}, "'<new>' the id 999"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused_by_name(files, config, message, tmp_path):
    tiny_folders.write(tmp_path / "two", {"layout": "two", "files": {}})
    for file in files:
        source = tmp_path / "two" / file
        text = source.read_text("utf-8") if source.exists() else "{}"
        (tmp_path / file).write_text(text, "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_what_save_wrote_is_whole(tmp_path):
    case = {"layout": "json", "post": "none", "files": {}}
    tokenizer = Tokenizer.from_folder(tiny_folders.write(tmp_path / "a", case))
    tokenizer.save(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"lacks the tokenizer\.json that belongs to it"):
        Tokenizer.from_folder(tmp_path / "b")


def _with_added(folder, added):
    tiny_folders.write(folder, {"layout": "two", "files": {}})
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


def test_added_tokens_come_by_their_numbers(tmp_path):
    """Also 6,400 of them, in a moment."""
    plain = Tokenizer.from_folder(_with_added(tmp_path / "a", {}))
    first = plain.backend.get_vocab_size()
    added = {f"<new{i}>": first + i for i in reversed(range(6400))}
    assert len({len(str(i)) for i in added.values()}) > 1
    start = time.perf_counter()
    found = Tokenizer.from_folder(_with_added(tmp_path / "b", added))
    assert time.perf_counter() - start < 5
    assert all(found.backend.token_to_id(text) == index for text, index in added.items())
    for bad in (True, "7", 7.0, None):
        with pytest.raises(LoadError, match=f"the id {bad!r}, expected a whole number"):
            Tokenizer.from_folder(_with_added(tmp_path / "c", {"<a>": first, "<b>": bad}))


# The ends of texts


def test_all_ids_of_a_list_end_a_text(tmp_path):
    case = {"layout": "json", "post": "none", "files": {
        "tokenizer_config": {"eos_token": "</s>"},
        "generation_config": {"eos_token_id": [0, 5, 2, 999]},
        "config": {"eos_token_id": 7, "vocab_size": 300},
    }}  # fmt: skip
    tokenizer = Tokenizer.from_folder(tiny_folders.write(tmp_path / "a", case))
    assert (tokenizer.eos, tokenizer.ends) == (2, (2, 0, 5))  # 999 is no token of the model
    assert "ends=2:'</s>' 0:'<s>' 5:" in repr(tokenizer)
    tokenizer.save(tmp_path / "b")
    again = Tokenizer.from_folder(tmp_path / "b")
    assert again == tokenizer
    assert again.ends == tokenizer.ends
    del case["files"]["generation_config"]
    assert Tokenizer.from_folder(tiny_folders.write(tmp_path / "c", case)).ends == (2, 7)
    assert Tokenizer(tokenizer.backend).ends == ()
    assert Tokenizer(tokenizer.backend, eos=2).ends == (2,)
    with pytest.raises(ValueError, match="ends=-1, expected a whole number of at least 0"):
        Tokenizer(tokenizer.backend, ends=[-1])


def test_ids_beyond_the_vocabulary_are_shown(tmp_path):
    case = {"layout": "json", "post": "none", "files": {}}
    tokenizer = Tokenizer.from_folder(tiny_folders.write(tmp_path, case))
    ids = tokenizer.encode("The cat")
    assert tokenizer.decode([*ids, 50_300, 50_301, *ids]) == (
        "The cat<unused 50300><unused 50301>The cat"
    )
    assert tokenizer.decode([50_300]) == tokenizer.str_tokens([50_300])[0]
    assert tokenizer.decode([]) == ""
    with pytest.raises(ValueError, match="-1 is negative"):
        tokenizer.decode([*ids, -1])
    with pytest.raises(ValueError, match="expected integer ids"):
        tokenizer.decode([0.5])


def test_gguf_files_list_their_ends():
    metadata = {
        "model": "gpt2", "pre": "gpt-2", "tokens": list(tiny_folders.vocabulary()),
        "merges": [" ".join(pair) for pair in tiny_folders.MERGES],
        "bos_token_id": 0, "eos_token_id": 2, "eot_token_id": 4, "eom_token_id": 2,
    }  # fmt: skip
    tokenizer = tokenizer_of({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}, "tiny")
    assert (tokenizer.eos, tokenizer.ends) == (2, (2, 4))
