"""Every site of four families: the engine = vmap of the plain forward = the NumPy oracle."""

import functools

import jax
import numpy as np
import pytest
from oracle import assert_near, batch
from small_models import (
    CONFIGS,
    DIFF,
    OTHER,
    PROMPTS,
    diff,
    donor,
    sites_of,
    sizes_of,
    small_model,
    with_types,
)

from jaxinterp.interventions import Shared, replace
from jaxinterp.metrics import evaluate
from jaxinterp.model import SITES
from jaxinterp.sweep import observe, sweep, sweep_plain

FAMILIES = ["llama", "neox", "gemma2", "bert"]
OWN = ["embed", "resid_pre", "k", "pattern", "mlp_in", "mlp_out", "resid_post", "logits"]
EVERY_SITE = [
    # One family has them all; of the others the ones that differ between families.
    pytest.param(name, site, marks=() if name == "llama" or site in OWN else pytest.mark.long)
    for name in FAMILIES
    for site in sites_of(CONFIGS[name])
]


CELLS = {
    "layer": [1, 1, 2, 2], "position": [3, 4, 3, 4], "head": [1, 0, 1, 1], "neuron": [4, 0, 4, 9],
    "source": [2, 0, 3, 2],
}  # fmt: skip


def some_cells(name, site):
    """Four cells of a site's grid, of one suffix length: the same shapes for all sites."""
    axes = {"layer"} if SITES[site].layered else set()
    axes |= set(sizes_of(CONFIGS[name], site, 7))
    return {axis: np.array(CELLS[axis]) for axis in CELLS if axis in axes}


def expected(name, site, cells):
    """[E B] from the oracle, one run per cell and prompt."""
    model, values = small_model(name), donor(name)[site]
    axes = list(sizes_of(CONFIGS[name], site, 7))
    out = []
    for cell in zip(*cells.values(), strict=True):
        where = dict(zip(cells, cell, strict=True))
        entry = tuple(where.get(axis, slice(None)) for axis in axes)

        def edit_of(b, where=where, entry=entry):
            def edit(at, layer, array):
                if at == site and layer == where.get("layer"):
                    given = values[b] if layer is None else values[layer, b]
                    array[entry] = given[entry]
                return array

            return edit

        out.append(diff(batch(model, with_types(name, PROMPTS), edit_of)))
    return np.stack(out)


@functools.cache
def base_of(name):
    return observe(small_model(name), with_types(name, PROMPTS), DIFF)[0]


def check_site(name, site, base=None, **changes):
    model, tokens = small_model(name), with_types(name, PROMPTS)
    cells = {**some_cells(name, site), **changes}
    grid = replace(site, Shared(donor(name)[site]), **cells)
    reference = expected(name, site, cells)
    assert_near(sweep_plain(model, tokens, grid, DIFF), reference, 1e-5, "plain")
    assert_near(sweep(model, tokens, grid, DIFF, base=base), reference, 1e-5, "engine")


@pytest.mark.parametrize(("name", "site"), EVERY_SITE)
def test_sweep_equals_plain_equals_oracle(name, site):
    base = base_of(name)
    with jax.disable_jit():
        check_site(name, site, base)


@pytest.mark.parametrize(
    ("name", "site"),
    [("llama", "k"), ("neox", "resid_pre"), ("gemma2", "pattern"), ("bert", "mlp_post")],
)
def test_compiled_sweep_equals_plain_equals_oracle(name, site):
    cells = {"position": np.array([2, 5, 1, 0]), "layer": np.array([0, 2, 1, 0])}
    check_site(name, site, **cells)  # three suffix lengths


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_patched_into_itself_gives_the_baseline(name):
    model, tokens = small_model(name), with_types(name, OTHER)
    with jax.disable_jit():
        baseline = evaluate(DIFF, model, tokens)
        sites = tuple(sites_of(model.config)[::3])
        _, own = observe(model, tokens, DIFF, record=sites)
        for site in sites:
            grid = replace(site, Shared(own[site]), **some_cells(name, site))
            for effect in sweep(model, tokens, grid, DIFF):
                assert_near(effect, baseline, 3e-6, site)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("site", "layer"), [("resid_pre", 0), ("resid_post", 2)])
def test_patching_everything_gives_the_donor_run(name, site, layer):
    model = small_model(name)
    grid = replace(site, Shared(donor(name)[site]), layer=np.array([layer]))
    with jax.disable_jit():
        effect = sweep(model, with_types(name, PROMPTS), grid, DIFF)
        other = evaluate(DIFF, model, with_types(name, OTHER))
        baseline = evaluate(DIFF, model, with_types(name, PROMPTS))
    assert_near(effect[0], other, 1e-5)
    assert np.abs(other - baseline).min() > 1e-2, "the two runs do not differ"
