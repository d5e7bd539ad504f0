"""Interventions in the forward pass: the user's own, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from oracle import assert_near, batch
from small_models import DIFF, OTHER, PROMPTS, ragged, small_model

from jaxinterp.interventions import Shared, replace, scale, zero
from jaxinterp.model import SITES, Tokens, as_tokens, forward
from jaxinterp.model.sites import parse
from jaxinterp.sweep import sweep


class Double(struct.PyTreeNode):
    """The five lines a user writes."""

    layer: Any
    sites = ("mlp_out",)

    def __call__(self, value, at):
        return jnp.where(at.layer == self.layer, 2 * value, value)


class Returns(struct.PyTreeNode):
    """Gives back whatever a function makes of the value."""

    function: Any = struct.field(pytree_node=False)
    sites: Any = struct.field(pytree_node=False, default=("z",))

    def __call__(self, value, at):
        return self.function(value)


def test_a_users_own_intervention():
    model = small_model("gpt2")
    out = forward(model, PROMPTS, Double(np.int32(1)))

    def edit(site, layer, value):
        return 2 * value if (site, layer) == ("mlp_out", 1) else value

    for b, (logits, _) in enumerate(batch(model, as_tokens(PROMPTS), lambda b: edit)):
        assert_near(out.logits[b], logits, 1e-4)


def test_interventions_apply_in_order():
    model = small_model("gpt2")
    with jax.disable_jit():
        doubled = forward(model, PROMPTS, (zero("mlp_out"), Double(1))).activations
        a = forward(model, PROMPTS, [zero("mlp_out"), Double(1)], record=["mlp_out"])
        b = forward(model, PROMPTS, (Double(1), (zero("mlp_out"),)), record=["mlp_out"])
        c = forward(
            model, PROMPTS, (replace("mlp_out", 1.0), Double(1)), record=["mlp_out"]
        ).activations["mlp_out"]
    assert doubled == {}
    assert not a.activations["mlp_out"].any()
    assert not b.activations["mlp_out"].any()
    assert [float(c[l].max()) for l in range(3)] == [1.0, 2.0, 1.0]


def test_what_an_intervention_is_told():
    seen = {}

    class Spy(struct.PyTreeNode):
        sites = ("pattern", "z", "embed")

        def __call__(self, value, at):
            shape = dict(zip(at.axes, value.shape, strict=True))
            seen[at.site] = (shape, at.positions.shape, at.layer is None)
            return value

    with jax.disable_jit():
        forward(small_model("llama"), PROMPTS, Spy())
    axes = {"batch": 2, "head": 4, "position": 7, "source": 7}
    assert seen["pattern"] == (axes, (2, 7), False)
    assert seen["z"] == ({"batch": 2, "position": 7, "head": 4, "d_head": 6}, (2, 7), False)
    assert seen["embed"] == ({"batch": 2, "position": 7, "d_model": 8}, (2, 7), True)


def test_a_change_of_shape_is_an_error():
    with pytest.raises(ValueError, match=r"Returns at 'z' returned float32\[1, 7, 4, 6\], exp"):
        forward(small_model("gpt2"), PROMPTS, Returns(lambda value: value[:1]))


def test_a_change_of_dtype_is_an_error():
    with pytest.raises(ValueError, match=r"float16.*expected float32.*batch position head d_head"):
        forward(small_model("gpt2"), PROMPTS, Returns(lambda value: value.astype(jnp.float16)))


def test_what_is_not_an_intervention_is_an_error():
    with pytest.raises(TypeError, match="is not an intervention"):
        forward(small_model("gpt2"), PROMPTS, lambda value, at: value)


@pytest.mark.parametrize(
    ("name", "site", "reason"),
    [
        ("neox", "resid_mid", "parallel"),
        ("gpt2", "rot_q", "rotary"),
        ("llama", "pos_embed", "learned"),
        ("gpt2", "mlp_pre_linear", "gated"),
        ("attention_only", "mlp_out", "no MLP"),
        ("attention_only", "ln1_scale", "norm"),
        ("bert", "ln_final_scale", "final norm"),
        ("olmo2", "ln1_scale", "without a norm"),
        ("llama", "ln1_post_scale", "write"),
        ("llama", "ln_embed_scale", "embedding"),
    ],
)
def test_a_site_the_model_lacks_is_an_error(name, site, reason):
    model = small_model(name)
    for call in (
        lambda: forward(model, PROMPTS, record=[site]),
        lambda: forward(model, PROMPTS, zero(site)),
        lambda: forward(model, PROMPTS, Returns(lambda v: v, (site,))),
    ):
        with pytest.raises(ValueError, match=f"no site '{site}'.*{reason}"):
            call()


def test_an_unknown_site_is_an_error():
    model = small_model("gpt2")
    for call in (
        lambda: forward(model, PROMPTS, record="resid_past"),
        lambda: zero("resid_past"),
        lambda: forward(model, PROMPTS, Returns(lambda v: v, ("resid_past",))),
    ):
        with pytest.raises(ValueError, match="'resid_past' is not a site"):
            call()


@pytest.mark.parametrize(
    ("site", "where", "message"),
    [
        ("z", {"layer": 3}, "layer 3 is out of range at 'z': expected 0 to 2"),
        ("z", {"layer": -1}, "layer -1 is out of range"),
        ("z", {"position": 7}, "position 7 is out of range.*0 to 6"),
        ("z", {"position": -1}, "position -1 is out of range"),
        ("q", {"head": 4}, "head 4 is out of range.*0 to 3"),
        ("k", {"head": 2}, "head 2 is out of range.*0 to 1.*key/value"),
        ("mlp_post", {"neuron": 10}, "neuron 10 is out of range.*0 to 9"),
        ("pattern", {"source": 7}, "source 7 is out of range"),
        ("z", {"layer": np.ones(2, bool)}, "layer mask of 'z' has 2 entries, expected 3"),
        ("v", {"head": np.ones(4, bool)}, "head mask of 'v' has 4 entries, expected 2"),
        ("z", {"layer": 1.5}, "layer=1.5 at 'z': expected a whole number"),
        ("z", {"head": np.array([0.0, 1.0])}, "head=array.*expected a whole number"),
        ("z", {"position": "1"}, "position='1' at 'z': expected a whole number"),
        ("z", {"layer": True}, "layer=True at 'z'.*bool mask along the layer axis"),
        ("z", {"layer": [0, 1]}, r"layer at 'z' has shape \[2\]: .*sweep.*a bool mask"),
        ("z", {"head": np.ones((3, 4), bool)}, r"head at 'z' has shape \[3, 4\]"),
    ],
)
def test_an_index_out_of_range_is_an_error(site, where, message):
    with pytest.raises(ValueError, match=message):
        forward(small_model("llama"), PROMPTS, zero(site, **where))


def test_a_traced_index_that_is_no_whole_number_is_an_error():
    model = small_model("gpt2")
    with pytest.raises(ValueError, match=r"layer=.*expected a whole number"):
        jax.jit(lambda layer: forward(model, PROMPTS, zero("z", layer=layer)).logits)(1.0)


@pytest.mark.parametrize(
    "text", ["The door", ["The door", "A"], [["The", "door"]], np.array(["The door"])]
)
def test_text_is_no_tokens(text):
    with pytest.raises(ValueError, match=r"tokens are text, 'The.*: make ids of it, tokenizer\("):
        forward(small_model("gpt2"), text)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_values_of_other_layers_are_an_error(n):
    # They would be clamped: layer 2 would silently get the value of layer 1.
    model = small_model("gpt2")  # 3 layers
    value = forward(model, PROMPTS, record="resid_post").activations["resid_post"]
    some = np.concatenate([value, value])[:n]
    with pytest.raises(ValueError, match=f"'resid_post' are stacked over {n} layers.*has 3 layers"):
        forward(model, PROMPTS, replace("resid_post", some))
    grid = replace("resid_post", Shared(some), layer=np.arange(3))
    with pytest.raises(ValueError, match=f"stacked over {n} layers"):
        sweep(model, PROMPTS, grid, DIFF)
    once = forward(model, PROMPTS, record="embed").activations["embed"]
    with pytest.raises(ValueError, match=r"'embed' are stacked over 3 layers.*it has no layers"):
        forward(model, PROMPTS, replace("embed", np.stack([once] * 3)))


@pytest.mark.parametrize("bad", [{"layer": 3}, {"layer": -1}, {"position": 7}, {"head": 4}])
def test_a_traced_index_out_of_range_gives_nan(bad):
    model = small_model("gpt2")
    ((axis, index),) = bad.items()

    @jax.jit
    def logits(index):
        return forward(model, PROMPTS, replace("z", 0.0, **{axis: index})).logits

    assert np.isfinite(logits(1)).all()
    assert np.isnan(logits(index)[:, -1]).all()


def test_a_position_beyond_a_short_prompt_gives_nan_there_only():
    model = small_model("gpt2")
    tokens = Tokens(PROMPTS, np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, -1, -1, -1, -1]]))
    with jax.disable_jit():
        logits = forward(model, tokens, replace("resid_pre", 0.0, position=5)).logits
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((0, 3), int), "non-empty"),
        (np.zeros((2, 0), int), "non-empty"),
        (np.zeros((1, 2, 3), int), r"shape \[1, 2, 3\]"),
        (np.array([[0.0, 1.0]]), "float64, expected integers"),
        (np.array([[0, 17]]), "Token id 17 is outside the vocabulary of 17"),
        (np.array([[0, -1]]), "Token id -1 is outside"),
        (np.zeros((1, 13), int), "13 tokens.*learned positions for 12"),
    ],
)
def test_bad_tokens_are_errors(tokens, message):
    with pytest.raises(ValueError, match=message):
        forward(small_model("gpt2"), tokens)


def test_an_empty_batch_of_tokens_is_an_error():
    empty = as_tokens(PROMPTS)[np.zeros(0, int)]
    with pytest.raises(ValueError, match="non-empty"):
        forward(small_model("gpt2"), empty)


def test_zero_is_shared_by_experiments_and_works_alone():
    model = small_model("gpt2")
    with jax.disable_jit():
        z = forward(model, PROMPTS, zero("z", layer=1, head=2), record="z").activations["z"]
    assert not z[1, :, :, 2].any()
    assert z[1, :, :, 1].all()
    assert z[0].all()


def test_the_callers_arrays_are_left_alone():
    model = small_model("gpt2")
    donor = {k: np.array(v) for k, v in forward(model, OTHER, record=["z"]).activations.items()}
    before = donor["z"].copy()
    with jax.disable_jit():
        forward(model, PROMPTS, replace("z", donor["z"], layer=1, position=2))
    np.testing.assert_array_equal(donor["z"], before)


@pytest.mark.parametrize("inner", ["ln1_normalized", "ln1_scale"])
def test_edits_of_a_norm_hold_where_another_layers_input_is_edited(inner):
    model = small_model("gpt2")
    value = np.random.default_rng(0).uniform(0.5, 2, (7, 1 if "scale" in inner else 8))
    edits = (replace(inner, value, layer=0), replace("q_input", 0.5, layer=2, head=1))
    with jax.disable_jit():
        out = forward(model, PROMPTS, edits)

    def edit(site, layer, array):
        if (site, layer) == (inner, 0):
            return value
        if (site, layer) == ("q_input", 2):
            array[:, 1] = 0.5
        return array

    for b, (logits, _) in enumerate(batch(model, as_tokens(PROMPTS), lambda b: edit)):
        assert_near(out.logits[b], logits, 1e-4)


def test_every_site_parses_by_both_names():
    for name, site in SITES.items():
        assert parse(name) == (name, None)
        for layer in (0, 9, 10, 123):
            hook = f"blocks.{layer}.{site.hook}" if site.layered else site.hook
            assert parse(hook) == (name, layer if site.layered else None)


def test_hook_names_are_those_of_transformerlens():
    expected = {
        "hook_embed": ("embed", None),
        "hook_pos_embed": ("pos_embed", None),
        "blocks.11.hook_resid_pre": ("resid_pre", 11),
        "blocks.2.hook_resid_mid": ("resid_mid", 2),
        "blocks.2.hook_resid_post": ("resid_post", 2),
        "blocks.0.hook_q_input": ("q_input", 0),
        "blocks.0.hook_mlp_in": ("mlp_in", 0),
        "blocks.3.ln1.hook_scale": ("ln1_scale", 3),
        "blocks.3.ln2.hook_normalized": ("ln2_normalized", 3),
        "blocks.3.attn.hook_rot_k": ("rot_k", 3),
        "blocks.10.attn.hook_attn_scores": ("attn_scores", 10),
        "blocks.10.attn.hook_pattern": ("pattern", 10),
        "blocks.10.attn.hook_result": ("result", 10),
        "blocks.5.mlp.hook_pre": ("mlp_pre", 5),
        "blocks.5.mlp.hook_pre_linear": ("mlp_pre_linear", 5),
        "blocks.5.mlp.hook_post": ("mlp_post", 5),
        "ln_final.hook_scale": ("ln_final_scale", None),
    }
    assert {hook: parse(hook) for hook in expected} == expected


@pytest.mark.parametrize(
    "name", ["hook_z", "blocks.1.hook_embed", "blocks.x.attn.hook_z", "blocks.1.attn.hook_zz", ""]
)
def test_what_is_no_hook_name_is_an_error(name):
    with pytest.raises(ValueError, match="is not a site"):
        parse(name)


def test_hook_names_work_for_records_and_interventions():
    model = small_model("gpt2")
    with jax.disable_jit():
        edit = zero("blocks.2.attn.hook_z")
        one = forward(model, PROMPTS, edit, record="blocks.2.attn.hook_z").activations
        out = forward(model, PROMPTS, edit, record="z").activations["z"]
    assert not one["blocks.2.attn.hook_z"].any()
    assert not out[2].any()
    assert out[:2].any()
    with pytest.raises(ValueError, match="names layer 2 already"):
        zero("blocks.2.attn.hook_z", layer=1)


def test_recorded_values_by_hook_name():
    model = small_model("gpt2")
    names = ("blocks.2.attn.hook_z", "z", "hook_embed")
    seen = forward(model, PROMPTS, record=names).activations
    assert sorted(seen) == ["embed", "z"]
    np.testing.assert_array_equal(seen["blocks.1.attn.hook_z"], seen["z"][1])
    np.testing.assert_array_equal(seen["hook_embed"], seen["embed"])
    doubled = jax.tree.map(lambda x: 2 * x, seen)
    np.testing.assert_array_equal(doubled["blocks.1.attn.hook_z"], 2 * seen["z"][1])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(seen)]
    assert paths == ["['embed']", "['z']"]
    with pytest.raises(KeyError, match="'pattern' was not recorded, embed, z was"):
        seen["pattern"]
    with pytest.raises(KeyError, match="'zz' is not a site"):
        seen["zz"]
    with pytest.raises(ValueError, match=r"blocks.3.attn.hook_z'?: the model has layers 0 to 2"):
        forward(model, PROMPTS, record="blocks.3.attn.hook_z")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize(
    "edit",
    [
        scale("attn_scores", 0.9),
        scale("attn_scores", 1.5),
        zero("attn_scores", layer=1),
        replace("pattern", 0.25),
    ],
    ids=["weaker", "stronger", "flat", "constant"],
)
def test_padding_stays_out_of_attention_whatever_is_done_to_it(name, side, edit):
    model, prompts = small_model(name), [[3, 1, 4, 1, 5], [9, 2, 6]]
    padded = ragged(prompts, side, 7)
    together = np.asarray(forward(model, padded, edit).logits)
    for b, prompt in enumerate(prompts):
        alone = np.asarray(forward(model, prompt, edit).logits)[0]
        ours = together[b][np.asarray(padded.mask)[b]]
        np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-5)
