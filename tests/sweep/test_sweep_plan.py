"""The ledger: what a sweep is said to cost is what it costs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import CONFIGS, DIFF, PROMPTS, donor, small_model, with_long

import jaxinterp as ji
from jaxinterp.model import as_tokens
from jaxinterp.sweep import run, schedule, steps, walk
from jaxinterp.sweep.flops import head_bound, residual_bound


def residual_grid(name, positions=range(7)):
    cells = ji.product(layer=range(3), position=positions)
    return ji.replace("resid_pre", ji.Shared(donor(name)["resid_pre"]), **cells)


ROOMS = ("attention", "block", "forward")  # where matrix products are


class Counter:
    """Counts the operations of every matrix product that really runs."""

    def __init__(self, original):
        self.original, self.operations, self.lanes = original, 0, 1

    def __call__(self, config, equation, *operands, **how):
        inputs = equation.split("->")[0]
        sizes = {}
        for letters, operand in zip(inputs.split(","), operands, strict=True):
            sizes.update(zip(letters, operand.shape, strict=True))
        self.operations += 2 * self.lanes * int(np.prod(list(sizes.values())))
        return self.original(config, equation, *operands, **how)


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("name", with_long("neox", "gpt2", core=["llama", "attention_only"]))
def test_the_plan_counts_what_runs(name, places, monkeypatch):
    monkeypatch.setattr(steps, "STEP", 0)  # several steps
    monkeypatch.setattr(steps, "ROWS", 16)
    monkeypatch.setattr(schedule, "PLACES", places)
    model, grid = small_model(name), residual_grid(name)
    planned = ji.plan(model, PROMPTS, grid, DIFF)
    assert {group.members.shape[1] for group in planned.groups} == {places}
    base, _ = run.observe(model, as_tokens(PROMPTS), DIFF)
    rooms = [importlib.import_module(f"jaxinterp.model.{room}") for room in ROOMS]
    counter, vmap = Counter(rooms[0].einsum), jax.vmap

    def counting(function, *args, **kwargs):
        mapped = vmap(function, *args, **kwargs)

        def call(*values):
            counter.lanes = jax.tree.leaves(values)[0].shape[0]
            out = mapped(*values)
            counter.lanes = 1
            return out

        return call

    monkeypatch.setattr(walk.jax, "vmap", counting)
    for room in rooms:
        monkeypatch.setattr(room, "einsum", counter)
    with jax.disable_jit():
        ji.sweep(model, PROMPTS, grid, DIFF, base=base)
    assert counter.operations == planned.cost.operations


def test_a_ledger_adds_up():
    model, grid = small_model("llama"), residual_grid("llama", (2, 5))
    ledger = ji.Ledger()
    ji.sweep(model, PROMPTS, grid, DIFF, ledger=ledger)
    assert ledger.compile_seconds > 0
    assert ledger.seconds > ledger.compile_seconds
    compiling = ledger.compile_seconds
    planned = ji.plan(model, PROMPTS, grid, DIFF)
    ji.sweep(model, PROMPTS, grid, DIFF, ledger=ledger)
    assert ledger.compile_seconds - compiling < 0.1 * compiling
    assert ledger.experiments == 2 * 6 * 2
    assert ledger.calls == 2 * planned.n_chunks
    assert ledger.cost.operations == 2 * planned.cost.operations
    assert ledger.bound == 2 * planned.bound
    assert "times the fewest" in str(ledger)


def test_the_bound_of_a_whole_grid_is_that_of_its_cells():
    config, model = CONFIGS["llama"], small_model("llama")
    planned = ji.plan(model, PROMPTS, residual_grid("llama", range(2, 7)), DIFF)
    assert planned.bound == 2 * residual_bound(config, 7, 2)
    assert planned.bound < planned.cost.operations
    cells = ji.product(layer=range(3), head=range(4))
    later = ji.Shared(np.arange(7) >= 3)
    heads = ji.replace("z", ji.Shared(donor("llama")["z"]), **cells, position=later)
    assert ji.plan(model, PROMPTS, heads, DIFF).bound == 2 * head_bound(config, 7, 3)
    bert = ji.replace("mlp_out", ji.Shared(donor("bert")["mlp_out"]), layer=np.arange(3))
    assert ji.plan(small_model("bert"), PROMPTS, bert, DIFF).bound is None


def test_memory_is_known_before_running():
    model, grid = small_model("llama"), residual_grid("llama", (2, 5))
    planned = ji.plan(model, PROMPTS, grid, DIFF, compile=True)
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
    assert planned.peak_memory > params
    assert f"{planned.peak_memory / 1e9:.3g} GB at most" in str(planned)
    abstract = model.replace(params=ji.shapes(model.config))
    same = ji.plan(abstract, PROMPTS, grid, DIFF, compile=True)
    assert same.peak_memory == planned.peak_memory


def test_a_70b_sweep_on_64_devices_compiles_without_its_weights():
    worker = Path(__file__).parent / "pod_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "163840 experiments x 1 prompts of 2048 tokens" in found["text"]
    # A device holds an eighth of the parameters, and fits an 80 GB accelerator.
    assert 2 * 70e9 / 8 < found["peak"] < 80e9
    assert 1 < found["operations"] / found["bound"] < 1.4
