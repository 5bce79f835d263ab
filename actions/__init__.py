"""What the worker does: one file an action, each a request and the loaded model to a response.

`answer` is the whole of it for a door: raw input in, a response or a graph document out.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

import schemas
from actions import forward_pass, generate_graph, parse_chat_prompt, steer
from actions.job import Job, OnProgress
from delivery import Spooled
from errors import DeviceBroken, Internal, OutOfMemory, WorkerError
from loading.loaded_model import LoadedModel
from model_loader import get_model
from settings import Settings

logger = logging.getLogger(__name__)

Response = BaseModel | Spooled

ACTIONS: dict[type[schemas.Request], Callable[[Any, LoadedModel, Job], Response]] = {
    schemas.GenerateGraphRequest: generate_graph.run,
    schemas.SteerRequest: steer.run,
    schemas.ForwardPassRequest: forward_pass.run,
    schemas.ParseChatPromptRequest: parse_chat_prompt.run,
}
_NAMES = {request: name for name, request in schemas.REQUESTS.items()}
_LIGHTER = {
    "generate-graph": "lower batch_size or max_feature_nodes, or shorten the prompt",
    "steer": "lower n_tokens, or shorten the prompt",
}


def answer(
    body: object,
    settings: Settings,
    cancelled: threading.Event | None = None,
    *,
    on_progress: OnProgress | None = None,
    job_id: str | None = None,
) -> Response:
    """Do what a request asks for, on the process's one model, and log one line about it.

    Args:
        body: the `input` of a Runpod job, or the body of an HTTP request with its action.
        cancelled: once set, the work stops at its next batch or token.
        on_progress: called, from this thread, as a graph or a steered text comes along.
        job_id: what the log line calls the job.

    Raises:
        WorkerError: the request can't be answered; nothing else is ever raised. The model is as
            it was before.
    """
    started = time.perf_counter()
    job = Job(settings, None, cancelled or threading.Event(), on_progress)
    event: dict[str, Any] = {"job_id": job_id, "action": None}
    try:
        request = schemas.parse_request(body)
        event["action"] = _NAMES[type(request)]
        job.deadline = request.deadline
        job.check()
        response = ACTIONS[type(request)](request, get_model(settings), job)
    except Exception as error:
        failure = _as_worker_error(error, event, _gpu(settings))
        level = logging.ERROR if isinstance(failure, Internal) else logging.INFO
        _log(level, f"job failed: {failure.code}", event, job, started)
        raise failure from None
    _log(logging.INFO, "job done", event, job, started)
    return response


def _as_worker_error(error: Exception, event: dict[str, Any], gpu: str) -> WorkerError:
    """What a caller is told of an exception; the log gets the place of one that is the worker's."""
    if isinstance(error, WorkerError):
        return error
    if _is_out_of_memory(error):
        lighter = _LIGHTER.get(event["action"], "shorten the prompt")
        return OutOfMemory(f"the device has no room for this job; {lighter}")
    # The message may quote the prompt or a signed URL, so only the place is logged.
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error(
        "%s while answering a request\n%s",
        type(error).__name__,
        place,
        extra={"event": {"job_id": event["job_id"]}},
    )
    if _is_broken_device(error, gpu):
        return DeviceBroken(
            "the worker's CUDA device failed and the worker is being replaced; send the job again"
        )
    return Internal(
        f"an unexpected {type(error).__name__} stopped the job; the worker's log has its place"
    )


def _log(level: int, message: str, event: dict[str, Any], job: Job, started: float) -> None:
    """The one line about a job: sizes and times; never its prompt, a URL or an error's sentence."""
    event |= job.counts
    event["total_ms"] = round((time.perf_counter() - started) * 1000, 1)
    event["timings_ms"] = job.timings_ms
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # Since the worker began: resetting it for each job would wait for the device.
        event["peak_device_bytes"] = torch.cuda.max_memory_allocated(_gpu(job.settings))
    logger.log(level, message, extra={"event": event})


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What torch's CPU allocator and the libraries below its CUDA one say when memory is full.
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in (
            "CUDA error: out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "DefaultCPUAllocator: can't allocate memory",
        )
    )


def _gpu(settings: Settings) -> str:
    """The GPU that the model is on, if it is on one: not always torch's default, the first."""
    device = settings.device
    return device if device is not None and device.startswith("cuda") else "cuda"


def _is_broken_device(error: BaseException, gpu: str) -> bool:
    """Whether a CUDA error has broken the context. Only some do; a synchronised call tells."""
    import torch

    if not isinstance(error, RuntimeError):
        return False
    if not (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)):
        return False
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.zeros(1, device=gpu).add_(1).item()
    except RuntimeError as after:
        return not _is_out_of_memory(after)
    return False
