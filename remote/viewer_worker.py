"""A client's worker as the viewer's page asks it."""

import threading
from collections.abc import Mapping
from typing import Any

import schemas
from errors import WorkerError
from remote.client import Client
from remote.errors import Interrupted, RemoteError
from remote.interruption import Interruption
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
        def on_progress(progress: Progress) -> None:
            share = "" if progress.share is None else f"{progress.share:.0%}"
            words = (progress.stage, share, progress.message)
            report(f"{name}: {' '.join(filter(None, words))}")

        def on_part(part: schemas.SteerPart) -> None:
            report(f"{name}: generating, position {part.position}")

        if stopped.is_set():
            raise NoAnswer("stopped")
        interruption = Interruption()
        threading.Thread(target=_press, args=(interruption, stopped), daemon=True).start()
        try:
            with interruption.effective():
                steers = job["action"] == "steer"
                return client.run(job, on_progress, _LONGEST_S, on_part if steers else None)
        except (RemoteError, WorkerError, Interrupted) as error:
            raise NoAnswer(str(error)) from None

    def transcoders() -> str | None:
        try:
            return client.transcoders()
        except RemoteError as error:
            raise NoAnswer(str(error)) from None

    return Worker(name, run, transcoders)


def _press(interruption: Interruption, stopped: threading.Event) -> None:
    """Interrupt a wait when its question is stopped, as each is at its end at the latest."""
    stopped.wait()
    interruption.press()
