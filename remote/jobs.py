"""A job as its caller sees it: its progress, its state, its output or error."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from remote.connection import Answer
from remote.errors import JobCancelled, JobEnded, JobTimedOut, Unreachable, WorkerFailure

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]

_FAILURE = re.compile(r"([a-z][a-z_]{0,60}): (.+)", re.DOTALL)
# What a server says of a job is cut here, so that one answer doesn't fill the terminal.
_LONGEST_ID = 200
_LONGEST_STAGE = 60
_LONGEST_MESSAGE = 2_000


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    `stage` is a word or two: the worker's own, or what the client does. `share` (0 to 1) is of the
    whole job, None when the worker doesn't report it. `job_id` is set once Runpod has the job.
    """

    stage: str
    message: str = ""
    share: float | None = None
    job_id: str | None = None


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """An `OnProgress` for a caller who wants no progress."""


@dataclass(frozen=True)
class JobStatus:
    """What `/status` and `/runsync` answer about a job. Times are in milliseconds."""

    id: str
    state: State
    output: Any = None  # while in progress, the worker's last update
    error: Any = None
    delay_ms: float | None = None  # in the queue
    execution_ms: float | None = None  # on the worker

    @property
    def progress(self) -> Progress:
        """The worker's last update, or the state in words when there is none."""
        update = self.output if self.state == "IN_PROGRESS" else None
        if not isinstance(update, dict):
            waits = self.state == "IN_QUEUE"
            return Progress("in the queue" if waits else "running", job_id=self.id)
        stage = _text(update.get("stage"), "running")[:_LONGEST_STAGE]
        message = _text(update.get("message"), "")[:_LONGEST_MESSAGE]
        share = update.get("progress")
        return Progress(
            stage,
            message if message != stage else "",
            min(max(float(share), 0.0), 1.0) if isinstance(share, int | float) else None,
            self.id,
        )

    @property
    def is_over(self) -> bool:
        return self.state not in {"IN_QUEUE", "IN_PROGRESS"}

    def result(self) -> Any:
        """The output of a job that is over.

        Raises:
            WorkerFailure: it failed.
            JobCancelled, JobTimedOut: it was stopped.
            JobEnded: it succeeded, but its output was lost.
        """
        if self.state == "FAILED":
            raise failure(self.error)
        if self.state == "CANCELLED":
            raise JobCancelled(f"job {self.id} was cancelled")
        if self.state == "TIMED_OUT":
            raise JobTimedOut(
                f"Runpod gave up job {self.id} at a time limit; raise the endpoint's execution "
                "timeout, or ask for less with max_feature_nodes"
            )
        if self.output is None:
            raise JobEnded(
                f"job {self.id} is done, but its output was lost on the way; send it again, a "
                "graph with signed_url"
            )
        return self.output


def read_status(answer: Answer, name: str) -> JobStatus:
    """Read the answer of `/status` or `/runsync`.

    Raises:
        Unreachable: the answer has another form; `name` is the server's.
    """
    body = answer.body if isinstance(answer.body, dict) else {}
    if answer.status != 200 or body.get("status") not in get_args(State) or not body.get("id"):
        raise Unreachable(f"{name} answered {answer.describe()}, which tells nothing of the job")
    job_id = body["id"]
    if not isinstance(job_id, str) or not job_id.isprintable() or len(job_id) > _LONGEST_ID:
        raise Unreachable(f"{name} answered with an id that no job has")
    times = (_milliseconds(body.get(field)) for field in ("delayTime", "executionTime"))
    return JobStatus(job_id, body["status"], body.get("output"), body.get("error"), *times)


def _text(value: object, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise


def _milliseconds(value: object) -> float | None:
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else None


def failure(error: Any) -> WorkerFailure:
    """A job's error as an exception.

    The worker's errors are `code: sentence`. Runpod reports some others in other forms, such as
    the death of a worker.
    """
    try:
        text = error if isinstance(error, str) else orjson.dumps(error).decode()
    except orjson.JSONEncodeError:
        text = "the reason is nested too deeply to be shown"
    found = _FAILURE.fullmatch(text)
    if found:
        return WorkerFailure(found[1], found[2][:_LONGEST_MESSAGE])
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = None
    if isinstance(fields, dict):
        text = _text(fields.get("error_message") or fields.get("message"), text)
    text = text if text not in {"null", ""} else "no reason is given"
    return WorkerFailure("failed", text[:_LONGEST_MESSAGE])
