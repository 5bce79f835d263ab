"""Do the jobs of a batch: several in flight, each kept in the batch's folder as soon as it is done.

Each job in flight has a thread with a connection of its own, which sends it, waits for it and keeps
what came. Runpod's queue shares the jobs between its workers. The thread that called `run` gets
every change as an `Event`.

The id of a job on Runpod is kept before its output is waited for. Whoever runs the batch again
collects what was sent, and sends what Runpod no longer has.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from remote.batch.folder import BatchFolder, Record, Summary
from remote.batch.prompt_files import PromptRow
from remote.client import DEADLINE_AFTER_S, Client, until_after
from remote.download import download
from remote.errors import (
    Interrupted,
    JobCancelled,
    JobEnded,
    JobGone,
    JobTimedOut,
    NotAllowed,
    NotTheGraph,
    RemoteError,
    Unreachable,
    WorkerFailure,
    WrongTarget,
)
from remote.graphs.document import GraphDocument
from remote.jobs import OnProgress, Progress
from remote.servers import RunpodEndpoint
from schemas import UploadReceipt

JOBS_ON_RUNPOD = 16
_MOST_ATTEMPTS = 3
# A worker that has to end fails its job with this code, and says that it may be sent again.
_SHUT_DOWN = "cancelled"
_MOST_UNREACHED = 3
_LOOK_S = 0.2
# The time that threads have to notice that they shall stop, and to cancel their jobs.
_STOPPING_S = 15.0
_ASKING_S = 5.0
_LONGEST_TEXT = 2_000
# The code of a row's error that is not the worker's: the first that it is an instance of.
_CODES: tuple[tuple[type[RemoteError], str], ...] = (
    (JobCancelled, "job_cancelled"),
    (JobTimedOut, "job_timed_out"),
    (JobGone, "job_gone"),
    (JobEnded, "output_lost"),
    (RemoteError, "no_graph"),
)


@dataclass(frozen=True)
class Event:
    """A row has changed. What is `open` is to be done by the next run; `error` says why."""

    row: PromptRow
    state: Literal["running", "done", "failed", "open"]
    progress: Progress | None = None
    record: Record | None = None
    error: BaseException | None = None


OnEvent = Callable[[Event], None]


class _Stopped(Exception):
    """The batch is being stopped."""


class Batch:
    """Rows that are being done. What becomes of each is in the folder.

    Args:
        connect: makes a client; each job in flight has one of its own.
        known: records of earlier runs, by row. A job that was sent is collected.
        in_flight: jobs that are sent and not done.
        timeout_s: for each row, from the moment at which its job is sent.
    """

    def __init__(
        self,
        folder: BatchFolder,
        connect: Callable[[], Client],
        known: Mapping[str, Record],
        *,
        in_flight: int,
        timeout_s: float | None = None,
    ) -> None:
        self._folder = folder
        self._connect = connect
        self._known = dict(known)
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._rows: queue.SimpleQueue[PromptRow] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._stops = threading.Event()
        self._cancels = False  # the jobs in flight, when the batch stops
        self._unreached = 0  # rows one after the other to which nothing usable came
        self._counting = threading.Lock()

    def run(self, rows: Iterable[PromptRow], on_event: OnEvent) -> None:
        """Do these rows.

        Raises:
            Unreachable, NotAllowed, WrongTarget, OSError: the batch can't go on. Jobs on Runpod go
                on, and their outputs are there for the next run.
            Interrupted: Ctrl-C. The jobs in flight were cancelled, where the server can do that.
        """
        todo = {row.name: row for row in rows}
        for row in todo.values():
            self._rows.put(row)
        clients = [self._connect() for _ in range(min(self._in_flight, len(todo)))]
        # They end with the process: one that waits for start.py's answer can't be woken.
        threads = [
            threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients
        ]
        for thread in threads:
            thread.start()
        try:
            self._follow(threads, on_event)
        except KeyboardInterrupt:
            self._cancels = True
            raise Interrupted(
                "stopped; the jobs in flight are cancelled where that is possible, and the same "
                "command does what is missing"
            ) from None
        finally:
            self._stops.set()
            end = time.monotonic() + _STOPPING_S
            for thread, client in zip(threads, clients, strict=True):
                if isinstance(client.server, RunpodEndpoint):
                    thread.join(max(end - time.monotonic(), 0.0))

    def _follow(self, threads: list[threading.Thread], on_event: OnEvent) -> None:
        """Hand the threads' events on until they are over, or one of them can't go on."""
        last_error: BaseException | None = None
        while any(thread.is_alive() for thread in threads) or not self._events.empty():
            try:
                event = self._events.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._stops.is_set():
                    break
                continue
            if isinstance(event, BaseException):
                raise event
            on_event(event)
            last_error = event.error or last_error
        if last_error is not None:
            raise last_error

    def _work(self, client: Client) -> None:
        """Do rows until there are none: a thread's whole life."""
        try:
            with client:
                while not self._stops.is_set():
                    self._do(client, self._rows.get_nowait())
        except (queue.Empty, _Stopped):
            pass
        except BaseException as error:
            self._events.put(error)

    def _do(self, client: Client, row: PromptRow) -> None:
        """Do a row to its end, and say what became of it.

        Raises:
            NotAllowed, WrongTarget, OSError: no row can be done.
        """
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            started = time.monotonic()
            try:
                output, job_id = self._output(client, row)
                record = self._kept(row, output, job_id)
            except Unreachable as error:
                self._count(reached=False)
                self._events.put(Event(row, "open", error=error))
                return
            except (WorkerFailure, JobEnded, NotTheGraph) as error:
                code = _code(error)
                if attempt < _MOST_ATTEMPTS and (isinstance(error, JobGone) or code == _SHUT_DOWN):
                    continue
                record = Record(state="failed", code=code, error=_sentence(error))
            self._count(reached=True)
            record = record.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
            self._folder.write(row.name, record)
            state: Literal["done", "failed"] = "failed" if record.state == "failed" else "done"
            self._events.put(Event(row, state, record=record))
            return

    def _count(self, *, reached: bool) -> None:
        """Stop the batch where the server is gone, not one row's answer odd."""
        with self._counting:
            self._unreached = 0 if reached else self._unreached + 1
            if self._unreached >= _MOST_UNREACHED:
                self._stops.set()

    def _output(self, client: Client, row: PromptRow) -> tuple[Any, str | None]:
        """The output of a row's job, and the job's id where it has one."""
        server = client.server
        if not isinstance(server, RunpodEndpoint):
            return client.run(row.job, self._reporter(row), self._timeout_s), None
        known = self._known.pop(row.name, None)
        if known is not None and known.state == "sent" and known.server == server.endpoint_id:
            # What Runpod no longer has, and what an earlier run cancelled, is sent again.
            with contextlib.suppress(JobGone, JobCancelled):
                return self._collected(server, row, known.job_id or "")
        job = row.job
        if self._timeout_s is not None:
            job = {**job, "deadline": time.time() + self._timeout_s + DEADLINE_AFTER_S}
        job_id = server.submit(job, self._reporter(row), until_after(self._timeout_s))
        sent = Record(state="sent", job_id=job_id, server=server.endpoint_id)
        self._folder.write(row.name, sent)
        return self._collected(server, row, job_id)

    def _collected(
        self, server: RunpodEndpoint, row: PromptRow, job_id: str
    ) -> tuple[Any, str | None]:
        """Wait for a job. It is stopped when its time is over, or the caller wants no more."""
        try:
            output = server.wait(job_id, self._reporter(row), until_after(self._timeout_s))
        except JobTimedOut:
            with contextlib.suppress(RemoteError):
                server.cancel(job_id)
            raise
        except _Stopped:
            # The output of a job that is over is collected by the next run.
            with contextlib.suppress(RemoteError):
                if self._cancels and not server.status(job_id, until=_soon()).is_over:
                    server.cancel(job_id)
                    self._folder.forget(row.name)
            raise
        return output, job_id

    def _reporter(self, row: PromptRow) -> OnProgress:
        """What is called in a thread while it waits."""

        def report(progress: Progress) -> None:
            if self._stops.is_set():
                raise _Stopped
            self._events.put(Event(row, "running", progress))

        return report

    def _kept(self, row: PromptRow, output: Any, job_id: str | None) -> Record:
        """Put a graph into the batch's folder; its record.

        Raises:
            NotTheGraph: the output is none, or what was uploaded isn't.
        """
        try:
            if isinstance(output, dict) and "sha256" in output:
                return self._downloaded(row, UploadReceipt.model_validate(output), job_id)
            summary = Summary.of(GraphDocument.model_validate(output))
            self._folder.write_graph(row.name, output)
        except (ValidationError, orjson.JSONEncodeError, RecursionError):
            raise NotTheGraph(
                "what came is no graph that this version of the client knows"
            ) from None
        return Record(state="done", job_id=job_id, summary=summary)

    def _downloaded(self, row: PromptRow, receipt: UploadReceipt, job_id: str | None) -> Record:
        if row.download_url is None:
            counts = Summary(
                nodes=receipt.num_nodes, links=receipt.num_links, tokens=receipt.num_tokens
            )
            url = receipt.url[:_LONGEST_TEXT]
            return Record(state="done", job_id=job_id, url=url, summary=counts)
        path = self._folder.graph_path(row.name)
        try:
            download(receipt, row.download_url, path, on_progress=self._reporter(row))
            summary = Summary.of(GraphDocument.model_validate_json(path.read_bytes()))
        except (NotAllowed, WrongTarget) as error:  # of this row's URL, not of the batch's server
            raise NotTheGraph(str(error)) from None
        except ValidationError:
            path.unlink()
            raise
        return Record(state="done", job_id=job_id, summary=summary)


def _soon() -> float:
    return time.monotonic() + _ASKING_S


def _code(error: RemoteError) -> str:
    """A stable word for what went wrong with a row; the worker's own where the job failed."""
    if isinstance(error, WorkerFailure):
        return error.code
    return next(code for kind, code in _CODES if isinstance(error, kind))


def _sentence(error: RemoteError) -> str:
    words = error.message if isinstance(error, WorkerFailure) else str(error)
    return words[:_LONGEST_TEXT]
