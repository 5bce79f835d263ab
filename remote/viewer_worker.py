"""A client's worker as the viewer's page asks it."""

import threading
from collections.abc import Mapping
from typing import Any

import schemas
from errors import WorkerError
from remote.client import Client
from remote.errors import Interrupted, RemoteError
from remote.jobs import Progress
from remote.servers import RunpodEndpoint
from viewer.worker_door import NoAnswer, Report, Worker

# A Runpod endpoint may have to start a worker and load a large model first.
_LONGEST_S = 1800.0


def worker_of(client: Client) -> Worker:
    """The worker behind a client, whose errors come as sentences."""
    server = client.server
    name = server.connection.name
    if isinstance(server, RunpodEndpoint):
        name = f"endpoint {server.endpoint_id}"

    def run(job: dict[str, Any], report: Report, stopped: threading.Event) -> Mapping[str, Any]:
        def look() -> None:
            if stopped.is_set():
                raise KeyboardInterrupt  # at which the client stops the job, as at Ctrl-C

        def on_progress(progress: Progress) -> None:
            look()
            share = "" if progress.share is None else f"{progress.share:.0%}"
            words = (progress.stage, share, progress.message)
            report(f"{name}: {' '.join(filter(None, words))}")

        def on_part(part: schemas.SteerPart) -> None:
            look()
            report(f"{name}: generating, position {part.position}")

        try:
            steers = job["action"] == "steer"
            return client.run(job, on_progress, _LONGEST_S, on_part if steers else None)
        except (RemoteError, WorkerError, Interrupted) as error:
            raise NoAnswer(str(error)) from None
        except KeyboardInterrupt:
            raise NoAnswer("stopped") from None

    def transcoders() -> str | None:
        try:
            return client.transcoders()
        except RemoteError as error:
            raise NoAnswer(str(error)) from None

    return Worker(name, run, transcoders)
