"""Probe, erase, measure: a concept that is read and one that is not, and one run by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_model

import jaxinterp as ji
from jaxinterp import erasure, probes, uses

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 17, (40, 6))
LABELS = (IDS[:, -1] > 8).astype(int)
METRIC = ji.logit_diff([4] * 40, [8] * 40)


@pytest.mark.parametrize("erase_at", ["position", "all"])
def test_equals_erasing_by_hand(erase_at):
    model = small_model("llama")
    found = uses.probe_and_erase(
        model, IDS, LABELS, METRIC, layers=[2, 0], placebos=2, erase_at=erase_at, batch=7
    )
    split = probes.make_splits(LABELS, n_splits=1, shares=(0.4, 0.1, 0.5), seed=0)
    test = split.test[0]
    assert found.prompt.values.tolist() == np.flatnonzero(test).tolist()
    X = ji.collect(model, IDS, -1, site="resid_post")
    logits = np.asarray(ji.forward(model, IDS[test]).logits, np.float64)[:, -1]
    for layer in (2, 0):
        eraser = erasure.leace(X[layer][~test], LABELS[~test])
        edit = ji.apply("resid_post", eraser, layer=layer,
                        position=5 if erase_at == "position" else None)  # fmt: skip
        out = np.asarray(ji.forward(model, IDS[test], edit).logits, np.float64)[:, -1]
        one = found.sel(layer=layer, eraser="erased")
        np.testing.assert_allclose(one.value, out[:, 4] - out[:, 8], atol=1e-4)
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, out))
        np.testing.assert_allclose(one.kl, (np.exp(p) * (p - q)).sum(-1), atol=1e-4)
        left = np.asarray(eraser(jnp.asarray(X[layer])))
        assert float(found.accuracy_erased.sel(layer=layer)) == pytest.approx(
            uses._accuracy(left, LABELS, test, 1e-3)
        )
    np.testing.assert_allclose(found.clean, logits[:, 4] - logits[:, 8], atol=1e-5)


def test_what_the_model_reads():
    """The hand-built pair's answer: a probe finds it, and erasing it takes the behaviour away."""
    known = ji.handbuilt.previous_token_induction()
    pairs = known.make(n=120, length=12, seed=0)
    answers = np.asarray(pairs.answers).reshape(-1)
    labels = (answers > np.median(answers)).astype(int)
    found = uses.probe_and_erase(
        known.model, pairs.clean, labels, known.metric(pairs.answers, pairs.wrong), layers=[1],
        placebos=4,
    )  # fmt: skip
    assert float(found.accuracy[0]) > 0.95
    lost = abs(found.value - found.clean).mean("prompt").isel(layer=0)
    assert float(lost.sel(eraser="erased")) > 3 * float(lost[1:].max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pca"}, "leace, mean, inlp"),
        ({"erase_at": "last"}, "'position' or 'all'"),
        ({"layers": [9]}, "layers=9, expected .* from 0 to 2"),
        ({"site": "z"}, "stream's shape"),
        ({"position": 6}, "outside prompts"),
        ({"labels": np.zeros(40, int)}, "two classes"),
    ],
)
def test_bad_input(options, message):
    labels = options.pop("labels", LABELS)
    with pytest.raises(ValueError, match=message):
        uses.probe_and_erase(small_model("llama"), IDS, labels, METRIC, **options)
