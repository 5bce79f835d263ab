"""Where the HTTP door listens, and what it answers while the model loads.

The sockets are opened first, so a port that is taken is found before the model is loaded. Loading
holds Python's interpreter lock for seconds at a time (torch's libraries, large tokenizers), and no
thread of this process could answer then. So a child process answers until the model is loaded. It
stops accepting before this process starts, and a client that comes in between waits for a moment.
"""

import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http_api import MAX_BODY_BYTES, RETRY_AFTER_S
from settings import Settings

LOOPBACK = "127.0.0.1"
PING = "/ping"  # Runpod's load balancer asks it

_CLIENT_S = 5.0  # without a byte from a client
_STOPPING_S = 1  # for the child to answer the clients that it has accepted
_NOT_FOUND = {"error": f"not_found: there is only GET {PING} on this port"}
_LOADING = {"error": "loading: the model is being loaded; send the request again"}


def listening_host(settings: Settings) -> str:
    """SERVER_HOST, or loopback where no secret is set."""
    host = settings.server_host
    if settings.secret is not None or _is_loopback(host):
        return host
    return LOOPBACK


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> list[socket.socket]:
    """Open the door's port, and PORT_HEALTH where that is another one.

    Raises:
        SystemExit: with one line that says why they can't be opened.
    """
    if settings.port is not None and settings.secret is None:
        raise SystemExit(
            "start: PORT is set and SECRET is not: a load balancer lets others in, so set SECRET "
            "to what they have to send as x-secret-key, or unset PORT"
        )
    ports = {"SERVER_PORT" if settings.port is None else "PORT": settings.listening_port}
    if settings.port_health not in {None, settings.listening_port}:
        ports["PORT_HEALTH"] = settings.port_health
    return [_open(setting, port, listening_host(settings)) for setting, port in ports.items()]


def _open(setting: str, port: int, host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SystemExit(
            f"start: {setting}={port}: can't listen there on SERVER_HOST={host}: {error.strerror}; "
            "end what has the port, or set another"
        ) from None


@contextmanager
def answering_while_loading(listeners: Sequence[socket.socket]) -> Iterator[None]:
    """Answer `/ping` with 204 and the rest with 503 as long as the context lasts.

    To be entered before the process has other threads: it forks.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        _answer_until_closed(listeners, reading)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def _answer_until_closed(listeners: Sequence[socket.socket], reading: int) -> None:
    """Answer until the parent closes its end of a pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, also from a terminal
    servers = [_LoadingServer(listener, i > 0) for i, listener in enumerate(listeners)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    os.read(reading, 1)
    signal.alarm(_STOPPING_S)  # ends the process in any case
    for server in servers:
        server.shutdown()
    for server in servers:
        server.server_close()


class _LoadingServer(ThreadingHTTPServer):
    """Answers on a socket that is open. `server_close` waits for the clients it has accepted."""

    daemon_threads = False

    def __init__(self, listener: socket.socket, only_pings: bool) -> None:
        super().__init__(("", 0), _LoadingHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.only_pings = only_pings

    def handle_error(self, *_: Any) -> None:
        """Write nothing about a client that has gone."""


class _LoadingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_S
    server: _LoadingServer

    def do_GET(self) -> None:
        headers, body = {"Connection": "close"}, b""
        if self.path.partition("?")[0] == PING:
            self.send_response(204)
        elif self.server.only_pings:
            self.send_response(404)
            body = orjson.dumps(_NOT_FOUND)
        else:
            self.send_response(503)
            headers["Retry-After"] = str(RETRY_AFTER_S)
            body = orjson.dumps(_LOADING)
        if body:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        # A connection closed with a body unread would be reset, and the answer might be lost.
        self.connection.shutdown(socket.SHUT_WR)
        unread = MAX_BODY_BYTES
        while unread > 0 and (piece := self.rfile.read1(65536)):
            unread -= len(piece)

    do_HEAD = do_POST = do_GET  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Write nothing: a request's line may hold what is private."""


def only_pings(app: ASGIApp, port: int) -> ASGIApp:
    """The application, of which `port` answers `/ping` alone."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["server"][1] == port and scope["path"] != PING:
            await JSONResponse(_NOT_FOUND, 404)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return limited
