"""The HTTP door with the demo model, running in this process, and requests to it."""

import socket
from contextlib import contextmanager

import requests

import schemas
import start
from model_loader import get_model
from serving import http_docs
from tests.support.demo_worker import demo_settings
from tests.support.polling import until
from tests.support.uvicorn_thread import in_a_thread

ACTIONS = list(schemas.REQUESTS)
FORWARD = http_docs.EXAMPLES["forward-pass"]
GRAPH = http_docs.EXAMPLES["generate-graph"]
PARSE = http_docs.EXAMPLES["parse-chat-prompt"]
STEER = http_docs.EXAMPLES["steer"]
SECRET = "correct horse battery staple"


@contextmanager
def serving(**settings):
    """A server in a thread of this process, on a free port of loopback."""
    chosen = demo_settings(**settings)
    server = start.server(chosen, get_model(chosen))
    with in_a_thread(server) as server.url:
        yield server


def post(server, action, body, **headers):
    return requests.post(f"{server.url}/{action}", json=body, headers=headers, timeout=60)


def get(server, path):
    return requests.get(server.url + path, timeout=60)


def until_idle(server):
    """Wait until no job is under way, as after a client that went, and the counts are right."""
    until(lambda: not get(server, "/check-busy").json()["busy"])


def assert_error(response, status, code):
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(f"{code}: ")
    assert response.headers["Content-Type"] == "application/json"


@contextmanager
def raw_request(server, action, body, length=None, **headers):
    """A connection on which a request has been sent and no answer read."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /{action} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        yield connection
