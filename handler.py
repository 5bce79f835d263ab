"""The Runpod door: a job in, an output or an error out.

    python handler.py                  run test_input.json, print a summary
    python handler.py --rp_serve_api   serve Runpod's API locally

Importing this module loads no model and no torch.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

from errors import DeviceBroken, Internal, OutputTooLarge, WorkerError
from serving import error_reports, startup
from settings import Settings, get_settings

if TYPE_CHECKING:
    from actions.job import OnPart, OnProgress
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
    posts = parts = on_progress = on_part = None
    if settings.runpod_webhook_post_output is not None:
        from serving.part_posts import PartPosts
        from serving.progress import ProgressPosts

        posts, parts = ProgressPosts(job), PartPosts(job)
        on_progress, on_part = posts.report, parts.add
    work = asyncio.get_running_loop().run_in_executor(
        _threads(settings.jobs_at_once), _answer, job, settings, cancelled, on_progress, on_part
    )
    succeeded = False
    try:
        output = await asyncio.shield(work)
        succeeded = "error" not in output
        return output
    except asyncio.CancelledError:
        cancelled.set()
        if parts is not None:
            parts.drop()
        await asyncio.wait([work])
        raise
    finally:
        if posts is not None and parts is not None:
            await parts.end()
            await posts.end(succeeded=succeeded)


@cache
def _threads(jobs_at_once: int) -> ThreadPoolExecutor:
    """A thread for each job that Runpod may hand over, so that a job waits for the model alone.

    asyncio's own pool has a few threads more than there are cores, and waiting jobs could fill it.
    """
    return ThreadPoolExecutor(jobs_at_once, thread_name_prefix="job")


def _answer(
    job: dict[str, Any],
    settings: Settings,
    cancelled: threading.Event,
    on_progress: "OnProgress | None",
    on_part: "OnPart | None",
) -> dict[str, Any]:
    from actions.answer import answer
    from model_loader import get_model

    job_id = job.get("id")

    def job_ended(code: str, event: Mapping[str, Any], error: Exception | None) -> None:
        if error is not None:
            error_reports.report(settings, error, code, event["action"])

    try:
        loaded = get_model(settings)
        response = answer(
            job.get("input"),
            loaded,
            settings,
            cancelled,
            on_progress=on_progress,
            on_part=on_part,
            job_id=job_id,
            on_end=job_ended,
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
        logger.error("job %s: %s after its work was done", job_id, type(error).__name__)
        error_reports.report(settings, error, Internal.code)
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
    """Load the model, then serve jobs until SIGTERM; without Runpod, run one job and report."""
    started = time.perf_counter()
    settings, listeners = startup.prepare(), []
    serves_api = "--rp_serve_api" in sys.argv
    if serves_api:
        from serving import local_api_ports

        listeners = local_api_ports.listen(sys.argv[1:])
    startup.load(settings, "serving.runpod_loop", check=False)
    import runpod

    from remote import local_run
    from serving import fitness, runpod_loop, sdk_log

    is_local = local_run.wanted(settings)
    # The SDK's INFO writes out the output of a local run.
    sdk_log.take_over("WARNING" if is_local else settings.log_level)
    if is_local:
        local_run.run(handler, loading_s=time.perf_counter() - started)
        return
    if serves_api:
        from serving import local_api

        local_api.install(settings, listeners)
    for check in fitness.checks(settings):
        reporting = error_reports.of_the_start(settings)
        runpod.serverless.register_fitness_check(reporting(check))
    runpod_loop.serve(
        handler,
        shutdown_grace_s=settings.shutdown_grace_s,
        jobs_at_once=settings.jobs_at_once,
    )


if __name__ == "__main__":
    main()
