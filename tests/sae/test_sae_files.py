"""Every form of file: what is written comes back, and says what it said."""

import dataclasses
import json

import numpy as np
import pytest

from jaxinterp import sae
from jaxinterp.loading import LoadError

D, F = 6, 10

FITS = {  # form: dictionaries that it holds, by kind and activation
    "jaxinterp": [
        ("sae", "relu"), ("sae", "gated"), ("sae", "topk"), ("sae", "batch_topk"),
        ("sae", "jumprelu"), ("transcoder", "relu"), ("skip", "jumprelu"), ("crosscoder", "relu"),
        ("cross_layer", "topk"),
    ],
    "saelens": [
        ("sae", "relu"), ("sae", "gated"), ("sae", "topk"), ("sae", "jumprelu"),
        ("sae", "batch_topk"), ("transcoder", "relu"), ("transcoder", "jumprelu"), ("skip", "relu"),
        ("skip", "jumprelu"),
    ],
    "gemma-scope": [("sae", "jumprelu"), ("sae", "batch_topk")],
    "gemma-scope-2": [("sae", "jumprelu"), ("transcoder", "jumprelu"), ("skip", "jumprelu")],
    "dictionary-learning": [
        ("sae", "relu"), ("sae", "gated"), ("sae", "topk"), ("sae", "batch_topk"),
        ("sae", "jumprelu"),
    ],
    "sparsify": [("sae", "topk"), ("transcoder", "topk"), ("skip", "topk")],
    "circuit-tracer": [
        ("transcoder", "relu"), ("transcoder", "jumprelu"), ("skip", "relu"), ("skip", "jumprelu")
    ],
}  # fmt: skip
CASES = [
    (form, kind, activation, subtract)
    for form, cases in FITS.items() for kind, activation in cases
    for subtract in ((False, True) if kind == "sae" else (False,))
]  # fmt: skip


def made(kind, activation, seed=0, **fields):
    """A random dictionary; of a transcoder from the stream to the MLP's output."""
    fields = {"d_in": D, "n_features": F, "activation": activation, "site": "resid_pre",
              "layers": (2,), "model": "tiny", **fields}  # fmt: skip
    if kind == "skip":
        fields |= {"kind": "transcoder", "skip": True, "target": "mlp_out"}
    elif kind == "transcoder":
        fields |= {"kind": kind, "target": "mlp_out"}
    elif kind != "sae":
        fields |= {"kind": kind, "n_layers": 3, "layers": (0, 1, 2), "target": "mlp_out"}
    config = sae.DictionaryConfig(**fields)
    rng = np.random.default_rng(seed)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in config.shapes.items()}
    if "threshold" in arrays:
        arrays["threshold"] = abs(arrays["threshold"])
    return sae.Dictionary(sae.Parameters(**arrays), config, 3 if "topk" in activation else None)


def examples(d):
    layers = (3,) if d.config.layered else ()
    return np.random.default_rng(1).normal(size=(20, *layers, D)).astype(np.float32)


@pytest.mark.parametrize(("form", "kind", "activation", "subtract"), CASES)
def test_what_is_written_comes_back(tmp_path, form, kind, activation, subtract):
    d = made(kind, activation, subtract_bias=subtract)
    path = sae.save(tmp_path / "d", d, form=form)
    found = sae.load(path)
    x = examples(d)
    np.testing.assert_allclose(found.encode(x), d.encode(x), atol=1e-5)
    np.testing.assert_allclose(found(x), d(x), atol=1e-5)
    assert found.config.kind == d.config.kind
    again = sae.load(sae.save(tmp_path / "again", found, form=form))
    assert again.config == found.config
    for name in found.config.shapes:
        np.testing.assert_array_equal(getattr(again.params, name), getattr(found.params, name))
    if form in ("jaxinterp", "saelens"):
        for field in ("site", "layers", "model", "target"):
            assert getattr(found.config, field) == getattr(d.config, field)
    assert found.k == d.k or activation == "batch_topk"


def test_a_matryoshka_keeps_its_prefixes(tmp_path):
    d = made("sae", "batch_topk", prefixes=(2, 5, F))
    for form in ("jaxinterp", "dictionary-learning"):
        assert sae.load(sae.save(tmp_path / form, d, form=form)).config.prefixes == (2, 5, F)


@pytest.mark.parametrize(
    ("form", "kind", "activation", "message"),
    [
        ("gemma-scope", "sae", "relu", "'gemma-scope' holds sae dictionaries with jumprelu"),
        ("sparsify", "sae", "relu", "this is a sae with relu"),
        ("circuit-tracer", "sae", "relu", "holds transcoder dictionaries"),
        ("saelens", "crosscoder", "relu", "this is a crosscoder"),
        ("safetensors", "sae", "relu", "form='safetensors', expected one of jaxinterp"),
    ],
)
def test_forms_without_a_place_for_it(tmp_path, form, kind, activation, message):
    with pytest.raises(ValueError, match=message):
        sae.save(tmp_path / "d", made(kind, activation), form=form)
    assert not (tmp_path / "d").exists()


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        sae.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="has the files of no form"):
        sae.load(tmp_path / "empty")
    for form, kind, activation in [
        ("jaxinterp", "sae", "relu"), ("saelens", "sae", "relu"),
        ("gemma-scope", "sae", "jumprelu"), ("dictionary-learning", "sae", "relu"),
        ("circuit-tracer", "transcoder", "relu"),
    ]:  # fmt: skip
        path = sae.save(tmp_path / form, made(kind, activation), form=form)
        weights = max(path.iterdir(), key=lambda file: file.stat().st_size)
        weights.write_bytes(weights.read_bytes()[:-20])
        with pytest.raises(LoadError):
            sae.load(path)
    path = sae.save(tmp_path / "nan", made("sae", "relu"))
    d = made("sae", "relu")
    bad = d.replace(params=d.params.replace(b_enc=np.full(F, np.nan, np.float32)))
    sae.save(path, bad, overwrite=True)
    with pytest.raises(LoadError, match="b_enc has values that are not finite"):
        sae.load(path)
    short = d.replace(params=d.params.replace(b_dec=d.params.b_dec[:-1]))
    sae.save(path, short, overwrite=True)
    with pytest.raises(LoadError, match=r"b_dec is \[5\], expected \[6\]"):
        sae.load(path)
    with pytest.raises(FileExistsError):
        sae.save(path, d)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "normalises each activation while running"),
        ({"architecture": "temporal"}, "architecture='temporal'"),
        ({"reshape_activations": "hook_z"}, "heads side by side"),
        ({"hook_head_index": 3}, "hook_head_index=3, which is not known here"),
        ({"metadata": {"sae_lens_version": "6.0.0", "hook_head_index": 3}}, "reads one head"),
    ],
)
def test_what_other_libraries_do_while_running_is_refused(tmp_path, change, message):
    path = sae.save(tmp_path / "d", made("sae", "relu"), form="saelens")
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(LoadError, match=message):
        sae.load(path)


def test_numbers_without_a_config_are_refused(tmp_path):
    for form, kind, activation in [
        ("saelens", "sae", "jumprelu"), ("sparsify", "sae", "topk"),
        ("dictionary-learning", "sae", "relu"), ("gemma-scope-2", "sae", "jumprelu"),
    ]:  # fmt: skip
        path = sae.save(tmp_path / form, made(kind, activation), form=form)
        config = next(p for p in path.iterdir() if p.name in ("config.json", "cfg.json"))
        said = config.read_text()
        config.unlink()
        with pytest.raises(LoadError, match="it says what the numbers beside it mean"):
            sae.load(path)
        if form == "saelens":  # of another architecture
            config.write_text(said.replace("jumprelu", "standard"))
            with pytest.raises(LoadError, match="has threshold, which is not known here"):
                sae.load(path)


def test_what_files_do_not_tell_can_be_told(tmp_path):
    d = made("sae", "jumprelu", subtract_bias=False)
    path = sae.save(tmp_path / "d", d, form="gemma-scope")
    assert sae.load(path).config.site == ""
    found = sae.load(path, kind="transcoder", site="mlp_in", target="mlp_out", layers=(4,))
    c = found.config
    assert (c.kind, c.site, c.target, c.layers) == ("transcoder", "mlp_in", "mlp_out", (4,))
    x = examples(d)
    np.testing.assert_allclose(found.encode(x), d.encode(x), atol=1e-5)
    with pytest.raises(ValueError, match="d_in=7: expected some of kind, model, site"):
        sae.load(path, d_in=7)


def test_a_set_of_transcoders_is_read_file_by_file(tmp_path):
    for layer in (0, 3):
        d = made("transcoder", "relu")
        d = d.replace(config=dataclasses.replace(d.config, layers=(layer,)))
        one = sae.save(tmp_path / f"one{layer}", d, form="circuit-tracer")
        (tmp_path / "set").mkdir(exist_ok=True)
        (one / f"layer_{layer}.safetensors").rename(tmp_path / f"set/layer_{layer}.safetensors")
    with pytest.raises(LoadError, match="has 2 files"):
        sae.load(tmp_path / "set")
    found = [sae.load(file) for file in sorted((tmp_path / "set").iterdir())]
    assert [d.config.layers for d in found] == [(0,), (3,)]
    x = examples(d)
    np.testing.assert_allclose(found[1].encode(x), d.encode(x), atol=1e-5)
    path = sae.save(tmp_path / "lens", made("sae", "relu"), form="saelens")
    with pytest.raises(LoadError, match="give the folder that holds it"):
        sae.load(path / "sae_weights.safetensors")


def test_gemma_scope_2_names_places_as_their_models_do(tmp_path):
    d = made("sae", "jumprelu", subtract_bias=False)
    d = d.replace(config=dataclasses.replace(d.config, site="resid_post", layers=(12,)))
    path = sae.save(tmp_path / "d", d, form="gemma-scope-2")
    said = json.loads((path / "config.json").read_text())
    assert said["hf_hook_point_in"] == said["hf_hook_point_out"] == "model.layers.12.output"
    assert sae.load(path).config.place == ("resid_post", 12)
    said["type"] = "transcoder"
    said["hf_hook_point_in"] = "model.layers.5.pre_feedforward_layernorm.output"
    said["hf_hook_point_out"] = "model.layers.5.post_feedforward_layernorm.output"
    (path / "config.json").write_text(json.dumps(said))
    c = sae.load(path).config
    assert (c.kind, c.target, c.layers) == ("transcoder", "mlp_out", (5,))
    assert c.site == said["hf_hook_point_in"]  # after the norm's gain: no site of ours


def test_k_that_others_cannot_hold(tmp_path):
    d = made("sae", "batch_topk").replace(k=2.5)
    assert sae.load(sae.save(tmp_path / "own", d)).k == 2.5
    with pytest.raises(ValueError, match="hold whole numbers only"):
        sae.save(tmp_path / "d", d, form="dictionary-learning")


def test_what_saelens_says_of_its_model_is_passed_on(tmp_path):
    path = sae.save(tmp_path / "d", made("sae", "relu"), form="saelens")
    cfg = json.loads((path / "cfg.json").read_text())
    cfg["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.warns(UserWarning, match="center_writing_weights"):
        sae.load(path)


def test_saelens_files_of_before_version_6(tmp_path):
    d = made("sae", "topk", subtract_bias=True)
    path = sae.save(tmp_path / "d", d, form="saelens")
    cfg = json.loads((path / "cfg.json").read_text())
    old = {
        "d_in": D, "d_sae": F, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
        "apply_b_dec_to_input": True, "model_name": "tiny", "hook_name": "blocks.2.hook_resid_pre",
        "architecture": "standard", "normalize_activations": "none",
    }  # fmt: skip
    assert cfg["metadata"]["hook_name"] == "blocks.2.hook_resid_pre"
    (path / "cfg.json").write_text(json.dumps(old))
    found = sae.load(path)
    assert dataclasses.replace(found.config) == d.config
    x = examples(d)
    np.testing.assert_allclose(found.encode(x), d.encode(x), atol=1e-6)
