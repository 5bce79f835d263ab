"""The SDK's worker loop, made reliable.

The SDK (runpod 1.12) posts a result once and drops it when that fails. On SIGTERM it waits for its
long polls, during which it may take a job that it never runs. Here a result is posted until Runpod
accepts it, and meanwhile other jobs go on. After SIGTERM no more jobs are taken, and those that run
may end within a grace period. A job that Runpod hands over twice runs once; one that is stopped
before it began doesn't run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import runpod
from aiohttp import ClientSession
from runpod.serverless.modules import rp_job, rp_scale

from errors import Cancelled, Internal
from serving.job_result import JobResult
from serving.job_taking import address_of, take_jobs
from serving.runpod_posts import post_result

logger = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any]], Awaitable[JobResult]]
_T = TypeVar("_T")

# Seconds for a stopped job to leave the model; the process ends soon after in any case.
_STOPPING_S = 2.0
# A result that Runpod hasn't taken after this many seconds holds back no other job.
_POST_PATIENCE_S = 2.0
# At most this many results may wait like that, as they take memory. Then the next job waits for
# one to be posted.
_MOST_UNPOSTED = 10


def serve(answer: Answer, *, shutdown_grace_s: float, jobs_at_once: int) -> None:
    """Take jobs from Runpod, or from the SDK's local server, until SIGTERM."""

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        return (await answer(job)).as_dict()

    rp_scale.JobScaler = partial(WorkerLoop, answer=answer, shutdown_grace_s=shutdown_grace_s)
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda _current: jobs_at_once}
    )


class WorkerLoop(rp_scale.JobScaler):
    """The SDK's loop, which posts a result for every job that it took, also when it ends.

    It ends after SIGTERM, SIGINT, or a job that reports a broken device: it takes no more jobs, and
    those that run past the grace period fail with `cancelled`, after which they can be sent again.
    """

    def __init__(self, config: dict[str, Any], *, answer: Answer, shutdown_grace_s: float) -> None:
        super().__init__(config)
        self.current_concurrency = self.concurrency_modifier(1)  # the same at all times
        # Without a bound: what was taken is kept at once.
        self.jobs_queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.jobs_handler = self._run_and_post
        self._answer = answer
        self._grace_s = shutdown_grace_s
        self._ending = asyncio.Event()
        self._grace_over = asyncio.Event()
        self._all_done = asyncio.Event()
        self._room = asyncio.Event()  # set by each job that ends or whose result is posted
        self._failures = 0  # of taking jobs, in a row
        self._begun: set[str] = set()  # ids of jobs
        self._stopped: set[str] = set()  # ids of jobs that were taken and have not begun
        # By id, the posting of each result that Runpod didn't take at once.
        self._unposted: dict[str, asyncio.Task[None]] = {}

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
        """Run what is taken until the loop ends and each result is posted or given up."""
        try:
            await super().run_jobs(session)
            if self._unposted:
                await asyncio.wait(list(self._unposted.values()))
        finally:
            self._all_done.set()

    def current_occupancy(self) -> int:
        """The jobs that are taken and not ended, and those of too many unposted results."""
        free = min(len(self._unposted), _MOST_UNPOSTED)
        return int(self.job_progress.get_job_count()) - free

    async def _keep_taking(self, session: ClientSession) -> None:
        """The SDK's `get_jobs`, which waits a second whenever the worker is full.

        Jobs are shorter than that, so here the end of one makes room for the next at once.
        """
        while True:
            self._room.clear()
            free = self.current_concurrency - self.current_occupancy()
            if free <= 0:
                await self._room.wait()
                continue
            for job in await self._take_jobs(session, free):
                self.jobs_queue.put_nowait(job)
                self.job_progress.add(job)
                logger.debug("job %s: taken", job["id"])

    async def handle_job(self, session: ClientSession, job: dict[str, Any]) -> None:
        """Run a job to its end, and let the next one be taken.

        Until its result is posted Runpod's ping and a second handing over find the job in progress.
        """
        self._begun.add(job["id"])
        try:
            await super().handle_job(session, job)
        finally:
            self._begun.discard(job["id"])
            if job["id"] in self._unposted:
                self.job_progress.add(job)
            self._room.set()

    async def _take_jobs(self, session: ClientSession, count: int) -> list[dict[str, Any]]:
        """`take_jobs`, within the SDK's time; after a failure none, and a pause that grows."""
        try:
            taking = take_jobs(session, count)
            jobs = await asyncio.wait_for(taking, self.jobs_fetcher_timeout)
        except TimeoutError:
            return []
        except Exception as error:
            self._failures += 1
            logger.warning("no job could be taken: %s", type(error).__name__)
            await asyncio.sleep(0.1 * 2 ** min(self._failures, 7))
            return []
        self._failures = 0
        return self._new_jobs(jobs)

    def _new_jobs(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The jobs that aren't under way."""
        new: dict[str, dict[str, Any]] = {}
        for job in jobs:
            if job["id"] in new or self.job_progress.get(job["id"]) is not None:
                logger.warning("job %s was handed over twice; it is answered once", job["id"])
            else:
                new[job["id"]] = job
        return list(new.values())

    async def stop_job(self, job_id: str) -> bool:
        """Stop a job, also one that was taken a moment ago and has not begun.

        Such a job isn't cancelled: a task that never began would stay counted as running.
        """
        address = address_of(job_id)
        if address is None:
            return False
        if address in self._begun:
            return bool(await super().stop_job(address))
        if address in self._unposted:
            return self._unposted[address].cancel()
        if self.job_progress.get(address) is not None:
            self._stopped.add(address)
        return address in self._stopped

    async def _run_and_post(
        self, session: ClientSession, _config: dict[str, Any], job: dict[str, Any]
    ) -> None:
        if job["id"] in self._stopped:
            self._stopped.remove(job["id"])
            raise asyncio.CancelledError
        rp_job.log.info("Started.", job["id"])
        result = await self._result(job)
        if result.refresh_worker:
            # Every later job would fail too, until Runpod has replaced the worker.
            self._ending.set()
        posting = asyncio.create_task(post_result(session, job, result))
        try:
            await asyncio.wait([posting], timeout=_POST_PATIENCE_S)
        except asyncio.CancelledError:
            posting.cancel()
            raise
        if not posting.done():
            logger.warning("job %s: its result is not posted yet; other jobs go on", job["id"])
            self._unposted[job["id"]] = posting
            posting.add_done_callback(lambda _: self._no_longer_unposted(job))

    def _no_longer_unposted(self, job: dict[str, Any]) -> None:
        del self._unposted[job["id"]]
        self.job_progress.remove(job)
        self._room.set()

    async def _result(self, job: dict[str, Any]) -> JobResult:
        """The job's result; an error where it can't be read or the grace period is over."""
        if "unreadable" in job:
            event = {"job_id": job["id"]}
            logger.info("job failed: it can't be read", extra={"event": event})
            return JobResult(error=job["unreadable"])
        try:
            result = await _run_until(self._grace_over, self._answer(job))
        except Exception as error:  # the SDK would post its traceback
            logger.exception("job %s: the handler failed", job["id"])
            failure = Internal(f"an unexpected {type(error).__name__} stopped the job")
            return JobResult(error=str(failure))
        if result is None:
            stopped = Cancelled("the worker was shut down before the job was done; send it again")
            return JobResult(error=str(stopped))
        return result


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
