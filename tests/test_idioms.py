"""docs/idioms.md: our side of every idiom runs, and gives what theirs is said to give."""

import ast
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from idiom_checks import CHECKS, TOKENIZER, Names, given
from small_models import CONFIGS, perturbed

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.cells import make_cells
from jaxinterp.model import SITES, init

PAGE = (Path(__file__).parents[1] / "docs/idioms.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PRELUDE = BLOCK.search(PAGE)[2]


def idioms(section):
    """(title, theirs, ours) of a section, in order."""
    parts = re.split(r"^### (.+)\n", SECTIONS[section], flags=re.MULTILINE)
    out = []
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        blocks = BLOCK.findall(text)
        assert [kind for kind, _ in blocks] == ["py", "python"], title
        out.append((title, blocks[0][1], blocks[1][1]))
    return out


def model_of(name):
    config = CONFIGS[name].replace(vocab_size=TOKENIZER.vocab_size, n_ctx=64)
    return perturbed(init(config, jax.random.key(0)))


def run(code, names):
    """Execute a snippet; the values of its bare expressions."""
    shown = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            shown.append(eval(compile(ast.Expression(node.value), "idioms", "eval"), names))
        else:
            exec(compile(ast.Module([node], []), "idioms", "exec"), names)
    return shown


@pytest.fixture
def names(monkeypatch, tmp_path):
    """The page's own names, with small models where it loads large ones."""
    models = {"llama": model_of("llama"), "gpt2": model_of("gpt2")}
    real = inspect.signature(ji.load)

    def load(*args, **options):
        name = real.bind(*args, **options).arguments["name"]
        return models["gpt2" if "gpt2" in name else "llama"], TOKENIZER

    def snapshot_download(repo_id, *, allow_patterns):
        folder = tmp_path / repo_id
        sae.save(folder / allow_patterns.removesuffix("/*"), given(), form="saelens")
        return str(folder)

    monkeypatch.setattr(ji, "load", load)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    found = Names(__name__="idioms")
    run(PRELUDE, found)
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_our_side_gives_what_theirs_does(section, names):
    for title, _, ours in idioms(section):
        try:
            CHECKS[title](names, run(ours, names))
        except BaseException as error:
            error.add_note(f"In docs/idioms.md, {section}: {title}")
            raise


def test_every_idiom_is_checked_and_every_check_is_of_one():
    titles = [title for section in SECTIONS for title, _, _ in idioms(section)]
    assert len(titles) == len(set(titles))
    assert set(titles) == set(CHECKS)


def test_their_side_is_python():
    for section in SECTIONS:
        for title, theirs, ours in idioms(section):
            ast.parse(theirs)
            for line in (*theirs.splitlines(), *ours.splitlines()):
                assert len(line) <= 72, (title, line)  # two columns fit a screen


def test_the_tables_name_sites_and_axes_that_exist():
    model = model_of("llama")
    tokens = ji.Tokens(np.ones((2, 5), int), np.tile(np.arange(5), (2, 1)))
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+?)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 15
    for name, site, over in rows:
        cells = make_cells(model, ast.literal_eval(site), ast.literal_eval(over), tokens)
        by = {"by_pos": "position", "dest_src_pos": "source", "all_pos": "head"}
        wanted = next((axis for end, axis in by.items() if name.endswith(end)), "position")
        assert wanted in cells.labels
        assert "all_pos" not in name or "position" not in cells.labels
    sites = re.findall(r"^\| `\..+\| `(\w+)` \|$", SECTIONS["nnsight"], re.MULTILINE)
    assert len(sites) == 10
    assert set(sites) <= set(SITES)
