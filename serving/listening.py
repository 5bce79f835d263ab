"""Where the HTTP door listens, and what it answers while the model loads.

The sockets are opened first, so a port that is taken is found before the model is loaded. Loading
holds Python's interpreter lock for seconds at a time (torch's libraries, large tokenizers), and no
thread of this process could answer then. So a child process answers until the model is loaded. It
stops accepting before this process starts, and a client that comes in between waits for a moment.
The clients that the child has accepted are its own to the end: it answers each, however late it
asks, while this process serves the others.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import cast

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

from serving import http_bounds
from serving.http_api import RETRY_AFTER_S
from serving.loopback_only import LoopbackOnly, is_loopback
from settings import Settings

LOOPBACK = "127.0.0.1"
PING = "/ping"  # Runpod's load balancer asks it

BACKLOG = 2048  # uvicorn's: clients that wait to be accepted, as while the model is taken over

_STOPPING_S = 1.0  # for the clients of a worker that ends before it has loaded
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
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
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
    reading, telling = os.pipe()  # the child reads a byte when the model is loaded
    hearing, stopping = os.pipe()  # it closes its end when it accepts no more
    child = os.fork()
    if child == 0:
        try:
            os.close(telling)
            os.close(hearing)
            asyncio.run(_answer_until_told(settings, listeners, reading, stopping))
        finally:
            os._exit(0)
    os.close(reading)
    os.close(stopping)
    # What the child reads when this process ends, however that comes about, is the pipe's end.
    ending = threading.Thread(target=_wait_for, args=(child, telling), daemon=True)
    try:
        yield
        with suppress(BrokenPipeError):  # of a child that was killed
            os.write(telling, b"1")
    except BaseException:
        os.close(telling)
        os.waitpid(child, 0)
        raise
    else:
        os.read(hearing, 1)
        ending.start()
    finally:
        os.close(hearing)


def _wait_for(child: int, telling: int) -> None:
    os.waitpid(child, 0)
    os.close(telling)


async def _answer_until_told(
    settings: Settings, listeners: Sequence[socket.socket], reading: int, stopping: int
) -> None:
    """Accept clients until the parent is ready or ends, and answer all that were accepted.

    Once the parent is ready nobody waits for this process, so a client has the time that it has
    at any server of the worker's (serving/http_bounds.py), and the last is gone after that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, also from a terminal
    logging.disable()  # a line in the log is about what the worker does
    parent = _Parent(reading)
    config = http_bounds.config(front(partial(_answer_loading, parent), settings))
    config.app = _read_and_closed(cast(ASGIApp, config.app))
    config.load()
    state = ServerState()
    protocol = partial(http_bounds.BoundedProtocol, config=config, server_state=state, app_state={})
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(protocol, sock=listener, backlog=BACKLOG) for listener in listeners
    ]
    await parent.told.wait()
    for listener in listeners:
        loop.remove_reader(listener.fileno())
    # A client that was accepted just before has its connection a few turns of the loop later, for
    # which its server must still be open: asyncio drops it otherwise, with its request unread.
    for _ in range(10):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
    os.close(stopping)
    end = None
    while state.connections and (end is None or loop.time() < end):
        if parent.is_gone and end is None:
            end = loop.time() + _STOPPING_S
        await asyncio.sleep(0.01)


class _Parent:
    """What the child knows of its parent, which has the other end of a pipe."""

    def __init__(self, reading: int) -> None:
        self.told = asyncio.Event()
        self.is_ready = False
        self.is_gone = False  # it has ended, or its load has failed
        self._reading = reading
        asyncio.get_running_loop().add_reader(reading, self._read)

    def _read(self) -> None:
        if os.read(self._reading, 1):
            self.is_ready = True
        else:
            self.is_gone = True
            asyncio.get_running_loop().remove_reader(self._reading)
        self.told.set()


async def _answer_loading(parent: _Parent, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    response: Response = JSONResponse(_LOADING, 503, {"Retry-After": str(RETRY_AFTER_S)})
    if scope["path"] == PING:
        response = Response(status_code=200 if parent.is_ready else 204)
    await response(scope, receive, send)


def _read_and_closed(app: ASGIApp) -> ASGIApp:
    """The application, which reads each request to its end and closes the connection after it.

    A client that keeps its connection would stay with the child when the parent is ready. And a
    connection that is closed with a body unread is reset, and the answer may be lost.
    """

    async def closed(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if scope["type"] != "http":
            return
        with suppress(ClientDisconnect):
            async for _ in Request(scope, receive).stream():
                pass
        await app(scope, receive, send_last)

    return closed


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
