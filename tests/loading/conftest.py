"""Sets of transcoders to be converted."""

from pathlib import Path

import pytest

from tests.support.conversions import LAYOUTS, scope_2_set


@pytest.fixture(params=LAYOUTS)
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A set in each of the layouts."""
    return LAYOUTS[request.param](tmp_path / "My-set")


@pytest.fixture
def one_set(tmp_path: Path) -> Path:
    """A set that is converted file by file."""
    return scope_2_set(tmp_path / "set")
