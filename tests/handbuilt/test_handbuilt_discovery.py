"""Exact discovery on models whose circuit is known by construction."""

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp import circuits
from jaxinterp.handbuilt import MODELS

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ALTERNATIVES = {"resample": "run", "zero": "zero"}
CHANGES = 5e-3  # of the metric; false edges change nothing at all


def posed(known, n=4, length=7, seed=3):
    """A task of the model, as the methods take it, and the metric's scale."""
    pairs = known.make(n=n, length=length, seed=seed)
    metric = known.metric(pairs.answers, pairs.wrong)
    task = {"clean": pairs.clean, "corrupted": pairs.corrupted, "metric": metric}
    return task, float(np.abs(ji.evaluate(known.model, pairs.clean, metric)).max())


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


@pytest.mark.parametrize("ablation", ALTERNATIVES)
@pytest.mark.parametrize("name", MODELS)
def test_acdc_keeps_exactly_the_true_edges(name, ablation):
    known = MODELS[name]()
    task, scale = posed(known)
    found = circuits.acdc(
        known.model, **task, threshold=CHANGES * scale, alternative=ALTERNATIVES[ablation]
    )
    assert set(found.names) == known.edges[ablation]


def test_one_ablation_s_truth_is_not_the_other_s():
    """Scored against the wrong truth, exact discovery is not perfect: they are kept apart."""
    apart = 0
    for name in MODELS:
        known = MODELS[name]()
        if known.edges["zero"] == known.edges["resample"]:
            continue
        apart += 1
        task, _ = posed(known)
        for ablation, other in (("resample", "zero"), ("zero", "resample")):
            found = circuits.patch_edges(known.model, **task, alternative=ALTERNATIVES[ablation])
            change = np.abs((found - found["clean"]).values).max(-1)
            truth = circuits.Circuit.of(known.model, known.edges[other])
            wrong = circuits.roc(change, truth)
            print(name, ablation, wrong["auc"], wrong["pessimistic_auc"])
    assert apart
