"""The forward pass against the NumPy oracle, for every choice of architecture."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import (
    CONFIGS,
    OTHER,
    PROMPTS,
    perturbed,
    ragged,
    sites_of,
    sizes_of,
    small_model,
    with_types,
)

from jaxinterp.interventions import replace
from jaxinterp.model import SITES, Config, Tokens, as_tokens, forward, init
from jaxinterp.model.forward import _forward
from jaxinterp.model.parts import ACTIVATIONS


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_every_site_equal_the_oracle(name):
    model = small_model(name)
    sites, tokens = sites_of(model.config), with_types(name, PROMPTS)
    out = forward(model, tokens, record=sites)
    assert set(out.activations) == set(sites)
    for b, (logits, expected) in enumerate(batch(model, tokens)):
        if logits is None:
            assert out.logits is None
        else:
            assert_near(out.logits[b], logits, 1e-4, "logits")
        assert set(expected) == set(sites)
        for site in sites:
            value = out.activations[site]
            value = value[:, b] if SITES[site].layered else value[b]
            assert_near(value, expected[site], 1e-4, site)


@functools.cache
def unedited(name):
    return batch(small_model(name), with_types(name, PROMPTS))


def every_site():
    return [(name, site) for name in CONFIGS for site in sites_of(CONFIGS[name])]


@pytest.mark.parametrize(("name", "site"), every_site())
def test_a_replaced_value_reaches_what_it_should(name, site):
    model, config = small_model(name), CONFIGS[name]
    rng = np.random.default_rng(list(SITES).index(site))
    tokens = with_types(name, PROMPTS)
    sizes = sizes_of(config, site, PROMPTS.shape[1])
    value = rng.uniform(0.5, 2.0, (len(PROMPTS), *sizes.values())).astype(np.float32)
    where = {
        axis: int(rng.integers(size))
        for axis, size in sizes.items()
        if axis in ("position", "head", "neuron", "source")
    }
    if "source" in where:  # one that the query sees, in any window
        where["source"] = max(0, where["position"] - where["source"] % 2)
    entry = tuple(where.get(axis, slice(None)) for axis in sizes)
    layer = int(rng.integers(config.n_layers)) if SITES[site].layered else None

    def edit_of(prompt):
        def edit(at, at_layer, array):
            if (at, at_layer) == (site, layer):
                array[entry] = value[prompt][entry]
            return array

        return edit

    reads = [s for s in ("resid_post", "ln1_normalized", "ln2_normalized") if s in sites_of(config)]
    with jax.disable_jit():  # one compilation per site would be most of the time
        out = forward(model, tokens, replace(site, value, layer=layer, **where), record=reads)
    expected = batch(model, tokens, edit_of)
    plain = unedited(name)
    moved = False
    for b, (logits, sites) in enumerate(expected):
        if logits is not None:
            assert_near(out.logits[b], logits, 1e-4, "logits")
        for read in reads:
            assert_near(out.activations[read][:, b], sites[read], 1e-4, read)
            moved |= not np.array_equal(sites[read], plain[b][1][read])
        moved |= logits is not None and not np.array_equal(logits, plain[b][0])
    if site not in ("k", "rot_k", "attn_scores", "k_input"):  # a lone source gets weight 1 anyway
        assert moved, "the edit changed nothing: this test shows nothing"


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    model = perturbed(init(CONFIGS["gpt2"].replace(n_layers=1, act=act), jax.random.key(0)))
    with jax.disable_jit():
        out = forward(model, PROMPTS[:1])
    assert_near(out.logits[0], batch(model, as_tokens(PROMPTS[:1]))[0][0], 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "bert", "attention_only"])
def test_in_float64_only_rounding_remains(name):
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), small_model(name))
        tokens = with_types(name, PROMPTS)
        out = forward(model, tokens)
        assert out.logits.dtype == jnp.float64
    for b, (logits, _) in enumerate(batch(model, tokens)):
        assert_near(out.logits[b], logits, 1e-9)


def test_rotary_in_float64_only_rounding_remains():
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), small_model("llama"))
        out = forward(model, PROMPTS)
    assert_near(out.logits[0], batch(model, as_tokens(PROMPTS))[0][0], 1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma3", "bert"])
def test_padding_equals_each_prompt_alone(name, side):
    model = small_model(name)
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]
    tokens = ragged(prompts, side, 9)
    out = forward(model, tokens, record=["z"])
    for b, (logits, sites) in enumerate(batch(model, tokens)):
        real = np.asarray(tokens.mask)[b]
        assert_near(out.logits[b][real], logits, 1e-4, f"prompt {b}")
        assert_near(out.activations["z"][:, b, real], sites["z"], 1e-4, f"prompt {b}")


def test_padding_may_hold_any_ids():
    model, tokens = small_model("llama"), ragged([[3, 1, 4], [1, 5]], "left", 6)
    other = tokens.replace(ids=np.where(tokens.mask, tokens.ids, 11))
    a, b = forward(model, tokens).logits, forward(model, other).logits
    np.testing.assert_array_equal(a[tokens.mask], b[tokens.mask])


def test_recording_does_not_change_logits():
    model = small_model("gemma3")
    with jax.disable_jit():
        plain = forward(model, PROMPTS).logits
        for site in sites_of(model.config):
            recorded = forward(model, PROMPTS, record=[site]).logits
            if site == "result":  # its heads are summed one by one
                assert_near(recorded, plain, 1e-6, site)
            else:
                np.testing.assert_array_equal(recorded, plain, site)


def test_bare_ids_of_one_prompt_are_a_batch_of_one():
    model = small_model("gpt2")
    np.testing.assert_array_equal(
        forward(model, PROMPTS[0]).logits, forward(model, PROMPTS[:1]).logits
    )


def test_jit_and_vmap_of_forward():
    model = small_model("neox")
    expected = forward(model, PROMPTS).logits
    assert_near(jax.jit(lambda m, t: forward(m, t).logits)(model, PROMPTS), expected, 1e-6)
    alone = jax.vmap(lambda ids: forward(model, ids[None]).logits[0])(jnp.asarray(PROMPTS))
    assert_near(alone, expected, 1e-5)


def test_models_stack_under_vmap():
    models = [perturbed(small_model("gpt2"), seed) for seed in (2, 3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
    both = jax.vmap(lambda m: forward(m, PROMPTS).logits)(stacked)
    for got, model in zip(both, models, strict=True):
        assert_near(got, forward(model, PROMPTS).logits, 1e-5)


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), small_model("gpt2"))
        rng = np.random.default_rng(0)
        step = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), model)
        weights = rng.standard_normal((*PROMPTS.shape, model.config.vocab_size))

        @jax.jit
        def loss(model):
            return (forward(model, PROMPTS).logits * weights).sum()

        moved = [
            loss(jax.tree.map(lambda x, s, h=h: x + h * s, model, step)) for h in (1e-5, -1e-5)
        ]
        products = jax.tree.map(lambda g, s: (g * s).sum(), jax.grad(loss)(model), step)
        slope, difference = sum(jax.tree.leaves(products)), (moved[0] - moved[1]) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_a_second_prompt_of_the_same_shape_compiles_nothing():
    model = small_model("gpt2")
    forward(model, PROMPTS)
    before = _forward.compiled._cache_size()
    forward(model, OTHER)
    assert _forward.compiled._cache_size() == before


def test_config_survives_json():
    for config in CONFIGS.values():
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_token_types_default_to_zero():
    model = small_model("bert")
    tokens = as_tokens(PROMPTS)
    zeros = Tokens(tokens.ids, tokens.positions, np.zeros_like(PROMPTS))
    np.testing.assert_array_equal(forward(model, tokens).logits, forward(model, zeros).logits)
