"""`trace_causes`: every cell equals the oracle with noise and clean values put in by hand."""

import jax
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import CONFIGS, DIFF, PROMPTS, diff, ragged, small_model, with_long

from jaxinterp.components import position_mask
from jaxinterp.metrics import logit_diff
from jaxinterp.model import as_tokens, init
from jaxinterp.results import load, save
from jaxinterp.stats import effects
from jaxinterp.sweep import observe
from jaxinterp.tracing import base_with, trace_causes

SUBJECT = [[1, 2], [3, -1]]


def run(name="llama", **options):
    options = {"tokens": PROMPTS, "subject": SUBJECT, "metric": DIFF, "samples": 2, **options}
    return trace_causes(small_model(name), **options)


def spoiled(name, sample, sigma, seed=0):
    """The noise [P D] of each prompt."""
    noise = np.zeros((2, 7, CONFIGS[name].d_model))
    for b, subject in enumerate([[1, 2], [3]]):
        rng = np.random.default_rng([seed, b, sample])
        noise[b, subject] = sigma * rng.standard_normal((len(subject), noise.shape[-1]))
    return noise


def expected(name, sample, sigma, restored=lambda site, layer: None):
    """The oracle on noised prompts; ``restored`` gives the positions (or None) to put back."""
    clean = [sites for _, sites in batch(small_model(name), as_tokens(PROMPTS))]
    noise = spoiled(name, sample, sigma)

    def edit_of(b):
        def edit(at, layer, array):
            if at == "embed":
                return array + noise[b]
            entry = restored(at, layer)
            if entry is not None:
                array[entry] = clean[b][at][layer][entry]
            return array

        return edit

    return diff(batch(small_model(name), as_tokens(PROMPTS), edit_of))


def deviation(name):
    p = small_model(name)
    W_E = np.asarray(p.params.embed.W_E, np.float64) * CONFIGS[name].embed_scale
    return W_E[[PROMPTS[0, 1], PROMPTS[0, 2], PROMPTS[1, 3]]].std()


@pytest.mark.parametrize("name", with_long("gpt2"))
def test_every_family_equals_the_oracle(name):
    result = run(name, layers=[0, 2], positions=[1, 3, 6])
    assert result.dims == ("layer", "position", "sample", "prompt")
    sigma = result.attrs["sigma"]
    np.testing.assert_allclose(sigma, 3 * deviation(name), rtol=1e-6)
    for sample in range(2):
        assert_near(result.corrupted[sample], expected(name, sample, sigma), 1e-5)
        for layer, position in [(0, 1), (2, 3), (0, 6), (2, 6)]:

            def restored(site, l, layer=layer, position=position):
                return position if (site, l) == ("resid_post", layer) else None

            reference = expected(name, sample, sigma, restored)
            found = result.sel(layer=layer, position=position, sample=sample)
            assert_near(found, reference, 1e-5, f"{layer} {position}")
    assert_near(result.clean, diff(batch(small_model(name), as_tokens(PROMPTS))), 1e-5)


@pytest.mark.parametrize(("window", "layers"), [(2, {0: [0], 2: [1, 2]}), (10, {1: [0, 1, 2]})])
def test_windows_of_layers(window, layers):
    result = run(site="mlp_out", window=window, positions=[3], samples=1)
    for centre, restored_in in layers.items():

        def restored(site, l, restored_in=restored_in):
            return 3 if site == "mlp_out" and l in restored_in else None

        reference = expected("llama", 0, result.attrs["sigma"], restored)
        assert_near(result.sel(layer=centre)[0, 0], reference, 1e-5, str(centre))


def test_heads_at_all_positions():
    result = run(site="z", over=("layer", "head"), layers=[1], heads=[0, 3], samples=1)

    def restored(site, layer):
        return (slice(None), 3) if (site, layer) == ("z", 1) else None

    reference = expected("llama", 0, result.attrs["sigma"], restored)
    assert_near(result[0, 1, 0], reference, 1e-5)


def test_restoring_everything_gives_the_clean_run_and_before_the_subject_nothing():
    result = run(site="resid_pre", over="layer", layers=[0])
    assert_near(result[0, 0], result.clean, 1e-5)
    cells = run(layers=[0, 2], positions=[1, 3, 6])
    early = cells.sel(prompt=1, position=1)  # the subject of prompt 1 is at 3
    assert (early == cells.corrupted.sel(prompt=1)).all()
    assert (effects(cells).sel(prompt=1, position=3, layer=0) != 0).all()


def test_noise_is_the_same_for_all_batches_and_cells(tmp_path):
    cells, done = {"layers": [0, 2], "positions": [1, 3, 6]}, []
    whole = run(**cells, samples=3, seed=4)
    options = {"batch": 2, "parts": tmp_path, "on_done": done.append}
    parts = run(**cells, samples=3, seed=4, **options)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert done == [12, 12, 12]
    again = run(**cells, samples=3, seed=4, **options)
    np.testing.assert_array_equal(again, parts)
    fewer = run(**cells, samples=2, seed=4, batch=2)
    np.testing.assert_allclose(fewer, whole.isel(sample=slice(2)), rtol=1e-4, atol=1e-5)
    assert np.abs(whole.corrupted.std("sample")).min() > 0.01
    other = run(**cells, samples=2, seed=5, batch=2)
    assert (other.corrupted != fewer.corrupted).all()
    assert load(save(whole, tmp_path / "trace.nc")).identical(whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_roles_of_prompts_of_unequal_length(side):
    """A prompt alone and in a padded batch are the same."""
    tokens = ragged([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]], side, 8)
    roles = {"subject": [2, 1], "end": [6, 2]}
    result = run(tokens=tokens, subject=[2, 1], positions=roles, samples=1)
    model, subject = small_model("llama"), PROMPTS[0, 2]
    alone = trace_causes(
        model, tokens=PROMPTS[:1], subject=[2], metric=logit_diff([4], [8]), samples=1,
        positions=[2, 6], noise=result.attrs["sigma"] / model.params.embed.W_E[subject].std(),
    )  # fmt: skip
    np.testing.assert_allclose(result.isel(prompt=0), alone.isel(prompt=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qk_norm", ["head", "joint"])
def test_the_base_of_a_spoiled_run_is_what_the_engine_observes(qk_norm):
    """With nothing spoiled, also where keys are normed and not rotated."""
    config = CONFIGS["llama"].replace(qk_norm=qk_norm, positions="none", rotary=())
    for model in (small_model("neox"), init(config, jax.random.key(0))):
        tokens = as_tokens(PROMPTS)
        ours, (theirs, _) = base_with(model, tokens, DIFF, ()), observe(model, tokens, DIFF)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_subjects_are_positions_or_masks():
    tokens = as_tokens(PROMPTS)
    several = position_mask(tokens, SUBJECT, "subject")
    np.testing.assert_array_equal(several.sum(1), [2, 1])
    np.testing.assert_array_equal(position_mask(tokens, several, "subject"), several)
    one = position_mask(tokens, [0, 6], "subject")
    assert (one.argmax(1) == [0, 6]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": [7, 1]}, "subject reaches outside some prompts"),
        ({"subject": [[1, 2]]}, r"subject is int64\[1, 2\], expected positions"),
        ({"subject": [[-1], [1]]}, "subject has no token in some prompt"),
        ({"subject": [0.5, 1]}, "expected positions"),
        ({"samples": 0}, "samples=0"),
        ({"noise": 0}, "noise=0"),
        ({"window": 0}, "window=0"),
        ({"over": ("position",)}, "has no layer"),
        ({"site": "embed", "over": ("position",)}, "has no layer"),
        ({"layers": [3]}, "layer 3 is out of range"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
