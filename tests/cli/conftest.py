"""What the tests of the command line share."""

import pytest
from tiny_folder import make_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a tiny Llama, to be read only."""
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")
