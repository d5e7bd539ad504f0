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
def test_chunks_deal_lanes_evenly(n, lanes, ways, capacity):
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 9, n))
    members = rng.permutation(2 * n).reshape(n, 2)
    members[::3, 1] = groups.NONE
    first = rng.integers(0, 5, (n, 2))
    group = groups.Group(members, first, starts, 5, 4, lanes, capacity, ways)
    out = np.full((2 * n, 1), -1)
    for chunk in group.chunks():
        assert chunk.experiments.shape == (capacity * 2,)
        held = chunk.experiments.reshape(capacity, 2)
        np.testing.assert_array_equal(held[chunk.rows, 0], chunk.members[:, 0])
        order = np.argsort(members[:, 0])
        lane = order[np.searchsorted(members[order, 0], held[:, 0])]
        np.testing.assert_array_equal(chunk.first, first[lane])
        own = starts[lane].reshape(ways, -1)  # where each would set off
        assert (chunk.starts == own.min(0)).all()
        assert chunk.count == -(-len(chunk.members) // ways)
        chunk.put(held[:, :, None], out)  # as if an experiment's value were its number
    real = np.sort(members[members != groups.NONE])
    np.testing.assert_array_equal(out[real, 0], real)
    assert (np.delete(out, real) == -1).all()
