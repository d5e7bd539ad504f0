"""Each variant against slow NumPy: features, loss, slopes; straight-through slopes; folding."""

import dataclasses

import dictionary_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import sae
from jaxinterp.sae.selection import keep_largest, places, separator

D, O, F, L, B, K = 5, 4, 12, 3, 7, 3
WIDE = 0.3  # a bandwidth that catches some of so few numbers

VARIANTS = {
    "relu": {},
    "relu, b_dec subtracted": {"subtract_bias": True},
    "gated": {"activation": "gated"},
    "topk": {"activation": "topk"},
    "batch_topk": {"activation": "batch_topk"},
    "jumprelu": {"activation": "jumprelu", "bandwidth": WIDE},
    "matryoshka": {"activation": "batch_topk", "prefixes": (3, 7, F)},
    "matryoshka, relu": {"prefixes": (5, F)},
    "transcoder": {"kind": "transcoder", "activation": "topk", "d_out": O},
    "skip transcoder": {"kind": "transcoder", "d_out": O, "skip": True},
    "gated skip transcoder": {
        "kind": "transcoder", "d_out": O, "skip": True, "activation": "gated",
    },
    "crosscoder": {"kind": "crosscoder", "n_layers": L},
    "crosscoder, batch_topk": {"kind": "crosscoder", "n_layers": L, "activation": "batch_topk"},
    "cross_layer": {"kind": "cross_layer", "n_layers": L, "d_out": O},
    "cross_layer, jumprelu": {
        "kind": "cross_layer", "n_layers": L, "activation": "jumprelu", "bandwidth": WIDE,
    },
    "cross_layer, topk": {"kind": "cross_layer", "n_layers": L, "activation": "topk"},
}  # fmt: skip


def config_of(name):
    return sae.DictionaryConfig(**{"d_in": D, "n_features": F, **VARIANTS[name]})


def example(name, seed=0):
    """A random dictionary in float64, inputs and targets."""
    rng, c = np.random.default_rng(seed), config_of(name)
    arrays = {n: rng.normal(size=shape) / np.sqrt(D) for n, shape in c.shapes.items()}
    if c.activation == "jumprelu":
        arrays["threshold"] = rng.uniform(0.2, 0.5, c.shapes["threshold"])
    if c.activation == "batch_topk":
        arrays["threshold"] = np.float64(0.4)
    k = K if "topk" in c.activation else None
    layers = (L,) if c.layered else ()
    x = rng.normal(size=(B, *layers, D))
    y = x if c.kind == "sae" else rng.normal(size=(B, *layers, c.d_out))
    return sae.Dictionary(sae.Parameters(**arrays), c, k), x, y


@pytest.mark.parametrize("name", VARIANTS)
def test_features_and_reconstruction_equal_the_oracle(name):
    with jax.enable_x64(True):
        d, x, _ = example(name)
        c, p = d.config, d.params
        code = sae.encode(d, x, together=True)
        features, pre = oracle.codes(c, p, x, K)
        np.testing.assert_allclose(code.features, features, atol=1e-12)
        np.testing.assert_allclose(code.pre, pre, atol=1e-12)
        made = np.stack(
            [oracle.write(c, p, f, given) for f, given in zip(features, x, strict=True)]
        )
        np.testing.assert_allclose(d.decode(features, x), made, atol=1e-12)
        assert (features != 0).any()
        assert (features == 0).any()


def settings_of(name):
    """What presses in the loss, for jaxinterp and for the oracle."""
    c = config_of(name)
    dead = np.zeros(c.shapes["b_enc"], bool)
    dead[..., [1, 4, 8, 9]] = True
    own = {"sparsity": 0.3, "exponent": 0.7, "target_l0": 0.0, "auxk": 0.2}
    return own, dead


def evaluated(name, d, params, x, y, **more):
    own, dead = settings_of(name)
    own |= more
    coefficients = sae.LossCoefficients(**own)
    return sae.loss(d.replace(params=params), x, y, coefficients, dead, k_aux=2)[0]


def by_hand(name, d, params, x, y, frozen, smooth=None, **more):
    own, dead = settings_of(name)
    own |= more
    return oracle.loss(
        d.config, params, x, y, k=K, dead=dead, k_aux=2, frozen=frozen, smooth=smooth, **own
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_slopes_equal_the_oracle(name):
    with jax.enable_x64(True):
        d, x, y = example(name)
        found, slopes = jax.value_and_grad(lambda p: evaluated(name, d, p, x, y))(d.params)
        np.testing.assert_allclose(found, by_hand(name, d, d.params, x, y, d.params), rtol=1e-12)
        rng = np.random.default_rng(1)
        for field in d.config.shapes:
            if field == "threshold":
                continue
            W = getattr(d.params, field)
            for _ in range(3):  # along random directions, every number takes part
                way = rng.normal(size=np.shape(W))
                h, ends = 1e-6, []
                for sign in (1, -1):
                    moved = d.params.replace(**{field: W + sign * h * way})
                    ends.append(by_hand(name, d, moved, x, y, d.params))
                slope = (ends[0] - ends[1]) / (2 * h)
                np.testing.assert_allclose(
                    (np.asarray(getattr(slopes, field)) * way).sum(), slope, rtol=1e-5, atol=1e-7
                )


@pytest.mark.parametrize("l0", [0.0, 2.0])
@pytest.mark.parametrize("name", ["jumprelu", "cross_layer, jumprelu"])
def test_straight_through_slopes_are_those_of_the_smoothed_loss(name, l0):
    with jax.enable_x64(True):
        d, x, y = example(name)
        slope = jax.grad(lambda p: evaluated(name, d, p, x, y, target_l0=l0))(d.params).threshold
        W, h = d.params.threshold, 1e-7
        assert (np.abs(slope) > 1e-6).sum() >= 3
        for i in np.ndindex(W.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(W)
                moved[i] += sign * h
                params = d.params.replace(threshold=moved)
                ends.append(by_hand(name, d, params, x, y, d.params, smooth=WIDE, target_l0=l0))
            np.testing.assert_allclose(
                slope[i], (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-6
            )


def test_straight_through_slopes_estimate_the_expected_loss():
    """Of a feature whose inputs are many and uniform: dE[f]/dtheta = -theta p(theta)."""
    pre = jnp.linspace(0, 2, 200_001)
    slope = jax.grad(lambda t: sae.dictionary.jump(pre, t, 0.05).mean())(0.8)
    np.testing.assert_allclose(slope, -0.8 * 0.5, rtol=1e-3)
    slope = jax.grad(lambda t: sae.dictionary.step(pre, t, 0.05).mean())(0.8)
    np.testing.assert_allclose(slope, -0.5, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("centre", ["mean", "median", "none"])
def test_folded_is_unfolded(name, centre):
    with jax.enable_x64(True):
        d, x, y = example(name)
        shift = np.arange(x.shape[-1])
        raw_x = 3 * x + shift
        raw_y = raw_x if y is x else 7 * y - 2
        scaling = sae.measure_scaling(raw_x, raw_y, centre=centre)
        scaled, _ = scaling(raw_x, raw_y)
        folded = sae.fold(d, scaling)
        expected = d(jnp.asarray(scaled)) / scaling.gain_out + scaling.centre_out
        np.testing.assert_allclose(folded(raw_x), expected, atol=1e-9)
        unit = 1.0 if d.config.layered else scaling.gain_in
        np.testing.assert_allclose(
            folded.encode(raw_x), d.encode(jnp.asarray(scaled)) / unit, atol=1e-9
        )
        norm = np.linalg.norm(scaled, axis=-1).mean(0)
        np.testing.assert_allclose(norm, np.sqrt(x.shape[-1]), rtol=1e-5)
        if centre == "mean":
            np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)


def test_the_geometric_median_is_of_least_distance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) + 10 * (rng.random((50, 1)) < 0.2)
    at = sae.geometric_median(x)

    def distance(p):
        return np.linalg.norm(x - p, axis=1).mean()

    assert all(distance(at) <= distance(at + 1e-3 * way) for way in rng.normal(size=(50, 3)))
    assert distance(at) < distance(x.mean(0))


def sorted_largest(v, k):
    """The k largest of each row, and equals of the k-th; by sorting."""
    least = np.sort(v, -1)[..., ::-1][..., k - 1 : k]
    return np.where((v >= least) & (v > 0), v, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_are_kept(dtype):
    with jax.enable_x64(dtype == np.float64):
        rng = np.random.default_rng(0)
        v = np.maximum(rng.normal(size=(6, 40)), 0).astype(dtype)
        v[0, :5] = 1e-30
        v[1] = 0
        v[2] = rng.choice([0, 0.5, 1], 40)  # equals
        v[3] = np.exp(20 * rng.normal(size=40))  # of many sizes
        for k in (1, 2, 7, 40):
            found = keep_largest(jnp.asarray(v), k, (1,))
            np.testing.assert_array_equal(found, sorted_largest(v, k))
            found = keep_largest(jnp.asarray(v), k, (0, 1))
            np.testing.assert_array_equal(np.ravel(found), sorted_largest(v.ravel(), k))
        several = jax.vmap(lambda k: keep_largest(jnp.asarray(v), k, (1,)))(jnp.array([1, 3]))
        for found, k in zip(several, (1, 3), strict=True):
            np.testing.assert_array_equal(found, sorted_largest(v, k))


def test_a_separator_of_many_numbers_is_exact():
    v = np.maximum(np.random.default_rng(1).normal(size=(300, 500)), 0).astype(np.float32)
    for k in (1, 300, 9000, 70_000, 120_000):
        least = separator(jnp.asarray(v), k, (0, 1))
        assert (v >= least).sum() == k if k < (v > 0).sum() else float(least[0, 0]) == 0


@pytest.mark.parametrize("size", [1, 31, 32, 33, 70, 300])
def test_places_of_a_mask(size):
    rng = np.random.default_rng(size)
    for share in (0.0, 0.02, 0.3, 1.0):
        mask = rng.random((12, size)) < share
        mask[0], mask[1, -1:] = False, True
        found, count = places(jnp.asarray(mask), 20)
        np.testing.assert_array_equal(count, mask.sum(1))
        for row, own, n in zip(mask, np.asarray(found), mask.sum(1), strict=True):
            held = own[: min(n, 20)]
            assert len(set(held)) == len(held)
            assert row[held].all()
        assert (np.asarray(found) < size).all()  # empty slots index too


def test_batch_topk_alone_uses_its_threshold():
    d, x, _ = example("batch_topk")
    alone = np.asarray(d.encode(jnp.asarray(x[:1], jnp.float32)))
    both = np.asarray(d.encode(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(alone[0], both[0], atol=1e-6)
    active = both[both > 0]
    assert active.min() > 0.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "autoencoder"}, "kind='autoencoder', expected one of sae"),
        ({"activation": "softmax"}, "activation='softmax'"),
        ({"n_features": 0}, "n_features=0"),
        ({"n_layers": 2}, "A sae reads one layer"),
        ({"prefixes": (4, 3, F)}, "increasing lengths"),
        ({"prefixes": (4, 8)}, f"end with n_features={F}"),
        ({"kind": "transcoder", "subtract_bias": True}, "subtract_bias=False"),
        ({"skip": True}, "A skip connection is a transcoder's"),
        ({"d_out": 4}, "An SAE writes what it reads"),
        ({"layers": (1, 2)}, r"layers=\(1, 2\), expected 1 from 0 on"),
        ({"layers": (-1,)}, r"layers=-1, expected"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        sae.DictionaryConfig(**{"d_in": D, "n_features": F, **fields})


def test_values_of_another_width():
    d, x, _ = example("relu")
    c = dataclasses.replace(d.config, site="resid_post")
    with pytest.raises(ValueError, match=r"reads width 5 \(resid_post\), the values have width 4"):
        d.replace(config=c).encode(x[:, :4])
    d, x, _ = example("crosscoder")
    with pytest.raises(ValueError, match="reads 3 layers"):
        d.encode(x[:, :2])
