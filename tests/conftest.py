"""What every test stands on: one thread, no model hub, and no bound on how long it takes."""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests run in two processes; more threads than cores slow tiny products down by tens of times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# On a CUDA device, so that cuBLAS gives the same numbers each time; read when it is first used.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

# nohup, and a shell that starts a command in the background, have it ignore these. The processes
# that tests start would ignore them too, and wait for ever.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis' own bounds, 200 ms for an example and a second for making ten, are missed on a busy
# machine. What it finds by chance it says how to find again.
settings.register_profile(
    "worker", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("worker")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes that nobody can read by their length.

    The processes that share the tests must find the same names, and a gzip header holds the time.
    """
    if isinstance(val, bytes) and not val.decode("latin-1").isprintable():
        return f"{len(val)} bytes"
    return None


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command that a test ran has set up: its handlers write to that test's stderr.

    It is chance which tests come after it in this process.
    """
    from logs import _OWN

    names = {*_OWN, *logging.root.manager.loggerDict}
    loggers = [logging.root, *map(logging.getLogger, names)]
    kept = [(one, one.level, one.handlers[:], one.propagate) for one in loggers]
    excepthook = sys.excepthook
    yield
    for logger, level, handlers, propagate in kept:
        if logger.level != level:
            logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
    logging.captureWarnings(False)
    sys.excepthook = excepthook


# The fixtures import what they need themselves, after the variables above are set.


@pytest.fixture
def caches(tmp_path: Path) -> dict[str, Any]:
    """Settings under which the caches of weights are directories that don't exist yet."""
    from tests.support.weight_files import empty_caches

    return empty_caches(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The HTTP door with the demo model, in this process."""
    from tests.support.http_server import serving

    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Any]:
    """The same with a secret."""
    from tests.support.http_server import SECRET, serving

    with serving(secret=SECRET) as running:
        yield running


@pytest.fixture(scope="module")
def plane() -> Iterator[Any]:
    """Runpod's side of the SDK's protocol."""
    from tests.support.control_plane import ControlPlane

    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A store that takes uploads to URLs it has signed."""
    from tests.support.object_store import running_store

    with running_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def demo_block() -> Any:
    """The first block of this process's demo model."""
    from model_loader import get_model
    from tests.support.demo_worker import demo_settings

    return get_model(demo_settings()).model.blocks[0]


@pytest.fixture
def held_model() -> Iterator[tuple[threading.Event, threading.Event]]:
    """The demo model, held within its next run, which sets the first event, until the second."""
    from tests.support.demo_worker import forget_graphs, held

    forget_graphs()
    with held(after_runs=0) as events:
        yield events


@pytest.fixture
def pass_the_deadline(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Called in the middle of a job of this process, it makes the time one after any deadline.

    A deadline that is a moment away would pass before the middle on a busy machine.
    """
    import actions.job

    later = SimpleNamespace(**{**vars(time), "time": lambda: time.time() + 10**6})
    return lambda *_: monkeypatch.setattr(actions.job, "time", later)


@pytest.fixture
def model_runs(demo_block: Any) -> Iterator[list[None]]:
    """Grows by one whenever the demo model is run."""
    runs: list[None] = []
    handle = demo_block.register_forward_pre_hook(lambda *_: runs.append(None))
    yield runs
    handle.remove()


@pytest.fixture
def demo_with_nan(tmp_path: Path) -> Path:
    """The demo model's directory with one weight spoilt."""
    import torch
    from safetensors.torch import load_file, save_file

    from loading.registry import DEMO

    directory = tmp_path / "model"
    shutil.copytree(DEMO.model, directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
