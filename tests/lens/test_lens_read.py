"""Reading through lenses, against dense logits in NumPy."""

import jax
import numpy as np
import pytest
import scipy.special
from small_models import PROMPTS, small_model, with_long, with_types

import jaxinterp as ji
from jaxinterp import lens
from jaxinterp.lens.readout import read_rows

FAMILIES = with_long("gpt2", "bert", "olmo2", "gptj")


def streams(model, tokens):
    """[L+1 B P D]"""
    found = ji.forward(model, tokens, record=("resid_pre", "resid_post")).activations
    return np.concatenate([found["resid_pre"], found["resid_post"][-1:]])


def log_probs(model, x):
    """[... P D] to [... P V] in float64, from all logits at once."""
    flat = np.asarray(x).reshape(-1, *x.shape[-2:])
    logits = np.asarray(ji.unembed(model, flat)[0], np.float64)
    return scipy.special.log_softmax(logits, -1).reshape(*x.shape[:-1], -1)


def dense(model, points, final, targets, k):
    """Readings from whole tables; points [S B P D], final [B P D], targets [B P]."""
    read, last = log_probs(model, points), log_probs(model, final)
    wanted = np.broadcast_to(targets, read.shape[:-1])[..., None]
    hit = np.take_along_axis(read, wanted, -1)
    top = np.argsort(-read, -1, kind="stable")[..., :k]
    return {
        "kl": (np.exp(last) * (last - read)).sum(-1),
        "entropy": -(np.exp(read) * read).sum(-1),
        "log_prob": hit[..., 0],
        "rank": (read > hit).sum(-1),
        "top_token": top,
        "top_log_prob": np.take_along_axis(read, top, -1),
    }


def agree(found, expected, rows=slice(None)):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].values[rows], values[rows], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_reading_is_that_of_dense_logits(name):
    model, tokens = small_model(name), with_types(name, PROMPTS)
    targets = np.array([[1, 2, 3, 4, 5, 6, 7], [0, 16, 1, 5, 2, 9, 9]])
    x = streams(model, tokens)
    agree(lens.read(model, tokens, targets=targets, top=3), dense(model, x, x[-1], targets, 3))


@pytest.mark.parametrize("block", [1, 4, 17, 64])
def test_the_blocks_of_the_vocabulary_do_not_matter(block):
    model = small_model("gemma2")
    x = streams(model, PROMPTS).reshape(4, -1, 8)
    targets = np.arange(14)
    whole = read_rows(model, x, x[-1], targets, k=5, block=17)
    parts = read_rows(model, x, x[-1], targets, k=5, block=block)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_at_the_last_point_the_lens_is_the_model():
    model = small_model("llama")
    found = lens.read(model, PROMPTS, top=17).isel(layer=-1)
    assert (found.kl == 0).all()  # exactly
    logits = np.asarray(ji.forward(model, PROMPTS).logits, np.float64)
    expected = scipy.special.log_softmax(logits, -1)
    read = np.take_along_axis(expected, found.top_token.values, -1)
    np.testing.assert_allclose(found.top_log_prob, read, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out", "embed", "q_input", "result"])
def test_sites_of_the_streams_width_are_read(site):
    model = small_model("llama")
    x = np.asarray(ji.forward(model, PROMPTS, record=(site,)).activations[site])
    x = x if x.ndim > 3 else x[None]
    heads = x.ndim == 5
    points = np.moveaxis(x, 3, 1).reshape(-1, *PROMPTS.shape, 8) if heads else x
    targets = np.roll(PROMPTS, -1, 1)
    expected = dense(model, points, streams(model, PROMPTS)[-1], targets, 2)
    found = lens.read(model, PROMPTS, site=site, targets=targets, top=2)
    assert found.kl.dims == ("layer", *(("head",) if heads else ()), "prompt", "position")
    for name, values in expected.items():
        got = found[name].values.reshape(values.shape)
        np.testing.assert_allclose(got, values, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter_and_is_nan(side):
    model = small_model("neox")
    short = PROMPTS[1, :4]
    pad = (3, 0) if side == "left" else (0, 3)
    ids = np.stack([PROMPTS[0], np.pad(short, pad)])
    positions = np.stack([np.arange(7), np.pad(np.arange(4), pad, constant_values=-1)])
    found = lens.read(model, ji.Tokens(ids, positions), top=2)
    alone = lens.read(model, short[None], top=2)
    for name in alone.data_vars:
        there = found[name].values[:, 1]
        np.testing.assert_allclose(there[:, :4], alone[name].values[:, 0], atol=1e-5, err_msg=name)
        missing = there[:, 4:]
        assert (missing == -1).all() if name == "top_token" else np.isnan(missing).all()
    assert np.isnan(found.log_prob[:, :, -1]).all()  # no next token
    assert not np.isnan(found.kl[:, 0]).any()


def test_batches_and_one_target_per_prompt():
    model = small_model("llama")
    ids = np.concatenate([PROMPTS, PROMPTS[:1] + 1])
    whole = lens.read(model, ids, targets=[4, 9, 2])
    parts = lens.read(model, ids, targets=np.array([[4] * 7, [9] * 7, [2] * 7]), batch=2)
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-5)


def test_interventions_reach_the_lens():
    model = small_model("llama")
    edit = ji.zero("mlp_out", layer=1)
    found = lens.read(model, PROMPTS, interventions=edit)
    plain = lens.read(model, PROMPTS)
    np.testing.assert_allclose(found.entropy[:2], plain.entropy[:2], atol=1e-6)
    assert (abs(found.entropy[2:] - plain.entropy[2:]) > 1e-6).all()


def test_a_tuned_lens_of_zeros_is_the_logit_lens_and_others_translate():
    model = small_model("gemma2")
    rng = np.random.default_rng(0)
    zeros = lens.read(model, PROMPTS, lens.start_tuned(model))
    plain = lens.read(model, PROMPTS)
    for name in plain.data_vars:
        np.testing.assert_array_equal(zeros[name], plain[name])
    W = rng.normal(size=(3, 8, 8)).astype(np.float32)
    b = rng.normal(size=(3, 8)).astype(np.float32)
    x = streams(model, PROMPTS)
    moved = np.stack([*(h + h @ w + c for h, w, c in zip(x[:3], W, b, strict=True)), x[3]])
    targets = np.roll(PROMPTS, -1, 1)
    agree(
        lens.read(model, PROMPTS, lens.TunedLens(W, b), targets=targets, top=2),
        dense(model, moved, x[-1], targets, 2),
    )
    turned = np.stack([*(h @ j.T for h, j in zip(x[:3], W, strict=True)), x[3]])
    agree(
        lens.read(model, PROMPTS, lens.JacobianLens(W), targets=targets, top=2),
        dense(model, turned, x[-1], targets, 2),
    )


def tuned(n_layers):
    return lens.TunedLens(np.zeros((n_layers, 8, 8)), np.zeros((n_layers, 8)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("encoder", {}, "without an unembedding"),
        ("llama", {"site": "z"}, "'z' has d_head values"),
        ("llama", {"site": "blocks.1.hook_resid_mid"}, "names a layer"),
        ("llama", {"site": "no"}, "not a site"),
        ("llama", {"site": "mlp_out", "lens": tuned(3)},
         "made for the residual stream"),
        ("llama", {"lens": tuned(2)}, "another model"),
        ("llama", {"lens": lens.JacobianLens(np.zeros((3, 8, 9)))}, "another model"),
        ("llama", {"targets": [1]}, r"expected token ids \[2\]"),
        ("llama", {"targets": [0.5, 1.0]}, "float64"),
        ("llama", {"top": 18}, "top=18, expected .* from 1 to 17"),
    ],
)  # fmt: skip
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        lens.read(small_model(name), PROMPTS, **options)
