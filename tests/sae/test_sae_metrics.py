"""What dictionaries are judged by, against plain NumPy; harvesting from a model; known truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import PROMPTS, ragged, small_model

import jaxinterp as ji
from jaxinterp import sae

D = 8
MODEL = "llama"


def dictionary(seed=0, **fields):
    """A random SAE of the small model's stream after its layer 1."""
    config = sae.DictionaryConfig(
        **{"d_in": D, "n_features": 20, "site": "resid_post", "layers": (1,), **fields}
    )
    rng = np.random.default_rng(seed)
    arrays = {n: (rng.normal(size=s) / 3).astype(np.float32) for n, s in config.shapes.items()}
    return sae.Dictionary(sae.Parameters(**arrays), config)


def test_reconstruction_is_as_defined():
    d = dictionary()
    x = np.random.default_rng(1).normal(size=(30, D)).astype(np.float32) + 2
    found = sae.reconstruction(d, [x[:8], x[8:]])
    f, made = np.asarray(d.encode(x), float), np.asarray(d(x), float)
    assert found.attrs["examples"] == 30
    np.testing.assert_allclose(found.l0, (f != 0).sum(1).mean())
    spread = (x**2).sum(1).mean() - (x.mean(0) ** 2).sum()
    np.testing.assert_allclose(
        found.explained, 1 - ((x - made) ** 2).sum(1).mean() / spread, rtol=1e-5
    )
    np.testing.assert_allclose(found.shrinkage, (made**2).sum() / (x * made).sum(), rtol=1e-5)
    cosine = (x * made).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(made, axis=1)
    np.testing.assert_allclose(found.cosine, cosine.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.density, (f != 0).mean(0))
    np.testing.assert_allclose(found.dead, ((f != 0).sum(0) == 0).mean())
    active = (f != 0).sum(0)
    np.testing.assert_allclose(found["mean"], f.sum(0) / np.maximum(active, 1), rtol=1e-4)
    constant = d.params.replace(W_dec=0 * d.params.W_dec, b_dec=x.mean(0))
    mean = sae.reconstruction(d.replace(params=constant), [x])
    np.testing.assert_allclose(mean.explained, 0, atol=1e-5)
    biased = d.replace(params=constant.replace(b_dec=x.mean(0) + 3))
    assert sae.reconstruction(biased, [x]).explained < -1  # a bias is not hidden


def test_loss_recovered_is_as_defined():
    model, d = small_model(MODEL), dictionary()
    mean = np.linspace(-1, 1, D)
    found = sae.loss_recovered(model, d, [PROMPTS[:1], PROMPTS[1:]], mean)

    def loss(edit):
        def change(value, at):
            new = edit(value)
            return jnp.where((at.layer == 1) & (at.frame.positions > 0)[..., None], new, value)

        out = ji.forward(model, PROMPTS, ji.apply("resid_post", jax.tree_util.Partial(change)))
        logp = jax.nn.log_softmax(out.logits)[:, :-1]
        return -np.take_along_axis(np.asarray(logp), PROMPTS[:, 1:, None], 2).mean()

    assert '"digest"' in found.attrs["dictionary"]
    np.testing.assert_allclose(found["original"], loss(lambda v: v), rtol=1e-5)
    np.testing.assert_allclose(found["dictionary"], loss(d), rtol=1e-5)
    np.testing.assert_allclose(found["zero"], loss(lambda v: 0 * v), rtol=1e-5)
    np.testing.assert_allclose(
        found["mean"], loss(lambda v: jnp.broadcast_to(mean, v.shape).astype(v.dtype)), rtol=1e-5
    )
    np.testing.assert_allclose(found["raw"], found["dictionary"] - found["original"])
    np.testing.assert_allclose(
        found["recovered_zero"],
        (found["zero"] - found["dictionary"]) / (found["zero"] - found["original"]),
    )
    with pytest.raises(ValueError, match="is a sae at no site"):
        sae.loss_recovered(model, dictionary(site=""), [PROMPTS], mean)


def test_harvested_activations_are_the_models():
    model = small_model(MODEL)
    out = ji.forward(model, PROMPTS, record=("resid_pre", "mlp_out", "resid_post")).activations
    config = sae.DictionaryConfig(D, 4, site="resid_post", layers=(1,))
    x, y = sae.values_at(model, PROMPTS, config, first=False)
    assert y is x
    np.testing.assert_allclose(x, out["resid_post"][1, :, 1:].reshape(-1, D), atol=1e-5)
    config = sae.DictionaryConfig(
        D, 4, kind="cross_layer", n_layers=2, site="resid_pre", target="mlp_out", layers=(0, 2)
    )
    x, y = sae.values_at(model, PROMPTS, config, first=True)
    for found, site in ((x, "resid_pre"), (y, "mlp_out")):
        for i, layer in enumerate((0, 2)):
            np.testing.assert_allclose(found[:, i], out[site][layer].reshape(-1, D), atol=1e-5)


def test_a_harvest_uses_every_example_once_and_mixes_texts():
    model = small_model(MODEL)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(2, 17, PROMPTS.shape) for _ in range(6)]
    config = sae.DictionaryConfig(D, 4, site="resid_post", layers=(1,))
    source = sae.harvest(model, config, blocks[:3], seed=1)
    drawn = []
    for tokens in blocks[3:]:
        source, x, _ = source.take(ji.model.as_tokens(tokens))
        drawn.append(np.asarray(x))
    every = [np.asarray(sae.values_at(model, b, config, first=False)[0]) for b in blocks]
    out = np.concatenate([*drawn, np.asarray(source.inputs)])
    order = np.lexsort(out.T), np.lexsort(np.concatenate(every).T)
    np.testing.assert_allclose(out[order[0]], np.concatenate(every)[order[1]], atol=1e-5)
    of_text = [
        {int(np.abs(np.concatenate(every) - row).sum(1).argmin()) // len(every[0]) for row in x}
        for x in drawn
    ]
    assert all(len(texts) > 1 for texts in of_text)


def test_training_on_a_harvest():
    model = small_model(MODEL)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(2, 17, (4, 12)) for _ in range(40)]
    config = sae.DictionaryConfig(D, 16, activation="topk", site="resid_post", layers=(1,))
    source = sae.harvest(model, config, blocks[:4])
    found = sae.train(
        config, blocks[4:34], sae.TrainingConfig(30), sae.Hyperparameters(k=3, learning_rate=1e-2),
        source=source, log_every=10,
    )  # fmt: skip
    assert found.history.explained[-1, 0] > found.history.explained[0, 0]
    padded = ragged([[3, 4, 5], [3, 4]], "right", 3)
    x, _ = sae.values_at(model, padded, config, first=True)
    assert np.isnan(x).any(1).tolist() == [False] * 5 + [True]
    with pytest.raises(ValueError, match="must not be padded"):
        sae.harvest(model, config, [ragged([[3, 4, 5], [3, 4]], "right", 3)])


def test_recovery_of_known_directions():
    rng = np.random.default_rng(0)
    truth = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    perfect = sae.recovery(-3 * truth[[3, 1, 0, 2, 5, 4]], truth)
    np.testing.assert_allclose(perfect["mcc"], 1)
    np.testing.assert_allclose(sae.recovery(truth[::-1], truth)["mmcs"], 1)
    assert perfect["mmcs"] < 0.5  # they point the other way
    doubled = sae.recovery(truth[[0, 0, 1, 1]], truth[:2])
    assert doubled == pytest.approx({"mcc": 1.0, "mmcs": 1.0, "uniqueness": 0.5})
    with pytest.raises(ValueError, match="Directions"):
        sae.recovery(truth[:, :5], truth)


def test_detection_counts_what_fires_together():
    truth, true = np.eye(3), np.array([[1, 0, 0], [1, 2, 0], [0, 3, 0], [0, 0, 0]])
    fires = np.array([[0, 1, 0], [0.5, 1, 0], [1, 1, 0], [0, 0, 0]])[:, [1, 0, 2]]
    found = sae.detection(fires, true, truth, truth)
    # The first fires at 0, 1, 2 and should at 0, 1; the second at 1, 2 as it should; a third never.
    np.testing.assert_allclose(found["precision"], (2 / 3 + 1) / 3)
    np.testing.assert_allclose(found["recall"], 2 / 3)
    np.testing.assert_allclose(found["f1"], (4 / 5 + 1) / 3)
    np.testing.assert_allclose(found["f1_matched"], (4 / 5 + 1) / 2)
    double = sae.detection(fires[:, [0, 0, 1]], true, truth[[0, 0, 1]], truth)
    np.testing.assert_allclose(double["f1"], (4 / 5 + 4 / 5 + 1) / 3)


def test_the_generator_makes_what_it_says():
    make = sae.synthetic(60, 24, roots=2, branch=3, depth=3, correlation=0.2, exclusive=1.0, seed=3)
    x, values = make(jax.random.key(0), 40_000)
    fires, parent = np.asarray(values) > 0, np.asarray(make.parent)
    np.testing.assert_allclose(x, values @ make.directions, atol=1e-4)
    children = np.flatnonzero(parent >= 0)
    assert len(children) == 2 * (3 + 9)
    assert not (fires[:, children] & ~fires[:, parent[children]]).any()
    for number in range(make.groups):
        assert (fires[:, np.asarray(make.exclusive) == number].sum(1) <= 1).all()
    alone = (parent < 0) & (np.asarray(make.exclusive) < 0)
    error = fires.mean(0)[alone] - np.asarray(make.probability)[alone]
    assert abs(error).max() < 0.01
    between = np.corrcoef(fires[:, alone].T)[~np.eye(alone.sum(), dtype=bool)]
    assert np.abs(between).max() > 0.02
    again, _ = make(jax.random.key(0), 40_000)
    np.testing.assert_array_equal(again, x)
    with pytest.raises(ValueError, match="cannot be orthogonal"):
        sae.synthetic(9, 8, roots=1, depth=1, orthogonal=True)
    with pytest.raises(ValueError, match="do not fit"):
        sae.synthetic(9, 8, roots=5, depth=2)
