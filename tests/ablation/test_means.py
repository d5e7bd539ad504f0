"""`mean_activations`: a stream in parts gives NumPy's mean over everything at once."""

import functools
import itertools

import numpy as np
import pytest
from oracle import batch as run_oracle
from small_models import OTHER, PROMPTS, ragged, small_model

from jaxinterp.ablation.means import as_value, mean_activations
from jaxinterp.model import as_tokens, forward
from jaxinterp.results import load, save

LONG, SHORT = [[3, 1, 4, 1, 5], [6, 5, 3], [2, 9]], [[7, 1], [8, 2, 8], [5, 5, 1], [1, 2, 3]]
PARTS = {
    "both sides": (ragged(LONG, "right", 6), ragged(SHORT, "left", 4)),
    "one by one": tuple(ragged([p], "right", 6) for p in LONG + SHORT),
}
LABELS = ["b", "a", "a", "b", "c", "a", "b"]


@functools.cache
def runs_of(name):
    prompts = (as_tokens(np.array([p])) for p in LONG + SHORT)
    return [run_oracle(small_model(name), prompt)[0] for prompt in prompts]


def values_of(site, name="gpt2"):
    """What the oracle has at a site, by prompt: [L P ...] each."""
    return [sites[site] for _, sites in runs_of(name)]


def moments(rows):
    """Mean and population variance over a list of equal arrays."""
    stacked = np.stack(rows)
    return stacked.mean(0), stacked.var(0)


def close(found, mean, variance):
    np.testing.assert_allclose(found, mean, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(found.coords["variance"], variance, rtol=1e-4, atol=1e-6)


def means(site="z", parts="both sides", name="gpt2", **options):
    found = mean_activations(small_model(name), PARTS[parts], [site], second=True, **options)
    assert list(found) == [site]
    return found[site]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("site", ["z", "resid_post", "embed"])
def test_over_all_positions(site, parts):
    found = means(site, parts)
    values = values_of(site)
    values = values if found.dims[0] == "layer" else [v[None] for v in values]
    tokens = [v[:, p] for v in values for p in range(v.shape[1])]
    mean, variance = moments(tokens)
    if found.dims[0] != "layer":
        mean, variance = mean[0], variance[0]
    close(found, mean, variance)
    assert found.coords["count"] == len(tokens) == 21


def test_of_each_position_where_there_is_one():
    found = means(by="position", parts="both sides")
    assert found.dims == ("layer", "position", "head", "d_head")
    assert found.coords["count"].values.tolist() == [7, 7, 5, 1, 1, 0]
    for p in range(5):
        rows = [v[:, p] for v in values_of("z") if v.shape[1] > p]
        close(found.isel(position=p), *moments(rows))
    assert np.isnan(found.isel(position=5)).all()


def test_of_patterns_by_position_and_source():
    found = means("pattern", by="position")
    assert found.dims == ("layer", "head", "position", "source")
    assert found.coords["count"].values[2].tolist() == [5, 5, 5, 1, 1, 0]
    for p, s in [(0, 0), (2, 1), (4, 3)]:
        rows = [v[:, :, p, s] for v in values_of("pattern") if v.shape[-1] > max(p, s)]
        close(found.isel(position=p, source=s), *moments(rows))


@pytest.mark.parametrize("parts", PARTS)
def test_of_each_group(parts):
    found = means(by=LABELS, parts=parts)
    assert found.dims == ("group", "layer", "head", "d_head")
    assert found.coords["group"].values.tolist() == ["a", "b", "c"]
    for label in "abc":
        own = [v for v, other in zip(values_of("z"), LABELS, strict=True) if other == label]
        tokens = [v[:, p] for v in own for p in range(v.shape[1])]
        close(found.sel(group=label), *moments(tokens))
        assert found.coords["count"].sel(group=label) == len(tokens)


def test_of_each_position_in_each_group():
    found = means(by=("position", LABELS))
    assert found.dims == ("group", "layer", "position", "head", "d_head")
    for label, p in itertools.product("abc", range(5)):
        own = [v for v, other in zip(values_of("z"), LABELS, strict=True) if other == label]
        rows = [v[:, p] for v in own if v.shape[1] > p]
        assert found.coords["count"].sel(group=label)[p] == len(rows)
        if rows:
            close(found.sel(group=label).isel(position=p), *moments(rows))


@pytest.mark.parametrize("parts", PARTS)
def test_of_roles(parts):
    roles = {"start": [0] * 7, "end": [len(p) - 1 for p in LONG + SHORT]}
    found = means(by=roles, parts=parts)
    assert found.coords["position"].values.tolist() == ["start", "end"]
    for role, at in roles.items():
        rows = [v[:, p] for v, p in zip(values_of("z"), at, strict=True)]
        close(found.sel(position=role), *moments(rows))
    both = means(by=(roles, LABELS), parts=parts)
    assert both.dims == ("group", "layer", "position", "head", "d_head")
    ends = [v[:, -1] for v, label in zip(values_of("z"), LABELS, strict=True) if label == "b"]
    close(both.sel(group="b", position="end"), *moments(ends))


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
def test_other_families(name):
    found = means("k" if name == "llama" else "mlp_post", name=name)
    values = values_of("k" if name == "llama" else "mlp_post", name)
    close(found, *moments([v[:, p] for v in values for p in range(v.shape[1])]))


def test_long_streams_lose_nothing():
    """Far from zero, where sums of float32 would drift."""
    model = small_model("gpt2")
    W_E = np.asarray(model.params.embed.W_E) + 1000
    shifted = model.replace(params=model.params.replace(embed=model.params.embed.replace(W_E=W_E)))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 17, (2000, 8))
    found = mean_activations(shifted, ids.reshape(50, 40, 8), ["embed"], second=True)["embed"]
    exact = np.asarray(W_E, np.float64)[ids].reshape(-1, 8)
    np.testing.assert_allclose(found, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.coords["variance"], exact.var(0), rtol=1e-3)


def test_a_mean_stands_in_for_values():
    """`as_value` gives, at each prompt's columns, the mean of its position and group."""
    tokens = ragged([[3, 1, 4], [6, 5]], "left", 4)
    found = means(by=("position", LABELS))
    value = as_value(found, "z", tokens, ["a", "b"])
    assert value.shape == (3, 2, 4, 4, 6)
    np.testing.assert_allclose(value[:, 0, 1:], found.sel(group="a").isel(position=slice(3)))
    np.testing.assert_allclose(value[:, 1, 2:], found.sel(group="b").isel(position=slice(2)))
    whole = as_value(means(by="position"), "z", as_tokens(PROMPTS[:, :5]))
    assert whole.shape == (3, 1, 5, 4, 6)
    assert as_value(means(), "z", tokens).shape == (3, 1, 1, 4, 6)
    assert as_value(means("embed"), "embed", tokens).shape == (1, 1, 8)
    out = forward(small_model("gpt2"), PROMPTS, record=["pattern"]).activations["pattern"]
    pattern = mean_activations(small_model("gpt2"), [PROMPTS], ["pattern"], by="position")
    given = as_value(pattern["pattern"], "pattern", as_tokens(PROMPTS[:, :6]))
    np.testing.assert_allclose(given[:, 0], np.asarray(out).mean(1)[..., :6, :6], atol=1e-6)


def test_labels_and_saving(tmp_path):
    record = {"corpus": "two prompts"}
    found = mean_activations(small_model("gpt2"), [PROMPTS], ["z", "mlp_out"], record=record)
    assert list(found) == ["z", "mlp_out"]
    assert found["z"].attrs["corpus"] == "two prompts"
    assert found["z"].attrs["n_prompts"] == 2
    again = load(save(found["z"], tmp_path / "z.nc"))
    np.testing.assert_array_equal(again, found["z"])
    assert again.coords["count"] == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "no prompts to take a mean of"),
        ({"by": ["a", "b", "c"]}, "by has 3 entries for 4 prompts"),
        ({"by": ["a"] * 5}, "by has 5 entries for 4 prompts"),
        ({"by": "role"}, "expected None, 'position', roles, labels"),
        ({"by": [0.5] * 4}, "expected None, 'position', roles, labels"),
        ({"by": {"end": [6, 7, 6, 6]}}, "a role outside its prompt"),
        ({"by": {}}, "expected one position per prompt each"),
        ({"sites": ["pattern"]}, "mixes sources"),
        ({"sites": ["resid_past"]}, "is not a site"),
        ({"sites": ["rot_q"]}, "has no site 'rot_q'"),
        ({"batches": [PROMPTS + 20]}, "outside the vocabulary"),
    ],
)
def test_bad_input_is_an_error(options, message):
    options = {"batches": [PROMPTS, OTHER], "sites": ["z"], **options}
    if message.startswith("by has 3"):
        message = "by has 3 entries, the stream has at least 4"
    with pytest.raises(ValueError, match=message):
        mean_activations(small_model("gpt2"), **options)


@pytest.mark.parametrize(
    ("by", "labels", "message"),
    [
        (("position", LABELS), None, "pass by=, the label"),
        (("position", LABELS), ["a", "z"], "Group 'z' has no mean"),
        (("position", LABELS), ["a", "c"], "does not cover every position"),
        ("position", None, "reach position 6, the means position 5"),
    ],
)
def test_a_mean_that_does_not_cover_the_prompts_is_an_error(by, labels, message):
    found = means(by=by)
    tokens = as_tokens(PROMPTS if labels is None else PROMPTS[:, :4])
    with pytest.raises(ValueError, match=message):
        as_value(found, "z", tokens, labels)
