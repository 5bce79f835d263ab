"""The Runpod door: a job in, an output or an error out.

    python handler.py                  run test_input.json, print a summary
    python handler.py --rp_serve_api   serve Runpod's API locally

Importing this module loads no model and no torch.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from errors import DeviceBroken, OutputTooLarge, WorkerError
from serving import error_reports, local_job, startup
from serving.job_result import ENVELOPE_BYTES, JobResult
from settings import Settings, get_settings

if TYPE_CHECKING:
    from actions.answer import Response
    from actions.job import OnPart, OnProgress


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Answer one job in the SDK's local modes.

    Returns:
        The output; or `{"error": "code: sentence"}`, with `refresh_worker` when the device can't be
        used any more.
    """
    return (await answer_job(job)).as_dict()


async def answer_job(job: dict[str, Any]) -> JobResult:
    """Answer one job. The work runs in a thread of its own, so the SDK's event loop stays free.

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
    try:
        result = await asyncio.shield(work)
        if posts is not None and parts is not None:
            await parts.end()
            await posts.end(succeeded=result.error is None)
        return result
    except BaseException:
        cancelled.set()
        if posts is not None and parts is not None:
            parts.drop()
            posts.drop()
        await asyncio.wait([work])
        raise


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
) -> JobResult:
    from actions.answer import answer
    from model_loader import get_model

    output = b""

    def write_out(response: "Response") -> None:
        nonlocal output
        output = _encoded(response, settings.max_output_bytes)

    def job_ended(code: str, event: Mapping[str, Any], error: BaseException | None) -> None:
        if error is not None:
            error_reports.report(settings, error, code, event["action"])

    try:
        answer(
            job.get("input"),
            get_model(settings),
            settings,
            cancelled,
            on_progress=on_progress,
            on_part=on_part,
            on_response=write_out,
            job_id=job.get("id"),
            on_end=job_ended,
        )
    except WorkerError as error:
        return JobResult(error=str(error), refresh_worker=isinstance(error, DeviceBroken))
    return JobResult(output=output)


def _encoded(response: "Response", limit: int) -> bytes:
    """A response as it is sent. Runpod refuses what is larger than its limit."""
    if isinstance(response, BaseModel):
        output = response.model_dump_json().encode()
        _check_size(len(output), limit, _SMALLER.get(type(response).__name__, "ask for less"))
        return output
    with response:
        _check_size(response.size, limit, _SMALLER_GRAPH)
        return b"".join(response.chunks())


# What a caller can do about an output that is too large.
_SMALLER_GRAPH = "pass signed_url to have the graph uploaded, or keep less with lower thresholds"
_SMALLER = {
    "SteerResponse": "lower top_k or n_tokens",
    "ForwardPassResponse": "lower max_n_logits, or shorten the prompt",
    "ParseChatPromptResponse": "shorten the prompt",
    "InterveneResponse": "lower top_k, or send fewer targets or experiments",
    "ContrastResponse": "lower top_k",
}


def _check_size(size: int, limit: int, advice: str) -> None:
    size += ENVELOPE_BYTES
    if size > limit:
        raise OutputTooLarge(f"the output has {size} bytes, a job's may have {limit}; {advice}")


def main() -> None:
    """Load the model, then serve jobs until SIGTERM; without Runpod, run one job and report."""
    started = time.perf_counter()
    settings, listeners = startup.prepare(), []
    is_local = local_job.wanted(settings)
    if is_local:
        # Where a GPU was promised and isn't there, the start says so.
        local_job.check(sys.argv[1:], may_lack_job=bool(settings.runpod_gpu_count))
    serves_api = "--rp_serve_api" in sys.argv
    if serves_api:
        from serving import local_api_ports

        listeners = local_api_ports.listen(sys.argv[1:])
    startup.load(settings, "serving.runpod_loop", check=False)
    import runpod

    from model_loader import get_model
    from serving import fitness, local_run, runpod_loop, sdk_log

    # The SDK's INFO writes out the output of a local run.
    sdk_log.take_over("WARNING" if is_local else settings.log_level)
    if is_local:
        model = get_model(settings).entry.label
        local_run.run(handler, model, loading_s=time.perf_counter() - started)
        return
    if serves_api:
        from serving import local_api

        local_api.install(settings, listeners)
    for check in fitness.checks(settings):
        reporting = error_reports.of_the_start(settings)
        runpod.serverless.register_fitness_check(reporting(check))
    runpod_loop.serve(
        answer_job,
        shutdown_grace_s=settings.shutdown_grace_s,
        jobs_at_once=settings.jobs_at_once,
    )


if __name__ == "__main__":
    main()
