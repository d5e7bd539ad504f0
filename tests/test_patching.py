"""`patch`: labels, the claim, and numbers equal to one plain forward per cell."""

import itertools

import jax
import numpy as np
import pytest
from small_models import CORRECT, DIFF, OTHER, PROMPTS, WRONG, ragged, small_model

from jaxinterp import patching
from jaxinterp.interventions import replace
from jaxinterp.metrics import log_prob, logit, logit_diff
from jaxinterp.model import as_tokens, forward
from jaxinterp.patching import patch
from jaxinterp.results import load, save, share

CLEAN, CORRUPTED = PROMPTS, OTHER


def run(site="resid_pre", name="llama", **options):
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, **options}
    return patch(small_model(name), site=site, **options)


def answers(logits):
    rows = np.arange(len(CORRECT))
    return np.asarray(logits[rows, -1, CORRECT] - logits[rows, -1, WRONG])


def baseline(ids, name="llama"):
    return answers(forward(small_model(name), ids).logits)


def one_by_one(site, axes, direction="denoise"):
    """One plain forward per cell; ``axes`` are lists of indices (or masks) by axis."""
    model = small_model("llama")
    base, source = (CORRUPTED, CLEAN) if direction == "denoise" else (CLEAN, CORRUPTED)
    values = forward(model, source, record=[site]).activations[site]
    compiled = jax.jit(lambda where: forward(model, base, replace(site, values, **where)).logits)
    cells = itertools.product(*axes.values())
    effects = [answers(compiled(dict(zip(axes, map(np.asarray, c), strict=True)))) for c in cells]
    return np.array(effects).reshape(*map(len, axes.values()), len(base))


BLOCKS = list(np.arange(10)[None] // 4 == np.arange(3)[:, None])
LAYERS, POSITIONS, HEADS = range(3), range(7), range(4)
COMBINATIONS = [
    ("resid_pre", {"layer": LAYERS, "position": POSITIONS}, {}),
    ("resid_mid", {"layer": LAYERS, "position": [3, 4]}, {"positions": [3, 4]}),
    ("attn_out", {"position": [4, 3], "layer": LAYERS}, {"positions": [4, 3]}),
    ("z", {"layer": LAYERS, "head": HEADS}, {}),
    ("k", {"layer": LAYERS, "head": range(2)}, {}),
    (
        "q",
        {"layer": [1], "position": [3, 4], "head": [0, 3]},
        {"layers": [1], "positions": [3, 4], "heads": [0, 3]},
    ),
    ("v", {"layer": [0, 2], "head": [1], "position": POSITIONS}, {"layers": [0, 2], "heads": [1]}),
    ("pattern", {"layer": LAYERS, "head": HEADS}, {}),
    (
        "pattern",
        {"layer": [1], "head": [2], "position": [3, 4], "source": POSITIONS},
        {"layers": [1], "heads": [2], "positions": [3, 4]},
    ),
    ("mlp_post", {"layer": LAYERS, "neuron": BLOCKS}, {"neurons": 4}),
    ("mlp_post", {"layer": [2], "neuron": [0, 9]}, {"layers": [2], "neurons": [0, 9]}),
]


@pytest.mark.parametrize(
    ("site", "axes", "options"),
    COMBINATIONS,
    ids=[f"{c[0]}-{'-'.join(c[1])}" for c in COMBINATIONS],
)
def test_patch_equals_one_forward_per_cell(site, axes, options):
    result = run(site, over=tuple(axes), **options)
    assert result.dims == (*axes, "prompt")
    for axis, indices in axes.items():
        expected = [0, 4, 8] if axis == "neuron" and len(indices) == 3 else list(indices)
        assert result.coords[axis].values.tolist() == expected
    np.testing.assert_allclose(result, one_by_one(site, axes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.coords["clean"], baseline(CLEAN), rtol=1e-5)
    np.testing.assert_allclose(result.coords["corrupted"], baseline(CORRUPTED), rtol=1e-5)
    assert np.ptp(result.values) > 1e-3


def test_noising_patches_the_corrupted_run_into_the_clean_one():
    axes = {"layer": LAYERS, "position": POSITIONS}
    result = run(direction="noise")
    np.testing.assert_allclose(result, one_by_one("resid_pre", axes, "noise"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.coords["clean"], baseline(CLEAN), rtol=1e-5)
    assert result.attrs["direction"] == "noise"


@pytest.mark.parametrize(("direction", "base"), [("denoise", "corrupted"), ("noise", "clean")])
def test_cells_before_the_first_difference_are_the_baseline_exactly(direction, base):
    result = run(direction=direction)
    for prompt, first in enumerate([2, 3]):
        before = result.isel(prompt=prompt, position=slice(0, first))
        assert (before == result.coords[base][prompt]).all()
        after = result.isel(prompt=prompt, position=first, layer=0)
        assert after != result.coords[base][prompt]


@pytest.mark.parametrize(
    ("name", "site", "over"),
    [
        ("llama", "resid_pre", ("layer", "position")),
        ("llama", "z", ("layer", "head")),
        ("bert", "resid_pre", ("layer", "position")),
    ],
)
def test_a_run_patched_into_itself_is_the_baseline_exactly(name, site, over):
    result = run(site, name, corrupted=CLEAN, over=over)
    assert (result == result.coords["corrupted"]).all()
    np.testing.assert_allclose(result.coords["clean"], result.coords["corrupted"], rtol=1e-5)


def test_everything_patched_restores_the_clean_run():
    result = run("resid_pre", over=("layer",), layers=[0])
    np.testing.assert_allclose(result[0], baseline(CLEAN), atol=1e-5)
    np.testing.assert_allclose(share(result)[0], 1.0, rtol=1e-4)


def test_hook_names_name_their_layer():
    result = run("blocks.1.hook_resid_pre")
    assert result.coords["layer"].values.tolist() == [1]
    np.testing.assert_array_equal(result[0], run(layers=[1])[0])
    assert result.attrs["site"] == "resid_pre"


def test_roles_sweep_prompts_of_unequal_length():
    clean, corrupted = [[3, 1, 4, 1, 5], [6, 5, 3]], [[3, 7, 4, 1, 5], [6, 11, 3]]
    roles = {"subject": [1, 1], "end": [4, 2]}
    pairs = {
        side: (ragged(clean, side, 6), ragged(corrupted, side, 6)) for side in ("left", "right")
    }
    left, right = (run(clean=a, corrupted=b, positions=roles) for a, b in pairs.values())
    assert left.coords["position"].values.tolist() == ["subject", "end"]
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_the_claim_states_what_was_done():
    result = run("z", over=("layer", "head"), record={"task": "none", "seed": 3})
    assert result.name == "logit_diff"
    assert {k: result.attrs[k] for k in ("site", "direction", "intervention", "task")} == {
        "site": "z", "direction": "denoise", "intervention": "replace", "task": "none",
    }  # fmt: skip
    assert result.attrs["seed"] == 3
    assert result.attrs["n_prompts"] == 2
    for key in ("model", "revision", "config", "dtype", "precision", "jaxinterp", "jax", "metric"):
        assert key in result.attrs


class Letters:
    """A tokenizer for labels."""

    def str_tokens(self, ids):
        return [chr(ord("a") + i) for i in ids]

    def decode(self, ids):
        return "".join(self.str_tokens(ids))


def test_saving_and_loading_keeps_everything(tmp_path):
    result = run(tokenizer=Letters(), positions=[0, 2])
    assert result.coords["position_token"].values.tolist() == ["d…", "e…"]
    assert result.coords["clean_text"].values.tolist() == ["dbebfjc", "gfdfijh"]
    again = load(save(result, tmp_path / "effects.nc"))
    assert again.identical(result)
    assert again.dtype == result.dtype == np.float32
    assert again.attrs == result.attrs


def test_batches_of_prompts_change_nothing():
    done = []
    result = run(batch=1, positions=[3, 4], on_done=done.append)
    assert done == [6, 6]
    np.testing.assert_allclose(result, run(positions=[3, 4]), rtol=1e-4, atol=1e-5)


def counted(monkeypatch):
    calls, original = [], patching._patch_batch

    def count(*args):
        calls.append(len(calls))
        return original(*args)

    monkeypatch.setattr(patching, "_patch_batch", count)
    return calls


def test_an_interrupted_run_resumes(tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    whole = run(batch=1, positions=[3, 4])
    assert len(calls) == 2

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(batch=1, positions=[3, 4], parts=tmp_path, on_done=stop)
    assert len(calls) == 3
    resumed = run(batch=1, positions=[3, 4], parts=tmp_path)
    assert len(calls) == 4  # only the second batch ran again
    np.testing.assert_array_equal(resumed, whole)
    run(batch=1, positions=[3, 4], parts=tmp_path)
    assert len(calls) == 4


OTHERS = {
    "direction": {"direction": "noise"},
    "prompts": {"clean": OTHER[::-1].copy(), "corrupted": OTHER},
    "answer": {"metric": logit_diff(WRONG, CORRECT)},
    "metric": {"metric": log_prob(CORRECT)},
    "axes": {"site": "z", "over": ("layer", "position"), "positions": HEADS},
}


@pytest.mark.parametrize("change", OTHERS)
def test_parts_of_another_run_are_not_taken_for_ours(tmp_path, monkeypatch, change):
    calls = counted(monkeypatch)
    first = {"metric": {"metric": logit(CORRECT)}, "axes": {"site": "z", "over": ("layer", "head")}}
    few = {"layers": [1], "positions": [3]} if change != "axes" else {}
    run(**first.get(change, {}), **few, parts=tmp_path)
    run(**OTHERS[change], **few, parts=tmp_path)
    assert len(calls) == 2


def test_parts_of_other_weights_of_the_same_name_are_not_taken_for_ours(tmp_path, monkeypatch):
    calls, model = counted(monkeypatch), small_model("llama")
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF, "parts": tmp_path}
    patch(model, **options)
    patch(jax.tree.map(lambda x: x * 1.1, model), **options)
    assert len(calls) == 2


def test_a_second_patch_of_the_same_shapes_compiles_nothing():
    from jaxinterp.sweep.run import run_chunk

    run("z", over=("layer", "head"))
    before = run_chunk.compiled._cache_size()
    run("z", over=("layer", "head"), clean=OTHER, corrupted=PROMPTS)
    assert run_chunk.compiled._cache_size() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": CLEAN[:1]}, "1 clean and 2 corrupted prompts"),
        ({"clean": CLEAN[:, :6]}, "6 tokens clean and 7 corrupted"),
        ({"site": "resid_past"}, "not a site"),
        ({"site": "rot_q", "name": "gpt2", "over": ("layer", "head")}, "has no site 'rot_q'"),
        ({"over": ("layer", "head")}, "cannot be swept over 'head'; its axes are layer, position"),
        ({"over": ("layer", "layer")}, "one of them twice"),
        ({"over": ()}, "names no axis"),
        ({"direction": "denoising"}, "'denoising', expected 'denoise' or 'noise'"),
        ({"layers": [3]}, "layer 3 is out of range"),
        ({"positions": [7]}, "position 7 is out of range"),
        ({"site": "k", "over": ("layer", "head"), "heads": [2]}, "head 2 is out of range"),
        ({"site": "mlp_post", "over": ("layer", "neuron"), "neurons": [10]}, "neuron 10 is out"),
        ({"site": "mlp_post", "over": ("layer", "neuron"), "neurons": 0}, "neurons=0, expected"),
        ({"clean": CLEAN + 10}, "outside the vocabulary"),
        ({"positions": [-1]}, "position -1 is out of range"),
        ({"positions": [0], "layers": [9]}, "layer 9 is out of range"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_absolute_positions_need_equal_lengths():
    clean, corrupted = (ragged([[3, a, 4, 1], [6, 5]], "right", 4) for a in (1, 7))
    with pytest.raises(ValueError, match="2 to 4 tokens: absolute positions need equal lengths"):
        run(clean=clean, corrupted=corrupted)


def test_absolute_positions_need_prompts_without_padding():
    clean, corrupted = (ragged([[3, a, 4, 1], [6, 5, 2, 1]], "left", 5) for a in (1, 7))
    with pytest.raises(ValueError, match="All prompts have 4 tokens, and 5 columns with padding"):
        run(clean=clean, corrupted=corrupted)


def test_twins_of_unequal_length_are_an_error():
    clean = ragged([[3, 1, 4, 1], [6, 5]], "right", 4)
    corrupted = ragged([[3, 1, 4, 1], [6, 5, 2]], "right", 4)
    with pytest.raises(ValueError, match="Prompt 1 has 2 tokens clean and 3 corrupted"):
        run(clean=clean, corrupted=corrupted)


def test_twins_padded_on_different_sides_are_an_error():
    clean, corrupted = (ragged([[3, 1, 4], [6, 5]], side, 3) for side in ("left", "right"))
    with pytest.raises(ValueError, match="different sides"):
        run(clean=clean, corrupted=corrupted, positions={"end": [2, 1]})


def test_the_first_difference_counts_within_the_prompt():
    clean, corrupted = (ragged([[3, 1, a], [6, b]], "left", 5) for a, b in ((4, 5), (2, 5)))
    first = patching.first_difference(clean, corrupted)
    assert first[0] == 2
    assert first[1] >= 2  # no difference: beyond its end
    assert patching.first_difference(as_tokens(CLEAN), as_tokens(CORRUPTED)).tolist() == [2, 3]


def test_token_types_alone_make_a_difference():
    tokens = as_tokens(CLEAN)
    types = np.zeros_like(CLEAN), np.zeros_like(CLEAN)
    types[1][1, 4] = 1
    clean, corrupted = (tokens.replace(types=t) for t in types)
    assert patching.first_difference(clean, corrupted).tolist() == [7, 4]
