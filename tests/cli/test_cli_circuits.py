"""The commands of the causal toolbox on a tiny model: what they write is the library's own."""

import json

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import circuits
from jaxinterp.cli import main


def run(command, tiny, out, *options):
    known = ["--model", str(tiny), "--n", "4", "--batch", "2", "--out", str(out)]
    assert main([command, *map(str, options), *known]) == 0
    return {path.stem: ji.results.load(path) for path in sorted(out.glob("*.nc"))}


@pytest.fixture(scope="module")
def job(tiny):
    model, tokenizer = ji.load(tiny)
    task = ji.tasks.make("ioi", tokenizer, n=4)
    return model, task, {"clean": task.clean, "corrupted": task.corrupted, "metric": task.metric}


def test_edges(tiny, job, tmp_path, capsys):
    found = run("edges", tiny, tmp_path)
    expected = circuits.patch_edges(job[0], **job[2])
    np.testing.assert_allclose(found["edges"], expected, atol=1e-5)
    assert found["edges"]["sender"].values.tolist() == expected["sender"].values.tolist()
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    printed, errors = capsys.readouterr()
    assert "edge" in printed
    assert "edges/s" in errors
    estimate = run("edges", tiny, tmp_path / "eap", "--method", "eap")
    guess = circuits.attribute_edges(job[0], **job[2])
    np.testing.assert_allclose(estimate["edges"], guess, atol=1e-5)


def test_paths(tiny, job, tmp_path):
    found = run("paths", tiny, tmp_path, "--receivers", "a1.h0<q>", "logits", "--through", "mlps")
    expected = circuits.patch_paths(
        job[0], **job[2], receivers=["a1.h0<q>", "logits"], through=["mlps"]
    )
    np.testing.assert_allclose(found["paths"], expected, atol=1e-5)
    assert (tmp_path / "paths.png").exists()
    assert "paths into" in (tmp_path / "report.html").read_text()


def test_discover_and_evaluate(tiny, job, tmp_path, capsys):
    found = run("discover", tiny, tmp_path, "--share", 0.2, "--threshold", 0.01)
    circuit = circuits.Circuit.load(tmp_path / "circuit.json", job[0])
    assert 0 < len(circuit) <= 0.2 * circuit.graph.n_edges + 1
    (row,) = json.loads((tmp_path / "faithfulness.json").read_text())
    assert row["edges"] == len(circuit)
    exact = circuits.evaluate_circuits(job[0], [circuit], **job[2])
    np.testing.assert_allclose(found["circuits"], exact, atol=1e-5)
    assert row["faithfulness"] == pytest.approx(float(circuits.faithfulness(exact)[0]), abs=1e-4)
    capsys.readouterr()
    again = run("evaluate", tiny, tmp_path / "again", "--circuit", tmp_path / "circuit.json")
    np.testing.assert_allclose(again["circuits"], exact, atol=1e-5)
    assert "faithfulness" in capsys.readouterr().out


def test_ablate(tiny, job, tmp_path):
    found = run("ablate", tiny, tmp_path, "--site", "z", "--value", "zero")
    expected = ji.ablate(job[0], tokens=job[1].clean, metric=job[1].metric, value="zero")
    np.testing.assert_allclose(found["z"], expected, atol=1e-5)
    assert (tmp_path / "z.png").exists()
    assert "zero ablation" in (tmp_path / "report.html").read_text()


def test_attribute(tiny, job, tmp_path, capsys):
    found = run("attribute", tiny, tmp_path, "--site", "z", "--method", "atp", "ig")
    assert set(found) == {"z.atp", "z.ig", "z.exact"}
    exact = ji.patch(job[0], **job[2], site="z", over=("layer", "head"))
    np.testing.assert_allclose(found["z.exact"], exact, atol=1e-5)
    assert found["z.atp"].dims == exact.dims
    assert (tmp_path / "z.scatter.png").exists()
    assert "atp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["discover", "--share", "2"], "at most 1"),
        (["paths", "--receivers", "a9.h9<q>"], "does not read"),
        (["edges", "--n", "0"], "at least 1"),
        (["evaluate", "--circuit", "nowhere.json"], "nowhere.json"),
        (["ablate", "--task", "sums"], "not a task"),
    ],
)
def test_bad_input(tiny, tmp_path, capsys, command, says):
    assert main([*command, "--model", str(tiny), "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
