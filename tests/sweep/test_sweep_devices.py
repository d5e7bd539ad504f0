"""Many devices tell the same numbers as one: simulated ones, in processes of their own."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import DIFF, PROMPTS, small_model

from jaxinterp.interventions import zero
from jaxinterp.sweep import groups, sweep

WORKER = Path(__file__).parent / "devices_worker.py"


def start(*arguments):
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process):
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


def test_eight_devices_equal_one():
    found = answer(start("meshes"))
    assert found.pop("neurons per device") == 5  # of 10
    assert found.pop("heads per device") == 2  # of 4
    assert len(found) == 5 + 3 + 2
    assert max(found.values()) < 1e-5, found


def test_two_processes_equal_one_device():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [start("process", port, number) for number in range(2)]
    for found in map(answer, both):
        assert len(found) == 3
        assert max(found.values()) < 1e-5, found


def test_a_mesh_of_other_axes_is_refused():
    grid = zero("attn_out", layer=np.arange(3))
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(ValueError, match="axis 'data', expected some of"):
        sweep(small_model("llama"), PROMPTS, grid, DIFF, mesh=mesh)


@pytest.mark.parametrize(("n", "lanes", "ways", "capacity"), [(10, 2, 4, 16), (3, 1, 2, 2)])
def test_chunks_deal_experiments_evenly(n, lanes, ways, capacity):
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 9, n))
    group = groups.Group(rng.permutation(n), starts, 5, lanes, capacity, ways)
    seen = []
    for chunk in group.chunks():
        assert chunk.experiments.shape == (capacity,)
        np.testing.assert_array_equal(chunk.experiments[chunk.rows], chunk.members)
        per_device = chunk.experiments.reshape(ways, -1)
        own = starts[np.argsort(group.experiments)][per_device]  # where each would set off
        assert (chunk.starts[None] <= own).all()
        assert (chunk.starts == own.min(0)).all()
        assert chunk.count == -(-len(chunk.members) // ways)
        seen += chunk.members.tolist()
    assert seen == group.experiments.tolist()
