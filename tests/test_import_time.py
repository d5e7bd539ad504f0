"""What ``import jaxinterp`` brings with it, and how long it takes."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "datasets", "gguf", "h5py", "huggingface_hub", "matplotlib", "optax", "orbax", "pandas",
    "safetensors", "sklearn", "tensorboardX", "torch", "transformers", "tqdm", "tyro", "xarray",
    "zarr",
)  # fmt: skip
ENGINE = "jax, jax.numpy, flax, flax.nnx, scipy.special, tokenizers"  # what the package is made of
TELL = "import json, sys, time; print(json.dumps([time.process_time(), sorted(sys.modules)]))"


def imported(what):
    """Processor seconds of a new Python that imports it, and the modules it then has."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {what}\n{TELL}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def packages(modules):
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def with_engine():
    return imported(ENGINE)


@pytest.fixture(scope="module")
def with_ours():
    return imported("jaxinterp")


def test_nothing_heavy_comes_along(with_engine, with_ours):
    """What is named lazily stays so; what JAX and Flax bring themselves is theirs."""
    found = packages(with_ours[1]) & set(HEAVY)
    assert found <= packages(with_engine[1]), f"import jaxinterp brings {sorted(found)}"
    named = {"matplotlib", "datasets", "torch", "transformers", "sklearn", "xarray", "orbax"}
    assert not found & named
    assert "jaxinterp.report" not in with_ours[1]
    assert "jaxinterp.cli" not in with_ours[1]


def test_the_check_sees_what_is_imported(with_ours):
    assert {"jax", "flax", "jaxinterp"} <= packages(with_ours[1])
    assert "xarray" in packages(imported("jaxinterp, xarray")[1])


def test_it_takes_not_much_more_than_jax_and_flax(with_engine, with_ours):
    """Of processor time, which a busy machine stretches least; the better of two each.

    1.5 times as much on 2026-11-26: the rest are our own 175 modules, with their dataclasses.
    """
    engine = min(with_engine[0], imported(ENGINE)[0])
    ours = min(with_ours[0], imported("jaxinterp")[0])
    assert ours < 1.75 * engine + 0.2, f"{ours:.2f} s, of which JAX and Flax take {engine:.2f} s"
