"""What several tests of the scheduler start from."""

import pytest

from tests.harness.core import Core


@pytest.fixture
def core() -> Core:
    """One frontend and one worker, connected."""
    core = Core()
    core.frontend()
    core.worker()
    return core
