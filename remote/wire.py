"""How much a server may send and how long it may take, counted where the bytes arrive.

A timeout of a socket is between two bytes, so a server that sends a byte now and then holds its
caller for ever; a length is what the server says. Both are bounded here, for the head of an answer
as for its body.
"""

import contextlib
import http.client
import io
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from remote.interruption import Interruption
from remote.retries import FOREVER
from remote.unpacking import TooLarge

# From the first byte on, an answer must come at this speed on average, after a slow beginning.
_LEAST_BYTES_PER_S = 50_000
_SLOW_BEGINNING_S = 60.0
HEAD_BYTES = 1_000_000  # room for the head of an answer, and for the framing of its body


@dataclass(frozen=True)
class Limits:
    """What an answer may be.

    `until` is the `time.monotonic()` at which reading stops. An answer that `lasts` comes at the
    speed of the job, as a stream of events does. `interruption` ends the wait for it.
    """

    bytes: int
    until: float = FOREVER
    lasts: bool = False
    interruption: Interruption | None = None


_limits: ContextVar[Limits] = ContextVar("limits")


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Answers that begin inside are held to these limits, also where they are read later.

    A session's answer that has more raises `TooLarge`, one that takes too long TimeoutError, which
    urllib3 words as its own.
    """
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def new_session(headers: Mapping[str, str]) -> requests.Session:
    """A session whose requests are made inside `limited`.

    It detects a server that disappeared, follows no redirects, and reads no ~/.netrc.
    """
    encoded = {name: value.strip().encode() for name, value in headers.items()}

    def authenticate(request: Any) -> Any:
        request.headers.update(encoded)
        return request

    session = _Session()
    session.auth = authenticate  # without one, requests looks into ~/.netrc
    session.headers["Accept-Encoding"] = "gzip"  # what remote/unpacking.py unpacks
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No redirect is requests' business: it would unpack the body, and read ~/.netrc."""


class _Reader(io.RawIOBase):
    """What a connection's socket receives, within limits."""

    def __init__(self, connection: socket.socket) -> None:
        self._limits = _limits.get()
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._quiet_s = connection.gettimeout()  # urllib3 has set it for this answer
        self._received = 0
        self._began = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until() - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer takes too long")
        quiet_s = FOREVER if self._quiet_s is None else self._quiet_s
        wait_s = min(quiet_s, left_s)
        self._connection.settimeout(None if wait_s == FOREVER else wait_s)
        interruption = self._limits.interruption
        with interruption.of_reading(self._connection) if interruption else nullcontext():
            count = self._raw.readinto(buffer)
        if count:
            self._began = self._began or time.monotonic()
            self._received += count
        if self._received > self._limits.bytes + HEAD_BYTES:
            raise TooLarge(f"more than {self._limits.bytes} bytes")
        with contextlib.suppress(OSError):  # the connection may be closed by now
            self._connection.settimeout(self._quiet_s)
        return count

    def _until(self) -> float:
        if self._limits.lasts or not self._began:
            return self._limits.until
        allowed_s = _SLOW_BEGINNING_S + self._received / _LEAST_BYTES_PER_S
        return min(self._limits.until, self._began + allowed_s)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Reader(sock))


class _Http(HTTPConnection):
    response_class = _Response


class _Https(HTTPSConnection):
    response_class = _Response


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


_POOLS = {"http": _HttpPool, "https": _HttpsPool}


class _Adapter(HTTPAdapter):
    """Limits answers, and sends TCP keep-alives while a job runs to notice a dead connection."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [*HTTPConnection.default_socket_options]
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # not on every system
                options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        super().init_poolmanager(*args, socket_options=options, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager
