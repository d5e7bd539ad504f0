"""The wheel and the sdist: what is in them, and the wheel at work where nothing else is installed.

Needs a package index (pip's own configuration says which), and minutes.
"""

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import CONFIGS, small_model

import jaxinterp as ji
from jaxinterp.model import forward

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"
IDS = [[1, 2, 3, 4]]

pytestmark = pytest.mark.long

SMOKE = """
import json, sys
import numpy as np
import jaxinterp as ji

place, out, *shipped = sys.argv[1:]
model, tokenizer = ji.load(place)
found = ji.forward(model, [[1, 2, 3, 4]], ji.zero("z", layer=0, head=1), record="resid_post")
np.savez(out, logits=found.logits, stream=found.activations["resid_post"])
revisions = {name: ji.load(name)[0].revision for name in shipped}
print(json.dumps([ji.__version__, ji.__file__, revisions]))
"""


def run(*command, cwd):
    """What a program prints; all it said where it fails."""
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # conftest.py's
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(folder, python=sys.executable):
    """The Python of a new, empty environment."""
    if python == sys.executable:
        venv.create(folder, with_pip=True)
    else:
        run(python, "-m", "venv", folder, cwd=folder.parent)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def interpreter(version):
    """A Python of that version: this one, one on the path, or one beside this one."""
    if "{}.{}".format(*sys.version_info) == version:
        return sys.executable
    beside = Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python")
    for found in (shutil.which(f"python{version}"), *beside):
        if (
            found
            and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0
        ):
            return found
    return pytest.skip(f"There is no Python {version} here.")


def files_of(folder):
    """Relative names of all files, compiled ones left out."""
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    return {name for name in names if "__pycache__" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the wheel is made from the sdist, so that it lacks nothing of the build."""
    folder = tmp_path_factory.mktemp("built")
    python = environment(folder / "env")
    run(python, "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_the_package_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {n.partition("/")[0] for n in names if n.endswith(".dist-info/METADATA")}
        about = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        held = {n.removeprefix("jaxinterp/") for n in names if n.startswith("jaxinterp/")}
        assert {n.partition("/")[0] for n in names} == {"jaxinterp", info}
        wanted = files_of(ROOT / "jaxinterp")
        if WEIGHTS.is_dir():
            shipped = {f"weights/{name}" for name in files_of(WEIGHTS)}
            wanted |= shipped
            for name in shipped:
                assert archive.read(f"jaxinterp/{name}") == (ROOT / name).read_bytes(), name
        assert held == wanted
        assert "py.typed" in held
        assert f"{info}/licenses/LICENSE" in names
    assert about["Version"] == ji.__version__
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert wheel.name == f"jaxinterp-{ji.__version__}-py3-none-any.whl"


def test_the_sdist_holds_what_is_needed_to_work_on_it(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        tops = {n.split("/", 1)[0] for n in archive.getnames()}
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert tops == {f"jaxinterp-{ji.__version__}"}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "Makefile"} <= names
    assert {f"jaxinterp/{name}" for name in files_of(ROOT / "jaxinterp")} <= names
    assert {f"weights/{name}" for name in files_of(WEIGHTS)} <= names
    assert not [n for n in names if n.startswith((".venv", "runs/", ".git/")) or ".pyc" in n]


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_the_wheel_works_in_an_empty_environment(built, version, tmp_path):
    """The oldest and the newest Python: the same numbers as here, from a checkpoint made here."""
    python = environment(tmp_path / "env", interpreter(version))
    run(python, "-m", "pip", "install", "--quiet", built[1], cwd=tmp_path)
    model = small_model("llama")
    saved = ji.save(tmp_path / "model", jax.tree.map(jax.numpy.asarray, model))
    shipped = sorted(f.name for f in WEIGHTS.glob("*") if f.is_dir()) if WEIGHTS.is_dir() else []
    (tmp_path / "smoke.py").write_text(SMOKE, encoding="utf-8")
    said = run(python, "-I", "smoke.py", saved, "out.npz", *shipped, cwd=tmp_path)
    number, file, revisions = json.loads(said.splitlines()[-1])
    assert number == ji.__version__
    assert Path(file).is_relative_to(tmp_path / "env")
    assert all(revisions[name] for name in shipped)
    with np.load(tmp_path / "out.npz") as found:
        here = forward(model, IDS, ji.zero("z", layer=0, head=1), record="resid_post")
        np.testing.assert_allclose(found["logits"], here.logits, atol=1e-5)
        np.testing.assert_allclose(found["stream"], here.activations["resid_post"], atol=1e-5)
        assert found["stream"].shape[0] == CONFIGS["llama"].n_layers
    listed = run(python.with_name("jaxinterp"), "models", cwd=tmp_path)
    assert "smollm2-135m-instruct" in listed
    installed = run(python, "-m", "pip", "list", "--format=json", cwd=tmp_path)
    absent = {"torch", "transformers", "datasets", "matplotlib", "scikit-learn"}
    assert not absent & {p["name"].lower() for p in json.loads(installed)}
    shutil.rmtree(tmp_path / "env")  # a gigabyte
