"""A worker somewhere else, used from here: on Runpod, at the SDK's local API, or over HTTP.

    with Client.to_url("http://localhost:5004") as client:
        graph = client.generate_graph("Michael Jordan joue au")

`client.py` is the same on the command line. Nothing here needs torch.
"""

from remote.client import Client
from remote.connection import Patience
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
from remote.jobs import JobStatus, Progress

__all__ = [
    "Client",
    "Interrupted",
    "JobCancelled",
    "JobEnded",
    "JobGone",
    "JobStatus",
    "JobTimedOut",
    "NotAllowed",
    "NotTheGraph",
    "Patience",
    "Progress",
    "RemoteError",
    "Unreachable",
    "WorkerFailure",
    "WrongTarget",
    "download",
]
