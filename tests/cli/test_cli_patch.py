"""The commands end to end on a tiny model: what they write, and that a killed run resumes."""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray as xr

import jaxinterp as ji
from jaxinterp import patching, report
from jaxinterp.cli import main
from jaxinterp.files import LOCK, MARK
from jaxinterp.loading import models, registry
from jaxinterp.tasks import TASKS

PROGRAM = [sys.executable, "-c", "from jaxinterp.cli.main import run; run()"]


def run(tiny, out, *options):
    """Run the command; the results by site."""
    assert main(["patch", "--model", str(tiny), "--out", str(out), *map(str, options)]) == 0
    return {path.stem: ji.results.load(path) for path in sorted(out.glob("*.nc"))}


@pytest.fixture
def batches(monkeypatch):
    """The size of every batch that is really patched."""
    seen, original = [], patching._patch_batch

    def counted(model, clean, *rest):
        seen.append(len(clean))
        return original(model, clean, *rest)

    monkeypatch.setattr(patching, "_patch_batch", counted)
    return seen


def test_one_command_writes_everything(tiny, tmp_path, capsys):
    out = tmp_path / "deep" / "er"
    found = run(tiny, out, "--n", 5, "--batch", 2, "--seed", 3)
    printed, errors = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == [
        MARK, "report.html", "resid_pre.nc", "resid_pre.png", "z.nc", "z.png",
    ]  # fmt: skip
    for site in ("resid_pre", "z"):
        assert (out / f"{site}.png").read_bytes().startswith(b"\x89PNG")
        assert f"tiny · ioi · {site} · denoise · logit_diff · 5 prompts" in printed
        assert f"{site}: " in errors  # the bar
    assert "Loading" not in printed
    assert "Loading" in errors
    assert "experiments/s" in errors
    assert "clean_logit_diff" in errors
    assert f"Wrote resid_pre.nc, z.nc, report.html, resid_pre.png, z.png to {out}" in errors
    page = (out / "report.html").read_text()
    assert "resid_pre" in page
    assert "ioi: activation patching of tiny" in page

    # The numbers are those of the library, and the record is enough to have them again.
    model, tokenizer = ji.load(tiny)
    task = ji.tasks.make("ioi", tokenizer, n=5, seed=3)
    for site, dims in {"resid_pre": ("layer", "position"), "z": ("layer", "head")}.items():
        result = found[site]
        assert result.dims == (*dims, "prompt")
        record = result.attrs
        assert (record["model"], record["site"]) == ("tiny", site)
        assert (record["direction"], record["intervention"]) == ("denoise", "replace")
        assert (record["family"], record["n_prompts"]) == ("llama", 5)
        assert record["revision"] == model.revision
        assert (record["jax"], record["jaxinterp"]) == (jax.__version__, ji.__version__)
        assert tuple(json.loads(record["over"])) == dims
        assert json.loads(record["config"]) == json.loads(json.dumps(model.config.to_dict()))
        assert json.loads(record["task"]) == json.loads(json.dumps(task.record()))
        assert json.loads(record["metric"])["metric"] == "logit_diff"
        assert set(json.loads(record["ability"])) == set(ji.tasks.check(model, task))
        assert result.coords["clean_text"].values.tolist() == list(task.clean_text)
        expected = ji.patch(
            model, clean=task.clean, corrupted=task.corrupted, metric=task.metric, site=site,
            over=dims, batch=2,
        )  # fmt: skip
        np.testing.assert_allclose(result, expected, atol=1e-5)
        np.testing.assert_allclose(result.clean, expected.clean, atol=1e-5)
    assert found["resid_pre"].coords["position_token"].values[-1] == " to [END]"


def test_roles_and_the_other_direction(tiny, tmp_path):
    options = ["--n", 4, "--batch", 2, "--at", "roles", "--direction", "noise"]
    found = run(tiny, tmp_path, *options, "--site", "resid_pre", "--corruption", "abc")
    (result,) = found.values()
    roles = ["IO", "S1", "S1+1", "S2", "END"]
    assert result.coords["position"].values.tolist() == roles
    assert result.attrs["direction"] == "noise"
    assert json.loads(result.attrs["task"])["corruption"] == "abc"
    # The twins differ at S2 alone: what stands before it changes nothing.
    for role in roles[:2]:
        np.testing.assert_array_equal(result.sel(position=role)[0], result.clean)
    last = result.sel(position="END", layer=2)
    assert np.abs(last - result.clean).max() > 1e-3


def test_every_kind_of_axis(tiny, tmp_path):
    sites = ["q", "k", "v", "pattern", "mlp_post"]
    found = run(tiny, tmp_path, "--n", 2, "--batch", 2, "--site", *sites)
    assert {site: result.dims[:2] for site, result in found.items()} == {
        **dict.fromkeys(sites, ("layer", "head")), "mlp_post": ("layer", "neuron"),
    }  # fmt: skip
    assert {site: result.sizes["head"] for site, result in found.items() if site in "qkv"} == {
        "q": 4, "k": 2, "v": 2,
    }  # fmt: skip
    for site in sites:
        assert (tmp_path / f"{site}.png").exists()
        assert np.isfinite(found[site]).all()


def test_one_layer_by_its_transformerlens_name_and_axes_of_ones_own(tiny, tmp_path, capsys):
    names = ["blocks.1.attn.hook_z", "blocks.1.attn.hook_q"]
    found = run(tiny, tmp_path, "--n", 4, "--batch", 2, "--site", *names, "--over", "head")
    assert sorted(found) == sorted(names)  # each has a file of its own
    for name, result in found.items():
        assert result.dims == ("layer", "head", "prompt")
        assert result.layer.values.tolist() == [1]  # the heads of that layer, not of all
        assert (tmp_path / f"{name}.png").exists()
    assert "32.0/32.0" in capsys.readouterr().err  # 2 sites of 4 heads on 4 prompts


def test_without_matplotlib_only_the_pictures_are_missing(tiny, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec

    def without(name, *rest):
        return None if name == "matplotlib" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    run(tiny, tmp_path, "--n", 2, "--batch", 2, "--site", "z")
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK, "report.html", "z.nc"]
    assert "pip install 'jaxinterp[report]'" in capsys.readouterr().err


# Interrupted runs


def finished(out):
    """The finished batches of a run that is not done."""
    return [path.name for path in out.glob(".parts/[!.]*.npz")]


def test_a_killed_run_resumes_and_ends_the_same(tiny, tmp_path, batches):
    options = ["--n", "40", "--batch", "2", "--site", "resid_pre", "z"]
    out = tmp_path / "killed"
    command = [*PROGRAM, "patch", "--model", str(tiny), "--out", str(out), *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            limit = time.monotonic() + 120
            while not finished(out) and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.001)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    kept = len(finished(out))
    assert 0 < kept < 40
    assert {path.name for path in out.iterdir()} == {".parts", MARK, LOCK}

    resumed = run(tiny, out, *options)
    assert len(batches) == 40 - kept
    assert not (out / ".parts").exists()
    assert len(list(out.iterdir())) == 6

    batches.clear()
    undisturbed = run(tiny, tmp_path / "undisturbed", *options)
    assert len(batches) == 40
    for site, result in undisturbed.items():
        # Two processes may round differently while a machine is busy; nothing else may differ.
        xr.testing.assert_allclose(resumed[site], result, rtol=1e-4, atol=1e-4)
        assert resumed[site].attrs == result.attrs


def test_what_another_run_left_behind_is_not_taken(tiny, tmp_path, batches, monkeypatch, capsys):
    def fails(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(report, "write_report", fails)
        assert main([*["patch", "--n", "4", "--batch", "2", "--site", "z", "--model"], str(tiny),
                     "--out", str(out)]) == 130  # fmt: skip
    assert len(finished(out)) == len(batches) == 2
    for options in (["--seed", 1], ["--direction", "noise"], ["--corruption", "symmetric"]):
        batches.clear()
        copy = shutil.copytree(out, tmp_path / options[0])
        command = ["patch", "--model", tiny, "--out", copy, "--n", 4, "--batch", 2, "--site", "z"]
        assert main([*map(str, command), *map(str, options)]) == 2
        assert finished(copy) == finished(out)
        assert "the results of another run, of" in capsys.readouterr().err
        run(tiny, copy, "--n", 4, "--batch", 2, "--site", "z", *options, "--overwrite")
        assert len(batches) == 2
    batches.clear()
    run(tiny, out, "--n", 4, "--batch", 2, "--site", "z")
    assert batches == []


def test_a_damaged_piece_is_made_again(tiny, tmp_path, batches, monkeypatch):
    def fails(*_, **__):
        raise KeyboardInterrupt

    options = ["--n", "4", "--batch", "2", "--site", "z"]
    with monkeypatch.context() as broken:
        broken.setattr(report, "write_report", fails)
        command = ["patch", "--model", str(tiny), "--out", str(tmp_path), *options]
        assert main(command) == 130
    expected = ji.results.load(tmp_path / "z.nc")
    piece = tmp_path / ".parts" / sorted(finished(tmp_path))[0]
    piece.write_bytes(piece.read_bytes()[:-5])
    batches.clear()
    xr.testing.assert_identical(run(tiny, tmp_path, *options)["z"], expected)
    assert len(batches) == 1


# The other commands


def test_models_lists_every_name(capsys):
    assert main(["models"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == list(models())
    assert all(" MB; " in line for line in lines)


def test_fetch_prints_where_the_model_lies(tmp_path, monkeypatch, capsys):
    file = registry.File("toy.gguf", (), 7, hashlib.sha256(b"weights").hexdigest())
    model = registry.BuiltIn("a toy", "MIT", (), (file,), hub="nobody/toy")
    monkeypatch.setitem(registry.BUILT_IN, "toy", model)
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.gguf").write_bytes(b"weights")
    assert main(["fetch", "toy"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'toy' / 'toy.gguf'}\n"


def test_help_names_the_commands_and_options(capsys):
    for command, words in [
        (["--help"], ["patch", "models", "fetch"]),
        (["patch", "--help"], ["--model", "--site", "--over", "--direction", "--out", *TASKS]),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
