from __future__ import annotations

import pytest

from tests.train import runs


@pytest.fixture
def alone():
    """A process group of one, as a plain start makes it."""
    with runs.alone() as ranks:
        yield ranks
