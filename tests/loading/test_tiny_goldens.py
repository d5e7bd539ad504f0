"""Every family against Hugging Face's outputs on tiny random models with its quirks on."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.loading import load
from jaxinterp.model import Model, Tokens, forward

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = sorted(p.parent.name for p in GOLDENS.glob("*/golden.npz"))
GGUFS = sorted(p.stem for p in (GOLDENS / "gguf").glob("*.gguf"))
TOLERANCE = 1e-4


def relative(ours, theirs) -> float:
    """The largest difference of any vector, relative to its norm."""
    return float((np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max())


def stream(model: Model, record: dict) -> np.ndarray:
    """Our residual stream as Hugging Face's hidden_states: [L+1 B P D], the last one normed."""
    c = model.config
    last = "ln_final_normalized" if c.norm_final else "ln2_normalized"
    end = record[last] if c.norm_final else record[last][-1]
    return np.concatenate([record["resid_pre"], end[None]])


def check(model: Model, golden: dict) -> None:
    c = model.config
    ids = golden["tokens"]
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    tokens = Tokens(jnp.asarray(ids), jnp.asarray(positions), golden.get("types"))
    last = "ln_final_normalized" if c.norm_final else "ln2_normalized"
    out = forward(model, tokens, record=("resid_pre", "pattern", last))
    assert relative(stream(model, out.activations), golden["hidden_states"]) < TOLERANCE
    np.testing.assert_allclose(
        out.activations["pattern"], golden["attentions"], atol=TOLERANCE, rtol=0
    )
    if c.head == "none":
        assert out.logits is None
    else:
        np.testing.assert_allclose(out.logits, golden["logits"], atol=TOLERANCE, rtol=0)

    mask = golden["padded_mask"]
    positions = np.where(mask, mask.cumsum(-1) - 1, -1)
    padded = Tokens(jnp.asarray(golden["padded_tokens"]), jnp.asarray(positions))
    out = forward(model, padded, record=(last,))
    ours = out.activations[last][-1] if out.logits is None else out.logits
    at = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(ours)[at], golden["padded"][at], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_family_agrees_with_transformers(name):
    model, tokenizer = load(GOLDENS / name)
    assert tokenizer is None
    assert model.name == name
    assert len(model.revision) == 64
    check(model, dict(np.load(GOLDENS / name / "golden.npz")))


@pytest.mark.parametrize("name", GGUFS)
def test_gguf_agrees_with_transformers(name):
    model, tokenizer = load(GOLDENS / "gguf" / f"{name}.gguf")
    assert tokenizer is not None
    check(model, dict(np.load(GOLDENS / "gguf" / f"{name}.npz")))


def test_every_family_has_a_golden():
    from jaxinterp.loading.families import FAMILIES

    loaded = {load(GOLDENS / name)[0].config.family for name in FOLDERS}
    assert loaded == {name.removesuffix("_text") for name in FAMILIES}
