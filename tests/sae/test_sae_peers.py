"""Files of other libraries: goldens that their own code wrote, and (optionally) read back."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_sae_files import FITS, examples, made

from jaxinterp import sae
from jaxinterp.loading import LoadError

GOLDENS = Path(__file__).parent / "goldens"
PEERS = os.environ.get("JAXINTERP_SAE_PEERS")  # a Python that has them: make_peer_env.py
SCRIPT = Path(__file__).parents[2] / "scripts/make_sae_goldens.py"
SEEN = np.load(GOLDENS / "seen.npz")
NAMES = sorted({name.split("/")[0] for name in SEEN.files} - {"x"})


SIGNED = "it keeps the features of the largest magnitude with their signs"
PURSUIT = "architecture='matching_pursuit': it chooses one feature after another"
RUNNING = "it normalises each activation while running"
REFUSED = {  # and the reason
    "saelens-abstopk": SIGNED, "saelens-training-abstopk": SIGNED,
    "saelens-inference-abstopk": SIGNED, "saelens-matching_pursuit": PURSUIT,
    "saelens-training-matching_pursuit": PURSUIT, "saelens-inference-matching_pursuit": PURSUIT,
    "saelens-temporal": "architecture='temporal': its features depend on the activations at",
    "saelens-standard-hook_z": "reshape_activations='hook_z': it reads all heads side by side",
    "saelens-standard-expected_average_only_in": "times a factor that is not in the file",
    "saelens-standard-covariance_whitening": "the whitening is not in the file",
    "saelens-standard-layer_norm": RUNNING, "saelens-standard-constant_norm_rescale": RUNNING,
    "sparsify-groupmax": "activation='groupmax': it keeps the largest of each of k groups",
    "sparsify-skip_sae": "skip_connection=True and transcode=False",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in NAMES if n not in REFUSED])
def test_their_files_mean_here_what_they_mean_there(name):
    d = sae.load(GOLDENS / name)
    x = SEEN["x"]
    features = np.asarray(d.encode(x))
    np.testing.assert_allclose(features, SEEN[f"{name}/features"], atol=1e-5)
    np.testing.assert_allclose(d(x), SEEN[f"{name}/reconstruction"], atol=1e-5)
    assert 0 < (features != 0).mean() < 1
    if name.startswith(("saelens", "dictionary")):
        assert (d.config.model, d.config.site, d.config.layers) == ("tiny", "resid_pre", (2,))


@pytest.mark.parametrize("name", REFUSED)
def test_their_files_that_are_refused(name):
    with pytest.raises(LoadError, match=re.escape(REFUSED[name])):
        sae.load(GOLDENS / name)


def test_every_architecture_of_saelens_is_here():
    fields = json.loads((GOLDENS / "fields.json").read_text())
    assert {n for n in fields if n.startswith("saelens")} <= set(NAMES)
    assert len([n for n in NAMES if n.startswith("saelens")]) > 35


@pytest.mark.parametrize("name", [n for n in NAMES if n not in REFUSED])
def test_their_files_come_back_number_by_number(name, tmp_path):
    form = next(form for form in FITS if name.startswith(form))
    d = sae.load(GOLDENS / name)
    again = sae.load(sae.save(tmp_path / "d", d, form=form))
    if d.config.activation == "batch_topk" and form == "saelens":  # as after training
        x = SEEN["x"]
        np.testing.assert_array_equal(again.encode(x), d.encode(x))
        np.testing.assert_array_equal(again(x), d(x))
        return
    assert again.config == d.config
    for field in d.config.shapes:
        np.testing.assert_array_equal(getattr(again.params, field), getattr(d.params, field))


@pytest.mark.skipif(PEERS is None, reason="set JAXINTERP_SAE_PEERS to a Python with the libraries")
def test_our_files_mean_there_what_they_mean_here(tmp_path):
    assert PEERS is not None
    for form in [form for form in FITS if form != "jaxinterp"]:
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
    print(len(found), "folders written here, read there; at most", max(map(max, found.values())))
    assert len(found) == sum(1 for path in tmp_path.iterdir() if path.is_dir()) >= 40
    wrong = {name: pair for name, pair in found.items() if max(pair) > 1e-5}
    assert not wrong
