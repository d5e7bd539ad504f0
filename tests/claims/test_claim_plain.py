"""Trees as JSON: the same tree comes back, and does the same; nothing else is looked up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from small_models import DIFF, OTHER, PROMPTS, donor, small_model

import jaxinterp as ji
from jaxinterp import sae
from jaxinterp.claims import in_words
from jaxinterp.claims.plain import from_plain, held, read_arrays, to_plain
from jaxinterp.erasure import leace

MODEL = "llama"
RNG = np.random.default_rng(0)


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def there_and_back(value):
    arrays = {}
    plain = json.loads(json.dumps([to_plain(value, arrays), arrays], allow_nan=False))
    return from_plain(plain[0], read_arrays(plain[1]))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def dictionary():
    config = sae.DictionaryConfig(d_in=8, n_features=20, site="resid_post", layers=(1,))
    arrays = {n: numbers(*s) for n, s in config.shapes.items()}
    return sae.Dictionary(sae.Parameters(**arrays), config)


def interventions():
    """(name, one intervention, its words)."""
    z, mask = donor(MODEL)["z"], np.array([True, False, True, True])
    return {
        "patch": (ji.replace("z", z, layer=1, head=2), "set z to given values at layer 1, head 2"),
        "zero": (ji.zero("mlp_out", layer=2, position=3), "zero mlp_out at layer 2, position 3"),
        "constant": (ji.replace("z", 0.5, head=mask), "set z to 0.5 at heads 0, 2, 3"),
        "steer": (
            ji.add("resid_post", np.float32([3, 4, 0, 0, 0, 0, 0, 0]), layer=0),
            "add a vector of length 5 to resid_post at layer 0",
        ),
        "scale": (ji.scale("blocks.1.mlp.hook_post", 2, neuron=4),
                  "multiply mlp_post by 2 at layer 1, neuron 4"),
        "erase": (
            ji.project_out("resid_mid", jnp.asarray(numbers(8)), position=np.array([2, 5])),
            "project a direction out of resid_mid at a position of each prompt's own",
        ),
        "map": (
            ji.apply("resid_post", leace(numbers(40, 8), np.arange(40) % 2), layer=1),
            "apply Eraser to resid_post at layer 1",
        ),
        "features": (sae.edits.scale_features(dictionary(), 3, 0.0),
                     "apply FeatureEdit to resid_post at layer 1"),
        "tuple": (
            (ji.zero("z", layer=0, head=1), ji.zero("z", layer=2, head=0), ji.zero("attn_out")),
            "zero z at layer 0, head 1 and layer 2, head 0; zero attn_out",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", interventions())
def test_interventions_come_back_and_do_the_same(name):
    given, words = interventions()[name]
    back = there_and_back(given)
    same(given, back)
    same(held(given), back)
    assert in_words(back) == in_words(given) == words
    model = small_model(MODEL)
    one, other = (ji.forward(model, PROMPTS, edit).logits for edit in (given, back))
    np.testing.assert_array_equal(one, other)
    assert np.abs(np.asarray(one) - ji.forward(model, PROMPTS).logits).max() > 1e-4


def test_grids_come_back():
    where = ji.product(layer=range(3), head=range(4))
    grid = (ji.zero("z", **where), ji.scale("mlp_out", ji.Shared(2.0), layer=ji.Shared(1)))
    back = there_and_back(grid)
    same(grid, back)
    model = small_model(MODEL)
    runs = [ji.sweep(model, PROMPTS, g, DIFF) for g in (grid, back)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    "metric",
    [
        DIFF, ji.logit([4, 9]), ji.log_prob([[4, 2], [9, 1]]), ji.prob(3, position="all"),
        ji.prob_diff([4, 9], [[2], [1]], position=[2, 3]), ji.rank([4, 9]), ji.accuracy([4, 9]),
        ji.kl(numbers(2, 17)), ji.cross_entropy(),
    ],
    ids=lambda m: m.name,
)  # fmt: skip
def test_metrics_come_back(metric):
    back = there_and_back(metric)
    assert type(back) is type(metric)
    same(metric, back)
    values = [ji.evaluate(m, small_model(MODEL), PROMPTS) for m in (metric, back)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -0.0, 1e-300, "a 'b' \u2028", (1, [2.5, (None,)]), {"array": 1, "b": (2,)},
        np.float32(0.1), np.zeros(()), np.zeros((0, 3)), np.array([[True, False]]),
        np.arange(6, dtype=np.int8).reshape(2, 3).T, np.array([np.nan, -np.inf]),
        jnp.arange(3, dtype=jnp.bfloat16), np.arange(3, dtype=">f4"), 1 + np.arange(2) * 1j,
        ji.Direction(numbers(8)).vector, ji.model.as_tokens(OTHER),
    ],
    ids=str,
)  # fmt: skip
def test_values_come_back(value):
    back = there_and_back(value)
    if isinstance(value, np.ndarray) and value.dtype.byteorder == ">":
        np.testing.assert_array_equal(back, value)
    else:
        same(value, back)


def test_numbers_that_json_lacks():
    assert there_and_back((float("inf"), -float("inf")))[1] == -np.inf
    assert np.isnan(there_and_back(float("nan")))


def test_an_array_is_written_once():
    z, arrays = donor(MODEL)["z"], {}
    to_plain([ji.replace("z", z, layer=i) for i in range(3)], arrays)
    assert sum(entry["shape"] == list(z.shape) for entry in arrays.values()) == 1


class Mine(struct.PyTreeNode):
    sites = ("z",)

    def __call__(self, value, at):
        return value


def mine(logits):
    return logits[:, 0, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Mine(), "Mine is not jaxinterp's own.*from its JSON alone"),
        (ji.apply("z", Mine()), "Mine is not jaxinterp's own"),
        (ji.metric(mine), "mine is not jaxinterp's own"),
        (np.array(["a"]), "array of <U1"),
        ({1: 2}, "dict is not"),
        (ji, "module is not"),
        (ji.Edit, "type is not"),
    ],
)
def test_others_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        to_plain(value, {})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"class": "cli.main.nothing", "fields": {}}, "no class 'cli.main.nothing'"),
        ({"class": "os.PathLike", "fields": {}}, "no class"),
        ({"class": "files.Path", "fields": {}}, "no class 'files.Path'"),
        ({"class": "interventions.product", "fields": {}}, "no class"),
        ({"class": "interventions.Edit", "fields": {"nose": 1}}, "cannot be made from"),
        ({"function": "files.tempfile"}, "no function"),
        ({"function": "interventions.Edit"}, "no function"),
        ({"function": "files.Path"}, "no function"),
        ({"array": "0"}, "nothing that a claim writes"),
        ({"array": "0", "b": 2}, "nothing that a claim writes"),
        ({}, "nothing that a claim writes"),
    ],
)
def test_nothing_else_is_looked_up(plain, message):
    with pytest.raises(ValueError, match=message):
        from_plain(plain, {})


def test_changed_arrays_are_noticed():
    arrays = {}
    to_plain(np.arange(4.0), arrays)
    ((key, entry),) = arrays.items()
    for change, message in (
        ({"base64": entry["base64"].replace("A", "B", 1)}, "other numbers"),
        ({"shape": [2, 2]}, "other numbers"),
        ({"shape": [5]}, "cannot be read"),
        ({"dtype": "nothing"}, "cannot be read"),
        ({"base64": "%"}, "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_arrays({key: {**entry, **change}})
