"""The claims of docs/mechanisms: stated, and run again from their JSON to the same numbers."""

from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.loading.shipped import shipped

FOLDER = Path(__file__).parents[2] / "docs/mechanisms"
CLAIMS = sorted(path.parent.name for path in FOLDER.glob("*/claim.json"))
CLOSE = 2e-3  # of the range of an experiment's values, on another machine


def read(name):
    return ji.Claim.from_json((FOLDER / name / "claim.json").read_text(encoding="utf-8"))


def test_there_are_some():
    assert CLAIMS


@pytest.mark.parametrize("name", CLAIMS)
def test_the_report_says_what_the_claim_says(name):
    claim, report = read(name), (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert claim.text() in report
    assert claim.recipe.startswith("python scripts/")
    assert " s on " in claim.recipe
    assert claim.of_role("localization")
    assert claim.of_role("effect")
    assert (FOLDER / name / "claim.html").stat().st_size < 2e6
    assert not list(FOLDER.glob(f"{name}/*.nc"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if read(name).model["model"] in shipped() else pytest.mark.long)
        for name in CLAIMS
    ],
)
def test_it_runs_again_to_the_same_numbers(name):
    again = read(name).rerun(fetch=True)
    for experiment in again.experiments:
        spread = max(1, np.ptp([experiment.found.without, *experiment.found.values]))
        assert again.agreement[experiment.name] < CLOSE * spread, experiment.name
    assert not again.lacking()
