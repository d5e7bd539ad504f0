"""Runs that are cut short, for real: interrupts, kills, a full disk, two at once, no reader.

Each is a process of its own on a tiny model. Whatever happens, the exit code says so, there is a
sentence and no traceback, and the same command ends as a run that was left alone.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.cli import main
from jaxinterp.files import LOCK, MARK
from jaxinterp.tasks.ioi import NAMES, PLACES

PROGRAM = [sys.executable, "-X", "faulthandler", "-c", "from jaxinterp.cli.main import run; run()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text to train on, and a cache of compiled programs."""
    folder, rng = tmp_path_factory.mktemp("interrupted"), np.random.default_rng(0)
    words = [[str(rng.choice(kind)) for kind in (NAMES, NAMES, PLACES)] for _ in range(150)]
    lines = [f"When {a} and {b} went to the {place}, {b} gave a drink" for a, b, place in words]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def commands(tiny, place):
    """A sweep of 100 pieces, and a training of 6 chunks and 15 checkpoints."""
    sweep = ["patch", "--model", tiny, "--n", 100, "--batch", 1, "--site", "z"]
    train = [
        "sae", "train", "--model", tiny, "--corpus", place / "text.txt", "--layer", 1, "--tokens",
        700, "--length", 9, "--batch", 64, "--epochs", 4, "--save-every", 3, "--activation",
        "topk", "--k", 2, "--width", 24,
    ]  # fmt: skip
    return {"patch": list(map(str, sweep)), "train": list(map(str, train))}


@pytest.fixture
def begin(place):
    """Starts a command; programs are compiled by the first and found by the others."""
    started = []

    def start(command, out, stdout=subprocess.PIPE, shell="", environment=None):
        """shell: what a shell does before, such as a limit."""
        given = {"JAX_COMPILATION_CACHE_DIR": str(place / "programs"), "JAX_PLATFORMS": "cpu",
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                 "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **(environment or {})}  # fmt: skip
        process = subprocess.Popen(
            ["sh", "-c", f'{shell}exec "$@"', "sh", *PROGRAM, *command, "--out", str(out)],
            stdout=stdout, stderr=subprocess.PIPE, text=True, env={**os.environ, **given},
            cwd=place,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process, code, *words, without=("Traceback", "Fatal Python error")):
    """Its end: the exit code, what it said, and what it must not say."""
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == code, errors[-3000:]
    assert all(word in errors for word in words), errors[-3000:]
    assert not any(word in errors for word in without), errors[-3000:]
    return printed, errors


def finish(command, out):
    """Give the command (again), to its end."""
    assert main([*command, "--out", str(out)]) == 0


def work(out):
    """How much a run has kept so far."""
    chunks = out / "activations" / "chunks.jsonl"
    lines = chunks.read_text().count("\n") if chunks.exists() else 0
    try:
        steps = json.loads((out / "checkpoint" / "run.json").read_text())["step"]
    except FileNotFoundError:  # none yet, or the folder is being replaced at this moment
        steps = 0
    return len(list(out.glob(".parts/[0-9a-f]*.npz"))) + lines + steps


def loaded(process, out, least=1):
    """Wait until a run has kept so much, or has ended."""
    limit = time.monotonic() + 100
    while work(out) < least and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)


@pytest.fixture
def alone(commands, place):
    """The folder of the same command, left alone; made once."""

    def made(kind):
        out = place / f"alone-{kind}"
        if not out.exists():
            finish(commands[kind], out)
        return out

    return made


def same(found, expected):
    """The same files with the same results."""
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (found, expected)]
    assert [n for n in names[0] if "/d/" not in n] == [n for n in names[1] if "/d/" not in n]
    for path in found.glob("*.nc"):
        one, other = ji.results.load(path), ji.results.load(expected / path.name)
        xr.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        rounded = ("ability",)  # numbers of another process
        assert {k: v for k, v in one.attrs.items() if k not in rounded} == {
            k: v for k, v in other.attrs.items() if k not in rounded
        }
    for path in found.glob("dictionaries/*"):
        one, other = (sae.load(f / "dictionaries" / path.name) for f in (found, expected))
        np.testing.assert_allclose(one.params.W_dec, other.params.W_dec, atol=1e-4)


def listening(process):
    """Wait until the program listens to signals: Python itself, which starts it, does not."""
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        caught = Path(f"/proc/{process.pid}/status").read_text().split("SigCgt:")[1].split()[0]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def cut_short(begin, command, out, number, times, seed):
    """Stop one run again and again at random moments; the exit codes and how far it was."""
    rng, codes, reached = random.Random(seed), collections.Counter(), []
    for _ in range(times):
        before = work(out)
        process = begin(command, out)
        listening(process)
        loaded(process, out, before + rng.randrange(4))
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
        codes[process.returncode] += 1
        assert "Traceback" not in errors, errors[-3000:]
        if process.returncode == 128 + number:
            assert errors.endswith(
                "jaxinterp: interrupted; the same command goes on where it was, or begins again.\n"
            )
            assert not (out / LOCK).exists()
        if process.returncode == 0:
            break
        assert work(out) >= before  # nothing is lost
        reached.append(work(out))
    return codes, reached


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


@pytest.mark.parametrize(
    ("kind", "number", "times"),
    [
        ("patch", signal.SIGINT, 2),
        pytest.param("train", signal.SIGKILL, 2, marks=pytest.mark.long),
        *(
            pytest.param(kind, number, 10, marks=pytest.mark.long)
            for kind in ("patch", "train")
            for number in SIGNALS
        ),
    ],
)
def test_a_run_that_is_stopped_goes_on(begin, commands, alone, tmp_path, kind, number, times):
    out = tmp_path / "out"
    codes, reached = cut_short(begin, commands[kind], out, number, times, seed=times)
    print(f"{times} times {number.name}, {kind}: exit codes {dict(codes)}, kept {reached}")
    assert set(codes) <= {SIGNALS[number], 0}
    assert codes[SIGNALS[number]] >= times // 2
    finish(commands[kind], out)
    same(out, alone(kind))


def test_stopped_before_anything_is_kept_nothing_is_left(begin, commands, tmp_path):
    out = tmp_path / "deep" / "out"
    process = begin(commands["patch"], out)
    limit = time.monotonic() + 60
    while not (out / MARK).exists() and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    end(process, 130, "jaxinterp: interrupted")
    assert not out.parent.exists()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["patch", "train"])
def test_a_full_disk(begin, commands, alone, tmp_path, kind):
    """A limit of what a file may hold: the first that is larger cannot be written."""
    blocks, out = {"patch": 6, "train": 18}[kind], tmp_path / "out"  # of 512 bytes
    unlike = {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    process = begin(commands[kind], out, shell=f"ulimit -f {blocks}; ", environment=unlike)
    _, errors = end(process, 2, "could not be written (File too large)", "Make room")
    print(f"{kind}: {errors.splitlines()[-1]}")
    assert work(out) > 0
    finish(commands[kind], out)
    same(out, alone(kind))


def test_two_at_once(begin, commands, alone, tmp_path):
    out = tmp_path / "out"
    first = begin(commands["patch"], out)
    loaded(first, out)
    first.send_signal(signal.SIGSTOP)  # the second is slow to begin
    second = begin(commands["patch"], out)
    _, errors = end(second, 2, f"is written to by process {first.pid}", "wait for its end")
    print(errors.splitlines()[-1])
    first.send_signal(signal.SIGCONT)
    end(first, 0)
    same(out, alone("patch"))


# What becomes of the terminal


SHORT = ["--n", "2", "--batch", "2", "--site", "z"]


@pytest.fixture
def short(tiny):
    return ["patch", "--model", str(tiny), *SHORT]


def files_in(out):
    return sorted(path.name for path in out.iterdir())


LATER = ("closed", "full")
ALL = [MARK, "report.html", "z.nc", "z.png"]


def test_a_terminal_of_ascii(begin, short, tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    printed, _ = end(begin(short, tmp_path / "out", environment=ascii_only), 0)
    assert files_in(tmp_path / "out") == ALL
    assert "\\xb7 z \\xb7 denoise" in printed


@pytest.mark.parametrize(
    "what", ["pipe", *(pytest.param(w, marks=pytest.mark.long) for w in LATER)]
)
def test_nobody_reads_what_is_printed(begin, short, tmp_path, what):
    out = tmp_path / "out"
    if what == "pipe":  # as `| head -0`
        reading, writing = os.pipe()
        os.close(reading)
        process = begin(short, out, stdout=writing)
        os.close(writing)
        end(process, 0)
    elif what == "closed":  # as `>&-`
        end(begin(short, out, shell="exec >&-; "), 0)
    else:
        with open("/dev/full", "w") as full:
            process = begin(short, out, stdout=full)
        end(process, 2, "What is printed was lost", "No space left on device")
    assert files_in(out) == ALL
