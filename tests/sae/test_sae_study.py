"""A study of features, against plain loops over the features of whole runs."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from small_models import ragged, small_model
from test_sae_features import MODEL, blocks, features_of
from test_sae_metrics import dictionary
from tiny_tokenizers import word_tokenizer

from jaxinterp import results, sae
from jaxinterp.sae import study as room

WINDOW = (3, 2)


def studied(given=None, d=None, **options):
    given = blocks(4) if given is None else given
    options = {"k": 3, "sample": 400, "window": WINDOW, "first": True, **options}
    return room.study_features(small_model(MODEL), d or dictionary(), iter(given), **options)


def shown(found, *dims):
    """Every example there is: its labels, and its part of the study."""
    for at in np.ndindex(*(found.sizes[dim] for dim in ("feature", "group", "rank"))):
        one = found.isel(feature=at[0], group=at[1], rank=at[2])
        if one.value > -np.inf:
            yield at, one
        else:
            assert int(one.prompt) == int(one.position) == -1
            assert (one.context == -1).all()
            assert np.isnan(one.activation).all()


@pytest.mark.parametrize("first", [False, True])
def test_windows_hold_the_features_of_the_whole_run(first):
    given, d = blocks(3), dictionary()
    found = studied(given, d, features=[7, 0, 12], first=first)
    f, ids = features_of(given, d), np.concatenate(given)
    count = 0
    for (feature, _, _), one in shown(found):
        prompt, position = int(one.prompt), int(one.position)
        own = f[prompt, :, [7, 0, 12][feature]]
        np.testing.assert_allclose(one.value, own[position], atol=1e-5)
        assert position >= 1 - first
        for offset in range(-WINDOW[0], WINDOW[1] + 1):
            at, token = position + offset, one.sel(offset=offset)
            if 0 <= at < ids.shape[1]:
                assert int(token.context) == ids[prompt, at]
                np.testing.assert_allclose(token.activation, own[at], atol=1e-5)
            else:
                assert int(token.context) == -1
                assert np.isnan(token.activation)
        count += 1
    assert count > 25


def test_padding_and_the_shapes_of_batches_do_not_matter():
    d, rng = dictionary(), np.random.default_rng(5)
    prompts = [[first, *rng.integers(2, 17, n)] for first, n in enumerate((8, 4, 8, 4, 8, 4))]
    whole = studied([ragged(prompts, "right", 9)], d)
    left = studied([ragged(prompts[:4], "left", 10), ragged(prompts[4:], "left", 9)], d)
    f = [features_of([np.array([prompt])], d)[0] for prompt in prompts]
    for found in (whole, left):
        assert found.attrs["n_prompts"] == 6
        assert found.attrs["n_tokens"] == found.attrs["n_counted"] == 42
        np.testing.assert_allclose(found.density, (np.concatenate(f) > 0).mean(0))
    top = [found.sel(group="top") for found in (whole, left)]
    for name in ("value", "activation"):
        np.testing.assert_allclose(top[0][name], top[1][name], atol=1e-5)
    for name in ("prompt", "position", "context"):
        np.testing.assert_array_equal(top[0][name], top[1][name])


def test_the_top_group_is_that_of_top_examples():
    given, d = blocks(3), dictionary()
    found = studied(given, d, first=False).sel(group="top")
    expected = sae.top_examples(small_model(MODEL), d, given, k=3, window=WINDOW)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-5)
    for name in ("prompt", "position", "context"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("intervals", [1, 4])
def test_intervals_are_quantiles_of_the_active_values(intervals):
    given, d = blocks(4), dictionary()
    found = studied(given, d, intervals=intervals)
    f = features_of(given, d)
    values = {}
    for (feature, group, _), one in shown(found.isel(group=slice(1, None))):
        values.setdefault((feature, group), []).append(float(one.value))
        here = (int(one.prompt), int(one.position))
        np.testing.assert_allclose(f[(*here, feature)], one.value, atol=1e-5)
    for feature in range(20):
        active = np.sort(f[:, :, feature][f[:, :, feature] > 0])[::-1]
        ranks = np.arange(len(active)) * intervals // max(len(active), 1)
        for group in range(intervals):
            inside, own = active[ranks == group], values.get((feature, group), [])
            assert len(own) == min(3, len(inside))
            assert own == sorted(own, reverse=True)
            limits = found.isel(feature=feature, group=group + 1)
            if len(inside):
                np.testing.assert_allclose(limits.lower, inside.min(), atol=1e-5)
                np.testing.assert_allclose(limits.upper, inside.max(), atol=1e-5)
                assert all(inside.min() - 1e-5 <= v <= inside.max() + 1e-5 for v in own)
            else:
                assert np.isnan(limits.lower)
    names = {1: ["0 to 100%"], 4: ["75 to 100%", "50 to 75%", "25 to 50%", "0 to 25%"]}
    assert found.group.values.tolist() == ["top", *names[intervals]]


def test_every_active_token_is_as_likely_to_be_shown():
    one = dictionary()
    feature = int((features_of(blocks(4), one) > 0).sum((0, 1)).argmax())
    copies = 500
    d = dictionary(n_features=copies)
    params = {
        name: np.repeat(np.asarray(getattr(one.params, name))[..., [feature]], copies, -1)
        for name in ("W_enc", "b_enc")
    }
    d = d.replace(params=d.params.replace(**params, b_dec=one.params.b_dec))
    found = studied(d=d, k=2, sample=12, intervals=4, nearest=0, written=0)
    f = features_of(blocks(4), one)[:, :, feature]
    active = int((f > 0).sum())
    assert active > 50
    counts = np.zeros(f.shape)
    np.add.at(counts, tuple(found[n].values[:, 1:].ravel() for n in ("prompt", "position")), 1)
    assert counts.sum() == copies * 8  # each feature shows 2 of the 3 in each of 4 intervals
    assert counts[f <= 0].sum() == 0
    share = 8 / active
    spread = np.sqrt(copies * share * (1 - share))
    assert np.abs(counts[f > 0] - copies * share).max() < 4.5 * spread


def test_histogram_and_density():
    given, d = blocks(4), dictionary()
    for first in (False, True):
        found = studied(given, d, first=first, bins=10)
        f = features_of(given, d)[:, 0 if first else 1 :]
        np.testing.assert_allclose(found.density, (f > 0).mean((0, 1)))
        for feature in range(20):
            one, own = found.sel(feature=feature), f[:, :, feature]
            own = own[own > 0]
            assert int(one["count"].sum()) == len(own)
            expected, _ = np.histogram(own, float(one.width) * np.arange(11))
            np.testing.assert_array_equal(one["count"], expected)
            if len(own):
                assert np.log2(one.width) % 1 == 0
                assert float(one.width) * 5 <= own.max() < float(one.width) * 10
    backwards = studied(given[::-1], d, bins=10)
    np.testing.assert_array_equal(backwards["count"], found["count"])
    np.testing.assert_array_equal(backwards.width, found.width)


@pytest.mark.parametrize("bins", [1, 7, 16])
def test_bins_merge_exactly_as_values_grow(bins):
    rng = np.random.default_rng(0)
    batches = [rng.gamma(1, scale, (2, 5, 3)) for scale in (1e-3, 1, 0.1, 40, 3e5)]
    batches.append(2.0 ** rng.integers(-4, 25, (2, 5, 3)))  # on the edges
    counted = np.array([[True] * 4 + [False]] * 2)
    histogram = room.Histogram(3, bins)
    given = []
    for batch in np.asarray(batches, np.float32):
        batch[:, :, 2] = -np.inf  # never active
        given.append(batch[:, :4].reshape(-1, 3))
        largest = np.concatenate(given).max(0)
        histogram.add(jnp.asarray(batch), jnp.asarray(counted), largest)
        for row in range(2):
            own, width = np.concatenate(given)[:, row], histogram.width[row]
            expected = np.bincount((own / width).astype(int), minlength=bins)
            np.testing.assert_array_equal(histogram.counts[row], expected)
            assert largest[row] >= width * bins / 2 or bins == 1
    assert histogram.counts[2].sum() == 0


def test_what_features_write_and_their_neighbours(monkeypatch):
    monkeypatch.setattr(room, "PART", 2)
    model, d, some = small_model(MODEL), dictionary(), [4, 1, 9]
    found = studied(d=d, features=some, nearest=3, written=2)
    expected = sae.written_tokens(model, d, some, k=2)
    np.testing.assert_array_equal(found.written, expected.token)
    np.testing.assert_allclose(found.change, expected.change, atol=1e-6)
    assert found.end.values.tolist() == ["raised", "lowered"]
    near = sae.nearest(d, some, k=3)
    np.testing.assert_array_equal(found.other, near.other)
    np.testing.assert_allclose(found.cosine, near.cosine)


def test_effects_are_ratios_of_sums():
    model, d = small_model(MODEL), dictionary()
    effects = sae.feature_effects(model, d, np.concatenate(blocks(2)), [3, 7, 0])
    found = studied(d=d, features=[0, 3], effects=effects)
    for feature in (0, 3):
        one = effects.sel(feature=feature)
        for factor in (0.0, 2.0):
            change, active = one.sel(factor=factor).values, one.active.values
            own = found.sel(feature=feature, factor=factor)
            np.testing.assert_allclose(own.effect, change.sum() / active.sum(), rtol=1e-5)
            draws = np.random.default_rng(1).integers(0, len(change), (4000, len(change)))
            drawn = change[draws].sum(1) / np.maximum(active[draws].sum(1), 1)
            width = float(own.effect_high - own.effect_low)
            assert own.effect_low < own.effect < own.effect_high
            np.testing.assert_allclose(width, np.ptp(np.quantile(drawn, [0.025, 0.975])), rtol=0.5)
        assert int(found.effect_active.sel(feature=feature)) == active.sum()
    assert found.effect.attrs["metric"] == "summed next-token loss"


def test_the_interval_of_an_effect_covers_the_truth():
    rng, truth = np.random.default_rng(0), 0.3
    active = rng.poisson(3.0, (300, 60))
    change = truth * active + rng.normal(size=active.shape) * np.sqrt(active)
    change[0], active[0] = 0, 0
    active[1, 1:], change[1, 1:] = 0, 0
    active[1, 0] = 2
    effects = xr.DataArray(
        change[:, None], dims=("feature", "factor", "prompt"),
        coords={
            "feature": np.arange(300), "factor": [0.0], "active": (("feature", "prompt"), active)
        },
    )  # fmt: skip
    found = room._per_token(effects, np.arange(300), 0)
    low, high = found["effect_low"][2:, 0], found["effect_high"][2:, 0]
    assert 0.9 < float(((low < truth) & (truth < high)).mean()) < 0.99
    assert np.isnan(found["effect"][0, 0])
    assert np.isnan(found["effect_low"][:2, 0]).all()  # one active prompt has no spread
    assert float(found["effect"][1, 0]) == pytest.approx(change[1, 0] / 2)


def test_texts_progress_and_files(tmp_path):
    tokenizer, done = word_tokenizer(words=14), []
    found = studied(tokenizer=tokenizer, on_done=done.append, record={"corpus": "random"})
    assert done == [36] * 4
    occurring = np.unique(
        np.concatenate([found.context.values.ravel(), found.written.values.ravel()])
    )
    assert found.token.values.tolist() == occurring[occurring >= 0].tolist()
    for token in found.token.values:
        assert found.text.sel(token=token).item() == tokenizer.str_tokens([int(token)])[0]
    assert found.attrs["corpus"] == "random"
    assert found.attrs["site"] == "resid_post"
    assert found.attrs["n_features"] == 20
    again = results.load(results.save(found, tmp_path / "study.nc"))
    xr.testing.assert_identical(again.drop_attrs(), found.drop_attrs())


def test_less_can_be_asked_for():
    found = studied(intervals=0, nearest=0, written=0, k=200)
    assert found.group.values.tolist() == ["top"]
    assert not {"other", "written", "text", "effect"} & set(found)
    assert found.sizes["rank"] == 200  # more than there are tokens
    f = features_of(blocks(4), dictionary())
    np.testing.assert_array_equal(
        (found.value > -np.inf).sum(("group", "rank")), (f > 0).sum((0, 1))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": []}, "There are no prompts"),
        ({"given": [np.array([[99, 1]])]}, "Token id 99 is outside"),
        ({"d": dictionary(site="")}, "at no site"),
        ({"features": [20]}, "from 0 to 19"),
        ({"k": 0}, "k=0"),
        ({"sample": 11}, "sample=11, expected .* from 12"),
        ({"bins": 0}, "bins=0"),
        ({"nearest": 20}, "k=20"),
        ({"written": 18}, "k=18"),
        ({"window": (-1, 2)}, "window=-1, expected"),
        (
            {"effects": xr.DataArray(np.zeros((1, 2)), dims=("feature", "prompt"),
                                     coords={"feature": [3]})},
            "lack feature 0 and 18 more",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        studied(**options)
