"""Files of other libraries: goldens that their own code wrote, and (optionally) read back."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_sae_files import FITS, examples, made

from jaxinterp import sae

GOLDENS = Path(__file__).parent / "goldens"
PEERS = os.environ.get("JAXINTERP_SAE_PEERS")  # a Python that has them: make_peer_env.py
SCRIPT = Path(__file__).parents[2] / "scripts/make_sae_goldens.py"
SEEN = np.load(GOLDENS / "seen.npz")
NAMES = sorted({name.split("/")[0] for name in SEEN.files} - {"x"})


@pytest.mark.parametrize("name", NAMES)
def test_their_files_mean_here_what_they_mean_there(name):
    d = sae.load(GOLDENS / name)
    x = SEEN["x"]
    features = np.asarray(d.encode(x))
    np.testing.assert_allclose(features, SEEN[f"{name}/features"], atol=1e-5)
    np.testing.assert_allclose(d(x), SEEN[f"{name}/reconstruction"], atol=1e-5)
    assert 0 < (features != 0).mean() < 1
    if name.startswith(("saelens", "dictionary")):
        assert (d.config.model, d.config.site, d.config.layers) == ("tiny", "resid_pre", (2,))


@pytest.mark.parametrize("name", NAMES)
def test_their_files_come_back_number_by_number(name, tmp_path):
    form = next(form for form in FITS if name.startswith(form))
    d = sae.load(GOLDENS / name)
    again = sae.load(sae.save(tmp_path / "d", d, form=form))
    assert again.config == d.config
    for field in d.config.shapes:
        np.testing.assert_array_equal(getattr(again.params, field), getattr(d.params, field))


@pytest.mark.skipif(PEERS is None, reason="set JAXINTERP_SAE_PEERS to a Python with the libraries")
def test_our_files_mean_there_what_they_mean_here(tmp_path):
    assert PEERS is not None
    for form in ("saelens", "dictionary-learning", "sparsify", "circuit-tracer"):
        for kind, activation in FITS[form]:
            for subtract in (False, True) if kind == "sae" else (False,):
                d = made(kind, activation, subtract_bias=subtract)
                name = f"{form}-{kind}-{activation}-{subtract}"
                sae.save(tmp_path / name, d, form=form)
                x = examples(d)
                np.savez(tmp_path / f"{name}.npz", features=d.encode(x), reconstruction=d(x))
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [PEERS, SCRIPT, tmp_path, "--check"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 20
    wrong = {name: pair for name, pair in found.items() if max(pair) > 1e-5}
    assert not wrong
