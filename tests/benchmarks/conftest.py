"""The device that benchmarks emulate."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.emulated_cuda import emulated_cuda


@pytest.fixture
def cuda() -> Iterator[Any]:
    """The emulation, which is on during the test."""
    with emulated_cuda() as emulation:
        yield emulation
