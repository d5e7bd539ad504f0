"""`jaxinterp sae ...` on a tiny model: what is written is the library's own."""

import json
import re
import sys

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.cli import main
from jaxinterp.report import features
from jaxinterp.sae.study import study_features
from jaxinterp.tasks.ioi import NAMES, PLACES

PNG = b"\x89PNG"
LAYER, LENGTH, WIDTH = 1, 9, 24
# 4 chunks of 16 blocks of 8 tokens each are 512 examples, twice, in batches of 64: 16 steps.
SIZES = ["--tokens", 500, "--length", LENGTH, "--batch", 64, "--epochs", 2, "--save-every", 4]
STEPS = 16
FRONT = ["--activation", "topk", "--k", 2, 4, "--seeds", 2, "--width", WIDTH]
MEMBERS = ["k2-seed0", "k2-seed1", "k4-seed0", "k4-seed1"]


def run(command, *options):
    return main(["sae", command, *map(str, options)])


def lines(seed, n=120):
    rng = np.random.default_rng(seed)
    words = [[str(rng.choice(kind)) for kind in (NAMES, NAMES, PLACES)] for _ in range(n)]
    return [f"When {a} and {b} went to the {place}, {b} gave a drink" for a, b, place in words]


@pytest.fixture(scope="module")
def loaded(tiny):
    return ji.load(tiny)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Text to train on, and other text."""
    folder = tmp_path_factory.mktemp("corpora")
    for seed, name in enumerate(("train.txt", "test.txt")):
        (folder / name).write_text("\n".join(lines(seed)))
    return folder / "train.txt", folder / "test.txt"


@pytest.fixture(scope="module")
def command(tiny, corpora):
    return ["--model", tiny, "--corpus", corpora[0], "--layer", LAYER, *SIZES, *FRONT]


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The folder of a front of four."""
    out = tmp_path_factory.mktemp("sae") / "run"
    assert run("train", *command, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def batches(loaded, corpora):
    """Two batches of four held-out blocks."""
    return list(ji.corpora.packed(lines(1), loaded[1], LENGTH, 4))[:2]


def values(model, batches, *sites):
    """What stands at sites of the layer, without first tokens, from whole forward runs."""
    out = []
    for tokens in batches:
        found = ji.forward(model, tokens, record=sites).activations
        each = [np.asarray(found[site][LAYER][:, 1:]) for site in sites]
        out.append(tuple(v.reshape(-1, v.shape[-1]) for v in each))
    return out


def same(one, other, atol=1e-6):
    for name, value in vars(one.params).items():
        if value is not None:
            np.testing.assert_allclose(value, getattr(other.params, name), atol=atol)


# Training


def test_a_front_is_what_the_library_trains(loaded, trained, tmp_path):
    model, tokenizer = loaded
    x = np.concatenate([
        v for v, in values(model, list(ji.corpora.packed(lines(0), tokenizer, LENGTH, 16))[:4],
                           "resid_post")
    ])  # fmt: skip
    store = sae.open_store(trained / "activations")
    kept = np.concatenate([store.chunk(i) for i in range(store.chunks)])
    np.testing.assert_allclose(kept, x, rtol=1e-3, atol=1e-5)  # float16
    config = sae.DictionaryConfig(
        x.shape[1], WIDTH, activation="topk", model=model.name, site="resid_post", layers=(LAYER,)
    )
    expected = sae.train(
        config, store.batches(64), sae.TrainingConfig(STEPS, dead_after=200_000),
        sae.Hyperparameters(4e-4, k=[2, 2, 4, 4], seed=[0, 1, 0, 1]),
        scaling=sae.measure_scaling(kept, kept), log_every=4,
    )  # fmt: skip
    assert sorted(path.name for path in (trained / "dictionaries").iterdir()) == MEMBERS
    for name, d in zip(MEMBERS, expected.dictionaries, strict=True):
        found = sae.load(trained / "dictionaries" / name, form="saelens")
        same(found, d)
        assert found.k == int(name[1])
        assert (found.config.site, found.config.layers) == ("resid_post", (LAYER,))
    history = ji.results.load(trained / "history.nc")
    assert history.member.values.tolist() == MEMBERS
    np.testing.assert_allclose(history.explained, expected.history.explained, atol=1e-5)
    told = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [3, 7, 11, 15]
    np.testing.assert_allclose([line["l0"] for line in told], expected.history.l0, atol=1e-6)
    assert (trained / "front.png").read_bytes().startswith(PNG)


def test_the_same_command_goes_on(command, trained, tmp_path, monkeypatch, capsys):
    from jaxinterp.sae import run as room

    advance, calls = room.advance, []

    def watched(*args, stop=None, **options):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        return advance(*args, **options)

    out = tmp_path / "run"
    monkeypatch.setattr(room, "advance", lambda *a, **o: watched(*a, stop=10, **o))
    assert run("train", *command, "--out", out) == 130
    assert not (out / "dictionaries").exists()
    calls.clear()
    capsys.readouterr()
    monkeypatch.setattr(room, "advance", watched)
    assert run("train", *command, "--out", out) == 0
    assert len(calls) == STEPS - 8  # the checkpoint was at 8
    for name in MEMBERS:
        path = f"dictionaries/{name}/sae_weights.safetensors"
        assert (out / path).read_bytes() == (trained / path).read_bytes()
    printed = capsys.readouterr().out.splitlines()
    last = ji.results.load(trained / "history.nc").isel(step=-1)
    assert printed[0].split() == ["L0", "explained", "dead"]
    for name, row in zip(MEMBERS, printed[1:], strict=True):
        own = last.sel(member=name)
        assert row.split() == [
            name, f"{float(own.l0):.2f}", f"{float(own.explained):.4f}", f"{float(own.dead):.1%}"
        ]  # fmt: skip
    calls.clear()
    assert run("train", *command, "--out", out) == 0
    assert not calls


def test_a_transcoder_is_trained_and_measured(tiny, loaded, corpora, batches, tmp_path, capsys):
    out = tmp_path / "run"
    options = [
        "--model", tiny, "--corpus", corpora[0], "--layer", LAYER, *SIZES, "--kind", "transcoder",
        "--site", "mlp_in", "--target", "mlp_out", "--activation", "jumprelu", "--sparsity", 0.5,
        "--target-l0", 3, "--width", WIDTH,
    ]  # fmt: skip
    assert run("train", *options, "--out", out) == 0
    folder = out / "dictionaries" / "sparsity0.5-l0_3-seed0"
    d = sae.load(folder)
    assert (d.config.kind, d.config.activation, d.config.target) == (
        "transcoder", "jumprelu", "mlp_out",
    )  # fmt: skip
    capsys.readouterr()
    measure = ["--model", tiny, "--corpus", corpora[1], "--length", LENGTH, "--batch", 4]
    assert run("evaluate", folder, *measure, "--blocks", 8, "--out", tmp_path / "e") == 0
    own = ji.results.load(tmp_path / "e" / "reconstruction.nc")
    expected = sae.reconstruction(d, values(loaded[0], batches, "mlp_in", "mlp_out"))
    np.testing.assert_allclose(own.explained, expected.explained, rtol=1e-4)
    assert not (tmp_path / "e" / "loss.nc").exists()
    assert "an SAE's; this is a transcoder" in capsys.readouterr().err


def test_logs_for_tensorboard(command, tmp_path):
    assert run("train", *command, "--tensorboard", tmp_path / "tb", "--out", tmp_path / "o") == 0
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == MEMBERS


def test_logs_for_tensorboard_need_its_package(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert run("train", *command, "--tensorboard", tmp_path / "tb", "--out", tmp_path / "o") == 2
    assert "pip install 'jaxinterp[tensorboard]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Measuring


def test_evaluate_is_the_librarys(tiny, loaded, trained, corpora, batches, tmp_path, capsys):
    path = trained / "dictionaries" / "k4-seed1"
    assert run(
        "evaluate", path, "--model", tiny, "--corpus", corpora[1], "--length", LENGTH, "--batch",
        4, "--blocks", 8, "--out", tmp_path,
    ) == 0  # fmt: skip
    d, x = sae.load(path), [v for (v,) in values(loaded[0], batches, "resid_post")]
    own = sae.reconstruction(d, x)
    loss = sae.loss_recovered(loaded[0], d, batches, np.concatenate(x).mean(0))
    told = json.loads((tmp_path / "evaluation.json").read_text())
    printed = capsys.readouterr().out
    for name, expected in (("reconstruction", own), ("loss", loss)):
        kept = ji.results.load(tmp_path / f"{name}.nc")
        assert set(told[name]) == {n for n, v in expected.data_vars.items() if not v.dims}
        for n, value in expected.data_vars.items():
            np.testing.assert_allclose(kept[n], value, rtol=1e-4, atol=1e-6)
            if not value.dims:
                assert told[name][n] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
                assert f"{n} {told[name][n]:.4g}" in printed
    assert told["corpus"] == str(corpora[1])


def test_where_a_dictionary_reads_may_be_given(tiny, trained, corpora, tmp_path, capsys):
    path = trained / "dictionaries" / "k4-seed0"
    d = sae.load(path)
    bare = d.replace(config=sae.DictionaryConfig(
        d.config.d_in, WIDTH, activation="topk", subtract_bias=d.config.subtract_bias
    ))  # fmt: skip
    sae.save(tmp_path / "bare", bare)
    options = [
        "--model", tiny, "--corpus", corpora[1], "--length", LENGTH, "--batch", 4, "--blocks", 4,
    ]  # fmt: skip
    out = ["--out", tmp_path / "e"]
    assert run("evaluate", tmp_path / "bare", *options, *out) == 2
    assert "do not tell where it reads: give --site and --layer" in capsys.readouterr().err
    where = ["--site", "resid_post", "--layer", LAYER]
    assert run("evaluate", tmp_path / "bare", *options, *where, *out) == 0
    assert run("evaluate", path, *options, "--out", tmp_path / "f") == 0
    one, other = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in "ef")
    assert one["loss"] == other["loss"]


def test_a_page_of_features(tiny, loaded, trained, corpora, batches, tmp_path, monkeypatch, capsys):
    path = trained / "dictionaries" / "k4-seed0"
    options = [
        "--model", tiny, "--corpus", corpora[1], "--length", LENGTH, "--batch", 4, "--blocks", 8,
        "--k", 3,
    ]  # fmt: skip
    write, kept = features.write_features, []
    monkeypatch.setattr(
        features, "write_features", lambda s, *a, **o: kept.append(s) or write(s, *a, **o)
    )
    page = tmp_path / "page.html"
    assert run("dashboard", path, *options, "--features", 3, 5, "--out", page) == 0
    assert "</html>" in page.read_text()
    assert f"Features at resid_post {LAYER} of tiny" in page.read_text()
    d = sae.load(path)
    effects = sae.feature_effects(loaded[0], d, batches[0], [3, 5])
    expected = study_features(loaded[0], d, batches, features=[3, 5], k=3, effects=effects)
    for name, value in expected.data_vars.items():
        np.testing.assert_allclose(kept[0][name], value, atol=1e-5)
    again = ["dashboard", path, *options, "--show", 2, "--effects", 0]
    assert run(*again, "--out", page) == 2
    assert f"{page} exists: give another --out, or --overwrite" in capsys.readouterr().err
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert run(*again, "--out", mine, "--overwrite") == 2
    assert "is not a page that jaxinterp wrote" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert run(*again, "--out", page, "--overwrite") == 0
    alive = np.flatnonzero(
        sae.reconstruction(d, [x for (x,) in values(loaded[0], batches, "resid_post")]).density
    )
    assert f"{len(alive)} of {WIDTH} features are active, 2 are shown" in capsys.readouterr().err
    assert set(kept[1].feature.values) <= set(alive)
    assert "effect" not in kept[1]


# Converting


@pytest.mark.parametrize("form", ["jaxinterp", "sparsify", "dictionary-learning"])
def test_convert(trained, tmp_path, capsys, form):
    path = trained / "dictionaries" / "k2-seed1"
    assert run("convert", path, tmp_path / "new", "--form", form) == 0
    d, new = sae.load(path), sae.load(tmp_path / "new", form=form)
    x = 10 * np.random.default_rng(0).normal(size=(50, d.config.d_in)).astype(np.float32)
    np.testing.assert_allclose(new.encode(x), d.encode(x), atol=1e-4)
    said = capsys.readouterr().out
    assert "with 2.0 active features each" in said
    assert float(re.search(r"at most (\S+)", said)[1]) < 1e-4
    assert said.endswith("0 are active in one only.\n")
    assert run("convert", path, tmp_path / "new", "--form", form) == 2
    assert "exists" in capsys.readouterr().err
    assert run("convert", path, tmp_path / "new", "--form", form, "--overwrite") == 0


def test_the_check_of_a_conversion_sees_what_is_wrong(trained, tmp_path, monkeypatch, capsys):
    save = sae.save

    def wrong(path, d, **options):
        scaled = {name: 1.5 * np.asarray(getattr(d.params, name)) for name in ("W_enc", "b_enc")}
        return save(path, d.replace(params=d.params.replace(**scaled)), **options)

    monkeypatch.setattr(sae, "save", wrong)
    assert run("convert", trained / "dictionaries" / "k2-seed1", tmp_path / "new") == 0
    found = re.search(r"at most (\S+) \(the largest is (\S+)\)", capsys.readouterr().out)
    assert float(found[1]) == pytest.approx(float(found[2]) / 2, rel=0.05)


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--activation", "relu"], "k=[2.0, 2.0, 4.0, 4.0], but a relu dictionary has no k"),
        (["--form", "numpy"], "form='numpy', expected one of jaxinterp, saelens"),
        (["--form", "gemma-scope"], "'gemma-scope' holds sae dictionaries with jumprelu"),
        (["--corpus", "nowhere.txt"], "There is no file or folder nowhere.txt"),
        (["--layer", 3], "--layer 3: tiny has 0 to 2"),
        (["--site", "z"], "--site z: a dictionary reads a vector per token"),
        (["--site", "resid"], "'resid' is not a site"),
        (["--k", 2, 2], "members are there twice"),
        (["--k", 1.5], "a whole number of them"),
        (["--seeds", 0], "--seeds 0: at least 1"),
        (["--length", 1], "--length 1: at least 2"),
        (["--length", 500], "does not fill 16 blocks of --length 500"),
        (["--batch", 600], "--batch 600: there are 512 examples only"),
        (["--target", "mlp_out"], "--kind sae --target 'mlp_out': a transcoder has one"),
    ],
)
def test_training_refuses(command, tmp_path, capsys, options, says):
    assert run("train", *command, *options, "--out", tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jaxinterp: ")
    assert says in error
    assert not (tmp_path / "dictionaries").exists()


def test_a_folder_of_another_run_is_refused(command, corpora, trained, tmp_path, capsys):
    """The corpus is another one where its text is, whatever its name."""
    changed = tmp_path / "train.txt"
    cases = {
        "of corpus": ["--corpus", corpora[1]], "of epochs 2, here it is 3": ["--epochs", 3],
        "of k [2.0, 4.0], here it is [3.0, 4.0]": ["--k", 3, 4],
    }  # fmt: skip
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    for says, options in cases.items():
        assert run("train", *command, *options, "--out", trained) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.endswith("give another --out, or --overwrite.\n")
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before
    changed.write_text("\n".join(lines(0)))
    options = [*command[:2], "--corpus", changed, *command[4:], "--epochs", 1]
    assert run("train", *options, "--out", tmp_path / "o") == 0
    changed.write_text("\n".join([*lines(0)[:-1], lines(1)[0]]))
    assert run("train", *options, "--out", tmp_path / "o") == 2
    assert "of corpus" in capsys.readouterr().err
    (tmp_path / "o" / "dictionaries" / "mine.txt").write_text("mine")
    assert run("train", *options, "--k", 2, "--out", tmp_path / "o", "--overwrite") == 0
    found = sorted(path.name for path in (tmp_path / "o" / "dictionaries").iterdir())
    assert found == ["k2-seed0", "k2-seed1", "mine.txt"]
    assert (tmp_path / "o" / "dictionaries" / "mine.txt").read_text() == "mine"


def test_measuring_refuses(tiny, trained, corpora, tmp_path, capsys):
    path = trained / "dictionaries" / "k2-seed0"
    options = ["--model", tiny, "--corpus", corpora[1], "--length", LENGTH, "--out", tmp_path / "o"]
    d = sae.load(path)
    config = sae.DictionaryConfig(5, 7, site="resid_post", layers=(LAYER,))
    arrays = {name: np.ones(shape, np.float32) for name, shape in config.shapes.items()}
    sae.save(tmp_path / "narrow", sae.Dictionary(sae.Parameters(**arrays), config))
    for command, says in (
        (["evaluate", tmp_path / "none", *options], "There is no folder"),
        (["evaluate", corpora[0].parent, *options], "has the files of no form"),
        (
            ["evaluate", tmp_path / "narrow", *options],
            f"has width 5 at resid_post, tiny has {d.config.d_in}: it is another model's",
        ),
        (["evaluate", path, *options, "--corpus", "none.txt"], "There is no file or folder"),
        (["evaluate", path, *options, "--blocks", 0], "--blocks 0: at least 1"),
        (["evaluate", path, *options, "--batch", 900], "does not fill 900 blocks"),
        (
            ["dashboard", path, *options, "--features", WIDTH],
            f"expected numbers from 0 to {WIDTH - 1}",
        ),
        (["dashboard", path, *options, "--effects", 1], "--effects 1: 0, or 2 blocks at least"),
        (["convert", path, tmp_path / "c", "--form", "numpy"], "expected one of jaxinterp"),
        (["convert", path, tmp_path / "c", "--form", "gemma-scope"], "this is a sae with topk"),
    ):
        assert run(*command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("jaxinterp: ")
        assert says in error
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["--help"], ["sae", "Sparse dictionaries", "patch", "fetch"]),
        (["sae", "--help"], ["jaxinterp sae", "train", "evaluate", "dashboard", "convert"]),
        (["sae", "train", "--help"], ["jaxinterp sae train", "--layer", "--target-l0"]),
    ],
)
def test_help(command, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in expected)


def test_a_group_needs_a_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sae"])
    assert stopped.value.code == 2
    assert "dashboard" in capsys.readouterr().err
