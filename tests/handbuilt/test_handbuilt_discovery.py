"""Exact discovery on models whose circuit is known by construction."""

import numpy as np
import pytest
from edge_reference import alternatives, edges_of, scores

import jaxinterp as ji
from jaxinterp import circuits
from jaxinterp.handbuilt import MODELS, backup_head
from jaxinterp.pairs import conditional, interaction, patch_pairs, singles

ALTERNATIVES = {"resample": "run", "zero": "zero"}
CHANGES = 5e-3  # of the metric; false edges change nothing at all


def posed(known, n=4, length=7, seed=3):
    """A task of the model, as the methods take it, and the metric's scale."""
    pairs = known.make(n=n, length=length, seed=seed)
    metric = known.metric(pairs.answers, pairs.wrong)
    task = {"clean": pairs.clean, "corrupted": pairs.corrupted, "metric": metric}
    return task, float(np.abs(ji.evaluate(metric, known.model, pairs.clean)).max())


@pytest.mark.parametrize("ablation", ALTERNATIVES)
@pytest.mark.parametrize("name", MODELS)
def test_exact_patching_finds_exactly_the_true_edges(name, ablation):
    known = MODELS[name]()
    task, scale = posed(known)
    found = circuits.patch_edges(known.model, **task, alternative=ALTERNATIVES[ablation])
    change = np.abs((found - found["clean"]).values).max(-1) / scale
    names = found["edge"].values
    assert set(names[change > CHANGES]) == known.edges[ablation]
    truth = circuits.Circuit.of(known.model, known.edges[ablation])
    curve = circuits.roc(change, truth)
    assert curve["auc"] == curve["pessimistic_auc"] == 1.0


def acdc(known, ablation):
    """What ACDC keeps at a threshold that only true edges can reach."""
    task, scale = posed(known)
    found = circuits.acdc(
        known.model, **task, threshold=CHANGES * scale, alternative=ALTERNATIVES[ablation]
    )
    return set(found.names)


@pytest.mark.parametrize("ablation", ALTERNATIVES)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "backup_head"])
def test_acdc_keeps_exactly_the_true_edges(name, ablation):
    known = MODELS[name]()
    assert acdc(known, ablation) == known.edges[ablation]


@pytest.mark.parametrize("ablation", ALTERNATIVES)
def test_acdc_drops_the_backup_and_then_needs_what_the_primary_reads(ablation):
    """What an edge is worth depends on those already gone: ACDC goes from the logits down."""
    known = backup_head()
    found = acdc(known, ablation)
    extra = found - known.edges[ablation]
    assert found > known.edges[ablation]
    assert {edge.split("->")[1].split("<")[0] for edge in extra} == set(known.primary)
    pairs = known.make(n=2, length=7, seed=3)
    every = edges_of(known.model.config)
    gone = [edge for edge in every if known.backup[0] in edge]
    instead = alternatives(known, pairs, ablation)
    before = scores(known, pairs, gone, instead)
    for edge in extra:
        assert np.abs(scores(known, pairs, [*gone, edge], instead) - before).max() > CHANGES


def test_the_truth_under_one_ablation_is_not_that_under_another():
    """Held against the wrong truth, exact discovery is wrong: the two are kept apart."""
    known = MODELS["duplicate_detection"]()
    assert known.edges["zero"] != known.edges["resample"]
    task, _ = posed(known)
    for ablation, other in (("resample", "zero"), ("zero", "resample")):
        found = circuits.patch_edges(known.model, **task, alternative=ALTERNATIVES[ablation])
        change = np.abs((found - found["clean"]).values).max(-1)
        wrong = circuits.roc(change, circuits.Circuit.of(known.model, known.edges[other]))
        assert wrong["pessimistic_auc"] < 0.99


def test_single_patching_misses_the_backup_and_pairs_find_it():
    known = backup_head()
    task, scale = posed(known)
    found = patch_pairs(known.model, **task, direction="noise")
    assert found["a"].values.tolist() == ["0.0", "0.1", "1.0", "1.1"]
    alone = np.abs(singles(found).values).max(-1) / scale
    assert alone.max() < 1e-5  # no head alone: the backup stands in for the primary
    given = np.abs(conditional(found).values).max(-1) / scale
    assert min(given[0, 2], given[2, 0]) > 0.5
    given[[0, 2], [2, 0]] = 0
    assert given.max() < 1e-5
    both = interaction(found).mean("prompt").values
    assert both[0, 2] < -0.5 * scale
