"""Real weights against Hugging Face: SmolLM2 always, Gemma 3 and MiniLM with -m long."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.loading import load
from jaxinterp.model import forward

HERE = Path(__file__).parent
TEXTS = json.loads((HERE / "texts.json").read_text("utf-8"))
long = pytest.mark.long
MODELS = [
    pytest.param("smollm2-135m-instruct", "smollm2"),
    pytest.param("gemma-3-270m", "gemma", marks=long),
    pytest.param("minilm-l6", "minilm", marks=long),
]
CAUSAL = MODELS[:2]


@functools.cache
def loaded(name):
    return load(name)


@functools.cache
def golden(name):
    return dict(np.load(HERE / "goldens" / f"{name}.npz"))


def run(model, ids, record=()):
    return jax.jit(forward, static_argnames="record")(model, jnp.asarray(ids)[None], record=record)


def relative(ours, theirs):
    return (np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max()


@pytest.mark.parametrize(("name", "short"), MODELS)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(name, short, text):
    tokenizer = loaded(name)[1]
    ids = tokenizer.encode(TEXTS[text])
    assert ids[: 512 if short == "minilm" else None] == golden(short)[f"{text}/tokens"].tolist()
    if short != "minilm":  # which lowers the case
        assert tokenizer.decode(ids[len(tokenizer.prefix) :]) == TEXTS[text]


@pytest.mark.parametrize(("name", "short"), CAUSAL)
@pytest.mark.parametrize("text", TEXTS)
def test_logits_agree_everywhere(name, short, text):
    """In float32, where rounding alone moves the logits by 1e-4 to 4e-4, by machine."""
    model, want = loaded(name)[0], golden(short)
    logits = np.asarray(run(model, want[f"{text}/tokens"]).logits[0])
    check_logits(logits, want, text, 1e-3 if text == "scripts" else 3e-4)


def test_logits_agree_in_float64():
    """What rounding may hide above cannot hide here: the same on every machine."""
    with jax.enable_x64(True):
        model, _ = load("smollm2-135m-instruct", dtype=jnp.float64)
        want = golden("smollm2")
        for text in TEXTS:
            logits = np.asarray(run(model, want[f"{text}/tokens"]).logits[0])
            assert logits.dtype == np.float64
            check_logits(logits, want, f"{text}64", 1e-4)  # rotary angles are float32 there


def check_logits(logits, want, key, tolerance):
    """The 20 largest logits of every position, and the log of the sum of all."""
    top = np.take_along_axis(logits, want[f"{key}/top_indices"], -1)
    np.testing.assert_allclose(top, want[f"{key}/top_values"], atol=tolerance, rtol=0)
    total = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(total, want[f"{key}/logsumexp"], atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "short"), MODELS)
def test_every_layer_agrees_on_a_short_text(name, short):
    model, want = loaded(name)[0], golden(short)
    c = model.config
    last = "ln_final_normalized" if c.norm_final else "ln2_normalized"
    out = run(model, want["short/tokens"], ("resid_pre", "pattern", last))
    at = want["short/positions"]
    end = out.activations[last] if c.norm_final else out.activations[last][-1]
    ours = np.concatenate([out.activations["resid_pre"], end[None]])[:, 0, at]
    assert relative(ours, want["short/hidden_states"]) < 1e-4
    pattern = np.asarray(out.activations["pattern"])[:, 0][:, :, at]
    np.testing.assert_allclose(pattern, want["short/attentions"], atol=1e-4, rtol=0)
    if "short/last_logits" in want:
        np.testing.assert_allclose(out.logits[0, -1], want["short/last_logits"], atol=1e-4, rtol=0)


@long
@pytest.mark.parametrize("text", TEXTS)
def test_minilm_encodes_every_text(text):
    model, want = loaded("minilm-l6")[0], golden("minilm")
    out = run(model, want[f"{text}/tokens"], ("ln2_normalized",))
    ours = np.asarray(out.activations["ln2_normalized"][-1, 0, ::8])
    assert relative(ours, want[f"{text}/last"]) < 1e-4


def test_smollm2_gives_the_drink_to_mary():
    """The strict fact of indirect object identification: nothing is prepended to the prompt."""
    model, tokenizer = loaded("smollm2-135m-instruct")
    assert not tokenizer.add_bos
    probability = jax.nn.softmax(forward(model, tokenizer(TEXTS["short"])).logits[0, -1])
    assert abs(float(probability[tokenizer.single_token(" Mary")]) - 0.92) < 0.01


def test_smollm2_says_what_it_is():
    model, tokenizer = loaded("smollm2-135m-instruct")
    assert model.name == "smollm2-135m-instruct"
    assert model.revision.startswith("b179c952")
    c = model.config
    assert (c.family, c.n_layers, c.n_heads, c.n_kv_heads, c.d_model) == ("llama", 30, 9, 3, 576)
    assert tokenizer.eos == 2
