"""The stated true edges are those that exhaustive patching by the NumPy oracle finds."""

import numpy as np
import pytest
from edge_reference import alternatives, edges_of, scores

from jaxinterp.handbuilt import MODELS, backup_head, previous_token_induction

BUILDERS = {
    **MODELS,
    "grouped": lambda: previous_token_induction(grouped=True),
    "rms": lambda: previous_token_induction(norm="rms"),
    "layer-grouped": lambda: previous_token_induction(norm="layer", grouped=True),
}
ABLATIONS = ["resample", "zero"]


def found(known, pairs, ablation, always=()):
    """The edges that change the metric beyond ``always``; each does so clearly or not at all."""
    instead = alternatives(known, pairs, ablation)
    before = scores(known, pairs, always, instead)
    scale = np.abs(scores(known, pairs, (), instead)).max()
    true = set()
    for edge in edges_of(known.model.config):
        if edge not in always:
            change = np.abs(scores(known, pairs, [*always, edge], instead) - before).max() / scale
            assert change > 5e-3 or change < 1e-6, (edge, change)
            true |= {edge} if change > 5e-3 else set()
    return true


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", BUILDERS)
def test_the_true_edges_are_those_found_exhaustively(name, ablation):
    known = BUILDERS[name]()
    pairs = known.make(n=2, length=7, seed=3)
    assert found(known, pairs, ablation) == known.edges[ablation]


def test_patching_every_edge_is_the_corrupted_run():
    known = previous_token_induction()
    pairs = known.make(n=3, length=6, seed=1)
    patched = scores(
        known, pairs, edges_of(known.model.config), alternatives(known, pairs, "resample")
    )
    corrupted = scores(known, pairs._replace(clean=pairs.corrupted), (), [None] * 3)
    np.testing.assert_allclose(patched, corrupted, atol=1e-9)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_backup_shows_once_the_primary_is_ablated(ablation):
    known = backup_head()
    pairs = known.make(n=3, length=7, seed=5)
    every = edges_of(known.model.config)
    out_of_primary = [e for e in every if e.split("->")[0] in known.primary]
    assert found(known, pairs, ablation, always=out_of_primary) == known.backup_edges[ablation]
    touched = {e for e in known.edges[ablation] if known.backup[0] in e}
    assert not touched, "single patching does not see the backup"
