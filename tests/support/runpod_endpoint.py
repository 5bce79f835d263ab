"""Runpod's side that callers see of an endpoint.

It has `/run`, `/runsync`, `/status`, `/stream`, `/cancel` and `/health`.

The jobs are those of a `ControlPlane`, which a real worker takes: what `/status` shows is what the
worker posted. Answers have the shapes of Runpod's documentation; results are kept until `forget`.
"""

import contextlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.control_plane import WORKER_ID, ControlPlane

ENDPOINT_ID = "abc123endpoint"
USER_KEY = "key-of-the-account"
# Seconds that `/runsync` waits for the job's end, unless `?wait=` says how many milliseconds.
RUNSYNC_WAIT_S = 90.0


class RunpodEndpoint:
    """The endpoint's HTTP server, in this process. `fail` plans trouble for the next requests."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.requests: list[tuple[str, str]] = []  # route and job id, as they came
        self.submitted: list[dict[str, Any]] = []  # bodies of /run
        self.cancelled: list[str] = []
        self.timed_out: list[str] = []
        self._known: dict[str, float] = {}  # job id -> when it was submitted
        self._faults: dict[str, deque[tuple[int | str, dict[str, str]]]] = defaultdict(deque)
        self._ends = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                endpoint._answer(self)

            def do_POST(self) -> None:
                endpoint._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "RunpodEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v2"

    def environment(self) -> dict[str, str]:
        """The variables by which `client.py` comes here."""
        return {"RUNPOD_ENDPOINT_BASE_URL": self.base_url, "RUNPOD_API_KEY": USER_KEY}

    def fail(self, route: str, *faults: int | str, **headers: str) -> None:
        """Answer the next requests to a route with these statuses, "drop", "hang" or "page"."""
        self._faults[route].extend((fault, headers) for fault in faults)

    def forget(self, job_id: str) -> None:
        """Keep a job's result no longer."""
        del self._known[job_id]

    def finished(self) -> list[str]:
        """The jobs that were submitted here and have a result."""
        return [job_id for job_id in list(self._known) if self.plane.jobs[job_id].results]

    def count(self, route: str) -> int:
        return sum(asked == route for asked, _ in self.requests)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        url = urlsplit(request.path)
        _, _, endpoint_id, route, *rest = url.path.split("/")
        self.requests.append((route, rest[0] if rest else ""))
        if self._faults[route]:
            self._trouble(request, *self._faults[route].popleft())
        elif request.headers["Authorization"] != f"Bearer {USER_KEY}":
            _send(request, 401, {"error": "Unauthorized"})
        elif endpoint_id != ENDPOINT_ID:
            _send(request, 404, {"error": "endpoint not found"})
        else:
            _send(request, *self._respond(request.command, route, rest, body, url.query))

    def _trouble(
        self, request: BaseHTTPRequestHandler, fault: int | str, headers: dict[str, str]
    ) -> None:
        if fault == "drop":
            linger = struct.pack("ii", 1, 0)  # a reset instead of an orderly end
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.close_connection = True
        elif fault == "hang":
            self._ends.wait()
            request.close_connection = True
        elif fault == "page":
            _send(request, 200, "<html>something in between</html>")
        else:
            assert isinstance(fault, int)
            _send(request, fault, "<html>something in between</html>", headers)

    def _respond(
        self, method: str, route: str, rest: list[str], body: bytes, query: str
    ) -> tuple[int, dict[str, Any]]:
        if (method, route) in {("POST", "run"), ("POST", "runsync")}:
            job = json.loads(body)
            job_id = self.plane.submit(job["input"])
            self._known[job_id] = time.monotonic()
            self.submitted.append(job)  # last: a test that sees it here may forget it
            if route == "runsync":
                self._wait(job_id, query)
                return 200, self._status(job_id)
            return 200, {"id": job_id, "status": "IN_QUEUE"}
        if (method, route) == ("GET", "health"):
            return 200, self._health()
        job_id = rest[0]
        if job_id not in self._known:
            return 404, {"status": 404, "title": "Not Found", "detail": "job not found"}
        if (method, route) == ("POST", "cancel"):
            self._cancel(job_id)
            return 200, {"id": job_id, "status": "CANCELLED"}
        if (method, route) == ("GET", "stream"):
            return 200, self._stream(job_id)
        assert (method, route) == ("GET", "status")
        return 200, self._status(job_id)

    def _wait(self, job_id: str, query: str) -> None:
        """Wait for a job's end as `/runsync` does, from 1 to 300 s."""
        [wait_ms] = parse_qs(query).get("wait", [str(RUNSYNC_WAIT_S * 1000)])
        wait_s = min(max(float(wait_ms) / 1000, 1.0), 300.0)
        with contextlib.suppress(AssertionError):  # that it isn't done by then
            self.plane.result(job_id, wait_s)

    def _stream(self, job_id: str) -> dict[str, Any]:
        """What the worker has streamed since the last call, as the SDK's `Job.stream` reads it."""
        unread = self.plane.jobs[job_id].unread
        posts = [unread.pop(0) for _ in range(len(unread))]
        return {
            "status": self._status(job_id)["status"],
            "stream": [{"output": output} for output in posts],
        }

    def _status(self, job_id: str) -> dict[str, Any]:
        status: dict[str, Any] = {"id": job_id, "status": "IN_QUEUE"}
        record = self.plane.jobs[job_id]
        ran = {"delayTime": 31, "executionTime": 42, "workerId": WORKER_ID}
        if job_id in self.cancelled:
            return {**status, "status": "CANCELLED"}
        if job_id in self.timed_out:
            return {**status, "status": "TIMED_OUT"}
        if record.results:
            [result] = record.results
            state = "FAILED" if "error" in result else "COMPLETED"
            return {**status, **ran, "status": state, **result}
        if job_id in self.plane.untaken():
            return status
        update = {"output": record.progress[-1]} if record.progress else {}
        return {**status, "status": "IN_PROGRESS", "delayTime": 31, **update}

    def _cancel(self, job_id: str) -> None:
        if not self.plane.jobs[job_id].results:
            self.cancelled.append(job_id)
            if not self.plane.withdraw(job_id):
                self.plane.stop(job_id)

    def _health(self) -> dict[str, Any]:
        waiting = len(self.plane.untaken())
        jobs = {"completed": 0, "failed": 0, "inProgress": 0, "inQueue": waiting, "retried": 0}
        workers = {"idle": 0, "initializing": 1, "ready": 0, "running": 0, "throttled": 0}
        return {"jobs": jobs, "workers": workers}


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: dict[str, Any] | str,
    headers: dict[str, str] | None = None,
) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
