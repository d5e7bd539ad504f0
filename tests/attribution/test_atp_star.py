"""AtP*: the QK fix against slow softmaxes, alone and with GradDrop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_patching as slow
from small_models import DIFF, only_long, small_model

from jaxinterp.attribution import attribute
from jaxinterp.attribution.atp_star import key_effects

LAYER = 1


def changes(name, site, method, direction, over, **options):
    result = attribute(
        small_model(name), clean=slow.CLEAN, corrupted=slow.CORRUPTED, metric=DIFF, site=site,
        over=over, method=method, direction=direction, **options,
    )  # fmt: skip
    return result - result.coords["clean" if direction == "noise" else "corrupted"]


@functools.cache
def pattern_gradient(name, prompt, head, direction, dropped=None):
    """d metric / d pattern of one head of `LAYER`, [Q S], one entry after another."""
    base, _ = slow.ends(name, prompt, direction)
    held = None if dropped is None else slow.held_layer(name, prompt, direction, dropped)
    ids = (slow.CORRUPTED if direction == "denoise" else slow.CLEAN)[prompt]
    shape = base["pattern"][LAYER][head].shape
    out = np.zeros(shape)
    for q in range(shape[0]):
        for s in range(q + 1):

            def metric(step, q=q, s=s):
                def edit(site, layer, value):
                    if site == "pattern" and layer == LAYER:
                        value = value.copy()
                        value[head, q, s] += step
                    return value if held is None else held(site, layer, value)

                logits, _ = slow.oracle.forward(small_model(name), ids, edit=edit)
                return slow.metric_of(logits, prompt)

            out[q, s] = (metric(slow.STEP) - metric(-slow.STEP)) / (2 * slow.STEP)
    return out


def fixed(name, prompt, site, cell, direction, dropped=None):
    """The paper's definition: gradient at the pattern . (its value when patched - its value)."""
    base, _ = slow.ends(name, prompt, direction)
    _, sites = slow.moved(name, prompt, site, [cell], [1.0], direction)
    change = sites["pattern"][LAYER] - base["pattern"][LAYER]
    heads = np.flatnonzero(np.abs(change).max((1, 2)) > 0)
    return sum(
        (pattern_gradient(name, prompt, int(h), direction, dropped) * change[h]).sum()
        for h in heads
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "site", "direction"),
    [
        only_long("gpt2", "q", "denoise"),
        only_long("gpt2", "k", "noise"),
        ("llama", "q", "noise"),
        ("llama", "k", "denoise"),
        ("neox", "k", "denoise"),
        ("gemma2", "q", "denoise"),
        ("gemma2", "k", "noise"),
    ],
)
def test_qk_fix_equals_the_softmax_recomputed_cell_by_cell(name, site, direction):
    over = ("layer", "position", "head")
    options = {"layers": [LAYER], "positions": [4, 6], "heads": [0]}
    found, repaired = changes(name, site, "atp_qk", direction, over, **options), []
    for position in (4, 6):
        cell = {"layer": LAYER, "position": position, "head": 0}
        expected = fixed(name, 0, site, cell, direction)
        np.testing.assert_allclose(
            found.sel(cell).isel(prompt=0), expected, rtol=2e-3, atol=3e-5
        )  # fmt: skip
        repaired.append(abs(slow.slope(name, 0, site, cell, direction) - expected))
    assert max(repaired) > 1e-4  # the gradient alone says something else


@pytest.mark.parametrize(("site", "head"), [("q", 3), ("rot_k", 1)])
def test_all_positions_of_a_head_are_patched_at_once(site, head):
    found = changes("llama", site, "atp_qk", "denoise", ("layer", "head"), layers=[LAYER])
    cell = {"layer": LAYER, "head": head}
    expected = fixed("llama", 0, site, cell, "denoise")
    np.testing.assert_allclose(found.sel(cell).isel(prompt=0), expected, rtol=2e-3, atol=3e-5)


def row_effects(scores, patched, gradient):
    """`key_effects` of one row as it is defined: one softmax per key."""
    before = slow.oracle.softmax(scores)
    out = []
    for s in range(len(scores)):
        row = scores.copy()
        row[s] = patched[s]
        out.append((gradient * (slow.oracle.softmax(row) - before)).sum())
    return np.array(out)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_key_effects_equal_one_softmax_per_key(scale):
    rng = np.random.default_rng(0)
    scores, patched, gradient = rng.normal(size=(3, 2, 9, 9)) * [[[[scale]]], [[[scale]]], [[[1]]]]
    masked = np.broadcast_to(np.triu(np.ones((9, 9), bool), 1), scores.shape)
    scores[masked] = patched[masked] = np.finfo(np.float32).min
    found = key_effects(*(jnp.asarray(a, jnp.float32) for a in (scores, patched, gradient)))
    for h in range(2):
        for q in range(9):
            expected = row_effects(scores[h, q], patched[h, q], gradient[h, q])
            np.testing.assert_allclose(found[h, q], expected, rtol=1e-3, atol=1e-5)


def test_a_share_that_rounds_to_one_is_no_trouble():
    """The shares of 1 and 1e-11 trade places: seen from the one that loses everything."""
    scores, patched = jnp.array([[25.0, 0.0]]), jnp.array([[-25.0, 50.0]])
    gradient = jnp.array([[2.0, -1.0]])
    assert jax.nn.softmax(scores)[0, 0] == 1
    expected = row_effects(*(np.asarray(a[0], np.float64) for a in (scores, patched, gradient)))
    np.testing.assert_allclose(key_effects(scores, patched, gradient)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(expected, [-3, -3], rtol=1e-6)


@pytest.mark.parametrize(("name", "site"), [("llama", "q")])
def test_atp_star_does_both(name, site):
    cell = {"layer": LAYER, "position": 4, "head": 0}
    choices = {f"{axis}s": [at] for axis, at in cell.items()}
    found = changes(name, site, "atp*", "denoise", tuple(cell), **choices).sel(cell)
    slopes = [fixed(name, 0, site, cell, "denoise", dropped) for dropped in range(3)]
    expected = np.abs(slopes).sum() / 2 * np.sign(fixed(name, 0, site, cell, "denoise"))
    np.testing.assert_allclose(found.isel(prompt=0), expected, rtol=2e-3, atol=3e-5)


def test_sites_that_are_no_queries_or_keys_have_no_qk_fix():
    plain, repaired = (
        changes("llama", "v", method, "noise", ("layer", "head")) for method in ("atp", "atp_qk")
    )
    np.testing.assert_array_equal(plain, repaired)


def test_heads_that_share_a_norm_are_refused():
    with pytest.raises(ValueError, match="site='rot_q', after the norm"):
        changes("olmo2", "q", "atp_qk", "noise", ("layer", "head"))
    changes("olmo2", "rot_q", "atp_qk", "noise", ("layer", "head"))
