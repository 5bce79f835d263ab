"""What the documents' commands talk to, on this machine: `start.py`, a stand-in of Runpod with a
worker behind it, and an S3-compatible store."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.support.control_plane import ControlPlane, running_worker
from tests.support.handler_thread import answering
from tests.support.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, running_store
from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY, RunpodEndpoint
from tools import runpod_rest
from tools.runpod_rest import RunpodRest

ROOT = Path(__file__).parent.parent
DOOR_PORT = 5004


@dataclass
class Services:
    """Where the documents' hosts are here, and the variables that their commands read."""

    hosts: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def localized(self, text: str) -> str:
        for host, local in self.hosts.items():
            text = text.replace(host, local)
        return text

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}


@contextlib.contextmanager
def all_services(directory: Path) -> Iterator[Services]:
    """Everything that the documents talk to; two processes load the demo model."""
    services = Services()
    with (
        _http_door(directory),
        ControlPlane() as plane,
        running_worker(plane, directory, UPLOAD_ALLOWED_HOSTS="127.0.0.1"),
        runpod_api(services, plane),
        running_store(directory / "store") as store,
    ):
        # A load balancer forwards paths as they are; the door has no secret here.
        services.hosts["https://$ENDPOINT_ID.api.runpod.ai"] = f"http://127.0.0.1:{DOOR_PORT}"
        services.variables |= {
            "WORKER_SECRET": "of-the-worker",
            "AWS_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "BUCKET": BUCKET,
        }
        yield services


@contextlib.contextmanager
def _http_door(directory: Path) -> Iterator[None]:
    """`start.py` with the demo model, on the port that the documents name."""
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", DOOR_PORT)).close()
        raise SystemExit(f"port {DOOR_PORT} is taken: end what listens there")
    with (directory / "door.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "start.py"],
            cwd=ROOT,
            env={**os.environ, "SERVER_PORT": str(DOOR_PORT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _answers(DOOR_PORT):
            if process.poll() is not None:
                raise SystemExit((directory / "door.log").read_text())
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/check-busy", timeout=60).status_code < 500
    return False


@contextlib.contextmanager
def runpod_api(services: Services, plane: ControlPlane) -> Iterator[None]:
    """Runpod's APIs: jobs go to the control plane's worker, volumes and endpoints nowhere."""
    with answering(RunpodRest) as url, RunpodEndpoint(plane) as endpoint:
        services.hosts |= {"https://api.runpod.ai/v2": endpoint.base_url, runpod_rest.HOST: url}
        services.variables |= {
            "ENDPOINT_ID": ENDPOINT_ID,
            "RUNPOD_API_KEY": USER_KEY,
            "IMAGE": "registry.example/attribution-worker:latest",
            "NETWORK_VOLUME_ID": "volume",
        }
        yield
