"""The tutorials run to their end, are all listed, and become notebooks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[1] / "docs/tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))


def run(command, folder):
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    assert run([sys.executable, path], tmp_path).strip()


def test_they_are_listed_in_order():
    listed = re.findall(r"^(\d+)\. \[.+\]\((.+\.py)\)", (FOLDER / "README.md").read_text(), re.M)
    assert [name for _, name in listed] == [path.name for path in TUTORIALS]
    assert [int(number) for number, _ in listed] == list(range(1, 1 + len(TUTORIALS)))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_becomes_a_notebook(path, tmp_path):
    notebook = jupytext.read(path)
    jupytext.write(notebook, tmp_path / "one.ipynb")
    again = jupytext.read(tmp_path / "one.ipynb")
    kinds = [cell.cell_type for cell in again.cells]
    assert kinds == [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert kinds.count("code") >= 3
    assert path.read_text().count("# %%") == len(kinds)
