"""The SDK's worker loop, made reliable.

The SDK (runpod 1.12) posts a result once and drops it when that fails. On SIGTERM it waits for its
long polls, during which it may take a job that it never runs. Here a result is posted until Runpod
accepts it. After SIGTERM no more jobs are taken, and those that run may end within a grace period.
A job that Runpod hands over twice runs once; one that is stopped before it began doesn't run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import orjson
import runpod
import tenacity
from aiohttp import ClientError, ClientResponseError, ClientSession
from runpod.serverless.modules import rp_http, rp_job, rp_scale

from errors import Cancelled, Internal

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_T = TypeVar("_T")

# 0.5, 1, 2, ... 30 s between attempts: a control plane may be away for three minutes.
_RESULT_ATTEMPTS = 12
_AGAIN = {408, 429}
# Seconds for a stopped job to leave the model; the process ends soon after in any case.
_STOPPING_S = 2.0


def serve(handler: Handler, *, shutdown_grace_s: float, jobs_at_once: int) -> None:
    """Take jobs from Runpod, or from the SDK's local server, until SIGTERM."""
    rp_scale.JobScaler = partial(WorkerLoop, shutdown_grace_s=shutdown_grace_s)
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda _current: jobs_at_once}
    )


class WorkerLoop(rp_scale.JobScaler):
    """The SDK's loop, which posts a result for every job that it took, also when it ends.

    It ends after SIGTERM, SIGINT, or a job that reports a broken device: it takes no more jobs, and
    those that run past the grace period fail with `cancelled`, after which they can be sent again.
    """

    def __init__(self, config: dict[str, Any], *, shutdown_grace_s: float) -> None:
        super().__init__(config)
        self.jobs_handler = self._run_and_post
        self._handler: Handler = config["handler"]
        self._grace_s = shutdown_grace_s
        self._ending = asyncio.Event()
        self._grace_over = asyncio.Event()
        self._all_done = asyncio.Event()
        self._room = asyncio.Event()  # set by each job that ends
        self._failures = 0  # of taking jobs, in a row
        self._begun: set[str] = set()  # ids of jobs
        self._stopped: set[str] = set()  # ids of jobs that were taken and have not begun

    def handle_shutdown(self, signum: int, frame: object) -> None:  # noqa: ARG002 - a signal handler
        """Remember the signal; `run_jobs` wakes the event loop ten times a second."""
        self._ending.set()

    async def get_jobs(self, session: ClientSession) -> None:
        """Take jobs until the loop is to end; only then let the other loops end."""
        await _run_until(self._ending, self._keep_taking(session))
        logger.info("no more jobs are taken; those that run have %.0f s", self._grace_s)
        asyncio.get_running_loop().call_later(self._grace_s, self._grace_over.set)
        self.kill_worker()

    async def monitor_stop_signals(self, session: ClientSession) -> None:
        """Stop jobs that Runpod names, for as long as there may be any."""
        await _run_until(self._all_done, super().monitor_stop_signals(session))

    async def run_jobs(self, session: ClientSession) -> None:
        """Run what is taken until the loop ends."""
        try:
            await super().run_jobs(session)
        finally:
            self._all_done.set()

    async def _keep_taking(self, session: ClientSession) -> None:
        """The SDK's `get_jobs`, which waits a second whenever the worker is full.

        Jobs are shorter than that, so here the end of one makes room for the next at once.
        """
        while True:
            await self.set_scale()
            self._room.clear()
            free = self.current_concurrency - self.current_occupancy()
            if free <= 0:
                await self._room.wait()
                continue
            for job in await self._take_jobs(session, free):
                await self.jobs_queue.put(job)
                self.job_progress.add(job)
                logger.debug("job %s: taken", job["id"])

    async def handle_job(self, session: ClientSession, job: dict[str, Any]) -> None:
        """Run a job to its end, and let the next one be taken."""
        self._begun.add(job["id"])
        try:
            await super().handle_job(session, job)
        finally:
            self._begun.discard(job["id"])
            self._room.set()

    async def _take_jobs(self, session: ClientSession, count: int) -> list[dict[str, Any]]:
        """The SDK's `get_job`, within its time; after a failure none, and a pause that grows."""
        try:
            taking = rp_job.get_job(session, count)
            jobs = await asyncio.wait_for(taking, self.jobs_fetcher_timeout)
        except TimeoutError:
            return []
        except Exception as error:
            self._failures += 1
            logger.warning("no job could be taken: %s", type(error).__name__)
            await asyncio.sleep(0.1 * 2 ** min(self._failures, 7))
            return []
        self._failures = 0
        return self._new_jobs(jobs or [])

    def _new_jobs(self, jobs: list[Any]) -> list[dict[str, Any]]:
        """The jobs that can be answered and aren't under way; others would end the SDK's loop."""
        new: dict[str, dict[str, Any]] = {}
        for job in jobs:
            if not isinstance(job, dict) or not isinstance(job.get("id"), str):
                logger.error("a job without an id was handed over; it can't be answered")
            elif job["id"] in new or self.job_progress.get(job["id"]) is not None:
                logger.warning("job %s was handed over twice; it is answered once", job["id"])
            else:
                new[job["id"]] = job
        return list(new.values())

    async def stop_job(self, job_id: str) -> bool:
        """Stop a job, also one that was taken a moment ago and has not begun.

        Such a job isn't cancelled: a task that never began would stay counted as running.
        """
        if job_id in self._begun:
            return await super().stop_job(job_id)
        if self.job_progress.get(job_id) is not None:
            self._stopped.add(job_id)
        return job_id in self._stopped

    async def _run_and_post(
        self, session: ClientSession, _config: dict[str, Any], job: dict[str, Any]
    ) -> None:
        if job["id"] in self._stopped:
            self._stopped.remove(job["id"])
            raise asyncio.CancelledError
        rp_job.log.info("Started.", job["id"])
        try:
            output = await _run_until(self._grace_over, self._handler(job))
            if output is None:
                raise Cancelled("the worker was shut down before the job was done; send it again")
            result = _result(output)
        except Cancelled as error:
            result = {"error": str(error)}
        except Exception as error:  # the SDK would post its traceback
            logger.exception("job %s: the handler failed", job["id"])
            failure = Internal(f"an unexpected {type(error).__name__} stopped the job")
            result = {"error": str(failure)}
        if result.get("stopPod"):
            # Whatever came next would fail likewise until Runpod has replaced the worker.
            self._ending.set()
        await post_result(session, job, result)


def _result(output: dict[str, Any]) -> dict[str, Any]:
    """What the SDK's `run_job` makes of a handler's output.

    That also writes the output out as text, twice, for log lines that nobody asked for: a second
    of the event loop for ten megabytes.
    """
    error, refresh_worker = output.pop("error", None), output.pop("refresh_worker", False)
    result = {"output": output} if error is None else {"error": error}
    return {**result, "stopPod": True} if refresh_worker else result


async def post_result(session: ClientSession, job: dict[str, Any], result: dict[str, Any]) -> None:
    """Post a job's result, again and again while Runpod is unreachable, busy or failing."""
    try:
        request = _request(job, result)
    except TypeError:  # orjson's, for what JSON can't hold; the caller has to hear of it
        logger.error("job %s: its result is no JSON", job["id"])
        request = _request(job, {"error": str(Internal("the result can't be written as JSON"))})
    try:
        status = await _post(session, request)
    except ClientResponseError as error:
        status = error.status
    except (ClientError, TimeoutError) as error:
        logger.error("job %s: its result could not be posted: %s", job["id"], type(error).__name__)
        return
    if status >= 400:
        logger.error("job %s: its result was refused with status %d", job["id"], status)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type((ClientError, TimeoutError)),
    stop=tenacity.stop_after_attempt(_RESULT_ATTEMPTS),
    wait=tenacity.wait_exponential(0.5, max=30),
    reraise=True,
)
async def _post(session: ClientSession, request: dict[str, Any]) -> int:
    """Post, and return the status unless another attempt may have another."""
    async with session.post(**request) as response:
        if response.status in _AGAIN or response.status >= 500:
            response.raise_for_status()
        return response.status


async def post_progress(session: ClientSession, job: dict[str, Any], progress: object) -> None:
    """Post a job's progress, as the SDK's `progress_update` does but awaited, in one attempt.

    Raises:
        aiohttp.ClientError: it could not be posted.
    """
    update = {"status": "IN_PROGRESS", "output": progress}
    async with session.post(**_request(job, update), raise_for_status=True):
        pass


async def post_parts(session: ClientSession, job: dict[str, Any], parts: list[Any]) -> None:
    """Post what `/stream` hands out, as the SDK's `stream_result` does but in one attempt.

    Raises:
        aiohttp.ClientError: it could not be posted.
    """
    request = _request(job, {"output": parts}, rp_http.JOB_STREAM_URL)
    async with session.post(**request, raise_for_status=True):
        pass


def _request(
    job: dict[str, Any], body: dict[str, Any], url: str = rp_http.JOB_DONE_URL
) -> dict[str, Any]:
    """The request by which the SDK's `send_result` posts `body`, and its `stream_result`."""
    return {
        "url": url.replace("$ID", job["id"]) + "&isStream=false",
        "data": orjson.dumps(body),
        "headers": {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job["id"],
        },
    }


async def _run_until(event: asyncio.Event, work: Awaitable[_T]) -> _T | None:
    """The result of `work`, or None where the event comes first. `work` is then cancelled."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_STOPPING_S)
