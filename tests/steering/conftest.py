"""Models to steer."""

from typing import Any

import pytest

from tests.support.steering_cases import KINDS, shared_model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model of each kind; no test may change it."""
    return shared_model(request.param)
