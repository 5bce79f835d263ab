"""One job from its raw input to its response: the front of the worker that every door calls."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import BaseModel

import schemas
from actions import (
    contrast,
    forward_pass,
    generate_graph,
    intervene,
    parse_chat_prompt,
    steer,
)
from actions.job import Job, OnPart, OnProgress
from attribution.device_errors import is_broken_device, is_out_of_memory
from delivery import Spooled
from errors import DeviceBroken, Internal, OutOfMemory, WorkerError
from loading.loaded_model import LoadedModel
from settings import Settings

logger = logging.getLogger(__name__)

Response = BaseModel | Spooled
# Called when a job has ended, with `done` or the error's code, its log line's fields and the
# exception that ended it.
OnEnd = Callable[[str, Mapping[str, Any], BaseException | None], None]

ACTIONS: dict[type[schemas.Request], Callable[[Any, LoadedModel, Job], Response]] = {
    schemas.GenerateGraphRequest: generate_graph.run,
    schemas.SteerRequest: steer.run,
    schemas.ForwardPassRequest: forward_pass.run,
    schemas.ParseChatPromptRequest: parse_chat_prompt.run,
    schemas.InterveneRequest: intervene.run,
    schemas.ContrastRequest: contrast.run,
}

# What a caller can do when an action runs out of memory.
_LIGHTER = {
    "generate-graph": "lower batch_size or max_feature_nodes, or shorten the prompt",
    "steer": "lower n_tokens, or shorten the prompt",
    "intervene": "name fewer features, or shorten the prompt",
}


def answer(
    body: object,
    loaded: LoadedModel,
    settings: Settings,
    cancelled: threading.Event | None = None,
    *,
    action: str | None = None,
    on_progress: OnProgress | None = None,
    on_part: OnPart | None = None,
    takes_files: bool = False,
    on_response: Callable[[Response], None] | None = None,
    job_id: str | None = None,
    on_end: OnEnd | None = None,
) -> Response:
    """Check a request, do its action on the loaded model, and log one line about the job.

    Args:
        body: the `input` of a Runpod job, or the body of an HTTP request.
        cancelled: once it is set, the work stops at its next batch or token.
        action: the action, where something else than the body names it.
        on_progress: called from this thread while a graph or a steered text is made.
        on_part: called from this thread with each token of a steer that asks for a stream.
        takes_files: whether the door can answer with a file; else every output is JSON.
        on_response: called from this thread with the response. What it raises fails the job: the
            door may have no room for a response of this size.
        job_id: the name of the job in the log.
        on_end: called from this thread once the job has ended and its line is logged.

    Raises:
        WorkerError: the request can't be answered. No other exception is raised, and the model is
            as it was before.
    """
    started = time.perf_counter()
    job = Job(settings, cancelled or threading.Event(), on_progress, on_part, takes_files)
    event: dict[str, Any] = {"job_id": job_id, "action": action}
    try:
        request = schemas.parse_request(body, action)
        event["action"] = request.action
        job.deadline = request.deadline
        job.check()
        response = ACTIONS[type(request)](request, loaded, job)
        if on_response is not None:
            on_response(response)
    except BaseException as error:
        # A panic of a library in Rust is no Exception, and is one job's fault as others are.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # No name for it here: its traceback has this frame, and neither would be freed for long.
        raise _failed(error, event, job, loaded, started, on_end) from None
    _log("job done", event, job, loaded, started)
    if on_end is not None:
        on_end("done", event, None)
    return response


def _failed(
    error: BaseException,
    event: dict[str, Any],
    job: Job,
    loaded: LoadedModel,
    started: float,
    on_end: OnEnd | None,
) -> WorkerError:
    """End a job that an exception stopped; returns the error that the caller gets."""
    failure = _as_worker_error(error, event, loaded)
    # The log gets the traceback of an error that nobody foresaw. Its message, which may quote the
    # prompt or a signed URL, is left out by logs.py.
    unforeseen = error if isinstance(failure, Internal) else None
    _log(f"job failed: {failure.code}", event, job, loaded, started, unforeseen)
    if on_end is not None:
        on_end(failure.code, event, error)
    _free_frames(error)
    return failure


def _free_frames(error: BaseException | None) -> None:
    """Drop what the functions that an exception came through still hold: much of the device.

    Some of it leads back to the exception. Only the garbage collector would free that, and it comes
    late: it counts objects, not what their tensors take.
    """
    seen: list[BaseException] = []  # an error can be its own cause
    while error is not None and error not in seen:
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _as_worker_error(
    error: BaseException, event: dict[str, Any], loaded: LoadedModel
) -> WorkerError:
    """The error that the caller gets."""
    if isinstance(error, WorkerError):
        return error
    if is_out_of_memory(error):
        lighter = _LIGHTER.get(event["action"], "shorten the prompt")
        return OutOfMemory(f"the device has no room for this job; {lighter}")
    if is_broken_device(error, loaded.model.cfg.device):
        return DeviceBroken(
            "the worker's CUDA device failed and the worker is being replaced; send the job again"
        )
    return Internal(
        f"an unexpected {type(error).__name__} stopped the job; the worker's log has its place"
    )


def _log(
    message: str,
    event: dict[str, Any],
    job: Job,
    loaded: LoadedModel,
    started: float,
    unforeseen: BaseException | None = None,
) -> None:
    """Log a job's sizes and times, and never its prompt, a URL or an error's sentence."""
    event |= job.counts
    event["total_ms"] = round((time.perf_counter() - started) * 1000, 1)
    event["timings_ms"] = job.timings_ms
    if job.queue_ms is not None:
        event["queue_ms"] = job.queue_ms
    device = torch.device(loaded.model.cfg.device)
    if device.type == "cuda":
        # The peak of the whole process: to reset it for each job would wait for the device.
        event["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    level = logging.INFO if unforeseen is None else logging.ERROR
    logger.log(level, message, extra={"event": event}, exc_info=unforeseen)
