"""The three kinds of server that take jobs, and how a job is run on each.

Each has a `connection` and:

    run(job, on_progress, until, on_part)
                                  the job's output. When the caller stops waiting, at `until` (a
                                  `time.monotonic()`) or by Ctrl-C, the job is stopped where the
                                  server can stop one. Raises what remote/errors.py has.
    health()                      what the server reports about itself.

`on_part`, where there is one, gets the parts of a streamed steer as they come. `start.py` alone can
answer with a file, which `on_file` gets.

`/run` of the SDK's local API (runpod 1.12) only stores a job: each call of `/status` computes it,
and computes it again. So that API is asked through `/runsync`.
"""

import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from remote.connection import OUTPUT_BYTES, Answer, Connection, OnFile, OnPart
from remote.errors import (
    Interrupted,
    JobGone,
    JobTimedOut,
    NotAllowed,
    RemoteError,
    Unreachable,
    WrongTarget,
)
from remote.interruption import interruption, pause
from remote.jobs import JobStatus, OnProgress, Progress, failure, ignore_progress, read_status
from remote.retries import FOREVER

_FIRST_POLL_S = 0.3
_LONGEST_POLL_S = 2.0
_QUEUE_NEWS_S = 10.0
_CANCEL_S = 10.0
_LAST_PARTS_S = 60.0  # for the parts of a job that is over


class _CallersLimit(JobTimedOut):
    """The caller's own time limit passed, not Runpod's."""


@dataclass(frozen=True)
class RunpodEndpoint:
    """A serverless endpoint: jobs are queued and polled."""

    connection: Connection
    endpoint_id: str

    def run(
        self,
        job: dict[str, Any],
        on_progress: OnProgress,
        until: float,
        on_part: OnPart | None = None,
    ) -> Any:
        job_id = ""
        try:
            job_id = self.submit(job, on_progress, until)
            return self.wait(job_id, on_progress, until, on_part)
        except _CallersLimit as limit:
            raise JobTimedOut(f"{limit}; {self._cancelled(job_id, on_progress)}") from None
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
        on_progress: OnProgress = ignore_progress,
        until: float = FOREVER,
    ) -> str:
        """Put a job into the queue and return its id."""
        on_progress(Progress("submitting"))
        answer = self._ask(
            "POST",
            "/run",
            body={"input": job},
            is_repeatable=False,
            until=until,
            on_retry=lambda sentence: on_progress(Progress("waiting", sentence)),
        )
        return read_status(answer, self.connection.name).id

    def wait(
        self,
        job_id: str,
        on_progress: OnProgress,
        until: float,
        on_part: OnPart | None = None,
    ) -> Any:
        """Poll a job until it is over, and return its output.

        The pauses grow, unless parts are asked for. They have jitter, so that many callers don't
        poll at the same moments.
        """
        progress = Progress("in the queue", job_id=job_id)
        news_at = time.monotonic() + _QUEUE_NEWS_S
        pause_s = _FIRST_POLL_S

        def on_retry(sentence: str) -> None:
            on_progress(Progress(progress.stage, sentence, progress.share, job_id))

        while (left_s := until - time.monotonic()) > 0:
            on_progress(progress)
            pause(min(pause_s * random.uniform(0.8, 1.2), left_s))
            pause_s = min(pause_s * 1.3, _LONGEST_POLL_S)
            try:
                status = self.status(job_id, until=until, on_retry=on_retry)
            except Unreachable:
                if time.monotonic() < until:
                    raise
                break
            if on_part is not None and status.state != "IN_QUEUE":
                self._hand_on_parts(job_id, on_part, until, to_the_end=status.is_over)
                pause_s = _FIRST_POLL_S
            if status.is_over:
                return status.result()
            if status.state == "IN_PROGRESS":
                progress = status.progress
            elif time.monotonic() > news_at:
                progress = Progress("in the queue", self._workers(), job_id=job_id)
                news_at = time.monotonic() + _QUEUE_NEWS_S
        raise _CallersLimit(f"job {job_id} was not done within the time limit")

    def _hand_on_parts(
        self, job_id: str, on_part: OnPart, until: float, *, to_the_end: bool
    ) -> None:
        """Hand on the parts that came since the last call. Some may be lost: the output has all."""
        end = min(until, time.monotonic() + _LAST_PARTS_S)
        while True:
            try:
                body = self._ask("GET", "/stream", job_id, until=time.monotonic()).body
            except RemoteError:
                return
            posts = body.get("stream") if isinstance(body, dict) else None
            if not isinstance(posts, list):
                return
            outputs = [post.get("output") for post in posts if isinstance(post, dict)]
            parts = [part for output in outputs if isinstance(output, list) for part in output]
            for part in parts:
                on_part(part)
            if not parts or not to_the_end or time.monotonic() > end:
                return

    def status(self, job_id: str, **options: Any) -> JobStatus:
        """The state of a job; `options` are for `Connection.ask`."""
        answer = self._ask("GET", "/status", job_id, **options)
        return read_status(answer, self.connection.name)

    def cancel(self, job_id: str) -> None:
        """Stop a job, queued or running."""
        self._ask("POST", "/cancel", job_id, until=time.monotonic() + _CANCEL_S)

    def health(self, **options: Any) -> dict[str, Any]:
        return _object(self._ask("GET", "/health", **options), self.connection.name)

    def _ask(self, method: str, path: str, job_id: str | None = None, **options: Any) -> Answer:
        """Ask the endpoint, about a job when there is a `job_id`, and raise what a refusal means.

        Raises:
            JobGone: Runpod doesn't know the job. It keeps results for half an hour only.
            NotAllowed, WrongTarget, Unreachable: as remote/errors.py has them.
        """
        if job_id is not None:
            path += f"/{quote(job_id, safe='')}"
        answer = self.connection.ask(method, path, **options)
        if job_id is not None and answer.status in {404, 410}:
            raise JobGone(
                f"Runpod knows no job {job_id}: it keeps a result for 30 minutes, and an "
                "unfinished job for 24 hours; send it again"
            )
        if answer.status in {401, 403}:
            raise NotAllowed(
                f"Runpod refuses the key ({answer.describe()}); set RUNPOD_API_KEY to one that may "
                f"use endpoint {self.endpoint_id}"
            )
        if answer.status == 404:
            raise WrongTarget(f"Runpod knows no endpoint {self.endpoint_id}; check its id")
        if answer.status >= 300:
            raise Unreachable(f"{self.connection.name} answered {answer.describe()}")
        return answer

    def _cancelled(self, job_id: str, on_progress: OnProgress) -> str:
        """Cancel a job and return a sentence about the outcome."""
        on_progress(Progress("cancelling", job_id=job_id))
        try:
            self.cancel(job_id)
        except RemoteError as error:
            return f"job {job_id} may go on, it could not be cancelled: {error}"
        return f"job {job_id} is cancelled"

    def _workers(self) -> str:
        """The endpoint's workers in words, empty when `/health` doesn't report them."""
        try:
            workers = self.health(until=time.monotonic()).get("workers")
        except RemoteError:
            return ""
        if not isinstance(workers, dict):
            return ""
        counts = [f"{n} {kind}" for kind, n in workers.items() if n]
        return f"workers: {', '.join(counts) or 'none'}"


@dataclass(frozen=True)
class SdkApi:
    """`python handler.py --rp_serve_api`. It can't stop a job, and reports no progress or parts."""

    connection: Connection

    def run(
        self,
        job: dict[str, Any],
        on_progress: OnProgress,
        until: float,
        _on_part: OnPart | None = None,
    ) -> Any:
        answer = _post_job(
            self.connection,
            "/runsync",
            {"input": job},
            on_progress,
            until,
            "the SDK's local API can't cancel a job: the worker finishes it, answer or not",
        )
        if answer.status == 404:
            raise WrongTarget(
                f"{self.connection.name} is not the SDK's local API, it has no /runsync; leave out "
                "--server to have it asked what it is"
            )
        return read_status(answer, self.connection.name).result()

    def health(self) -> dict[str, Any]:
        health = _object(self.connection.ask("GET", "/health"), self.connection.name)
        return {"server": "the Runpod SDK's local API", **health}


@dataclass(frozen=True)
class HttpDoor:
    """`python start.py`. It does one job at a time, and cancels it when the connection closes."""

    connection: Connection

    def run(
        self,
        job: dict[str, Any],
        on_progress: OnProgress,
        until: float,
        on_part: OnPart | None = None,
        on_file: OnFile | None = None,
    ) -> Any:
        answer = _post_job(
            self.connection,
            f"/{job['action']}",
            {name: value for name, value in job.items() if name != "action"},
            on_progress,
            until,
            "the job is cancelled: the connection is closed",
            on_part,
            on_file,
        )
        if answer.status in {401, 403}:
            raise NotAllowed(f"{answer.describe()}; set SECRET to the worker's")
        if answer.status == 200 and answer.body is not None:
            return answer.body
        if isinstance(answer.body, dict) and isinstance(answer.body.get("error"), str):
            raise failure(answer.body["error"])
        raise Unreachable(f"{self.connection.name} answered {answer.describe()}")

    def health(self) -> dict[str, Any]:
        return _object(self.connection.ask("GET", "/health"), self.connection.name)


Server = RunpodEndpoint | SdkApi | HttpDoor


def find_server(connection: Connection) -> SdkApi | HttpDoor:
    """Ask a URL which of the two kinds of server it is.

    Raises:
        WrongTarget: it is neither.
        Unreachable: nothing answers.
    """
    health = connection.ask("GET", "/health", is_repeatable=False)
    reported = health.body if isinstance(health.body, dict) else {}
    if "token_limit" in reported:
        return HttpDoor(connection)
    openapi = connection.ask("GET", "/openapi.json", is_repeatable=False)
    paths = openapi.body.get("paths") if isinstance(openapi.body, dict) else None
    if isinstance(paths, dict) and "/runsync" in paths:
        return SdkApi(connection)
    if "workers" in reported:  # as the SDK's API has them, but without its document
        raise WrongTarget(f"{connection.name} is Runpod's; name the endpoint instead of a URL")
    raise WrongTarget(
        f"{connection.name} answers, but neither as start.py nor as the SDK's local API does "
        f"(GET /health: {health.describe()}); check the URL, or say which it is with --server"
    )


def _post_job(
    connection: Connection,
    path: str,
    body: dict[str, Any],
    on_progress: OnProgress,
    until: float,
    after_interrupt: str,
    on_part: OnPart | None = None,
    on_file: OnFile | None = None,
) -> Answer:
    """Post a job to a server that answers when the job is done.

    Raises:
        Interrupted: Ctrl-C; `after_interrupt` says what happens to the job.
    """
    try:
        on_progress(Progress("running"))
        return connection.ask(
            "POST",
            path,
            body,
            is_repeatable=False,
            read_timeout_s=None if until == FOREVER else max(until - time.monotonic(), 0.1),
            until=until,
            most_bytes=OUTPUT_BYTES,
            interruption=interruption(),
            on_retry=lambda sentence: on_progress(Progress("waiting", sentence)),
            on_part=on_part,
            on_file=on_file,
        )
    except Unreachable as error:
        if time.monotonic() < until:
            raise
        raise JobTimedOut(f"the job was not done within the time limit ({error})") from None
    except KeyboardInterrupt:
        raise Interrupted(after_interrupt) from None


def _object(answer: Answer, name: str) -> dict[str, Any]:
    if answer.status != 200 or not isinstance(answer.body, dict):
        raise Unreachable(f"{name} answered {answer.describe()}")
    return answer.body
