"""Lenses on disk."""

import shutil

import jax
import numpy as np
import pytest

from jaxinterp import lens
from jaxinterp.loading import LoadError
from jaxinterp.loading.torch_file import read_torch, write_torch


def tuned():
    rng = np.random.default_rng(0)
    return lens.TunedLens(
        rng.normal(size=(3, 4, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("made", "form"),
    [(tuned(), "orbax"), (tuned(), "tuned-lens"), (lens.JacobianLens(tuned().W), "orbax")],
)
def test_a_lens_comes_back_bit_for_bit(tmp_path, made, form):
    found = lens.load(lens.save(tmp_path / "lens", made, form=form))
    assert type(found) is type(made)
    jax.tree.map(np.testing.assert_array_equal, found, made)
    assert [p.name for p in tmp_path.iterdir()] == ["lens"]


def test_translators_are_written_as_torch_linears(tmp_path):
    path = lens.save(tmp_path / "lens", tuned(), form="tuned-lens")
    stored = read_torch(path / "params.pt")
    assert list(stored) == [f"{i}.{what}" for i in range(3) for what in ("weight", "bias")]
    np.testing.assert_array_equal(stored["1.weight"], tuned().W[1].T)


def test_bad_folders_and_forms(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        lens.load(tmp_path / "none")
    with pytest.raises(LoadError, match="no lens"):
        lens.load(tmp_path)
    with pytest.raises(ValueError, match="'orbax' holds every lens"):
        lens.save(tmp_path / "lens", lens.JacobianLens(tuned().W), form="tuned-lens")
    path = lens.save(tmp_path / "lens", tuned(), form="tuned-lens")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        lens.save(path, tuned())
    stored = read_torch(path / "params.pt")
    del stored["2.bias"]
    write_torch(path / "params.pt", stored)
    with pytest.raises(LoadError, match=r"lacks 2\.bias"):
        lens.load(path)
    (path / "params.pt").write_bytes((path / "params.pt").read_bytes()[:200])
    with pytest.raises(LoadError, match="not a whole PyTorch file"):
        lens.load(path)
    own = lens.save(tmp_path / "own", tuned())
    text = (own / "jaxinterp_lens.json").read_text()
    (own / "jaxinterp_lens.json").write_text(text.replace("TunedLens", "Other"))
    with pytest.raises(LoadError, match="'Other'"):
        lens.load(own)
    (own / "jaxinterp_lens.json").write_text(text)
    shutil.rmtree(own / "arrays")
    with pytest.raises(LoadError, match="cannot be read"):
        lens.load(own)
