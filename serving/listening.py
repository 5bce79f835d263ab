"""Where the HTTP door listens, and what it answers while the model loads.

The sockets are opened first, so a port that is taken is found before the model is loaded. Loading
holds Python's interpreter lock for seconds at a time (torch's libraries, large tokenizers), and no
thread of this process could answer then. So a child process answers until the model is loaded. It
stops accepting before this process starts, and a client that comes in between waits for a moment.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from serving import http_bounds
from serving.http_api import MAX_BODY_BYTES, RETRY_AFTER_S
from serving.loopback_only import LoopbackOnly, is_loopback
from settings import Settings

LOOPBACK = "127.0.0.1"
PING = "/ping"  # Runpod's load balancer asks it

_STOPPING_S = 1.0  # for the child to answer the clients that it has accepted
_NOT_FOUND = {"error": f"not_found: there is only GET {PING} on this port"}
_LOADING = {"error": "loading: the model is being loaded; send the request again"}


def listening_host(settings: Settings) -> str:
    """SERVER_HOST, or loopback where no secret is set."""
    host = settings.server_host
    if settings.secret is not None or (host != "localhost" and is_loopback(host)):
        return host
    return LOOPBACK


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
    host = listening_host(settings)
    return [
        open_socket(f"{setting}={port}", host, port, f"SERVER_HOST={host}")
        for setting, port in ports.items()
    ]


def open_socket(setting: str, host: str, port: int, host_setting: str) -> socket.socket:
    """Listen on an address.

    Args:
        setting: what set the port, with its value, for the message; `host_setting` the host.

    Raises:
        SystemExit: with one line that says why it can't be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SystemExit(
            f"start: {setting}: can't listen there on {host_setting}: {reason}; "
            "end what has the port, or set another"
        ) from None


@contextmanager
def answering_while_loading(
    settings: Settings, listeners: Sequence[socket.socket]
) -> Iterator[None]:
    """Answer `/ping` with 204 and the rest with 503 as long as the context lasts.

    To be entered before the process has other threads: it forks.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            asyncio.run(_answer_until_closed(settings, listeners, reading))
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(child, 0)


async def _answer_until_closed(
    settings: Settings, listeners: Sequence[socket.socket], reading: int
) -> None:
    """Answer until the parent closes its end of a pipe, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, also from a terminal
    logging.disable()  # a line in the log is about what the worker does
    config = http_bounds.config(front(_answer_loading, settings))
    config.load()
    state = ServerState()
    protocol = partial(http_bounds.BoundedProtocol, config=config, server_state=state, app_state={})
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(protocol, sock=listener) for listener in listeners]
    parent_is_ready = asyncio.Event()
    loop.add_reader(reading, parent_is_ready.set)
    await parent_is_ready.wait()
    for server in servers:
        server.close()
    # A client that was accepted just before has its connection a few turns of the loop later.
    for _ in range(10):
        await asyncio.sleep(0)
    end = loop.time() + _STOPPING_S
    while state.connections and loop.time() < end:
        await asyncio.sleep(0.01)


async def _answer_loading(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    request = Request(scope, receive)
    response: Response = JSONResponse(_LOADING, 503, {"Retry-After": str(RETRY_AFTER_S)})
    if scope["path"] == PING:
        response = Response(status_code=204)
    else:
        # A connection closed with a body unread would be reset, and the answer might be lost.
        await _read(request)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


async def _read(request: Request) -> None:
    unread = MAX_BODY_BYTES
    try:
        async for piece in request.stream():
            unread -= len(piece)
            if unread < 0:
                return
    except ClientDisconnect:
        pass


def front(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application as it is served: on PORT_HEALTH `/ping` alone, and to whom it may be."""
    if settings.port_health not in {None, settings.listening_port}:
        app = _only_pings(app, settings.port_health)
    if settings.secret is None:
        app = LoopbackOnly(app)
    return app


def _only_pings(app: ASGIApp, port: int | None) -> ASGIApp:
    """The application, of which `port` answers `/ping` alone."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["server"][1] == port and scope["path"] != PING:
            await JSONResponse(_NOT_FOUND, 404)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return limited
