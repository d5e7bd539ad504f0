"""Heads: scores by plain loops, weights by dense matrices, roles by construction."""

import numpy as np
import pytest
from small_models import PROMPTS, small_model, with_long

import jaxinterp as ji
from jaxinterp import heads

REPEATED = np.array([[5, 1, 2, 3, 1, 2, 3], [6, 4, 4, 9, 6, 4, 8]])


def targets(kind, ids):
    """(query, source) by their definition, over one prompt."""
    n = len(ids)
    pairs = [(q, s) for q in range(n) for s in range(n)]
    rule = {
        "previous_token": lambda q, s: s == q - 1,
        "duplicate_token": lambda q, s: s < q and ids[s] == ids[q],
        "induction": lambda q, s: 0 < s <= q and ids[s - 1] == ids[q],
        "first_token": lambda q, s: s == 0,
    }[kind]
    return [(q, s) for q, s in pairs if rule(q, s)]


def by_hand(weight, pairs):
    """Attention [P S] on the targets, averaged over the queries that have one."""
    queries = {q for q, _ in pairs}
    return sum(weight[q, s] for q, s in pairs) / len(queries)


@pytest.mark.parametrize("kind", heads.PATTERNS)
@pytest.mark.parametrize("name", with_long("gpt2", core=["llama"]))
def test_scores_are_attention_on_the_targets(name, kind):
    model = small_model(name)
    pattern = np.asarray(ji.forward(model, REPEATED, record=("pattern",)).activations["pattern"])
    found = heads.pattern_scores(model, REPEATED, kind)
    assert found.dims == ("layer", "head", "prompt")
    for (layer, h, b), value in np.ndenumerate(found.values):
        expected = by_hand(pattern[layer, b, h], targets(kind, REPEATED[b].tolist()))
        assert value == pytest.approx(expected, abs=1e-5)


def test_weighted_by_what_is_moved():
    model, c = small_model("llama"), small_model("llama").config
    seen = ji.forward(model, REPEATED, record=("pattern", "v")).activations
    found = heads.pattern_scores(model, REPEATED, "induction", by_value=True)
    for (layer, h, b), value in np.ndenumerate(found.values):
        v = np.asarray(seen["v"])[layer, b, :, h // (c.n_heads // c.n_kv_heads)]
        size = np.linalg.norm(v @ model.params.blocks.attn.W_O[layer, h], axis=-1)
        weight = np.asarray(seen["pattern"])[layer, b, h] * size
        weight = weight / weight.sum(-1, keepdims=True)
        expected = by_hand(weight, targets("induction", REPEATED[b].tolist()))
        assert value == pytest.approx(expected, abs=1e-5)


def test_own_patterns_padding_and_batches():
    model = small_model("gemma2")
    positions = np.tile(np.arange(7), (2, 1))
    positions[1] = [-1, -1, 0, 1, 2, 3, 4]
    padded = ji.Tokens(REPEATED, positions)
    both = heads.pattern_scores(model, padded, "first_token", batch=1)
    alone = heads.pattern_scores(model, REPEATED[1:, 2:], "first_token")
    np.testing.assert_allclose(both[..., 1:], alone, atol=1e-5)

    def first(tokens):
        return np.asarray(tokens.mask)[:, :, None] & (np.asarray(tokens.positions)[:, None] == 0)

    for given in (first, first(padded).astype(float)):
        own = heads.pattern_scores(model, padded, given)
        np.testing.assert_allclose(own, both, atol=1e-6)


def test_the_built_induction_pair_is_found():
    known = ji.handbuilt.previous_token_induction()
    tokens = known.make(n=8, length=12, seed=0).clean
    previous = heads.pattern_scores(known.model, tokens, "previous_token").mean("prompt")
    repeats = heads.pattern_scores(known.model, tokens, "induction").mean("prompt")
    assert previous.sel(layer=0, head=0) > 0.95
    assert (previous.sel(layer=0, head=[1, 2]) < 0.3).all()
    assert (repeats.sel(layer=1, head=[0, 1]) > 0.9).all()  # and its look-alike
    assert (repeats.sel(layer=1, head=[2, 3]) < 0.3).all()


@pytest.mark.parametrize("name", with_long("gpt2", "neox", core=["llama"]))
def test_circuits_are_the_dense_products(name):
    model, c = small_model(name), small_model(name).config
    attn, each = model.params.blocks.attn, c.n_heads // c.n_kv_heads
    ov, qk = heads.ov_circuits(model), heads.qk_circuits(model)
    for layer in range(3):
        for h in range(c.n_heads):
            dense = attn.W_V[layer, h // each] @ attn.W_O[layer, h]
            np.testing.assert_allclose(ov[layer, h].dense(), dense, atol=1e-5)
            dense = attn.W_Q[layer, h] @ attn.W_K[layer, h // each].T
            np.testing.assert_allclose(qk[layer, h].dense(), dense, atol=1e-5)


@pytest.mark.parametrize("through", [False, True])
def test_copying_scores_are_those_of_the_whole_vocabulary(through):
    model = small_model("gpt2")
    p, c = model.params, model.config
    W_E = p.embed.W_E.astype(np.float64)
    if through:
        ln = W_E - W_E.mean(-1, keepdims=True)
        ln = ln / np.sqrt((ln**2).mean(-1, keepdims=True) + c.norm_eps)
        ln = ln * p.blocks.ln2.w[0] + p.blocks.ln2.b[0]
        pre = ln @ p.blocks.mlp.W_in[0] + p.blocks.mlp.b_in[0]
        post = 0.5 * pre * (1 + np.tanh(np.sqrt(2 / np.pi) * (pre + 0.044715 * pre**3)))
        W_E = W_E + post @ p.blocks.mlp.W_out[0] + p.blocks.mlp.b_out[0]
    found = heads.copying_scores(model, through_mlp=through)
    for (layer, h), value in np.ndenumerate(found.values):
        ov = p.blocks.attn.W_V[layer, h] @ p.blocks.attn.W_O[layer, h]
        eigen = np.linalg.eigvals(W_E @ ov @ p.embed.W_E.T)
        assert value == pytest.approx(eigen.sum().real / abs(eigen).sum(), abs=1e-3)


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_composition_is_that_of_dense_products(kind):
    model, c = small_model("llama"), small_model("llama").config
    ov, qk = (np.asarray(m.dense()) for m in (heads.ov_circuits(model), heads.qk_circuits(model)))
    found = heads.composition_scores(model, kind, baseline=False)
    for (a, g, b, h), value in np.ndenumerate(found.values):
        if a >= b:
            assert np.isnan(value)
            continue
        reads = {"q": qk[b, h], "k": qk[b, h].T, "v": ov[b, h]}[kind]
        expected = np.linalg.norm(ov[a, g] @ reads)
        expected /= np.linalg.norm(ov[a, g]) * np.linalg.norm(reads)
        assert value == pytest.approx(expected, rel=1e-4)
    less = heads.composition_scores(model, kind)
    gap = (found - less).values
    assert np.nanstd(gap) < 1e-6
    assert 0.5 / c.d_model**0.5 < np.nanmean(gap) < 2 / c.d_model**0.5


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m: heads.pattern_scores(m, PROMPTS, "skip"), "previous_token, duplicate_token"),
        (lambda m: heads.pattern_scores(m, PROMPTS, np.ones((2, 7))), r"expected \[2, 7, 7\]"),
        (lambda m: heads.pattern_scores(m, [[1, 2, 3]], "induction"), "no query has a target"),
        (lambda m: heads.composition_scores(m, "z"), "'q', 'k' or 'v'"),
        (lambda m: heads.copying_scores(small_model("encoder")), "copies no token"),
        (lambda m: heads.copying_scores(small_model("attention_only"), through_mlp=True),
         "no MLP"),
    ],
)  # fmt: skip
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(small_model("llama"))
