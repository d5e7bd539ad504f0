"""Statistics of a corpus in one pass, against NumPy on all of its values at once."""

import numpy as np
import pytest
from small_models import ragged, small_model

import jaxinterp as ji
from jaxinterp.activations import _Reservoir, activation_statistics

RNG = np.random.default_rng(0)
BATCHES = [
    ragged([RNG.integers(0, 17, n).tolist() for n in lengths], "left", 7)
    for lengths in ([5, 7, 3], [2, 7, 6], [4, 4, 4])
]
COUNT = 42


def everything(model, site, layers):
    rows = []
    for tokens in BATCHES:
        values = np.asarray(ji.forward(model, tokens, record=(site,)).activations[site])
        rows.append(values[layers][:, np.asarray(tokens.mask)])
    return np.concatenate(rows, 1).astype(np.float64)


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize(("site", "layers"), [("resid_post", None), ("mlp_post", [2, 0])])
def test_one_pass_is_numpy_on_all_values(site, layers, covariance):
    model = small_model("llama")
    found = activation_statistics(model, BATCHES, site, layers=layers, covariance=covariance)
    x = everything(model, site, [0, 1, 2] if layers is None else layers)
    assert x.shape[1] == COUNT == found.attrs["n_tokens"] == found.attrs["n_sampled"]
    for name, expected in {
        "mean": x.mean(1), "variance": x.var(1), "least": x.min(1), "largest": x.max(1),
        "quantiles": np.quantile(x, found.q.values, axis=1),
    }.items():  # fmt: skip
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    assert ("covariance" in found) == covariance
    if covariance:
        expected = [np.cov(layer.T, bias=True) for layer in x]
        np.testing.assert_allclose(found.covariance, expected, atol=1e-5)


def test_a_sample_is_of_the_stream_and_uniform():
    model = small_model("llama")
    found = activation_statistics(model, BATCHES, sample=10, quantiles=[0, 1])
    x = everything(model, "resid_post", [0, 1, 2])
    assert found.attrs["n_sampled"] == 10
    assert np.isclose(x[0, :, 0, None], found.quantiles.values[:, 0, 0]).any(0).all()
    taken = np.zeros(30)
    for seed in range(600):
        drawn = _Reservoir(6, seed)
        for part in (np.arange(4), np.arange(4, 19), np.arange(19, 30)):
            drawn.offer(part[None, :, None].astype(np.float32), np.arange(len(part)))
        kept = drawn.kept()[0, :, 0].astype(int)
        assert len(set(kept.tolist())) == 6
        taken[kept] += 1
    expected = 600 * 6 / 30
    chi_square = ((taken - expected) ** 2 / (expected * (1 - 6 / 30))).sum()
    assert chi_square < 60  # 29 degrees of freedom: p = 0.0006


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "z"}, "expected a layered site"),
        ({"site": "embed"}, "expected a layered site"),
        ({"quantiles": [0.5, 1.5]}, "quantiles=1.5, expected"),
        ({"sample": 0}, "sample=0, expected"),
        ({"layers": [3]}, "0 to 2"),
        ({"batches": []}, "no tokens"),
    ],
)  # fmt: skip
def test_bad_input(options, message):
    given = {"batches": BATCHES} | options
    with pytest.raises(ValueError, match=message):
        activation_statistics(small_model("llama"), given.pop("batches"), **given)


def test_values_that_are_not_finite_name_their_batch():
    model = small_model("llama")
    W_E = np.where(np.arange(17)[:, None] == 16, np.nan, model.params.embed.W_E)
    embed = model.params.embed.replace(W_E=W_E)
    broken = model.replace(params=model.params.replace(embed=embed))
    batches = [np.array([[1, 2, 3]]), np.array([[1, 16, 3]])]
    with pytest.raises(ValueError, match="Batch 1"):
        activation_statistics(broken, batches)
