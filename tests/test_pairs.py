"""`patch_pairs`: every pair equals a run of the oracle with both values put in by hand."""

import itertools

import jax
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import CONFIGS, DIFF, PROMPTS, diff, small_model, with_long

from jaxinterp.ablation.sweep import ablate
from jaxinterp.metrics import logit_diff
from jaxinterp.model import Config, as_tokens, init
from jaxinterp.pairs import conditional, interaction, patch_pairs, singles
from jaxinterp.patching import patch
from jaxinterp.results import load, save
from jaxinterp.sweep import Ledger

OTHER = np.array([[7, 1, 7, 1, 5, 9, 2], [4, 5, 3, 11, 8, 10, 7]])  # from the first token on
CHOSEN = [(0, 1), (1, 3), (2, 0)]


def both(name, first, second, given, ids=PROMPTS):
    """The oracle with ``given(b, site)`` [L ...] at two (site, layer, head or None)."""

    def edit_of(b):
        def edit(at, layer, array):
            for site, l, head in (first, second):
                if (at, layer) == (site, l):
                    entry = (slice(None), head) if head is not None else slice(None)
                    array[entry] = given(b, site)[l][entry]
            return array

        return edit

    return diff(batch(small_model(name), as_tokens(ids), edit_of))


def run(name="llama", **options):
    options = {"clean": PROMPTS, "metric": DIFF, "components": CHOSEN, **options}
    return patch_pairs(small_model(name), **options)


@pytest.mark.parametrize("name", with_long("gpt2"))
def test_pairs_of_every_family_equal_the_oracle(name):
    result = run(name, corrupted=OTHER)
    assert result.dims == ("a", "b", "prompt")
    assert result.coords["a"].values.tolist() == ["0.1", "1.3", "2.0"]
    clean = [sites for _, sites in batch(small_model(name), as_tokens(PROMPTS))]
    for i, j in itertools.product(range(3), repeat=2):
        pair = [("z", *CHOSEN[i]), ("z", *CHOSEN[j])]
        reference = both(name, *pair, lambda b, site: clean[b][site], OTHER)
        assert_near(result[i, j], reference, 1e-5, str(pair))
    for run_, ids in {"clean": PROMPTS, "corrupted": OTHER}.items():
        assert_near(result.coords[run_], diff(batch(small_model(name), as_tokens(ids))), 1e-5)


def test_heads_and_mlps_ablated_together():
    components = {"z": [(0, 1), (2, 3)], "mlp_out": [1]}
    result = run(components=components, value="zero")
    assert result.coords["a"].values.tolist() == ["z 0.1", "z 2.3", "mlp_out 1"]
    places = [("z", 0, 1), ("z", 2, 3), ("mlp_out", 1, None)]

    def zeros(b, site):
        return np.zeros((3, 7, 4, 6) if site == "z" else (3, 7, 8))

    for i, j in itertools.product(range(3), repeat=2):
        reference = both("llama", places[i], places[j], zeros)
        assert_near(result[i, j], reference, 1e-5, f"{i} {j}")
    assert result.attrs["intervention"] == "ablate"
    assert "corrupted" not in result.coords


def test_singles_are_patch_and_ablate():
    model = small_model("llama")
    heads = {"layers": [0, 2], "heads": [1, 3]}
    for direction in ("denoise", "noise"):
        options = {"corrupted": OTHER, "direction": direction}
        pairs = run(components=None, **heads, **options)
        assert pairs.coords["b"].values.tolist() == ["0.1", "0.3", "2.1", "2.3"]
        single = patch(model, clean=PROMPTS, metric=DIFF, site="z", over=("layer", "head"),
                       **heads, **options)  # fmt: skip
        diagonal = np.einsum("aap->ap", pairs.values)
        assert_near(diagonal, single.values.reshape(4, 2), 1e-5, direction)
        for name in ("clean", "corrupted"):
            np.testing.assert_array_equal(pairs.coords[name], single.coords[name])
        effect = single - single.coords["corrupted" if direction == "denoise" else "clean"]
        assert_near(singles(pairs), effect.values.reshape(4, 2), 1e-5)
    pairs = run(components=None, value="mean", **heads)
    single = ablate(model, tokens=PROMPTS, metric=DIFF, value="mean", **heads)
    assert_near(np.einsum("aap->ap", pairs.values), single.values.reshape(4, 2), 1e-5)


def test_conditional_and_interaction_are_what_they_say():
    m = run(corrupted=OTHER)
    base = m.coords["corrupted"].values
    given, joint = conditional(m), interaction(m)
    assert given.name == "logit_diff_conditional"
    for a, b in itertools.product(range(3), repeat=2):
        one, other, two = m.values[a, a], m.values[b, b], m.values[a, b]
        np.testing.assert_allclose(given[a, b], two - one, atol=1e-6)
        if a == b:
            assert np.isnan(joint[a, b]).all()
        else:
            np.testing.assert_allclose(joint[a, b], two - one - other + base, atol=1e-6)
    np.testing.assert_array_equal(m, m.transpose("b", "a", "prompt"))
    np.testing.assert_allclose(np.einsum("aap->ap", given.values), 0)


def backup():
    """Two heads that each write the answer, under a cap: one is enough, and one stands in.

    Without norms and MLP. Both copy feature 0 (which every token has) into feature 1, which is
    the answer's logit; a third head does nothing. The cap makes the second copy superfluous.
    """
    config = Config(
        n_layers=1, d_model=4, n_heads=3, d_head=2, d_mlp=0, vocab_size=5, n_ctx=8, norm="none",
        positions="none", logit_softcap=1.0,
    )  # fmt: skip
    model = init(config, jax.random.key(0), scale=0.0)
    p = jax.tree.map(lambda x: np.array(x), model.params)
    p.embed.W_E[:, 0] = 1
    for head in (0, 1):
        p.blocks.attn.W_V[0, head, 0, 0] = 1
        p.blocks.attn.W_O[0, head, 0, 1] = 20
    p.head.W_U[1, 3] = 1
    return model.replace(params=p)


def test_a_backup_is_missed_alone_and_found_in_pairs():
    pairs = patch_pairs(
        backup(), clean=np.array([[0, 1, 2], [2, 2, 4]]), metric=logit_diff(3, 0), value="zero"
    )
    assert (pairs.coords["clean"] == 1).all()
    np.testing.assert_allclose(singles(pairs), 0, atol=1e-6)  # no head alone seems to matter
    given = conditional(pairs).mean("prompt").values
    np.testing.assert_allclose(given, [[0, -1, 0], [-1, 0, 0], [0, 0, 0]], atol=1e-6)
    both = interaction(pairs).mean("prompt").values
    np.testing.assert_allclose(both[[0, 0, 1], [1, 2, 2]], [-1, 0, 0], atol=1e-6)


def test_some_pairs_by_number_or_name(tmp_path):
    whole = run(corrupted=OTHER)
    ledger, done = Ledger(), []
    some = run(
        corrupted=OTHER, pairs=[(0, 2), ("1.3", "0.1"), (2, 0)], ledger=ledger,
        parts=tmp_path, on_done=done.append,
    )  # fmt: skip
    asked = ~np.isnan(some.values).any(-1)
    np.testing.assert_array_equal(asked, [[1, 1, 1], [1, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(some.values[asked], whole.values[asked], atol=1e-5)
    assert some.attrs["n_pairs"] == 2
    assert done == [10]
    again = run(corrupted=OTHER, pairs=[(0, 2), (0, 1)], parts=tmp_path)
    np.testing.assert_array_equal(again, some)
    assert ledger.experiments == 10
    assert load(save(some, tmp_path / "pairs.nc")).identical(some)


def test_cells_at_positions_and_batches():
    options = {"components": None, "site": "resid_post", "over": ("layer", "position"),
               "layers": [0, 1], "positions": {"end": [6, 6], "S": [2, 3]}}  # fmt: skip
    result = run(corrupted=OTHER, batch=1, **options)
    names = ["0 end", "0 S", "1 end", "1 S"]
    assert result.coords["a"].values.tolist() == names
    clean = [s["resid_post"] for _, s in batch(small_model("llama"), as_tokens(PROMPTS))]

    def edit_of(b):
        def edit(at, layer, array):
            if (at, layer) in (("resid_post", 0), ("resid_post", 1)):
                at_role = (2, 3)[b] if layer == 0 else 6
                array[at_role] = clean[b][layer, at_role]
            return array

        return edit

    reference = diff(batch(small_model("llama"), as_tokens(OTHER), edit_of))
    assert_near(result.sel(a="0 S", b="1 end"), reference, 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of them"),
        ({"corrupted": OTHER, "value": "zero"}, "one of them"),
        ({"value": "zero", "components": []}, "There are no components at 'z'"),
        ({"value": "zero", "components": {}}, "There are no components"),
        ({"value": "zero", "components": [(0, 1), (0, 1)]}, r"\(0, 1\) at 'z' is named twice"),
        ({"value": "zero", "components": [(3, 0)]}, "layer 3 is out of range"),
        ({"value": "zero", "components": [(0, 4)]}, "head 4 is out of range"),
        ({"value": "zero", "components": [(0,)]}, r"expected \(layer, head\), integers"),
        ({"value": "zero", "components": {"embed": [0]}}, "no site that every layer has"),
        ({"value": "zero", "heads": [1]}, "components= names them all: leave out heads="),
        ({"value": "zero", "pairs": [(0, 3)]}, r"\(0, 3\) is not a pair of components"),
        ({"value": "zero", "pairs": [("0.1", "9.9")]}, "is not a pair of components"),
        ({"value": "optimal"}, "expected an array, 'zero', 'mean' or 'resample'"),
        ({"corrupted": OTHER, "means": {}}, "means= and by= are for ablation"),
        ({"corrupted": OTHER, "direction": "both"}, "direction is 'both'"),
        ({"corrupted": OTHER[:, :5]}, "7 tokens clean and 5 corrupted"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_attention_only_models_have_no_mlps_to_pair():
    assert CONFIGS["attention_only"].attention_only
    with pytest.raises(ValueError, match="has no site 'mlp_out'"):
        run("attention_only", value="zero", components={"mlp_out": [0]})
