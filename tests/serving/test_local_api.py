"""The SDK's local API as the worker serves it: who may call, and which port it finds taken."""

import asyncio
import contextlib
import json
import os
import socket
import threading

import pytest
import requests
import uvicorn

from serving import local_api, local_api_ports
from serving.http_api import MAX_BODY_BYTES
from tests.support.demo_worker import demo_settings
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port, run

SECRET = "correct horse battery staple"
JOB = {"input": {"action": "none"}}


async def echo(job):
    await asyncio.sleep(0)
    return {"echo": job["input"]}


@contextlib.contextmanager
def serving(monkeypatch, **settings):
    """The API's address, with a handler that repeats its input."""
    servers = []

    class Kept(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Kept)
    port = free_port()
    listeners = local_api_ports.listen(["--rp_serve_api", "--rp_api_port", str(port)])
    api = local_api.LocalApi(
        {"handler": echo}, settings=demo_settings(**settings), listeners=listeners
    )
    thread = threading.Thread(target=api.start_uvicorn)
    thread.start()
    until(lambda: servers and servers[0].started)
    try:
        yield f"http://localhost:{port}"
    finally:
        servers[0].should_exit = True
        thread.join()


PATHS = ["/runsync", "/run", "/status/a", "/stream/a", "/health", "/openapi.json", "/", "/none"]


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_no_path_is_answered_to_a_page_of_another_host(monkeypatch, headers):
    with serving(monkeypatch) as url:
        assert requests.post(f"{url}/runsync", json=JOB, timeout=60).status_code == 200
        assert requests.get(f"{url}/health", timeout=60).json()["jobs"]["completed"] == 1
        for path in PATHS:
            for method in ("GET", "POST", "OPTIONS"):
                answer = requests.request(method, url + path, json=JOB, headers=headers, timeout=60)
                assert answer.status_code == 403
                assert answer.json()["error"].startswith("forbidden: ")
        assert requests.get(f"{url}/health", timeout=60).json()["jobs"]["completed"] == 1


def test_with_a_secret_any_host_is_served_that_sends_it(monkeypatch):
    with serving(monkeypatch, secret=SECRET) as url:

        def status(path="/runsync", **headers):
            sent = {"Host": "worker.example.org", **headers}
            return requests.post(url + path, json=JOB, headers=sent, timeout=60).status_code

        assert all(status(path) == 401 for path in PATHS)
        assert status(**{"x-secret-key": "wrong"}) == status(Authorization="Bearer wrong") == 403
        assert status(Authorization=f"Basic {SECRET}") == 401
        assert status(**{"x-secret-key": SECRET}) == status(Authorization=f"Bearer {SECRET}") == 200


def test_a_head_and_a_body_above_the_bounds_are_refused(monkeypatch):
    with serving(monkeypatch) as url:
        large = {"input": {"text": "a" * MAX_BODY_BYTES}}
        answer = requests.post(f"{url}/runsync", json=large, timeout=60)
        assert answer.status_code == 413
        assert answer.json()["error"].startswith("body_too_large: ")
        pieces = iter([json.dumps(large).encode(), b" "])
        answer = requests.post(f"{url}/runsync", data=pieces, timeout=60)
        assert answer.status_code == 413
        headers = {f"x-{i}": "a" for i in range(200)}
        assert requests.get(f"{url}/health", headers=headers, timeout=60).status_code == 431


def handler(*arguments):
    hidden = ("SECRET", "MODEL_ID", "TRANSCODER_SET", "PORT")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    arguments = ("--rp_serve_api", *arguments)
    done = run(ROOT / "handler.py", *arguments, env={**kept, "DEVICE": "cpu"}, timeout=LONGEST_S)
    assert "Traceback" not in done.stderr
    assert "imported the libraries" not in done.stderr
    assert done.returncode != 0
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_named_before_the_model_loads(host):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        line = handler("--rp_api_port", taken, "--rp_api_host", host)
    assert line.startswith(f"start: --rp_api_port={taken}: ")
    assert "in use" in line


def test_arguments_that_can_not_be_listened_on_are_named_before_the_model_loads():
    assert "--rp_api_concurrency=2" in handler("--rp_api_concurrency", "2")
    assert "--rp_api_host=203.0.113.7" in handler("--rp_api_host", "203.0.113.7")
    assert "--rp_api_port" in handler("--rp_api_port", "http")
    assert "--rp_api_port=65536" in handler("--rp_api_port", "65536")
