"""Patchscopes, against forward passes over ever longer texts."""

import numpy as np
import pytest
from small_models import OTHER, PROMPTS, small_model

import jaxinterp as ji
from jaxinterp import lens


def by_hand(model, value, layer, ids, into, n_new):
    """Greedy tokens of one prompt [P], the value [D] put at its position in each whole pass."""
    ids = list(ids)
    for _ in range(n_new):
        edit = ji.replace("resid_pre", value, layer=layer, position=into)
        ids.append(int(np.argmax(ji.forward(model, [ids], edit).logits[0, -1])))
    return ids[-n_new:]


@pytest.mark.parametrize("pairs", [False, True])
def test_equals_a_patch_in_whole_passes(pairs):
    model = small_model("llama")
    at, into = np.array([4, -2]), np.array([1, 3])
    stream = np.asarray(ji.forward(model, PROMPTS, record=("resid_pre",)).activations["resid_pre"])
    found = lens.patchscope(
        model, PROMPTS, at, OTHER[:, :5], into, n_new=3, layers=[2, 0],
        into_layers=[0, 1] if pairs else None,
    )  # fmt: skip
    assert found.token.dims == ("layer", *(["into_layer"] if pairs else []), "prompt", "new")
    for layer in (2, 0):
        for put in (0, 1) if pairs else (layer,):
            one = found.sel(layer=layer).sel(**({"into_layer": put} if pairs else {}))
            for b in range(2):
                value = stream[layer, b, at[b]]
                expected = by_hand(model, value, put, OTHER[b, :5], into[b], 3)
                assert one.token.values[b].tolist() == expected


def test_a_run_put_into_itself_says_what_it_said():
    model = small_model("gemma2")
    plain = ji.generate(model, PROMPTS, 2)
    found = lens.patchscope(model, PROMPTS, 3, PROMPTS, 3, n_new=2)
    np.testing.assert_array_equal(found.token, np.broadcast_to(plain.new, (3, 2, 2)))
    log_probs = np.broadcast_to(plain.log_probs, (3, 2, 2))
    np.testing.assert_allclose(found.log_prob, log_probs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": 7}, r"position=7 is outside"),
        ({"into": [0, -8]}, "position=.0, -8. is outside"),
        ({"layers": [3]}, "layers=3, expected .* from 0 to 2"),
        ({"into_layers": []}, "into_layers="),
        ({"target": np.zeros((3, 4), int)}, "2 sources and 3 targets"),
    ],
)
def test_bad_input(change, message):
    given = {"source": PROMPTS, "at": 0, "target": OTHER, "into": 0} | change
    with pytest.raises(ValueError, match=message):
        lens.patchscope(small_model("llama"), **given)
