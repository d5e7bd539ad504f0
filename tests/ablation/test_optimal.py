"""Optimal constants: a closed form on a linear model, SciPy's optimum, no worse than the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import xarray as xr
from small_models import CONFIGS, DIFF, OTHER, PROMPTS, small_model

from jaxinterp.ablation.optimal import optimal_constants
from jaxinterp.ablation.sweep import ablate
from jaxinterp.interventions import replace
from jaxinterp.metrics import cross_entropy, evaluate, kl, logit_diff
from jaxinterp.model import forward
from jaxinterp.results import load, save
from jaxinterp.stats import effects

ONE = {"layers": [1], "heads": [2]}


def constants(name="llama", **options):
    return optimal_constants(small_model(name), **{"tokens": PROMPTS, "metric": DIFF, **options})


def test_on_a_linear_model_the_optimum_is_the_residual_variance():
    """The last layer of a model without norms is linear: a constant can fix only the mean."""
    model = small_model("attention_only")
    assert CONFIGS["attention_only"].norm == "none"
    tokens = np.concatenate([PROMPTS, OTHER])
    options = {"tokens": tokens, "metric": logit_diff(4, 8), "layers": [2]}
    found = optimal_constants(model, **options, steps=150)
    zero = effects(ablate(model, value="zero", **options)).values[0]  # [H B]
    np.testing.assert_allclose(found.loss[0], zero.var(-1), rtol=1e-2, atol=1e-4)
    best = effects(ablate(model, value=found, **options)).values[0]
    np.testing.assert_allclose((best**2).mean(-1), found.loss[0], rtol=1e-4, atol=1e-6)


def test_trained_constants_come_near_scipys_optimum():
    model = small_model("llama")
    found = constants(steps=300, objective=cross_entropy(), **ONE)

    def loss(c):
        edit = replace("z", c, layer=1, head=2)
        return evaluate(cross_entropy(), model, PROMPTS, edit).mean()

    both = jax.jit(jax.value_and_grad(loss))

    def at(c):
        value, slope = both(jnp.asarray(c, jnp.float32))
        return float(value), np.asarray(slope, np.float64)

    start = forward(model, PROMPTS, record=["z"]).activations["z"][1, :, :, 2].mean((0, 1))
    best = scipy.optimize.minimize(at, np.asarray(start), jac=True)
    np.testing.assert_allclose(found.loss_of_mean.item(), loss(start), rtol=1e-5)
    np.testing.assert_allclose(loss(found.values[0, 0]), found.loss.item(), rtol=1e-5)
    gained = found.loss_of_mean.item() - found.loss.item()
    assert gained > 0.9 * (found.loss_of_mean.item() - best.fun) > 0


def test_every_cell_beats_zero_and_the_mean():
    found = constants(steps=40)
    assert found.dims == ("layer", "head", "d_head")
    assert (found.loss <= found.loss_of_mean).all()
    assert (found.loss < 0.9 * found.loss_of_mean).mean() > 0.8
    for value in (found, "mean"):
        result = ablate(small_model("llama"), tokens=PROMPTS, metric=DIFF, value=value,
                        **{} if value is found else {"by": None})  # fmt: skip
        squares = (effects(result) ** 2).mean("prompt")
        loss = found.loss if value is found else found.loss_of_mean
        np.testing.assert_allclose(squares, loss, rtol=1e-3, atol=1e-6)
    few = ablate(small_model("llama"), tokens=PROMPTS, metric=DIFF, value=found, layers=[2, 0])
    whole = ablate(small_model("llama"), tokens=PROMPTS, metric=DIFF, value=found)
    np.testing.assert_allclose(few, whole.sel(layer=[2, 0]), rtol=1e-5, atol=1e-6)
    assert whole.attrs["value"] == "constants"


ROLES = {"S": [2, 3], "end": [6, 6]}
GRIDS = {
    "roles": ("resid_post", ("layer", "position"), {"layers": [1], "positions": ROLES},
              {"d_model": 8}),
    "blocks": ("mlp_post", ("layer", "neuron"), {"layers": [2], "neurons": 5}, {"unit": 10}),
    "neurons": ("mlp_post", ("layer", "neuron"), {"layers": [2], "neurons": [0, 7]}, {}),
    "all layers": ("attn_out", ("position",), {"positions": [3]}, {"layer": 3, "d_model": 8}),
    "embed": ("embed", ("position",), {"positions": [2]}, {"d_model": 8}),
    "final norm": ("ln_final_normalized", ("position",), {"positions": [6]}, {"d_model": 8}),
}  # fmt: skip
QUICK = ("roles", "final norm")


@pytest.mark.parametrize(
    ("site", "over", "choice", "inner"),
    [
        pytest.param(*grid, id=name, marks=() if name in QUICK else pytest.mark.long)
        for name, grid in GRIDS.items()
    ],
)
def test_constants_of_any_grid(site, over, choice, inner):
    """The loss under a constant is that of putting it there by hand, and training helps."""
    model = small_model("gpt2")
    options = {"tokens": PROMPTS, "metric": DIFF, "site": site, "over": over, **choice}
    found = optimal_constants(model, **options, steps=30)
    assert {d: found.sizes[d] for d in found.dims if d not in over} == inner
    assert (found.loss < found.loss_of_mean).all()
    result = ablate(model, value=found, **options)
    np.testing.assert_allclose((effects(result) ** 2).mean("prompt"), found.loss, rtol=1e-3)
    cell = {axis: found.coords[axis].values[-1] for axis in over}
    value, where = found.isel(dict.fromkeys(over, -1)).values, {}
    for axis, index in cell.items():
        where[axis] = np.array(ROLES["end"]) if index == "end" else int(index)
    if "unit" in inner:
        where["neuron"] = np.arange(10) >= 5
    value = value[:, None, None] if "layer" in inner else value
    by_hand = evaluate(DIFF, model, PROMPTS, replace(site, value, **where))
    found_there = result.isel(dict.fromkeys(over, -1))
    np.testing.assert_allclose(by_hand, found_there, rtol=1e-4, atol=1e-5)


def test_the_papers_objective_and_other_prompts(tmp_path):
    model = small_model("llama")
    clean = forward(model, PROMPTS).logits[:, -1]
    found = constants(objective=kl(clean), steps=40, **ONE)
    assert 0 < found.loss.item() < found.loss_of_mean.item()
    edit = replace("z", found.values[0, 0], layer=1, head=2)
    after = evaluate(kl(clean), model, PROMPTS, edit).mean()
    np.testing.assert_allclose(after, found.loss.item(), rtol=1e-4)
    elsewhere = ablate(model, tokens=OTHER, metric=DIFF, value=found, **ONE)
    by_hand = evaluate(DIFF, model, OTHER, edit)
    np.testing.assert_allclose(elsewhere[0, 0], by_hand, rtol=1e-4, atol=1e-5)
    assert load(save(found, tmp_path / "c.nc")).identical(found)


def test_minibatches_and_the_shorthand():
    found = constants(steps=40, batch=1, seed=2, **ONE)
    assert found.loss < found.loss_of_mean
    options = {"tokens": PROMPTS, "metric": DIFF, **ONE}
    short = ablate(small_model("llama"), value="optimal", **options)
    long = ablate(small_model("llama"), value=constants(**ONE), **options)
    np.testing.assert_array_equal(short, long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0, expected"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"site": "pattern"}, "a constant cannot stand for them"),
        ({"layers": [3]}, "layer 3 is out of range"),
    ],
)
def test_bad_input_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        constants(**options)


def test_constants_of_another_grid_are_an_error():
    model, dims = small_model("llama"), ("layer", "head", "d_head")
    attrs = {"site": "z", "block": 0}
    found = xr.DataArray(np.ones((1, 1, 6)), {"layer": [1], "head": [2]}, dims, attrs=attrs)
    options = {"tokens": PROMPTS, "metric": DIFF, "value": found}
    with pytest.raises(ValueError, match="no constant for some cells"):
        ablate(model, **options)
    with pytest.raises(ValueError, match="of 'z', expected"):
        ablate(model, site="v", **options)
    with pytest.raises(ValueError, match="leave out means= and donors="):
        ablate(model, donors=OTHER, **ONE, **options)
