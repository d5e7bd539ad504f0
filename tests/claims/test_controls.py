"""Random components: as many, of the same kind, never those of the intervention."""

import itertools

import numpy as np
import pytest
from small_models import CONFIGS, DIFF, PROMPTS, donor, small_model

import jaxinterp as ji
from jaxinterp.claims import random_components
from jaxinterp.interventions import unshare

CONFIG = CONFIGS["llama"]  # 3 layers, 4 heads, 10 neurons
HEADS = (ji.zero("z", layer=0, head=1), ji.zero("z", layer=2, head=3))


def drawn(grid, *axes):
    """[draw, edit, axis]"""
    return np.stack(
        [np.stack([np.asarray(getattr(e.where, a)) for a in axes], -1) for e in grid], 1
    )


def test_as_many_distinct_others():
    cells = drawn(random_components(HEADS, CONFIG, draws=200), "layer", "head")
    pairs = {frozenset(map(tuple, pair.tolist())) for pair in cells}
    others = set(itertools.product(range(3), range(4))) - {(0, 1), (2, 3)}
    assert len(cells) == 45  # all pairs of the 10 others, each once
    assert pairs == set(map(frozenset, itertools.combinations(others, 2)))
    assert len(random_components(HEADS, CONFIG, draws=20)[0].where.layer) == 20


def test_the_seed_decides():
    one, same, other = (
        drawn(random_components(HEADS, CONFIG, seed=s), "layer", "head") for s in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_sites_are_kept_apart():
    grid = random_components((ji.zero("z", layer=0, head=1), ji.zero("mlp_out", layer=1)), CONFIG)
    assert [e.site for e in grid] == ["z", "mlp_out"]
    assert set(np.asarray(grid[1].where.layer).tolist()) == {0, 2}
    assert (drawn(grid[:1], "layer", "head").max((0, 1)) == [2, 3]).all()
    neurons = random_components(ji.zero("mlp_post", layer=1, neuron=4), CONFIG, draws=300)
    found = drawn(neurons, "layer", "neuron")[:, 0].tolist()
    assert sorted(found) == [[l, n] for l in range(3) for n in range(10) if (l, n) != (1, 4)]


def test_edits_at_one_component_move_together():
    exchange = [
        ji.replace("pattern", w, layer=layer, head=head, position=4, source=source)
        for layer, head in ((1, 0), (1, 2)) for source, w in ((0, 0.0), (1, 1.0))
    ]  # fmt: skip
    cells = drawn(random_components(exchange, CONFIG, draws=30), "layer", "head")
    assert (cells[:, 0::2] == cells[:, 1::2]).all()
    assert (cells[:, 0] != cells[:, 2]).any(-1).all()
    assert not {(1, 0), (1, 2)} & set(map(tuple, cells.reshape(-1, 2).tolist()))


def test_others_of_the_claim_are_spared():
    other = [ji.replace("pattern", 0.0, layer=1, head=0), ji.zero("mlp_out", layer=0)]
    cells = drawn(random_components(HEADS, CONFIG, draws=200, sparing=other), "layer", "head")
    assert len(cells) == 36  # all pairs of 9
    found = set(map(tuple, cells.reshape(-1, 2).tolist()))
    assert found == set(itertools.product(range(3), range(4))) - {(0, 1), (2, 3), (1, 0)}
    rest = [ji.zero("mlp_out", layer=layer) for layer in (0, 2)]
    with pytest.raises(ValueError, match="1 random components at 'mlp_out' are asked for; 0"):
        random_components(ji.zero("mlp_out", layer=1), CONFIG, sparing=rest)


def test_values_and_positions_stay():
    z = donor("llama")["z"]
    edit = ji.replace("z", z, layer=0, head=1, position=np.array([2, 4]))
    grid = random_components(edit, CONFIG, draws=5)
    model = small_model("llama")
    found = ji.sweep(model, PROMPTS, grid, DIFF)
    assert unshare(grid[0].where.position).tolist() == [2, 4]
    for i, (layer, head) in enumerate(drawn(grid, "layer", "head")[:, 0]):
        one = ji.replace("z", z, layer=int(layer), head=int(head), position=np.array([2, 4]))
        np.testing.assert_allclose(found[i], ji.evaluate(DIFF, model, PROMPTS, one), atol=1e-5)


@pytest.mark.parametrize(
    ("edits", "more", "message"),
    [
        ((), {}, "no edits to move"),
        (HEADS, {"draws": 0}, "draws=0"),
        (ji.zero("z"), {}, "names no layer"),
        (ji.zero("z", layer=np.array([0, 1])), {}, "expected an edit such as"),
        (ji.zero("z", layer=1, head=np.ones(4, bool)), {}, r"head at 'z' is bool\[4\]"),
        (tuple(ji.zero("attn_out", layer=i) for i in (0, 1)), {}, "2 random.*1 are left"),
        (ji.replace("z", np.zeros((2, 7, 4, 6)), layer=1), {}, "of one layer"),
        (lambda value, at: value, {}, "function cannot be moved"),
    ],
)
def test_bad_input(edits, more, message):
    with pytest.raises(ValueError, match=message):
        random_components(edits, CONFIG, **more)
