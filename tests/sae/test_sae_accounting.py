"""Every key of every config that others' dictionaries come with: taken out, changed, added.

What comes of it is what that library's own reader makes of the changed folder (the goldens'
changes.json), or a `LoadError` that names the key. Nothing else may come out.
"""

import collections
import functools
import json
import shutil
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_sae_files import made
from test_sae_peers import NAMES, REFUSED, SEEN

from jaxinterp import sae
from jaxinterp.loading import LoadError
from jaxinterp.loading.torch_file import read_torch, write_torch
from jaxinterp.sae.forms import dictionary_learning, gemma_scope, saelens, saelens_flat, sparsify

GOLDENS = Path(__file__).parent / "goldens"
CHANGES = json.loads((GOLDENS / "changes.json").read_text())
ROWS = np.load(GOLDENS / "changed.npz")["rows"]
READ = [name for name in NAMES if name not in REFUSED and CHANGES[name]]
# What the weights or the architecture tell as well: without it others refuse, here it loads.
TOLD_TWICE = {
    "d_in",
    "d_sae",
    "num_latents",
    "dtype",
    "apply_b_dec_to_input",
}
FORM_KEYS = {
    "saelens": (saelens.KEYS, saelens.METADATA), "sparsify": (sparsify.KEYS,),
    "saelens-flat": (saelens_flat.KEYS,), "gemma-scope-2": (gemma_scope.KEYS,),
    "dictionary-learning": (dictionary_learning.KEYS, dictionary_learning.TRAINER),
}  # fmt: skip


def changed(cfg, path, kind, value):
    out = json.loads(json.dumps(cfg))
    inside = out if len(path) == 1 else out[path[0]]
    if kind == "without":
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return out


@functools.cache
def numbers_of(digest, keep):
    """Features and reconstruction; once for all dictionaries with the same numbers."""
    d, x = keep(), SEEN["x"]
    return np.hstack([d.encode(x), d(x)])


class Held:
    """A dictionary that all of the same content share."""

    def __init__(self, d):
        c = d.config
        leaves = tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((d.params, d.k)))
        self.content = (c.kind, c.activation, c.skip, c.subtract_bias, c.d_in, leaves)
        self.d = d

    def __call__(self):
        return self.d

    def __hash__(self):
        return hash(self.content)

    def __eq__(self, other):
        return self.content == other.content


def result(folder):
    """The numbers and what was warned of; None and the message where it is refused."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            held = Held(sae.load(folder))
        except LoadError as error:
            return None, str(error)
    return numbers_of(hash(held), held), " ".join(str(w.message) for w in told)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])
def test_every_key_of_every_config_counts(tmp_path, every):
    counts, wrong = collections.Counter(), []
    for name in READ[::every]:
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder)
        file = next(p for p in folder.iterdir() if p.suffix == ".json")
        cfg = json.loads(file.read_text())
        plain = np.hstack([SEEN[f"{name}/features"], SEEN[f"{name}/reconstruction"]])
        for path, kind, value, there in CHANGES[name]:
            file.write_text(json.dumps(changed(cfg, path, kind, value)))
            found, said = result(folder)
            what = f"{name}: {'.'.join(path)} {kind} {value!r}: there {there}, here {said}"
            outcome = "other numbers" if isinstance(there, int) else there
            counts[f"there {outcome}, here {'refused' if found is None else 'loaded'}"] += 1
            expected = ROWS[there] if isinstance(there, int) else plain
            if found is None:
                right = path[-1] in said
            elif there == "refused":
                right = path[-1] in TOLD_TWICE and np.allclose(found, plain, atol=1e-5)
            else:
                right = np.allclose(found, expected, atol=1e-5)
            if not right:
                wrong.append(what)
    print(len(READ[::every]), "configs;", sum(counts.values()), "changes:", dict(counts))
    assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) > 1500 // every
    assert len(counts) == 6


def test_every_field_of_their_config_classes_is_listed():
    fields = json.loads((GOLDENS / "fields.json").read_text())
    known = {form: set() for form in ("saelens", "sparsify")}
    for form, every in known.items():
        for keys in FORM_KEYS[form]:
            every |= keys.used | keys.without_effect | set(keys.refused)
    kinds = {n.removeprefix("saelens-").removeprefix("training-") for n in fields} - {"sparsify"}
    assert kinds == {*saelens.ARCHITECTURES, *saelens.OTHERS}
    for name, own in fields.items():
        if name.split("-")[-1] not in saelens.OTHERS:
            assert set(own) <= known[name.split("-")[0]], name


@pytest.mark.parametrize("form", FORM_KEYS)
def test_a_key_stands_in_one_list(form):
    for keys in FORM_KEYS[form]:
        listed = [
            *keys.used,
            *keys.refused,
            *(n for names in keys.harmless.values() for n in names),
        ]
        assert len(listed) == len(set(listed))


def rewritten(folder, **change):
    """A folder's config with some keys changed; a key of None is taken out."""
    file = next(p for p in folder.iterdir() if p.name in ("config.json", "cfg.json"))
    cfg = json.loads(file.read_text()) | change
    file.write_text(json.dumps({n: v for n, v in cfg.items() if v is not None}))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "architecture='topk'"), ({"architecture": None}, None),
        ({"width": 11}, "width=11"), ({"affine_connection": True}, "affine_connection=True"),
        ({"affine_connection": "no"}, "affine_connection='no'"), ({"type": "clt"}, "type='clt'"),
        ({"type": "transcoder"}, "type='transcoder'"), ({"type": None}, None),
        ({"hf_hook_point_out": 3}, "hf_hook_point_out=3"), ({"hf_hook_point_in": None}, None),
        ({"hf_hook_point_out": None}, None), ({"model_name": []}, r"model_name=\[\]"),
        ({"model_name": None}, None), ({"width": None}, None), ({"l0": 7}, None),
        ({"affine_connection": None}, None),
    ],
)  # fmt: skip
def test_keys_of_gemma_scope_2(tmp_path, change, message):
    d = made("sae", "jumprelu", subtract_bias=False)
    folder = rewritten(sae.save(tmp_path / "d", d, form="gemma-scope-2"), **change)
    if message is not None:
        with pytest.raises(LoadError, match=message):
            sae.load(folder)
        return
    found = sae.load(folder) if change != {"hf_hook_point_in": None} else sae.load(
        rewritten(folder, type=None), kind="sae", target=""
    )  # fmt: skip
    np.testing.assert_allclose(found.encode(SEEN["x"]), d.encode(SEEN["x"]), atol=1e-6)


def test_a_key_that_a_trainer_may_have_noted_is_told(tmp_path):
    d = made("sae", "jumprelu", subtract_bias=False)
    folder = rewritten(sae.save(tmp_path / "d", d, form="gemma-scope-2"), never_heard_of=1)
    with pytest.warns(UserWarning, match="never_heard_of, which are not known here"):
        sae.load(folder)


@pytest.mark.parametrize(
    ("golden", "change", "message"),
    [
        ("sparsify-sae", {"signed": True}, "signed=True: it keeps the features of the largest"),
        ("saelens-flat-standard", {"activation_fn_str": "tanh-relu"}, "tanh of ReLU"),
        ("saelens-flat-standard", {"hook_name": "blocks.2.attn.hook_z"}, "all heads side by side"),
        ("saelens-flat-standard", {"hook_layer": 3}, "hook_layer=3"),
        ("saelens-flat-standard", {"hook_point": "blocks.1.hook_resid_pre"}, "hook_point="),
        ("saelens-flat-standard", {"hook_head_index": 1}, "hook_head_index=1: it reads one head"),
        ("saelens-flat-standard", {"normalize_activations": True}, "fold it into the weights"),
        ("saelens-flat-standard", {"finetuning_scaling_factor": True}, "its numbers are missing"),
        ("saelens-standard", {"metadata": [1]}, r"metadata=\[1\], expected an object"),
        ("dictionary-learning-AutoEncoder", {"trainer": "x"}, "trainer='x', expected an object"),
        ("saelens-standard", {"sae_lens_version": 6}, "sae_lens_version=6, expected text"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(tmp_path, golden, change, message):
    folder = shutil.copytree(GOLDENS / golden, tmp_path / "d")
    with pytest.raises(LoadError, match=message):
        sae.load(rewritten(folder, **change))


def read_npz(path):
    with np.load(path) as file:
        return dict(file)


TENSORS = {  # how a kind of file is read and written
    ".safetensors": (load_file, lambda path, arrays: save_file(arrays, path)),
    ".npz": (read_npz, lambda path, arrays: np.savez(path, **arrays)),
    ".pt": (read_torch, write_torch),
}


@pytest.mark.parametrize(
    "name",
    [
        "saelens-gated", "saelens-training-batchtopk", "sparsify-skip", "circuit-tracer-skip",
        "dictionary-learning-MatryoshkaBatchTopKSAE", "dictionary-learning-AutoEncoder",
        "gemma-scope", "gemma-scope-2",
    ],
)  # fmt: skip
def test_every_tensor_counts(name, tmp_path):
    if name.startswith("gemma"):
        folder = sae.save(tmp_path / name, made("sae", "jumprelu"), form=name)
    else:
        folder = shutil.copytree(GOLDENS / name, tmp_path / name)
    file = next(p for p in folder.iterdir() if p.suffix in TENSORS)
    read, write = TENSORS[file.suffix]
    arrays = read(file)
    optional = {"W_skip", "activation_function.threshold"} if "tracer" in name else {"k"}
    for tensor, array in arrays.items():
        others = [array[..., :-1] if array.ndim else array[None][:0], array.astype(bool)]
        if array.dtype.kind == "f":
            others.append(array * np.nan)
        if tensor not in optional:
            others.append(None)
        for other in others:
            some = {n: a for n, a in arrays.items() if n != tensor}
            if other is not None:
                some[tensor] = np.ascontiguousarray(other)
            write(file, some)
            with pytest.raises(LoadError):
                sae.load(folder)
    write(file, {**arrays, "stranger": np.zeros(3, np.float32)})
    with pytest.raises(LoadError, match="stranger"):
        sae.load(folder)
    write(file, arrays)
    sae.load(folder)


@pytest.mark.parametrize("name", ["saelens-jumprelu", "saelens-topk-rescaled"])
def test_half_precision_is_read_as_its_numbers(name, tmp_path):
    folder = shutil.copytree(GOLDENS / name, tmp_path / "d")
    file = folder / "sae_weights.safetensors"
    halves = {n: a.astype(ml_dtypes.bfloat16) for n, a in load_file(file).items()}
    save_file(halves, file)
    found = sae.load(rewritten(folder, dtype="bfloat16"))
    save_file({n: a.astype(np.float32) for n, a in halves.items()}, file)
    whole = sae.load(rewritten(folder, dtype="float32"))
    for field in whole.config.shapes:
        np.testing.assert_array_equal(getattr(found.params, field), getattr(whole.params, field))
    np.testing.assert_allclose(found.encode(SEEN["x"]), SEEN[f"{name}/features"], atol=0.1)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_scales_of_fine_tuning_are_folded(tmp_path, name, used):
    """features * scale, decoded: as sae_lens 3.23 does; ones were saved by versions before."""
    folder = shutil.copytree(GOLDENS / "saelens-flat-standard", tmp_path / "d")
    file = folder / "sae_weights.safetensors"
    scale = np.linspace(0.5, 2, 10).astype(np.float32)
    save_file({**load_file(file), name: scale if used else np.ones(10, np.float32)}, file)
    found = sae.load(rewritten(folder, finetuning_scaling_factor=used))
    x = SEEN["x"]
    features = SEEN["saelens-flat-standard/features"]
    np.testing.assert_allclose(found.encode(x), features, atol=1e-5)
    if used:
        W_dec, b_dec = (load_file(file)[n] for n in ("W_dec", "b_dec"))
        np.testing.assert_allclose(found(x), features * scale @ W_dec + b_dec, atol=1e-5)
        with pytest.raises(LoadError, match=f"finetuning_scaling_factor=true, and {name} is not 1"):
            sae.load(rewritten(folder, finetuning_scaling_factor=False))


def test_thresholds_that_let_negative_features_pass_are_refused(tmp_path):
    folder = shutil.copytree(GOLDENS / "circuit-tracer-jumprelu", tmp_path / "d")
    file = folder / "layer_2.safetensors"
    arrays = load_file(file)
    arrays["activation_function.threshold"][3] = -0.5
    save_file(arrays, file)
    with pytest.raises(LoadError, match=r"activation_function\.threshold has values below 0"):
        sae.load(folder)
