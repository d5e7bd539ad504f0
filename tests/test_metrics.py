"""Every metric against a slow float64 NumPy oracle; padding, restriction and transforms."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import metrics
from jaxinterp.model import Config, Tokens, forward, init

V, B, P = 23, 3, 6
SETS = [[3, 7], [5], [1, 2, 11]]
ANSWER, WRONG = [4, 9, 0], [8, 2, 6]


@pytest.fixture(scope="module")
def model():
    config = Config(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, vocab_size=V, n_ctx=16)
    return init(config, jax.random.key(0), scale=1.5)


def batch(padding="none", seed=0):
    """The same prompts (lengths 6, 4, 5; all 6 without padding), padded on either side."""
    ids = np.random.default_rng(seed).integers(0, V, (B, P)).astype(np.int32)
    positions = np.broadcast_to(np.arange(P, dtype=np.int32), ids.shape).copy()
    if padding == "none":
        return Tokens(ids, positions)
    out_ids, out_positions = np.full((B, P + 1), 1, np.int32), np.full((B, P + 1), -1, np.int32)
    for i, n in enumerate((6, 4, 5)):
        where = slice(None, n) if padding == "right" else slice(P + 1 - n, None)
        out_ids[i, where], out_positions[i, where] = ids[i, :n], positions[i, :n]
    return Tokens(out_ids, out_positions)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return (
        x
        - x.max(-1, keepdims=True)
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))[..., None]
    )


def one(values):
    return [[v] for v in values]


def oracle(kind, logits, sets, wrong=None):
    """One number for one prompt from logits [R V], in float64 and loops."""
    out = []
    for row in np.asarray(logits, np.float64):
        probs = np.exp(log_softmax(row))
        out.append(
            {
                "logit": lambda row=row: np.mean([row[i] for i in sets]),
                "logit_diff": lambda row=row: (
                    np.mean([row[i] for i in sets]) - np.mean([row[i] for i in wrong])
                ),
                "prob_diff": lambda probs=probs: (
                    sum(probs[i] for i in sets) - sum(probs[i] for i in wrong)
                ),
                "prob": lambda probs=probs: sum(probs[i] for i in sets),
                "log_prob": lambda probs=probs: np.log(sum(probs[i] for i in sets)),
                "rank": lambda row=row: sum(v > max(row[i] for i in sets) for v in row),
                "accuracy": lambda row=row: float(np.argmax(row) in sets),
            }[kind]()
        )
    return np.mean(out)


DIFFERENCES = ["logit_diff", "prob_diff"]
KINDS = ["logit", "prob", "log_prob", "rank", "accuracy", *DIFFERENCES]


def make(kind, answer, wrong=WRONG, position=None):
    if kind in DIFFERENCES:
        return getattr(metrics, kind)(answer, wrong, position)
    return getattr(metrics, kind)(answer, position)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", [ANSWER, SETS], ids=["one", "sets"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_metrics_match_the_oracle(model, kind, answer, padding):
    tokens = batch(padding)
    logits = np.asarray(forward(model, tokens).logits)
    sets = [np.atleast_1d(a).tolist() for a in answer]
    for position, rows in [
        (None, tokens.lengths[:, None] - 1),
        (2, np.full((B, 1), 2)),
        ([1, 3, 0], np.array([[1], [3], [0]])),
        ([[0, 3], [2, 1], [1, -1]], np.array([[0, 3], [2, 1], [1, -1]])),
    ]:
        metric = make(kind, answer, position=position)
        columns = tokens.columns(rows.clip(0))
        expected = [
            oracle(kind, logits[b, columns[b][rows[b] >= 0]], sets[b], [WRONG[b]]) for b in range(B)
        ]
        assert metrics.read_columns(tokens, metric).tolist() == columns.tolist()
        read = jnp.asarray(logits[np.arange(B)[:, None], columns])
        got = metric(read, tokens)
        assert (got.shape, got.dtype) == ((B,), jnp.float32)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    if answer is SETS and padding == "left":  # one compilation for each kind
        got = metrics.evaluate(metric, model, tokens)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["logit", "logit_diff"])
@pytest.mark.parametrize("answer", [ANSWER, SETS, 4], ids=["one", "sets", "shared"])
def test_restricted_vocabulary_equals_all_of_it(model, kind, answer):
    tokens = batch("left")
    metric = make(kind, answer)
    logits = forward(model, tokens).logits
    read = jnp.take_along_axis(logits, metrics.read_columns(tokens, metric)[..., None], 1)
    few = jnp.take_along_axis(
        read, jnp.broadcast_to(metric.vocabulary, (B, metric.vocabulary.shape[1]))[:, None], -1
    )
    np.testing.assert_allclose(metric(read, tokens), metric(few, tokens), rtol=1e-6)
    np.testing.assert_allclose(
        metrics.evaluate(metric, model, tokens), metric(read, tokens), atol=1e-5
    )


def test_prob_diff_of_sets_of_unequal_size(model):
    tokens, later, earlier = batch("right"), [[3, 7], [5], [1, 2, 11]], [[0], [4, 6, 8], [10, 20]]
    probs = np.exp(log_softmax(forward(model, tokens).logits))
    last = probs[np.arange(B), tokens.columns(tokens.lengths - 1)]
    expected = [p[a].sum() - p[b].sum() for p, a, b in zip(last, later, earlier, strict=True)]
    got = metrics.evaluate(metrics.prob_diff(later, earlier), model, tokens)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    rest = [[i for i in range(V) if i not in own] for own in later]
    whole = metrics.evaluate(metrics.prob_diff(later, rest), model, tokens)
    np.testing.assert_allclose(
        whole, 2 * np.array([p[a].sum() for p, a in zip(last, later, strict=True)]) - 1, rtol=1e-5
    )


def everywhere(model, tokens):
    return np.asarray(forward(model, tokens).logits)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_cross_entropy(model, padding):
    tokens = batch(padding)
    logits, expected = everywhere(model, tokens), []
    for b in range(B):
        real = np.flatnonzero(tokens.mask[b])
        losses = [
            -log_softmax(logits[b, here])[tokens.ids[b, after]]
            for here, after in itertools.pairwise(real)
        ]
        expected.append(np.mean(losses))
    got = metrics.evaluate(metrics.cross_entropy(), model, tokens)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cross_entropy_of_one_token(model):
    with pytest.raises(ValueError, match="at least 2"):
        metrics.evaluate(metrics.cross_entropy(), model, np.zeros((1, 1), np.int32))
    tokens = Tokens(np.zeros((2, 2), np.int32), np.array([[0, 1], [0, -1]]))
    loss = metrics.evaluate(metrics.cross_entropy(), model, tokens)
    assert np.isnan(loss).tolist() == [False, True]


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_kl(model, padding):
    tokens = batch(padding)
    logits = everywhere(model, tokens)
    reference = logits + np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    p, q = log_softmax(reference), log_softmax(logits)
    each = (np.exp(p) * (p - q)).sum(-1)  # summed over the vocabulary
    everything = metrics.kl(reference, "all")
    expected = [each[b][tokens.mask[b]].mean() for b in range(B)]
    np.testing.assert_allclose(metrics.evaluate(everything, model, tokens), expected, rtol=1e-4)
    last = tokens.columns(tokens.lengths - 1)
    final = metrics.kl(reference[np.arange(B), last])
    np.testing.assert_allclose(
        metrics.evaluate(final, model, tokens), each[np.arange(B), last], rtol=1e-4
    )
    same = metrics.evaluate(metrics.kl(logits, "all"), model, tokens)
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_kl_with_impossible_tokens():
    tokens = Tokens(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32))
    reference = np.array([[0.0, 1.0, -np.inf]], np.float32)
    metric = metrics.kl(reference)
    assert metric(jnp.array([[[0.0, 1.0, -np.inf]]]), tokens)[0] == 0
    assert np.isfinite(metric(jnp.array([[[0.0, 1.0, 2.0]]]), tokens)[0])
    slope = jax.grad(lambda x: metric(x, tokens).sum())(jnp.array([[[0.0, 1.0, 2.0]]]))
    assert np.isfinite(slope).all()
    assert metric(jnp.array([[[0.0, -np.inf, 2.0]]]), tokens)[0] == np.inf


def one_row(row):
    tokens = Tokens(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32))
    return jnp.asarray(row, jnp.float32)[None, None], tokens


def test_ties_and_nan():
    tied, tokens = one_row([1, 5, 5, 0])
    assert metrics.rank([2])(tied, tokens).tolist() == [0]
    assert metrics.rank([0])(tied, tokens).tolist() == [2]
    assert metrics.accuracy([1])(tied, tokens).tolist() == [1]
    assert metrics.accuracy([2])(tied, tokens).tolist() == [0]
    broken, tokens = one_row([1, np.nan, 5, 0])
    assert np.isnan(metrics.rank([2])(broken, tokens)[0])
    assert np.isnan(metrics.accuracy([1])(broken, tokens)[0])


def test_low_precision_logits_are_widened(model):
    logits, tokens = one_row([300.0, 299.0, 1.0])
    metric = metrics.log_prob([1])
    low = metric(logits.astype(jnp.bfloat16), tokens)
    assert low.dtype == jnp.float32


@pytest.mark.parametrize("kind", [*KINDS, "kl", "cross_entropy"])
def test_transforms(model, kind):
    tokens = batch("left")
    if kind == "kl":
        metric = metrics.kl(everywhere(model, tokens) + 1.5 * tokens.ids[..., None] % 2, "all")
    elif kind == "cross_entropy":
        metric = metrics.cross_entropy()
    else:
        metric = make(kind, SETS)
    plain = metrics.evaluate(metric, model, tokens)
    jitted = jax.jit(metrics.evaluate)(metric, model, tokens)  # every leaf is traced
    np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-6)

    n_read = metric.read(tokens).shape[1]
    logits = jax.random.normal(jax.random.key(1), (2, B, n_read, V))
    stacked = jax.vmap(metric, (0, None))(logits, tokens)
    each = jnp.stack([metric(one, tokens) for one in logits])
    np.testing.assert_allclose(stacked, each, rtol=1e-6)
    slope = jax.grad(lambda x: metric(x, tokens).sum())(logits[0])
    assert np.isfinite(slope).all()
    assert (np.abs(slope).max() > 0) == (kind not in ("rank", "accuracy"))

    chunk = jax.tree.map(lambda leaf: leaf[1:], metric)  # prompts can be chunked
    np.testing.assert_allclose(
        metric(logits[0], tokens)[1:], chunk(logits[0, 1:], tokens[1:]), rtol=1e-5, atol=1e-6
    )


def test_no_two_kinds_look_alike_to_jit(model):
    """JAX takes dataclasses of different classes for one structure: see `model.compiled`."""
    made = [make(kind, ANSWER) for kind in KINDS]
    structures = [jax.tree.structure(metric) for metric in made]
    assert sum(a == b for a in structures for b in structures) == len(made)


def test_interventions_reach_the_metric(model):
    class Clear:
        sites = ("resid_post",)

        def __call__(self, value, at):
            return jnp.zeros_like(value)

    jax.tree_util.register_pytree_node(Clear, lambda c: ((), None), lambda *_: Clear())
    metric = metrics.logit_diff(ANSWER, WRONG)
    assert np.abs(metrics.evaluate(metric, model, batch())).min() > 0
    assert metrics.evaluate(metric, model, batch(), Clear()).tolist() == [0, 0, 0]


def spread(logits, offset):
    return (logits.max(-1) - logits.min(-1)).mean(-1) + offset


def test_custom(model):
    tokens = batch()
    offset = np.array([1.0, 2.0, 3.0], np.float32)
    metric = metrics.metric(spread, [[0, 2]] * B, data=(offset,))
    logits = everywhere(model, tokens)[:, [0, 2]]
    expected = (logits.max(-1) - logits.min(-1)).mean(-1) + offset
    np.testing.assert_allclose(metrics.evaluate(metric, model, tokens), expected, rtol=1e-5)
    few = metrics.metric(spread, data=(offset,), vocabulary=[[1, 2, 3]] * B)
    logits = everywhere(model, tokens)[:, -1, 1:4]
    expected = logits.max(-1) - logits.min(-1) + offset
    np.testing.assert_allclose(metrics.evaluate(few, model, tokens), expected, rtol=1e-5)
    assert metric.name == "spread"
    assert json.dumps(metric.describe())
    with pytest.raises(ValueError, match=r"spread returned shape \[3, 3\]"):
        metrics.evaluate(
            metrics.metric(spread, [[0, 2]] * B, data=(offset[:, None],)), model, tokens
        )


def test_normalized():
    effect, clean, corrupted = (
        np.array([[1.0, 3, 2], [3, 5, 2]]),
        np.array([3.0, 5, 2]),
        np.array([1.0, 1, 2]),
    )
    for wrap in (np.asarray, jnp.asarray):
        got = metrics.normalized(wrap(effect), wrap(clean), wrap(corrupted))
        np.testing.assert_allclose(got, [[0, 0.5, np.nan], [1, 1, np.nan]])


def test_records_are_json(model):
    tokens = batch()
    made = [make(kind, SETS) for kind in KINDS]
    made += [metrics.cross_entropy(), metrics.kl(everywhere(model, tokens), "all")]
    names = [*KINDS, "cross_entropy", "kl"]
    for metric, name in zip(made, names, strict=True):
        assert isinstance(metric, metrics.Metric)
        record = json.loads(json.dumps(metric.describe()))
        assert (record["metric"], metric.name) == (name, name)
    assert metrics.logit([1], 3).describe()["position"] == [[3]]
    assert metrics.logit_diff([1], [2]).describe()["wrong"] == [[2]]


def test_bad_arguments_are_refused(model):
    for bad, match in [
        (["Mary"], "single_token"), ([1.5], "float64"), ([[1], []], r"\[0\]"), ([-2], "holds -2"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            metrics.logit_diff(bad, [1])
    with pytest.raises(ValueError, match="position is negative"):
        metrics.logit([1], -1)
    with pytest.raises(ValueError, match="position is <U3"):
        metrics.logit([1], "end")
    with pytest.raises(ValueError, match="position='all'"):
        metrics.kl(np.zeros((B, P, V)))
    with pytest.raises(ValueError, match="reference logits are"):
        metrics.evaluate(metrics.kl(np.zeros((B, 2, V)), "all"), model, batch())
    with pytest.raises(ValueError, match="2 prompts, the batch has 3"):
        metrics.evaluate(metrics.logit([1, 2]), model, batch())
    with pytest.raises(ValueError, match=f"{V} in answer of logit is outside"):
        metrics.evaluate(metrics.logit(V), model, batch())
    with pytest.raises(ValueError, match="position 4 of prompt 1, which has 4 tokens"):
        metrics.evaluate(metrics.logit([1], 4), model, batch("left"))
    with pytest.raises(TypeError, match=r"is not a metric: .*jaxinterp.metric\(function\)"):
        metrics.evaluate(lambda logits: logits[:, 0, 0], model, batch())
    headless = init(model.config.replace(head="none"), jax.random.key(0))
    with pytest.raises(ValueError, match="no unembedding"):
        metrics.evaluate(metrics.logit([1]), headless, batch())
