"""The Runpod door: a job in, an output or an error out.

    python handler.py                  run test_input.json, print a summary
    python handler.py --rp_serve_api   serve Runpod's API locally

Importing this module loads no model and no torch.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

import logs
from errors import DeviceBroken, Internal, OutputTooLarge, WorkerError
from loading.lean_imports import lean_imports
from serving import cpu_threads
from settings import Settings, SettingsError, get_settings

with lean_imports():
    from runpod.serverless.modules.rp_logger import RunPodLogger

    from serving import fitness, runpod_loop
    from serving.progress import ProgressPosts

if TYPE_CHECKING:
    from actions.job import OnProgress
    from delivery import Spooled

logger = logging.getLogger(__name__)


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Answer one job. The work runs in a thread of its own, so the SDK's event loop stays free.

    Returns:
        The output; or `{"error": "code: sentence"}`, which the SDK reports as a failed job, with
        `refresh_worker` when the device can't be used any more.

    Raises:
        asyncio.CancelledError: the SDK stopped the job. The work has ended by then and the model
            is as it was.
    """
    settings = get_settings()
    cancelled = threading.Event()
    posts = ProgressPosts(job) if settings.runpod_webhook_post_output is not None else None
    on_progress = None if posts is None else posts.report
    work = asyncio.get_running_loop().run_in_executor(
        _threads(settings.jobs_at_once), _answer, job, settings, cancelled, on_progress
    )
    succeeded = False
    try:
        output = await asyncio.shield(work)
        succeeded = "error" not in output
        return output
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([work])
        raise
    finally:
        if posts is not None:
            await posts.end(succeeded=succeeded)


@cache
def _threads(jobs_at_once: int) -> ThreadPoolExecutor:
    """A thread for each job that Runpod may hand over, so that none but the model is waited for.

    asyncio's own pool has a few more than there are cores, and graphs that wait could fill it.
    """
    return ThreadPoolExecutor(jobs_at_once, thread_name_prefix="job")


def _answer(
    job: dict[str, Any],
    settings: Settings,
    cancelled: threading.Event,
    on_progress: "OnProgress | None",
) -> dict[str, Any]:
    from actions import answer

    try:
        response = answer(
            job.get("input"), settings, cancelled, on_progress=on_progress, job_id=job.get("id")
        )
        if isinstance(response, BaseModel):
            return response.model_dump()
        with response:
            return _within_limit(response, settings.max_output_bytes)
    except DeviceBroken as error:
        return {"error": str(error), "refresh_worker": True}
    except WorkerError as error:
        return {"error": str(error)}
    except Exception as error:
        # Reading the spooled graph back; the SDK would show a traceback to the caller.
        logger.error("job %s: %s after its work was done", job.get("id"), type(error).__name__)
        return {"error": str(Internal(f"an unexpected {type(error).__name__} stopped the job"))}


def _within_limit(document: "Spooled", limit: int) -> dict[str, Any]:
    """A graph as a job's output. Runpod refuses larger ones, and the SDK only logs that."""
    if document.size > limit:
        logger.info("the graph is too large for an output: %d bytes", document.size)
        raise OutputTooLarge(
            f"the graph has {document.size} bytes, a job's output may have {limit}; pass "
            "signed_url to have it uploaded, or keep less with lower thresholds"
        )
    graph: dict[str, Any] = orjson.loads(b"".join(document.chunks()))
    return graph


def main() -> None:
    """Load the model, then serve jobs until told to stop; without Runpod, run one and report."""
    # While the model loads nothing is lost, and an exception might be raised where Python drops it.
    # A container's first process ignores the default.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        settings = get_settings()
    except SettingsError as error:
        raise SystemExit(f"settings: {error}") from None
    logs.set_up(settings.log_level, as_json=settings.runpod_webhook_get_job is not None)
    cpu_threads.set_threads(settings)
    from model_loader import ModelLoadError, get_model, import_libraries, read_weights_ahead

    started = time.perf_counter()
    try:
        read_weights_ahead(settings)
        import_libraries(settings)
        fitness.check_device(settings)
        get_model(settings)
    except (SettingsError, ModelLoadError, fitness.UnfitError) as error:
        raise SystemExit(f"start: {error}") from None
    from remote import local_run

    local = local_run.wanted(settings)
    # Locally the SDK would write the whole output out beside the summary.
    _set_sdk_log_level("WARN" if local else settings.log_level)
    if local:
        local_run.run(handler, loading_s=time.perf_counter() - started)
    else:
        fitness.register(settings)
        runpod_loop.serve(
            handler,
            shutdown_grace_s=settings.shutdown_grace_s,
            jobs_at_once=settings.jobs_at_once,
        )


def _set_sdk_log_level(level: str) -> None:
    """The SDK's own log lines. Its DEBUG is never used: it writes inputs and outputs out."""
    RunPodLogger().set_level({"DEBUG": "INFO", "WARNING": "WARN"}.get(level, level))


if __name__ == "__main__":
    main()
