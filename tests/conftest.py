"""What every test stands on: one thread, no model hub, and no bound on how long it takes."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests run in two processes; more threads than cores slow tiny products down by tens of times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# On a CUDA device, so that cuBLAS gives the same numbers each time; read when it is first used.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

# Hypothesis' own bound for an example, 200 ms, is missed on a busy machine.
settings.register_profile("worker", deadline=None)
settings.load_profile("worker")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Take off the handlers of a command that a test ran, which write to that test's stderr."""
    kept = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers, logging.root.level = kept


@pytest.fixture
def caches(tmp_path: Path) -> dict[str, Any]:
    """Settings under which the caches of weights are directories that don't exist yet."""
    from tests.support.weight_files import empty_caches  # needs the variables above

    return empty_caches(tmp_path)
