"""The matrix compiles more programs than one process may hold memory maps for."""

import itertools

import jax
import pytest

RUN = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_programs_on_the_way():
    yield
    if next(RUN) % 15 == 0:
        jax.clear_caches()
