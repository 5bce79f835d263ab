"""A Runpod endpoint with a worker that is slow enough to be seen at work, and Ctrl-C in time."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import ROOT

# Python runs it at the start of each process that has its folder in PYTHONPATH. It presses Ctrl-C
# at the moment at which a module is looked for, or a file is opened.
_INTERRUPTS = """
import os, signal, sys

def interrupt(event, arguments):
    if event in {"import", "open"} and arguments[0] == os.environ["INTERRUPTED_AT"]:
        signal.raise_signal(signal.SIGINT)

sys.addaudithook(interrupt)
"""


@pytest.fixture
def interrupted_at(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run a command that gets SIGINT at a module or a file; its exit code and what it says."""
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTS)

    def run_interrupted(name: str, *command: str | Path) -> tuple[int, str]:
        environment = {"PYTHONPATH": str(tmp_path), "INTERRUPTED_AT": name}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run_interrupted


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
