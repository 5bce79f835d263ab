"""A Runpod endpoint with a worker that is slow enough to be seen at work."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def worker(plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker whose model takes a fifth of a second more for each of its runs."""
    from tests.support.control_plane import running_worker

    directory = tmp_path_factory.mktemp("worker")
    with running_worker(plane, directory, "-m", "tests.support.slow_worker") as worker:
        yield worker


@pytest.fixture
def endpoint(plane: Any, worker: Any) -> Iterator[Any]:
    """The endpoint that the worker serves."""
    from tests.support.runpod_endpoint import RunpodEndpoint

    with RunpodEndpoint(plane) as endpoint:
        yield endpoint
