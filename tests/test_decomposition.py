"""Direct logit attribution: parts by hand in NumPy, and sums that are the model's own logits."""

import numpy as np
import pytest
from small_models import PROMPTS, small_model, with_long

import jaxinterp as ji
from jaxinterp import decomposition

FAMILIES = with_long("gpt2", "gptj", "qwen3", "olmo2", "gemma3")
ANSWER, WRONG = [4, 9], [8, 2]


def logits(model, layer, position):
    """[B V] before the soft-cap, the model cut off before that block."""
    found = ji.forward(model, PROMPTS, record=("resid_pre", "resid_post")).activations
    stream = np.concatenate([found["resid_pre"], found["resid_post"][-1:]])
    plain = model.replace(config=model.config.replace(logit_softcap=0.0))
    return np.asarray(ji.unembed(plain, stream[layer])[0], np.float64)[:, position]


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
@pytest.mark.parametrize("name", FAMILIES)
def test_components_sum_to_the_models_own_logits(name, by):
    model = small_model(name)
    for layer, position in ((None, -1), (2, 3), (0, 0)):
        cut = logits(model, 3 if layer is None else layer, position)
        right, wrong = (cut[np.arange(2), ids] for ids in (ANSWER, WRONG))
        for options, expected in (({"wrong": WRONG}, right - wrong), ({}, right)):
            found = ji.attribute_logits(
                model, PROMPTS, ANSWER, layer=layer, position=position, by=by, **options
            )
            np.testing.assert_allclose(found.sum("component"), expected, atol=1e-4)
            np.testing.assert_allclose(found.total, expected, atol=1e-4)


@pytest.mark.parametrize("name", with_long("gpt2", core=["llama", "neox"]))
def test_each_component_is_what_it_writes_under_the_held_scale(name):
    model, c = small_model(name), small_model(name).config
    sites = ("embed", "result", "mlp_out", "mlp_post", "ln_final_scale")
    seen = {k: np.asarray(v, np.float64) for k, v in
            ji.forward(model, PROMPTS, record=sites).activations.items()}  # fmt: skip
    p, at = model.params, 4
    W_U = p.embed.W_E.T if c.head == "tied" else p.head.W_U
    direction = np.stack([W_U[:, a] - W_U[:, w] for a, w in zip(ANSWER, WRONG, strict=True)])

    def share(written):  # [B D]
        centred = written - written.mean(-1, keepdims=True) if c.norm == "layer" else written
        normed = centred / seen["ln_final_scale"][:, at] * p.ln_final.w
        return (normed * direction).sum(-1)

    found = ji.attribute_logits(model, PROMPTS, ANSWER, WRONG, position=at, by="neuron")
    whole = ji.attribute_logits(model, PROMPTS, ANSWER, WRONG, position=at)
    for layer in range(3):
        for h in range(c.n_heads):
            expected = share(seen["result"][layer, :, at, h])
            got = found.sel(component=f"a{layer}.h{h}")
            np.testing.assert_allclose(got, expected, atol=1e-5)
        expected = share(seen["mlp_out"][layer, :, at])
        np.testing.assert_allclose(whole.sel(component=f"m{layer}"), expected, atol=1e-5)
        for n in (0, c.d_mlp - 1):
            expected = share(seen["mlp_post"][layer, :, at, n, None] * p.blocks.mlp.W_out[layer, n])
            got = found.sel(component=f"m{layer}.n{n}")
            np.testing.assert_allclose(got, expected, atol=1e-5)
    embedded = seen["embed"][:, at]
    if c.positions == "learned":
        embedded = embedded + p.embed.W_pos[at]
    np.testing.assert_allclose(found.sel(component="input"), share(embedded), atol=1e-5)


@pytest.mark.parametrize("name", with_long("gpt2"))
def test_along_a_direction_shares_sum_to_the_streams_projection(name):
    model = small_model(name)
    direction = np.random.default_rng(0).normal(size=8)
    for layer in (1, 3):
        found = ji.attribute_stream(model, PROMPTS, direction, layer=layer, position=[2, 5])
        site = ji.forward(model, PROMPTS, record=("resid_post",)).activations["resid_post"]
        expected = np.asarray(site)[layer - 1, [0, 1], [2, 5]] @ direction
        np.testing.assert_allclose(found.sum("component"), expected, atol=1e-4)
        np.testing.assert_allclose(found.total, expected, atol=1e-4)


def test_padding_and_batches_do_not_matter():
    model = small_model("gemma2")
    positions = np.tile(np.arange(7), (2, 1))
    positions[1] = [-1, -1, 0, 1, 2, 3, 4]
    padded = ji.Tokens(PROMPTS, positions)
    both = ji.attribute_logits(model, padded, ANSWER, WRONG)
    again = ji.attribute_logits(model, padded, ANSWER, WRONG, batch=1)
    alone = ji.attribute_logits(model, PROMPTS[1:, 2:], ANSWER[1:], WRONG[1:])
    np.testing.assert_allclose(both, again, atol=1e-5)
    np.testing.assert_allclose(both[:, 1:], alone, atol=1e-5)


def test_the_largest_components_come_first():
    found = ji.attribute_logits(small_model("llama"), PROMPTS, ANSWER, WRONG)
    top = decomposition.top_components(found, 3)
    sizes = abs(found.mean("prompt"))
    assert top.sizes["component"] == 3
    assert sizes.sel(component=top.component).values.tolist() == sorted(sizes.values)[::-1][:3]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {}, "transform"),
        ("encoder", {}, "no unembedding"),
        ("llama", {"layer": 4}, "layer=4, expected .* from 0 to 3"),
        ("llama", {"position": 7}, "outside prompts"),
        ("llama", {"by": "sae"}, "'layer', 'head' or 'neuron'"),
        ("llama", {"wrong": [17, 2]}, "one token of 17"),
        ("llama", {"wrong": [1, 2, 3]}, "for each of 2"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        ji.attribute_logits(small_model(name), PROMPTS, ANSWER, **options)


@pytest.mark.parametrize("direction", [np.ones(7), np.ones((3, 8)), np.full(8, np.nan)])
def test_bad_directions(direction):
    with pytest.raises(ValueError, match="expected finite"):
        ji.attribute_stream(small_model("llama"), PROMPTS, direction)
