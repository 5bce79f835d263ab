"""The three kinds of server that take jobs, and how each is asked.

`/run` of the SDK's local API (runpod 1.12) only stores a job: it is `/status` that computes it,
once more for each time it is asked. So that API is asked through `/runsync`.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from remote.connection import FOREVER, Answer, Connection
from remote.errors import (
    Interrupted,
    JobGone,
    JobTimedOut,
    NotAllowed,
    RemoteError,
    Unreachable,
    WrongTarget,
)
from remote.jobs import JobStatus, OnProgress, Progress, failure, read_status

_FIRST_POLL_S = 0.3
_LONGEST_POLL_S = 2.0
_QUEUE_NEWS_S = 10.0


class _TimeLimit(JobTimedOut):
    """The caller's own, not Runpod's."""


class Server(Protocol):
    """What a `Client` needs of each."""

    @property
    def connection(self) -> Connection:
        """Where it is."""

    def run(self, job: dict[str, Any], on_progress: OnProgress, until: float) -> Any:
        """The output of a job. A caller who stops waiting stops the job, where that is possible.

        Args:
            until: `time.monotonic()` at which the caller stops waiting.

        Raises:
            RemoteError: as remote/errors.py has it.
            Interrupted: Ctrl-C.
        """

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""


@dataclass(frozen=True)
class RunpodEndpoint:
    """A serverless endpoint: jobs are queued and polled."""

    connection: Connection
    endpoint_id: str

    def run(self, job: dict[str, Any], on_progress: OnProgress, until: float) -> Any:
        job_id = ""
        try:
            job_id = self.submit(job, on_progress, until)
            return self.wait(job_id, on_progress, until)
        except _TimeLimit as over:
            raise JobTimedOut(f"{over}; {self._cancelled(job_id, on_progress)}") from None
        except Unreachable as error:
            rest = f"; job {job_id} may go on, wait for it by its id" if job_id else ""
            raise Unreachable(f"{error}{rest}") from None
        except KeyboardInterrupt:
            if job_id:
                raise Interrupted(self._cancelled(job_id, on_progress)) from None
            raise Interrupted(
                "stopped before Runpod had answered; if it has taken the job, the job goes on"
            ) from None

    def submit(
        self,
        job: dict[str, Any],
        on_progress: OnProgress = lambda _: None,
        until: float = FOREVER,
    ) -> str:
        """Put a job into the queue and return its id."""
        on_progress(Progress("submitting"))
        answer = self.connection.ask(
            "POST",
            "/run",
            {"input": job},
            is_repeatable=False,
            until=until,
            on_trouble=lambda words: on_progress(Progress("waiting", words)),
        )
        self._check(answer)
        return read_status(answer, self.connection.name).id

    def wait(
        self, job_id: str, on_progress: OnProgress = lambda _: None, until: float = FOREVER
    ) -> Any:
        """Poll a job until it is over, and return its output."""
        told = Progress("in the queue", job_id=job_id)
        on_progress(told)
        news_at = time.monotonic() + _QUEUE_NEWS_S

        def on_trouble(words: str) -> None:
            on_progress(Progress(told.stage, words, told.share, job_id))

        for pause_s in _pauses():
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise _TimeLimit(f"job {job_id} was not done within the time limit")
            time.sleep(min(pause_s, left_s))
            try:
                status = self.status(job_id, until=until, on_trouble=on_trouble)
            except Unreachable:
                if time.monotonic() < until:
                    raise
                continue
            if status.is_over:
                return status.result()
            if status.state == "IN_PROGRESS":
                told = status.progress
            elif time.monotonic() > news_at:
                told = Progress("in the queue", self._queue_news(), job_id=job_id)
                news_at = time.monotonic() + _QUEUE_NEWS_S
            on_progress(told)
        raise AssertionError("the pauses never end")

    def status(self, job_id: str, **how: Any) -> JobStatus:
        """How a job is.

        Raises:
            JobGone: Runpod keeps results for half an hour, and this one no longer, or never had.
        """
        answer = self.connection.ask("GET", f"/status/{_quoted(job_id)}", is_repeatable=True, **how)
        if answer.status in {404, 410}:
            raise _gone(job_id)
        self._check(answer)
        return read_status(answer, self.connection.name)

    def cancel(self, job_id: str) -> None:
        """Stop a job, queued or running."""
        until = time.monotonic() + _QUEUE_NEWS_S
        path = f"/cancel/{_quoted(job_id)}"
        answer = self.connection.ask("POST", path, is_repeatable=True, until=until)
        if answer.status in {404, 410}:
            raise _gone(job_id)
        self._check(answer)

    def health(self) -> dict[str, Any]:
        answer = self.connection.ask("GET", "/health", is_repeatable=True)
        self._check(answer)
        return _object(answer, self.connection.name)

    def _check(self, answer: Answer) -> None:
        """Raise what an answer that isn't a success means."""
        if answer.status in {401, 403}:
            raise NotAllowed(
                f"Runpod refuses the key ({answer.said()}); set RUNPOD_API_KEY to one that may "
                f"use endpoint {self.endpoint_id}"
            )
        if answer.status == 404:
            raise WrongTarget(f"Runpod knows no endpoint {self.endpoint_id}; check its id")
        if answer.status >= 300:
            raise Unreachable(f"{self.connection.name} answered {answer.said()}")

    def _cancelled(self, job_id: str, on_progress: OnProgress) -> str:
        """Cancel a job; return what became of it in words."""
        on_progress(Progress("cancelling", job_id=job_id))
        try:
            self.cancel(job_id)
        except RemoteError as error:
            return f"job {job_id} may go on, it could not be cancelled: {error}"
        return f"job {job_id} is cancelled"

    def _queue_news(self) -> str:
        """The workers that a job in the queue may get, as far as `/health` tells."""
        try:
            answer = self.connection.ask(
                "GET", "/health", is_repeatable=True, until=time.monotonic()
            )
        except Unreachable:
            return ""
        body = answer.body if isinstance(answer.body, dict) else {}
        if not isinstance(body.get("workers"), dict):
            return ""
        counts = [f"{n} {name}" for name, n in body["workers"].items() if n]
        return f"workers: {', '.join(counts) or 'none'}"


@dataclass(frozen=True)
class SdkApi:
    """`python handler.py --rp_serve_api`. It has no way to stop a job, and reports no progress."""

    connection: Connection

    def run(self, job: dict[str, Any], on_progress: OnProgress, until: float) -> Any:
        try:
            answer = _ask_and_wait(self.connection, "/runsync", {"input": job}, on_progress, until)
        except KeyboardInterrupt:
            raise Interrupted(
                "the SDK's local API can't cancel a job: the worker finishes it, answer or not"
            ) from None
        if answer.status == 404:
            raise WrongTarget(
                f"{self.connection.name} is not the SDK's local API, it has no /runsync; leave out "
                "--server to have it asked what it is"
            )
        return read_status(answer, self.connection.name).result()

    def health(self) -> dict[str, Any]:
        self.connection.ask("GET", "/openapi.json", is_repeatable=False)
        return {"server": "the Runpod SDK's local API, which says nothing more of itself"}


@dataclass(frozen=True)
class HttpDoor:
    """`python start.py`. One job at a time; a closed connection cancels it."""

    connection: Connection

    def run(self, job: dict[str, Any], on_progress: OnProgress, until: float) -> Any:
        body = {name: value for name, value in job.items() if name != "action"}
        try:
            answer = _ask_and_wait(self.connection, f"/{job['action']}", body, on_progress, until)
        except KeyboardInterrupt:
            raise Interrupted("the job is cancelled: the connection is closed") from None
        if answer.status in {401, 403}:
            raise NotAllowed(f"{answer.said()}; set SECRET to the worker's")
        if answer.status == 200 and answer.body is not None:
            return answer.body
        if isinstance(answer.body, dict) and isinstance(answer.body.get("error"), str):
            raise failure(answer.body["error"])
        raise Unreachable(f"{self.connection.name} answered {answer.said()}")

    def health(self) -> dict[str, Any]:
        answer = self.connection.ask("GET", "/health", is_repeatable=True)
        return _object(answer, self.connection.name)


def find_kind(connection: Connection) -> type[SdkApi] | type[HttpDoor]:
    """Find out which of the two answers at a URL.

    Raises:
        WrongTarget: it is neither.
        Unreachable: nothing answers.
    """
    health = connection.ask("GET", "/health", is_repeatable=False)
    if isinstance(health.body, dict):
        if "token_limit" in health.body:
            return HttpDoor
        if "workers" in health.body:
            raise WrongTarget(f"{connection.name} is Runpod's; name the endpoint instead of a URL")
    described = connection.ask("GET", "/openapi.json", is_repeatable=False)
    paths = described.body.get("paths") if isinstance(described.body, dict) else None
    if isinstance(paths, dict) and "/runsync" in paths:
        return SdkApi
    raise WrongTarget(
        f"{connection.name} answers, but neither as start.py nor as the SDK's local API does "
        f"(GET /health: {health.said()}); check the URL, or say which it is with --server"
    )


def _ask_and_wait(
    connection: Connection,
    path: str,
    body: dict[str, Any],
    on_progress: OnProgress,
    until: float,
) -> Answer:
    """Post a job to a server that answers when it is done."""

    def on_trouble(words: str) -> None:
        on_progress(Progress("waiting", words))

    on_progress(Progress("running"))
    left_s = None if until == FOREVER else max(until - time.monotonic(), 0.1)
    try:
        return connection.ask(
            "POST",
            path,
            body,
            is_repeatable=False,
            read_timeout_s=left_s,
            until=until,
            on_trouble=on_trouble,
        )
    except Unreachable as error:
        if time.monotonic() < until:
            raise
        raise JobTimedOut(f"the job was not done within the time limit ({error})") from None


def _pauses() -> Iterator[float]:
    """Seconds between polls, growing, with jitter so that many callers don't ask as one."""
    pause_s = _FIRST_POLL_S
    while True:
        yield pause_s * random.uniform(0.8, 1.2)
        pause_s = min(pause_s * 1.3, _LONGEST_POLL_S)


def _gone(job_id: str) -> JobGone:
    return JobGone(
        f"Runpod knows no job {job_id}: it keeps a result for 30 minutes, and an unfinished job "
        "for 24 hours; send it again"
    )


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="")


def _object(answer: Answer, name: str) -> dict[str, Any]:
    if answer.status != 200 or not isinstance(answer.body, dict):
        raise Unreachable(f"{name} answered {answer.said()}")
    return answer.body
