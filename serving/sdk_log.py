"""The log lines of Runpod's SDK (runpod 1.12), which prints them, as lines of the worker's log.

The SDK's INFO lines are of each step of each job, so they are DEBUG here: at INFO a job has one
line, the one that `actions.answer` writes. The SDK's DEBUG lines have inputs and outputs of jobs;
they are never written.
"""

import logging
from typing import Any

import runpod
from runpod.serverless.modules.rp_logger import RunPodLogger

logger = logging.getLogger("runpod")

_LEVELS = {"INFO": logging.DEBUG, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def take_over(level: str) -> None:
    """Write the SDK's lines from `level` on with `logging`."""
    logger.setLevel(level)
    RunPodLogger.log = _log
    runpod.serverless.print = logger.debug  # it prints a line at its start


def _log(_: RunPodLogger, message: Any, message_level: str = "INFO", job_id: Any = None) -> None:
    if message_level in _LEVELS:
        event = {} if job_id is None else {"job_id": job_id}
        logger.log(_LEVELS[message_level], "%s", message, extra={"event": event})
