"""What all tests share."""

import hypothesis
import jax
import pytest

# Compiling takes longer than hypothesis's deadline, and the examples should not vary by run.
hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("jax")


@pytest.fixture
def quick_to_compile():
    """For tests of tiny models, where compiling is nearly all of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()
