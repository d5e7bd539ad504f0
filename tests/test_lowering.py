"""Every compiled program lowers for TPU and CUDA on a machine that has neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from small_models import DIFF, OTHER, PROMPTS, donor, small_model

import jaxinterp as ji
from jaxinterp import results
from jaxinterp.interventions import Shared, product, replace
from jaxinterp.metrics import evaluate
from jaxinterp.model import as_tokens, forward
from jaxinterp.sweep import observe, run

PLATFORMS = ["tpu", "cuda"]
MODELS = ["llama", "gemma2", "bert"]


def lowers(function, *arguments):
    """Both platforms' programs, from the shapes alone."""
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)), arguments
    )
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == tuple(PLATFORMS)
    assert len(exported.mlir_module_serialized) > 1000


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_its_measures(name):
    model, tokens = small_model(name), as_tokens(PROMPTS)
    edit = replace("z", donor(name)["z"], layer=1, position=3, head=2)
    lowers(lambda m, t, e: forward(m, t, e, record=("pattern", "z")), model, tokens, edit)
    lowers(lambda m, t: evaluate(DIFF, m, t), model, tokens)
    lowers(lambda m, t: observe(m, t, DIFF, record=("resid_pre",)), model, tokens)
    lowers(lambda p: results._checksums(p), model.params)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("site", ["resid_pre", "k", "pattern"])
def test_sweeps(name, site):
    model, tokens = small_model(name), as_tokens(PROMPTS)
    cells = product(layer=range(3), position=range(3, 5))
    grid = (replace(site, Shared(donor(name)[site]), **cells),)
    plan = ji.plan(model, tokens, grid, DIFF)
    base, _ = observe(model, tokens, DIFF)
    for group in plan.groups:
        chunk = group.chunks()[0]
        part = run.take_experiments(grid, chunk.experiments)

        def call(m, t, b, g, starts, first, count, group=group):
            return run.run_chunk(m, t, b, DIFF, g, starts, first, count, **group.shape)

        lowers(call, model, tokens, base, part, chunk.starts, chunk.first, np.int32(chunk.count))
    lowers(lambda m, t, g: run.sweep_plain(m, t, g, DIFF), model, tokens, grid[0])


@pytest.mark.parametrize("name", MODELS[:2])
def test_generation(name):
    model = small_model(name)
    steer = ji.add("resid_post", np.ones(8, np.float32), layer=1)

    def call(m, ids, s, key):
        options = {"key": key, "temperature": 0.7, "top_k": 3, "top_p": 0.9}
        return ji.generate(m, ids, 4, interventions=s, **options)

    lowers(call, model, as_tokens(OTHER), steer, jax.random.PRNGKey(0))
