"""Where commands write: one run's results to a folder, and nothing of anybody else's is touched."""

import io
import json
from pathlib import Path

import pytest

import jaxinterp as ji
from jaxinterp.cli import main, output
from jaxinterp.cli.streams import Steady
from jaxinterp.files import MARK

HOSTILE = [
    "notes.txt", "x.partial", ".manifest.1.json", "chunk-0.npy", "data/z.nc", "data/.x.partial",
    "store.json", "run.json", ".jaxinterp-notes", "deep/.parts/0123456789abcdef-00001.npz",
]  # fmt: skip
PATCH = ["patch", "--n", 2, "--batch", 2, "--site", "z"]
LENS = ["lens", "--text", "When Mary and John"]


def scatter(folder):
    for name in HOSTILE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def intact(folder):
    return all((folder / name).read_text() == f"mine: {name}" for name in HOSTILE)


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def run(tiny, capsys):
    """The exit code and what was said."""

    def call(*command, model=tiny):
        code = main([*map(str, command), "--model", str(model)])
        return code, capsys.readouterr().err.splitlines()[-1]

    return call


def commands(tmp_path):
    """Every command that writes to a folder, but for `sae`, on something small."""
    (tmp_path / "in").mkdir()
    places = {name: tmp_path / "in" / name for name in ("text.txt", "pairs.jsonl", "data.jsonl")}
    line = "When Mary and John went to the store, Mary gave a drink to John"
    places["text.txt"].write_text("\n".join([line] * 40))
    pair = {"positive": "When Mary", "negative": "When John"}
    places["pairs.jsonl"].write_text("\n".join([json.dumps(pair)] * 2))
    rows = [{"text": f"When {n} went", "label": n} for n in ("Mary", "John") for _ in range(8)]
    places["data.jsonl"].write_text("\n".join(map(json.dumps, rows)))
    small = ["--n", 2, "--batch", 2]
    return {
        "patch": PATCH, "lens": LENS,
        "ablate": ["ablate", *small, "--site", "z"],
        "attribute": ["attribute", *small, "--site", "z", "--method", "atp"],
        "edges": ["edges", *small, "--method", "eap"],
        "paths": ["paths", *small, "--receivers", "logits"],
        "discover": ["discover", *small, "--method", "eap", "--share", 0.5],
        "dla": ["dla", *small],
        "heads": ["heads", "--n", 1, "--length", 4],
        "neurons": ["neurons", "--corpus", places["text.txt"], "--layer", 0, "--neuron", 1,
                    "--length", 8, "--batch", 2, "--batches", 2],
        "probe": ["probe", "--data", places["data.jsonl"], "--splits", 1],
        "steer": ["steer", "--pairs", places["pairs.jsonl"], "--prompts", places["text.txt"],
                  "--answer", " Mary", "--wrong", " John", "--layers", 0, "--placebos", 1],
    }  # fmt: skip


NAMES = [
    "patch", "ablate", "attribute", "edges", "paths", "discover", "lens", "dla", "heads",
    "neurons", "probe", "steer",
]  # fmt: skip
SLOW = ("ablate", "edges", "paths", "discover", "neurons", "probe", "steer", "heads", "dla")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] if n in SLOW else []) for n in NAMES]
)
def test_a_persons_files_stay_and_the_same_command_may_be_given_again(run, tmp_path, name):
    command, out = commands(tmp_path)[name], tmp_path / "out"
    scatter(out)
    assert run(*command, "--out", out)[0] == 0
    assert intact(out)
    first = set(files_of(out))
    assert run(*command, "--out", out)[0] == 0
    assert set(files_of(out)) == first
    before = files_of(out)
    code, said = run(*command, "--out", out, *(["--colour", "kl"] if name == "lens" else
                     ["--seed", 3] if name in ("heads", "probe") else
                     ["--k", 3] if name == "neurons" else
                     ["--placebos", 2] if name == "steer" else ["--seed", 3]))  # fmt: skip
    assert code == 2
    assert "holds the results of another run, of" in said
    assert said.endswith("give another --out, or --overwrite.")
    assert files_of(out) == before
    assert run(*(PATCH if name != "patch" else LENS), "--out", out, "--overwrite")[0] == 0
    assert intact(out)
    ours = {*json.loads((out / MARK).read_text())["files"], MARK, *HOSTILE}
    assert set(files_of(out)) == ours
    assert not ((first - ours) & set(files_of(out)))


@pytest.mark.parametrize("mine", ["z.nc", "report.html", "own.png", ".parts/x.npy", "log.jsonl"])
def test_results_without_a_marker_are_somebody_elses(run, tmp_path, mine):
    scatter(tmp_path)
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    for options in ([], ["--overwrite"]):
        code, said = run(*PATCH, "--out", tmp_path, *options)
        assert code == 2
        assert "and nothing shows that jaxinterp wrote it: give another --out" in said
        assert (tmp_path / mine).read_text() == "mine"
        assert intact(tmp_path)
        assert not (tmp_path / MARK).exists()


def test_a_file_that_came_later_is_not_replaced(run, tmp_path):
    """The work is kept: moved away, the same command goes on from it."""
    assert run(*PATCH, "--out", tmp_path)[0] == 0
    (tmp_path / "resid_pre.nc").write_text("mine")
    again = [
        "patch",
        "--n",
        2,
        "--batch",
        2,
        "--site",
        "resid_pre",
        "--out",
        tmp_path,
        "--overwrite",
    ]
    code, said = run(*again)
    assert code == 2
    assert "resid_pre.nc is there, and nothing shows" in said
    assert (tmp_path / "resid_pre.nc").read_text() == "mine"
    assert list((tmp_path / ".parts").glob("*.npz"))
    (tmp_path / "resid_pre.nc").unlink()
    assert run(*again)[0] == 0


def test_other_weights_under_the_same_name_are_another_run(run, tiny, tmp_path):
    model = tmp_path / "model"
    net, tokenizer = ji.load(tiny)
    ji.save(model, net, tokenizer)
    assert run(*PATCH, "--out", tmp_path / "o", model=model)[0] == 0
    params = net.params.replace(embed=net.params.embed.replace(W_E=1.01 * net.params.embed.W_E))
    ji.save(model, net.replace(params=params), tokenizer, overwrite=True)
    code, said = run(*PATCH, "--out", tmp_path / "o", model=model)
    assert code == 2
    assert "the results of another run, of weights" in said
    before = files_of(tmp_path / "o")
    assert run(*PATCH, "--out", tmp_path / "o", "--overwrite", model=model)[0] == 0
    assert files_of(tmp_path / "o")["z.nc"] != before["z.nc"]


def test_results_are_written_before_they_are_printed(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxinterp.report.summary_table", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*map(str, PATCH), "--model", str(tiny), "--out", str(tmp_path / "o")])
    assert ji.results.load(tmp_path / "o" / "z.nc").sizes["prompt"] == 2


def test_a_command_that_fails_leaves_no_folder(run, tmp_path):
    for command in (PATCH, LENS):
        code, said = run(*command, "--out", tmp_path / "deep" / "er", model=tmp_path / "none")
        assert code == 2
        assert "none" in said
        assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_gone_is_another_setting(tmp_path):
    """It was something and is nothing now: an empty mapping, or not there at all."""
    for before, now in (({"a": 1}, {}), ({}, {"a": 1})):
        folder = tmp_path / str(before)
        with output.output(folder, "patch", {"options": before}, False) as out:
            (out / "z.nc").write_text("result")
        with (
            pytest.raises(FileExistsError, match="results of another run, of options"),
            output.output(folder, "patch", {"options": now}, False),
        ):
            pass
    output.begin(tmp_path / "script", "study", {"options": {"a": 1}, "seed": 0})
    for now in ({"options": {}, "seed": 0}, {"seed": 0}):
        with pytest.raises(SystemExit, match="made with options"):
            output.begin(tmp_path / "script", "study", now)


def test_the_folder_that_one_is_in_is_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("one")
    given = output._plain({"corpus": Path()})
    assert given != output._plain({"corpus": None})
    (tmp_path / "text.txt").write_text("two")
    assert output._plain({"corpus": Path()}) != given


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_letters_that_a_terminal_lacks_are_escaped(encoding):
    below = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    stream = Steady(below)
    assert stream.write("a \x81 \u4e2d") == 5
    stream.flush()
    assert stream.lost is None
    kept = "\x81" if encoding == "latin-1" else "\\x81"
    assert below.buffer.getvalue().decode(encoding) == f"a {kept} \\u4e2d"
