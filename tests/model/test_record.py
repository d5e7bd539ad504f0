"""What `record=` keeps: whole sites, or the one layer that a name asks for."""

import jax
import numpy as np
import pytest
from small_models import CONFIGS, DIFF, PROMPTS, small_model

from jaxinterp.ablation import mean_activations
from jaxinterp.interventions import scale
from jaxinterp.model import as_tokens, forward, run_layers
from jaxinterp.model.sites import SITES, absent, hook_name, parse
from jaxinterp.sweep import observe


def layered(name):
    has_not = absent(CONFIGS[name])
    return [site for site in SITES if SITES[site].layered and site not in has_not]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_a_layers_name_keeps_that_layer_alone(name):
    model, sites = small_model(name), layered(name)
    whole = forward(model, PROMPTS, record=sites).activations
    names = [hook_name(site, layer) for site in sites for layer in (0, 2)]
    some = forward(model, PROMPTS, record=names).activations
    assert set(some) == set(names)
    for each in names:
        site, layer = parse(each)
        np.testing.assert_allclose(some[each], whole[site][layer], 1e-5, 1e-5, err_msg=each)
        np.testing.assert_array_equal(whole[each], whole[site][layer], each)


def test_memory_is_that_of_the_layers_named():
    model = small_model("llama")
    compiled = jax.jit(forward, static_argnames="record").lower
    named = compiled(model, PROMPTS, record="blocks.1.attn.hook_pattern").compile()
    assert named.memory_analysis().output_size_in_bytes < 3000  # logits 952, pattern 1568
    (pattern,) = forward(model, PROMPTS, record="blocks.1.attn.hook_pattern").activations.values()
    assert pattern.shape == (2, 4, 7, 7)


def test_a_site_that_is_whole_is_kept_once():
    found = forward(small_model("gpt2"), PROMPTS, record=("blocks.1.hook_resid_pre", "resid_pre"))
    assert list(found.activations) == ["resid_pre"]


def test_what_was_not_kept_says_what_was():
    found = forward(small_model("gpt2"), PROMPTS, record="blocks.1.hook_resid_pre").activations
    for missing in ("resid_pre", "blocks.0.hook_resid_pre"):
        with pytest.raises(KeyError, match=r"was not recorded, blocks\.1\.hook_resid_pre was"):
            found[missing]


def test_edits_show_in_what_is_kept():
    edit = scale("z", 2.0, layer=1)
    model = small_model("gpt2")
    kept = forward(model, PROMPTS, edit, record="blocks.1.attn.hook_z").activations
    plain = forward(model, PROMPTS, record="z").activations["z"][1]
    np.testing.assert_allclose(kept["blocks.1.attn.hook_z"], 2 * plain, rtol=1e-6)


def test_stages_and_the_base_of_a_sweep_keep_single_layers():
    model, tokens = small_model("gpt2"), as_tokens(PROMPTS)
    name = "blocks.1.attn.hook_z"
    z = forward(model, tokens, record="z").activations["z"][1]
    np.testing.assert_allclose(observe(model, tokens, DIFF, record=(name,))[1][name], z, atol=1e-5)
    x = forward(model, tokens, record="resid_pre").activations["resid_pre"]
    np.testing.assert_allclose(
        run_layers(model, x[1], tokens, 1, record=(name,))[1][name], z, atol=1e-5
    )
    traced = jax.jit(lambda start: run_layers(model, x[1], tokens, start, record=(name,))[1])
    np.testing.assert_allclose(traced(1)[name], z, atol=1e-5)
    with pytest.raises(ValueError, match=rf"'{name}' is to be recorded, and layers 2 to 3 are run"):
        run_layers(model, x[2], tokens, 2, record=(name,))


def test_a_name_of_one_layer_is_refused_where_all_are_taken():
    with pytest.raises(ValueError, match=r"names layer 1 alone.*pass 'z'"):
        mean_activations(small_model("gpt2"), as_tokens(PROMPTS), ["blocks.1.attn.hook_z"])
