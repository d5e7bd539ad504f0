"""Files of every format, damaged in thousands of ways: an error that says so, or the right values.

A case is a valid file, one seeded damage (`fuzz_mutations`), and the library's public reader
(`fuzz_forms`), in a process that may take 2 GB more than it holds, `SECONDS` for a case. What may
come out: `LoadError`; values that equal the valid file's bit for bit; or other values that an
independent reading of the damaged file finds in it as well ("as the file says").
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

WORKER = Path(__file__).with_name("fuzz_worker.py")
SECONDS = 20  # for a case; the first also waits for the valid files
STARTING = 120
GOOD = ("equal", "as the file says", "LoadError")


def read(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that are whole."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def ran(folder: Path, first: int, last: int) -> list[dict[str, Any]]:
    """What came of the cases; a process that dies or hangs is replaced after that case."""
    found: list[dict[str, Any]] = []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"}
    while first < last:
        log = folder / f"log-{first}"
        given = [folder / "files", log, first, last]
        command = [sys.executable, str(WORKER), *map(str, given)]
        with (
            (folder / "errors").open("w") as errors,
            subprocess.Popen(command, env=environment, stderr=errors, text=True) as worker,
        ):
            fate = watched(worker, log)
        said = (folder / "errors").read_text(errors="replace")[-1500:]
        lines = read(log)
        found += [line for line in lines if "ends" in line]
        assert lines, f"no case began: {said}"
        first = lines[-1].get("ends", lines[-1].get("begins")) + 1
        if "begins" in lines[-1]:
            found.append({**lines[-1], "outcome": f"{fate}: {said}", "done": "", "file": ""})
        else:
            assert first == last, f"the process ended after case {first - 1}: {said}"
    return found


def watched(worker: subprocess.Popen[str], log: Path) -> str:
    """Wait for a worker, and stop it where a case takes too long. Returns how it ended."""
    size, since = 0, time.monotonic()
    while worker.poll() is None:
        time.sleep(0.05)
        grown = log.stat().st_size if log.exists() else 0
        if grown != size:
            size, since = grown, time.monotonic()
        if time.monotonic() - since > (SECONDS if size else STARTING):
            worker.kill()
            return f"no answer in {SECONDS} seconds"
    return f"ended with {worker.returncode}"


def table(found: list[dict[str, Any]]) -> str:
    """By format: how many files were damaged, and what came of them."""
    forms: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in found:
        kind = case["outcome"] if case["outcome"] in GOOD else "other"
        forms[case["form"]].update([kind, "cases"])
    total = sum(forms.values(), collections.Counter())
    columns = ("cases", *GOOD, "other")
    counted = [*forms.items(), ("all", total)]
    rows = [("format", *columns), *((name, *(n[c] for c in columns)) for name, n in counted)]
    return "\n".join(f"{name:24}" + "".join(f"{n!s:>18}" for n in cells) for name, *cells in rows)


def check(found: list[dict[str, Any]], least: int) -> None:
    print("\n" + table(found))
    bad = [case for case in found if case["outcome"] not in GOOD or case["seconds"] > SECONDS]
    said = [{k: str(v)[:600] for k, v in case.items()} for case in bad[:5]]
    assert not bad, f"{len(bad)} of {len(found)} files: {json.dumps(said, indent=1)}"
    assert sum(case["done"] != "unchanged" for case in found) >= least


def test_damaged_files_are_refused_or_read_right(tmp_path):
    found = ran(tmp_path, 0, 220)
    check(found, 200)
    outcomes = collections.Counter(case["outcome"] for case in found)
    assert min(outcomes[good] for good in GOOD) >= 10  # damage is neither always fatal nor never


@pytest.mark.long
def test_thousands_of_damaged_files(tmp_path):
    found = ran(tmp_path, 1000, 3400)
    check(found, 2000)


def test_a_judge_sees_numbers_that_are_not_in_the_file(tmp_path):
    import fuzz_forms
    import fuzz_valid

    fuzz_valid.torch(tmp_path)
    right = fuzz_forms.read_torch(tmp_path / "t.pt")
    assert fuzz_forms.judge_torch(tmp_path, right) == fuzz_forms.FITS
    wrong = {**right, "a.weight": right["a.weight"] + np.float32(1e-3)}
    assert "24 numbers that are not in the file" in fuzz_forms.judge_torch(tmp_path, wrong)


WORDS = """
import sys, time
from pathlib import Path
log = Path(sys.argv[1])
log.write_text('{"begins": 7, "form": "x"}\\n')
time.sleep(60) if sys.argv[2] == "hang" else sys.exit(3)
"""


@pytest.mark.parametrize(("how", "fate"), [("hang", "no answer"), ("crash", "ended with 3")])
def test_a_process_that_hangs_or_dies_is_noticed(tmp_path, monkeypatch, how, fate):
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 1)
    command = [sys.executable, "-c", WORDS, str(tmp_path / "log"), how]
    with subprocess.Popen(command, text=True) as worker:
        assert fate in watched(worker, tmp_path / "log")
    assert read(tmp_path / "log") == [{"begins": 7, "form": "x"}]
