"""RelP: relevance is the slope of a forward pass with the rules' factors held."""

import numpy as np
import pytest
import slow_patching as slow
from small_models import CONFIGS, DIFF, only_long, small_model

from jaxinterp.attribution import attribute
from jaxinterp.attribution.relp import DEFAULT, RULES

CLEAN, CORRUPTED = slow.CLEAN, slow.CORRUPTED
TWINS = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": DIFF}


def change(result):
    noising = result.attrs["direction"] == "noise"
    return result - result.coords["clean" if noising else "corrupted"]


def held(name, prompt, direction, rules):
    """Edits that make a finite difference obey the rules: what they hold is the base run's."""
    base, _ = slow.ends(name, prompt, direction)
    config = CONFIGS[name]
    act = np.vectorize(slow.oracle.ACTIVATIONS[config.act])
    now = {}

    def edit(site, layer, value):
        now[site] = value
        first = base[site] if layer is None else base[site][layer]
        if site.endswith("_scale") and "norm" in rules:
            return first
        if site == "pattern" and "attention" in rules:
            return first
        if site != "mlp_post":
            return value
        pre, then = now["mlp_pre"], base["mlp_pre"][layer]
        gain = act(then) / then
        post = pre * gain if "activation" in rules else act(pre)
        if not config.gated:
            return post + (value - act(pre))  # what was moved here stays moved
        linear, before = now["mlp_pre_linear"], base["mlp_pre_linear"][layer]
        shift = value - act(pre) * linear
        if "gate" in rules:
            change = (post - act(then)) * before + act(then) * (linear - before)
            return act(then) * before + change / 2 + shift
        return post * linear + shift

    return edit


@pytest.mark.parametrize(
    ("name", "site", "cell", "rules"),
    [
        only_long("gpt2", "resid_pre", {"layer": 0, "position": 4}, ("norm",)),
        only_long("gpt2", "resid_pre", {"layer": 0, "position": 4}, RULES),
        ("llama", "resid_mid", {"layer": 1, "position": 5}, ("activation",)),
        ("llama", "resid_mid", {"layer": 1, "position": 5}, ("gate",)),
        ("llama", "z", {"layer": 0, "head": 1}, DEFAULT),
        ("neox", "attn_out", {"layer": 1, "position": 4}, DEFAULT),
        ("neox", "attn_out", {"layer": 1, "position": 4}, ("attention",)),
        ("gemma2", "v", {"layer": 0, "position": 4}, DEFAULT),
    ],
)
def test_relevance_is_the_slope_with_the_rules_factors_held(name, site, cell, rules):
    options = {"method": "relp", "rules": rules, "site": site, "over": tuple(cell), **TWINS}
    found = change(attribute(small_model(name), **options)).sel(cell)
    for prompt in range(2):
        edit = held(name, prompt, "denoise", rules)
        expected = slow.slope(name, prompt, site, cell, "denoise", edit)
        np.testing.assert_allclose(found[prompt], expected, rtol=3e-3, atol=3e-5)


def test_neurons_have_relevance_before_the_gate_rule():
    found = change(
        attribute(
            small_model("llama"), method="relp", site="mlp_post", over=("layer", "neuron"),
            layers=[1], neurons=[3], **TWINS,
        )
    )  # fmt: skip
    cell = {"layer": 1, "neuron": 3}
    base, donor = slow.ends("llama", 0, "denoise")
    way = np.zeros_like(base["mlp_post"][1])
    way[:, 3] = (donor["mlp_post"] - base["mlp_post"])[1][:, 3]
    rules = held("llama", 0, "denoise", DEFAULT)

    def at(step):
        def edit(site, layer, value):
            value = rules(site, layer, value)
            return value + step * way if (site, layer) == ("mlp_post", 1) else value

        logits, _ = slow.oracle.forward(small_model("llama"), CORRUPTED[0], edit=edit)
        return slow.metric_of(logits, 0)

    expected = (at(slow.STEP) - at(-slow.STEP)) / (2 * slow.STEP)
    np.testing.assert_allclose(found.sel(cell).isel(prompt=0), expected, rtol=3e-3, atol=3e-5)
