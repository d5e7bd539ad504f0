"""What all tests share."""

import os

import hypothesis
import jax
import pytest

# Compiling tiny models is nearly all of the time. Optimized programs have a test of their own in
# tests/sweep/test_sweep_batching.py; as users compile them, the benchmarks compare them with peers.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # which know this flag, and compile twice as fast with it
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

# Compiling takes longer than hypothesis's deadline, and the examples should not vary by run.
hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("jax")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
