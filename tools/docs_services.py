"""What the documents' commands talk to, on this machine: the HTTP door, a stand-in of Runpod with a
worker behind it, and an S3-compatible store."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from tests.support.control_plane import ControlPlane, running_worker
from tests.support.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, running_store
from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY, RunpodEndpoint

ROOT = Path(__file__).parent.parent
DOOR_PORT = 5004

# https://rest.runpod.io/v1/openapi.json: TemplateCreateInput and EndpointCreateInput
TEMPLATE_FIELDS = {
    *("category", "containerDiskInGb", "containerRegistryAuthId", "dockerEntrypoint"),
    *("dockerStartCmd", "env", "imageName", "isPublic", "isServerless", "name", "ports", "readme"),
    *("volumeInGb", "volumeMountPath"),
}
ENDPOINT_FIELDS = {
    *("allowedCudaVersions", "computeType", "cpuFlavorIds", "dataCenterIds", "executionTimeoutMs"),
    *("flashboot", "gpuCount", "gpuTypeIds", "idleTimeout", "name", "networkVolumeId"),
    *("scalerType", "scalerValue", "templateId", "vcpuCount", "workersMax", "workersMin"),
}
REQUIRED = {"templates": {"name", "imageName"}, "endpoints": {"templateId"}}
FIELDS = {"templates": TEMPLATE_FIELDS, "endpoints": ENDPOINT_FIELDS}


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
        services.variables |= {
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


class Endpoint(RunpodEndpoint):
    """The endpoint's API with `/runsync`."""

    def _respond(
        self, method: str, route: str, rest: list[str], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        if (method, route) != ("POST", "runsync"):
            return super()._respond(method, route, rest, body)
        _, job = super()._respond("POST", "run", rest, body)
        self.plane.result(job["id"], timeout_s=90)
        return 200, self._status(job["id"])


@contextlib.contextmanager
def runpod_api(services: Services, plane: ControlPlane) -> Iterator[None]:
    """Runpod's API: jobs go to the control plane's worker, templates and endpoints nowhere."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _AccountApi)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with Endpoint(plane) as endpoint:
        services.hosts |= {
            "https://api.runpod.ai/v2": endpoint.base_url,
            "https://rest.runpod.io": f"http://127.0.0.1:{server.server_port}",
        }
        services.variables |= {
            "ENDPOINT_ID": ENDPOINT_ID,
            "RUNPOD_API_KEY": USER_KEY,
            "IMAGE": "registry.example/attribution-worker:latest",
            "NETWORK_VOLUME_ID": "volume",
        }
        yield
    server.shutdown()
    thread.join()
    server.server_close()


class _AccountApi(BaseHTTPRequestHandler):
    """Templates and endpoints: taken if each field is one that the API has."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        kind = self.path.removeprefix("/v1/")
        if self.headers["Authorization"] != f"Bearer {USER_KEY}":
            return self._send(401, {"error": "wrong or no Authorization"})
        if kind not in FIELDS:
            return self._send(404, {"error": f"no {self.path}"})
        wrong = (set(body) - FIELDS[kind]) | (REQUIRED[kind] - set(body))
        if wrong:
            return self._send(400, {"error": f"unknown or missing: {', '.join(sorted(wrong))}"})
        return self._send(201, {"id": f"{kind}-id", **body})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what the documents' commands print is enough."""

    def _send(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
