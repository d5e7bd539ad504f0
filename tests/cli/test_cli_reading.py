"""The commands that read and steer, on a tiny model: what they write is the library's own."""

import json

import numpy as np
import pytest
from small_models import only_long

import jaxinterp as ji
from jaxinterp import heads, lens, neurons, probes
from jaxinterp.cli import main
from jaxinterp.tasks.ioi import NAMES

PNG = b"\x89PNG"
TEXTS = [f"{name} went to the" for name in NAMES[:12]]


def run(command, out, *options):
    assert main([command, *map(str, options), "--out", str(out)]) == 0
    return {path.stem: ji.results.load(path) for path in sorted(out.glob("*.nc"))}


@pytest.fixture(scope="module")
def loaded(tiny):
    return ji.load(tiny)


@pytest.mark.parametrize("fitted", [False, True])
def test_lens(tiny, loaded, tmp_path, capsys, fitted):
    model, tokenizer = loaded
    made = lens.start_tuned(model)
    made = made.replace(b=made.b + np.random.default_rng(0).normal(size=made.b.shape))
    folder = lens.save(tmp_path / "fitted", made)
    options = ["--lens", folder] if fitted else []
    found = run("lens", tmp_path, "--text", *TEXTS[:2], "--model", tiny, *options)["lens"]
    expected = lens.read(model, tokenizer(TEXTS[:2]), made if fitted else None, tokenizer=tokenizer)
    np.testing.assert_allclose(found.kl, expected.kl, atol=1e-5)
    assert found.top_text.values.tolist() == expected.top_text.values.tolist()
    assert (tmp_path / "lens_1.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == model.config.n_layers + 1
    assert repr(str(expected.top_text.values[0, 0, -1, 0])) in printed[0]


def test_dla(tiny, loaded, tmp_path, capsys):
    model, tokenizer = loaded
    found = run("dla", tmp_path, "--model", tiny, "--n", "4", "--batch", "2", "--show", "3")["dla"]
    task = ji.tasks.make("ioi", tokenizer, n=4)
    metric = ji.evaluate(task.metric, model, task.clean)
    np.testing.assert_allclose(found.sum("component"), metric, atol=1e-4)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (tmp_path / "dla.png").read_bytes().startswith(PNG)


def test_heads(tiny, loaded, tmp_path, capsys):
    model, tokenizer = loaded
    found = run("heads", tmp_path, "--model", tiny, "--n", "3", "--length", "5", "--seed", "1")
    tokens = heads.repeated_tokens(model, n=3, length=5, seed=1, bos=tokenizer.bos)
    for kind in ("previous_token", "duplicate_token", "induction"):
        expected = heads.pattern_scores(model, tokens, kind)
        np.testing.assert_allclose(found[kind], expected, atol=1e-6)
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out.startswith("previous_token: ")
    assert "</html>" in (tmp_path / "attention.html").read_text()
    run(
        "heads", tmp_path, "--model", tiny, "--n", "1", "--length", "5", "--text", TEXTS[0],
        "--overwrite",
    )  # fmt: skip
    page = (tmp_path / "attention.html").read_text()
    shown = heads.attention(model, TEXTS[0], tokenizer=tokenizer).token.values
    assert all(json.dumps(token)[1:-1] in page for token in shown.tolist())


def test_neurons(tiny, loaded, tmp_path, capsys):
    model, tokenizer = loaded
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS * 3))
    out = tmp_path / "out"
    found = run(
        "neurons", out, "--corpus", corpus, "--layer", "1", "--neuron", "3", "0", "--model", tiny,
        "--k", "2", "--length", "6", "--batch", "2", "--batches", "4",
    )  # fmt: skip
    stream = list(ji.corpora.packed(TEXTS * 3, tokenizer, 6, 2))[:4]
    expected = neurons.top_examples(model, stream, k=2, layers=[1]).sel(neuron=[3, 0])
    np.testing.assert_allclose(found["examples"].value, expected.value, atol=1e-6)
    written = neurons.written_tokens(model, 1, [3, 0], k=2)
    np.testing.assert_array_equal(found["written"].token, written.token)
    assert "Neuron 1.3" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", only_long("jsonl")])
def test_probe(tiny, loaded, tmp_path, capsys, kind):
    model, tokenizer = loaded
    texts = TEXTS * 4
    labels = [str(i % 12 < 6) for i in range(len(texts))]
    data = tmp_path / f"data.{kind}"
    if kind == "csv":
        rows = [f"{t},{y}" for t, y in zip(texts, labels, strict=True)]
        data.write_text("\n".join(["text,label", *rows]))
    else:
        rows = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
        data.write_text("\n".join(map(json.dumps, rows)))
    found = run("probe", tmp_path, "--data", data, "--model", tiny, "--splits", "2")["probe"]
    tokens = tokenizer(texts)
    expected = probes.probe(
        ji.collect(model, tokens), np.asarray(labels), splits=2,
        baselines=probes.text_baselines(tokens),
    )  # fmt: skip
    np.testing.assert_allclose(found.accuracy, expected.accuracy)
    np.testing.assert_allclose(found.baseline, expected.baseline)
    assert (tmp_path / "probe.png").read_bytes().startswith(PNG)
    assert "bag_of_words" in capsys.readouterr().out


def test_steer(tiny, loaded, tmp_path, capsys):
    model, tokenizer = loaded
    pairs, prompts = tmp_path / "pairs.csv", tmp_path / "prompts.txt"
    pairs.write_text("positive,negative\n" + "\n".join(f"{n} went,{n} gave" for n in NAMES[:4]))
    prompts.write_text("\n".join(TEXTS[:3]))
    found = run(
        "steer", tmp_path, "--pairs", pairs, "--prompts", prompts, "--answer", " store", "--wrong",
        " park", "--layers", "1", "--coefficients", "0.5", "2", "--placebos", "2", "--model", tiny,
    )["steer"]  # fmt: skip
    sides = [
        ji.collect(model, tokenizer([f"{n} {verb}" for n in NAMES[:4]]), site="resid_post")
        for verb in ("went", "gave")
    ]
    direction = ji.directions.from_pairs(*sides)
    metric = ji.logit_diff(
        [tokenizer.single_token(" store")] * 3, [tokenizer.single_token(" park")] * 3
    )
    expected = ji.steer(
        model, tokenizer(TEXTS[:3]), metric, {"pairs": direction}, coefficients=(0.5, 2.0),
        layers=[1], placebos=2,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (tmp_path / "steer.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out.count("random") == 2


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("text,label\n", "d.csv", "has no rows"),
        ("text\nx\n", "d.csv", "Row 0 of"),
        ("text,label\nx,1\n", "d.txt", "must end in .csv or .jsonl"),
        ("text,label\nJohn,1\nMary,1\nAnna,1\n", "d.csv", "two classes"),
        (None, "d.csv", "There is no file"),
    ],
)
def test_bad_data(tiny, tmp_path, capsys, content, name, says):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert main(["probe", "--data", str(path), "--model", str(tiny)]) == 2
    assert says in capsys.readouterr().err
