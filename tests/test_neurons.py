"""Neurons: examples and histograms by sorting everything, written tokens by dense products."""

import numpy as np
import pytest
from small_models import small_model, with_long
from tiny_tokenizers import word_tokenizer

import jaxinterp as ji
from jaxinterp import neurons

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 17, (9, 6))
IDS[:, 0] = np.arange(9)  # no two contexts, so no two activations, are alike
LENGTHS = np.array([6, 4, 6, 2, 6, 6, 5, 6, 3])
POSITIONS = np.where(np.arange(6) < LENGTHS[:, None], np.arange(6), -1)
BATCHES = [ji.Tokens(IDS[i : i + 3], POSITIONS[i : i + 3]) for i in (0, 3, 6)]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("site", ["mlp_post", "mlp_pre"])
def test_examples_are_the_most_active_tokens_of_the_corpus(site, alone):
    model = small_model("llama")
    edges = [-0.5, 0.0, 0.5]
    found = neurons.top_examples(
        model, iter(BATCHES), k=3, site=site, layers=[2, 0], window=(2, 1), edges=edges,
        one_per_prompt=alone,
    )  # fmt: skip
    whole = np.stack([np.asarray(ji.forward(model, b, record=(site,)).activations[site])
                      for b in BATCHES], 1)  # fmt: skip
    whole = whole.reshape(3, 9, 6, 10)
    for layer in (0, 2):
        for n in range(10):
            x = np.where(POSITIONS >= 0, whole[layer, :, :, n], -np.inf)
            cells = [(x[b, p], b, p) for b in range(9) for p in range(6)]
            if alone:
                cells = [max(c for c in cells if c[1] == b) for b in range(9)]
            cells = sorted(cells, reverse=True)[:3]
            one = found.sel(layer=layer, neuron=n)
            np.testing.assert_allclose(one.value, [c[0] for c in cells], atol=1e-5)
            assert one.prompt.values.tolist() == [c[1] for c in cells]
            assert one.position.values.tolist() == [c[2] for c in cells]
            for rank, (_, b, p) in enumerate(cells):
                around = [IDS[b, q] if 0 <= q < LENGTHS[b] else -1 for q in range(p - 2, p + 2)]
                assert one.context[rank].values.tolist() == around
            real = x[np.isfinite(x)]
            expected = np.histogram(real, [-np.inf, *edges, np.inf])[0]
            assert one["count"].values.tolist() == expected.tolist()


def test_texts_of_examples():
    found = neurons.top_examples(
        small_model("llama"), [IDS % 9], k=1, window=(1, 0), tokenizer=word_tokenizer()
    )
    one = found.isel(layer=0, neuron=0, rank=0)
    words = [f"w{i}" for i in one.context.values if i >= 0]
    assert str(one.text.values).split() == words


@pytest.mark.parametrize("name", with_long("gpt2", "olmo2"))
def test_written_tokens_are_those_of_dense_products(name):
    model, c = small_model(name), small_model(name).config
    p, layer = model.params, 1
    W_U = p.embed.W_E.T if c.head == "tied" else p.head.W_U
    x = p.blocks.mlp.W_out[layer].astype(np.float64)

    def through(x, norm):
        return (x - x.mean(-1, keepdims=True) if c.norm == "layer" else x) * norm

    if p.blocks.ln2_post is not None:
        x = through(x, p.blocks.ln2_post.w[layer])
    change = through(x, p.ln_final.w) @ W_U
    found = neurons.written_tokens(model, layer, [3, 0], k=4)
    for n in (3, 0):
        order = np.argsort(-change[n])
        one = found.sel(neuron=n)
        assert one.token.sel(end="raised").values.tolist() == order[:4].tolist()
        assert one.token.sel(end="lowered").values.tolist() == order[::-1][:4].tolist()
        np.testing.assert_allclose(
            one.change, [change[n][order[:4]], change[n][order[::-1][:4]]], atol=1e-4
        )


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m: neurons.top_examples(m, []), "no prompts"),
        (lambda m: neurons.top_examples(m, [IDS], site="z"), "'mlp_post' or 'mlp_pre'"),
        (lambda m: neurons.top_examples(m, [IDS], k=0), "k=0, expected"),
        (lambda m: neurons.top_examples(m, [IDS], k=99), "fewer than 99"),
        (lambda m: neurons.top_examples(m, [IDS], layers=[3]), "0 to 2"),
        (lambda m: neurons.top_examples(m, [IDS, IDS[:2]]), "one shape"),
        (lambda m: neurons.top_examples(m, [IDS], edges=[1.0, 0.0]), "rising"),
        (lambda m: neurons.written_tokens(m, 3), "0 to 2"),
        (lambda m: neurons.written_tokens(m, 0, [10]), "0 to 9"),
        (lambda m: neurons.written_tokens(m, 0, k=0), "1 to 17"),
        (lambda m: neurons.written_tokens(small_model("encoder"), 0), "no logits"),
    ],
)
def test_bad_input(run, message):
    with pytest.raises(ValueError, match=message):
        run(small_model("llama"))
