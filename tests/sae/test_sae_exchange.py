"""Feature circuits run alone, against passes put together by hand; a circuit that is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import DIFF, OTHER, PROMPTS, ragged, small_model
from test_sae_circuits import MODEL, PLACES, dictionaries, parts, values

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.sae import exchange as room
from jaxinterp.sae.circuits import feature_circuit
from jaxinterp.sae.nodes import feature_nodes, select_nodes

KINDS = {
    "zero": {}, "donor": {"donor": OTHER}, "mean": {"mean": True},
    "mean of donors": {"donor": OTHER, "mean": True},
}  # fmt: skip


def by_hand(model, some, keep, tokens, put):
    """The metric; dictionary by dictionary, each read from a run in which those before are put.

    keep: of each, bool [P F + 1], the error last. put: of each, features and error.
    """
    edits = []
    for d, stays, (features, error) in zip(some, keep, put, strict=True):
        site, layer = d.config.place
        f, e = (np.asarray(part) for part in parts(d, values(model, tokens, (site, layer), edits)))
        f = np.where(stays[:, :-1], f, features)
        e = np.where(stays[:, -1:], e, error)
        edits.append(ji.replace(site, d.decode(jnp.asarray(f)) + e, layer=layer))
    return np.asarray(ji.evaluate(DIFF, model, tokens, edits))


def put_in(model, some, donor=None, mean=False):
    out = []
    for d in some:
        given = PROMPTS if donor is None else donor
        both = [np.asarray(p) for p in parts(d, values(model, given, d.config.place))]
        if mean:
            both = [p.mean(0, keepdims=True) for p in both]
        elif donor is None:
            both = [0 * p for p in both]
        out.append(both)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregate", ["sum", "none"])
def test_a_circuit_alone_is_put_together_by_hand(kind, aggregate):
    model, some, given = small_model(MODEL), dictionaries(), KINDS[kind]
    length = PROMPTS.shape[1]
    found = feature_nodes(model, some, PROMPTS, DIFF, donor=OTHER, aggregate=aggregate)
    every = select_nodes(found, 0.0)
    inside = np.random.default_rng(3).random(every.shape[0]) < 0.6
    keep = inside.reshape(len(some), 7, -1).swapaxes(1, 2)  # of each, [P or 1, F + 1]
    keep = np.broadcast_to(keep, (len(some), length, 7))
    circuit = every[inside]
    put = put_in(model, some, **given)
    plain = np.asarray(ji.evaluate(DIFF, model, PROMPTS))
    nothing = by_hand(model, some, keep & False, PROMPTS, put)
    for complement in (False, True):
        result = room.evaluate_feature_circuit(
            model, circuit, some, PROMPTS, DIFF, complement=complement, **given
        )
        assert result.dims == ("circuit", "prompt")
        assert result.nodes == inside.sum()
        alone = by_hand(model, some, keep ^ complement, PROMPTS, put)
        np.testing.assert_allclose(result[0], alone, atol=1e-5)
        np.testing.assert_allclose(result.clean, plain, atol=1e-5)
        np.testing.assert_allclose(result.corrupted, nothing, atol=1e-5)
        share = (alone - nothing).mean() / (plain - nothing).mean()
        score = room.faithfulness(
            model, circuit, some, PROMPTS, DIFF, complement=complement, batch=1, **given
        )
        np.testing.assert_allclose(score, share, rtol=1e-3)
    for some_nodes, score in ((every, 1), (every[:0], 0)):
        own = room.faithfulness(model, some_nodes, some, PROMPTS, DIFF, **given)
        rest = room.faithfulness(model, some_nodes, some, PROMPTS, DIFF, complement=True, **given)
        np.testing.assert_allclose([own, rest], [score, 1 - score], atol=1e-5)


def test_with_every_node_exchanged_the_run_is_the_donors():
    model, some = small_model(MODEL), dictionaries(PLACES[:4])
    nodes = feature_nodes(model, some, PROMPTS, DIFF)[:0]
    found = room.evaluate_feature_circuit(model, nodes, some, PROMPTS, DIFF, donor=OTHER)
    np.testing.assert_allclose(found[0], ji.evaluate(DIFF, model, OTHER), atol=1e-5)


@pytest.mark.parametrize("mean", [False, True])
def test_padding_does_not_matter(mean):
    model, some = small_model(MODEL), dictionaries()
    prompts, others = [[3, 1, 4, 1], [6, 5, 3, 5, 8, 9]], [[3, 1, 7, 1], [6, 5, 3, 11, 8, 9]]
    chosen = feature_nodes(model, some, PROMPTS, DIFF)[::2]
    sides = [
        room.evaluate_feature_circuit(
            model, chosen, some, ragged(prompts, side, 7), DIFF, donor=ragged(others, side, 7),
            mean=mean,
        ) for side in ("left", "right")
    ]  # fmt: skip
    np.testing.assert_allclose(sides[0], sides[1], atol=1e-5)
    if not mean:
        for i, (a, b) in enumerate(zip(prompts, others, strict=True)):
            metric = ji.logit_diff([[4, 9][i]], [[8, 2][i]])
            alone = room.evaluate_feature_circuit(
                model, chosen, some, np.array([a]), metric, donor=np.array([b])
            )
            np.testing.assert_allclose(sides[0][:, i], alone[:, 0], atol=1e-5)


def basis(direction, layer):
    """A dictionary of an orthogonal basis, both ways: the first feature is the direction's."""
    D = len(direction)
    rest = np.random.default_rng(0).normal(size=(D, D - 1))
    Q = np.linalg.qr(np.concatenate([direction[:, None], rest], 1))[0]
    Q[:, 0] *= np.sign(Q[:, 0] @ direction)
    W = np.concatenate([Q, -Q], 1).astype(np.float32)
    config = sae.DictionaryConfig(D, 2 * D, site="resid_post", layers=(layer,))
    zeros = np.zeros(2 * D, np.float32), np.zeros(D, np.float32)
    return sae.Dictionary(sae.Parameters(W, zeros[0], W.T, zeros[1]), config)


@pytest.mark.parametrize("aggregate", ["sum", "none"])
def test_a_known_circuit_is_found(aggregate, tmp_path):
    """The last layer does nothing, and the metric reads the stream along one row."""
    model = small_model("attention_only")
    attn = model.params.blocks.attn
    W_O = attn.W_O * np.array([1, 1, 0], np.float32)[:, None, None, None]
    blocks = model.params.blocks.replace(attn=attn.replace(W_O=W_O))
    model = model.replace(params=model.params.replace(blocks=blocks))
    W_U = np.asarray(model.params.head.W_U)
    direction = W_U[:, 4] - W_U[:, 8]
    metric = ji.logit_diff(4, 8)
    some = [basis(direction, layer) for layer in (1, 2)]
    x = np.asarray(values(model, PROMPTS, ("resid_post", 2)))[:, -1]
    along = x @ direction / np.linalg.norm(direction)
    m = np.asarray(ji.evaluate(metric, model, PROMPTS))
    np.testing.assert_allclose(m, along * np.linalg.norm(direction), rtol=1e-4)
    size = np.abs(m).mean()
    circuit = feature_circuit(
        model, some, PROMPTS, metric, node_threshold=1e-3 * size, edge_threshold=1e-3 * size,
        steps=2, aggregate=aggregate,
    )  # fmt: skip
    at = "@6" if aggregate == "none" else ""
    rows = [i for i, any_on in ((0, (along > 0).any()), (8, (along < 0).any())) if any_on]
    names = [f"resid_post.{layer}.f{i}{at}" for layer in (1, 2) for i in rows]
    assert sorted(circuit.node.values) == sorted(names)
    for i, sign in zip(rows, (1, -1) if len(rows) == 2 else (np.sign(along[0]),), strict=True):
        on = -np.where(along * sign > 0, m, 0)
        for layer in (1, 2):
            node = circuit.node_effect.sel(node=f"resid_post.{layer}.f{i}{at}")
            np.testing.assert_allclose(node, on, rtol=1e-4, atol=1e-4 * size)
    ends = sorted(zip(circuit.upstream.values, circuit.downstream.values, strict=True))
    straight = [(f"resid_post.1.f{i}{at}", f"resid_post.2.f{i}{at}") for i in rows]
    assert ends == sorted([*straight, *((name, "metric") for name in names[len(rows) :])])
    scores = [
        float(room.faithfulness(model, circuit, some, PROMPTS, metric, complement=complement))
        for complement in (False, True)
    ]
    np.testing.assert_allclose(scores, [1, 0], atol=1e-4)
    half = room.faithfulness(model, circuit.isel(node=slice(0, 0)), some, PROMPTS, metric)
    np.testing.assert_allclose(half, 0, atol=1e-5)
    ji.results.save(circuit, tmp_path / "circuit.nc")
    assert ji.results.load(tmp_path / "circuit.nc").identical(circuit)
    assert circuit.attrs["edge_threshold"] == 1e-3 * size


def test_what_is_refused():
    model, some = small_model(MODEL), dictionaries()
    nodes = feature_nodes(model, some, PROMPTS, DIFF)
    with pytest.raises(ValueError, match=r"no dictionary for resid_post\.0\.f0"):
        room.faithfulness(model, nodes, some[1:], PROMPTS, DIFF)
    with pytest.raises(ValueError, match="There are 2 given and 1 donor"):
        room.faithfulness(model, nodes, some, PROMPTS, DIFF, donor=OTHER[:1])
    with pytest.raises(ValueError, match="Two dictionaries are at"):
        room.faithfulness(model, nodes, [some[0], some[0]], PROMPTS, DIFF)
