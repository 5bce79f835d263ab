"""Runpod's side of the SDK's protocol over HTTP, in this process, and a worker that talks to it.

Routes and answers are those that `runpod.serverless.modules` of runpod 1.12 asks for: job-take and
its batch form (long polls: 200 with jobs or 204), job-stop (a long poll too), job-done (results
and, with the status IN_PROGRESS, progress), job-stream, and ping. What a job was sent is kept in
the order in which it came.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT

API_KEY = "control-plane-key"
WORKER_ID = "worker-under-test"
TAKE_POLL_S = 20.0
MOST_STREAMED_BYTES = 1_000_000


@dataclass
class JobRecord:
    """What the worker posted about a job, in order."""

    progress: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    streamed: list[Any] = field(default_factory=list)  # the output of each post to job-stream
    unread: list[Any] = field(default_factory=list)  # those that `/stream` has not handed out
    after_result: list[Any] = field(default_factory=list)  # anything posted once it had a result
    posted_at: list[float] = field(default_factory=list)  # of each progress, by time.monotonic
    stopped: bool = False


class _Records(dict[str, JobRecord]):
    """Records by job, made when they are first asked for, in whichever thread that is.

    Two threads may ask at once: unlike a defaultdict, `setdefault` gives both the same record.
    """

    def __missing__(self, job_id: str) -> JobRecord:
        return self.setdefault(job_id, JobRecord())


class ControlPlane:
    """A queue of jobs for its workers. Its methods may be called from the test's thread."""

    def __init__(self, *workers: str) -> None:
        self.workers = workers or (WORKER_ID,)
        self.ready: set[str] = set()  # workers that have asked for jobs
        self.takers: dict[str, str] = {}  # by job, the worker that has taken it last
        self.jobs = _Records()
        self.requests: dict[str, int] = defaultdict(int)  # by route
        self.pings: list[dict[str, str]] = []
        self.unauthorized = 0
        self.faults: dict[str, deque[int | str]] = defaultdict(deque)
        self.extra_jobs: list[Any] = []  # handed over with the next batch, as they are
        self.most_result_bytes = 1 << 28  # larger results are refused with 413
        self.result_faults: dict[str, deque[int | str]] = defaultdict(deque)  # by job
        self.strays: list[str] = []  # targets of requests that no route takes
        self.take_poll_s = TAKE_POLL_S  # for the polls that begin from now on
        self._queue: deque[dict[str, Any] | bytes] = deque()
        self._queueing = threading.Lock()  # held while jobs are taken out of the queue
        self._taken: dict[str, dict[str, Any]] = {}
        self._stops: deque[str] = deque()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._arrived = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "ControlPlane":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def submit(self, body: object) -> str:
        """Queue a job and return its id."""
        job_id = f"job-{next(self._numbers)}"
        self._queue.append({"id": job_id, "input": body})
        self._wake()
        return job_id

    def submit_raw(self, raw: bytes) -> None:
        """Queue an answer to job-take or job-take-batch, which is handed over as it is."""
        self._queue.append(raw)
        self._wake()

    def stop(self, job_id: str) -> None:
        """Cancel a job the way Runpod does: a running worker is told through job-stop."""
        self.jobs[job_id].stopped = True
        self._stops.append(job_id)
        self._wake()

    def withdraw(self, job_id: str) -> bool:
        """Take a job out of the queue; False when a worker has it."""
        with self._queueing:
            for job in list(self._queue):
                if isinstance(job, dict) and job["id"] == job_id:
                    self._queue.remove(job)
                    return True
        return False

    def held_by(self, worker: str) -> list[str]:
        """The jobs that a worker has taken and not answered."""
        taken = [job for job, taker in list(self.takers.items()) if taker == worker]
        return [job for job in taken if not self.jobs[job].results]

    def lose(self, worker: str) -> list[str]:
        """Queue a dead worker's jobs again, as Runpod does, and return their ids."""
        lost = self.held_by(worker)
        self._queue.extendleft(self._taken.pop(job_id) for job_id in reversed(lost))
        for job_id in lost:
            del self.takers[job_id]
        self._wake()
        return lost

    def poll_round_trip(self, timeout_s: float = LONGEST_S) -> float:
        """Seconds from a stop signal (of no job) to the worker's next poll for one."""
        polls = self.requests["job-stop"]
        started = time.monotonic()
        self._stops.append("no-job")
        self._wake()
        while self.requests["job-stop"] == polls:
            if time.monotonic() - started > timeout_s:
                raise AssertionError("the worker does not ask for stop signals")
            time.sleep(0.001)
        return time.monotonic() - started

    def fail(self, route: str, *faults: int | str) -> None:
        """Answer the next requests to a route with these statuses, "drop" or "hang"."""
        self.faults[route].extend(faults)

    def refuse_results(self, job_id: str, *faults: int | str) -> None:
        """Answer the next results of a job with these statuses, "drop" or "hang"."""
        self.result_faults[job_id].extend(faults)

    def wait(self, condition: Any, timeout_s: float = LONGEST_S) -> None:
        """Wait until `condition()` holds, asked after whatever the worker sends."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise AssertionError(f"not within {timeout_s} s: {self.jobs}")

    def result(self, job_id: str, timeout_s: float = LONGEST_S) -> dict[str, Any]:
        """The first result of a job, waited for."""
        self.wait(lambda: self.jobs[job_id].results, timeout_s)
        return self.jobs[job_id].results[0]

    def untaken(self) -> list[str]:
        """The jobs that no worker has taken."""
        return [job["id"] for job in self._queue if isinstance(job, dict)]

    def environment(self) -> dict[str, str]:
        """The variables by which Runpod tells a worker where it is."""
        base = f"http://127.0.0.1:{self.port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_ENDPOINT_ID": "endpoint",
            # They ask for the network and for a disk of Runpod's size.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            # Tests read in the log when a job is taken, started and stopped.
            "LOG_LEVEL": "DEBUG",
        }

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._arrived.set)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 28, middlewares=[self._middleware])
        prefix = "/v2/endpoint"
        app.router.add_get(prefix + "/job-take/{worker}", self._take)
        app.router.add_get(prefix + "/job-take-batch/{worker}", self._take_batch)
        app.router.add_get(prefix + "/job-stop/{worker}", self._stop_signals)
        app.router.add_post(prefix + "/job-done/{worker}/{id}", self._done)
        app.router.add_post(prefix + "/job-stream/{worker}/{id}", self._streamed)
        app.router.add_get(prefix + "/ping/{worker}", self._ping)
        # A job must not go to a poll whose worker has hung up.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.match_info.http_exception is not None:
            self.strays.append(request.raw_path)
            return await handler(request)
        route = request.path.split("/")[3]
        self.requests[route] += 1
        if request.headers.get("Authorization") != API_KEY:
            self.unauthorized += 1
        assert request.match_info["worker"] in self.workers
        if route.startswith("job-take"):
            self.ready.add(request.match_info["worker"])
        if self.faults[route]:
            return await self._go_wrong(request, self.faults[route].popleft())
        response = await handler(request)
        with self._changed:
            self._changed.notify_all()
        return response

    async def _go_wrong(self, request: web.Request, fault: int | str) -> web.Response:
        await request.read()
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await asyncio.sleep(TAKE_POLL_S)
        assert isinstance(fault, int)
        return web.Response(status=fault)

    async def _poll(self, something: Any) -> bool:
        end = time.monotonic() + self.take_poll_s
        while not something:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), end - time.monotonic())
            except TimeoutError:
                return False
        return True

    async def _take(self, request: web.Request) -> web.Response:
        taken = await self._next(request, 1)
        if not taken:
            return web.Response(status=204)
        [job] = taken
        if isinstance(job, bytes):
            return web.Response(body=job, content_type="application/json")
        return web.json_response(job)

    async def _take_batch(self, request: web.Request) -> web.Response:
        jobs: list[Any] = await self._next(request, int(request.query["batch_size"]))
        if not jobs:
            return web.Response(status=204)
        if isinstance(jobs[0], bytes):
            return web.Response(body=jobs[0], content_type="application/json")
        jobs += self.extra_jobs
        self.extra_jobs = []
        return web.json_response(jobs)

    async def _next(self, request: web.Request, count: int) -> list[dict[str, Any] | bytes]:
        """Wait for jobs; a raw answer, or as many jobs as stand before the next one."""
        while await self._poll(self._queue):
            taken: list[dict[str, Any] | bytes] = []
            with self._queueing:
                while self._queue and len(taken) < count:
                    if taken and isinstance(self._queue[0], bytes):
                        break
                    taken.append(self._queue.popleft())
                    if isinstance(taken[-1], bytes):
                        break
            for job in taken:
                if isinstance(job, dict):
                    self.takers[job["id"]] = request.match_info["worker"]
                    self._taken[job["id"]] = job
            if taken:  # and not withdrawn a moment ago
                return taken
        return []

    async def _stop_signals(self, _request: web.Request) -> web.Response:
        if not await self._poll(self._stops):
            return web.Response(status=204)
        ids = list(self._stops)
        self._stops.clear()
        return web.json_response({"jobsToStop": ids})

    async def _done(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        data = await request.read()
        body = json.loads(data)
        if body.get("status") != "IN_PROGRESS":
            if self.result_faults[job_id]:
                return await self._go_wrong(request, self.result_faults[job_id].popleft())
            if len(data) > self.most_result_bytes:
                return web.Response(status=413)
        record = self.jobs[job_id]
        if record.results:
            record.after_result.append(body)
        elif body.get("status") == "IN_PROGRESS":
            record.progress.append(body["output"])
            record.posted_at.append(time.monotonic())
        else:
            record.results.append(body)
        return web.Response()

    async def _streamed(self, request: web.Request) -> web.Response:
        record = self.jobs[request.match_info["id"]]
        data = await request.read()
        if len(data) > MOST_STREAMED_BYTES:
            return web.Response(status=413)
        body = json.loads(data)
        assert list(body) == ["output"]
        assert request.query["isStream"] == "false"  # as the SDK's `stream_result` says
        if record.results:
            record.after_result.append(body)
        else:
            record.streamed.append(body["output"])
            record.unread.append(body["output"])
        return web.Response()

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings.append(dict(request.query))
        return web.Response()


@dataclass
class Worker:
    """A worker's process and what it writes."""

    process: subprocess.Popen[bytes]
    log_path: Path

    def log(self) -> str:
        return self.log_path.read_text()

    def kill(self) -> None:
        """End it at once, with its pings, which come from a process of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Halt it as it is, with its pings, until `go_on`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def terminate(self, timeout_s: float = LONGEST_S) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_worker(plane: ControlPlane, directory: Path, *command: str, **environment: str) -> Any:
    """`python handler.py`, or another command of the interpreter, against the control plane."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RUNPOD_")}
    log_path = directory / f"worker-{time.monotonic_ns()}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *(command or ("handler.py",))],
            cwd=ROOT,
            env={**kept, "DEVICE": "cpu", **plane.environment(), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    worker = Worker(process, log_path)
    try:
        yield worker
    finally:
        worker.kill()
