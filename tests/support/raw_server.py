"""A server at the level of the socket: it records each request as it came and follows a script.

A script is a list of acts, one a connection; the last one is repeated. An act gets the connection
and the request that is being recorded, and does with them what a store or a network might do.
"""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Recorded:
    """A request as it came over the wire."""

    server_closes: threading.Event
    head: bytes = b""  # with the empty line that ends it
    body: bytes = b""

    @property
    def request_line(self):
        return self.head.split(b"\r\n")[0].decode()

    @property
    def headers(self):
        """(name, value) of each header, in order, in the case they came in."""
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [tuple(line.split(": ", 1)) for line in lines]

    @property
    def length(self):
        return next(int(value) for name, value in self.headers if name.lower() == "content-length")


Act = Callable[[socket.socket, Recorded], None]


@dataclass
class RawServer:
    script: list[Act]
    tls: ssl.SSLContext | None = None
    requests: list[Recorded] = field(default_factory=list)

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closes = threading.Event()
        self._threads = []
        self._open = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def port(self):
        return self._listener.getsockname()[1]

    def url(self, query="?X-Amz-Signature=0", *, host="127.0.0.1"):
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host}:{self.port}/bucket/graph.json{query}"

    def close(self):
        self._closes.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()  # after which no connection comes in that would be left open
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # An answer leaves at once, also where the connection is reset right after it.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            act = self.script[min(number, len(self.script) - 1)]
            number += 1
            request = Recorded(self._closes)
            self.requests.append(request)
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, act, request))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection, act, request):
        with contextlib.suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                read_head(connection, request)
                act(connection, request)


def read_head(connection, request):
    while b"\r\n\r\n" not in request.head:
        received = connection.recv(65536)
        if not received:
            return
        request.head += received
    request.head, end, request.body = request.head.partition(b"\r\n\r\n")
    request.head += end


def read_body(connection, request, limit=None):
    wanted = request.length if limit is None else limit
    body = bytearray(request.body)
    while len(body) < wanted:
        received = connection.recv(1 << 20)
        if not received:
            break
        body += received
    request.body = bytes(body)


def answer(status, body=b"", **headers):
    """Read the whole request, then answer."""

    def act(connection, request):
        read_body(connection, request)
        connection.sendall(_response(status, body, headers))

    return act


def answer_at_once(status, body=b""):
    """Answer after the head and hang up, the body unread: what stores do with what they refuse."""

    def act(connection, request):
        connection.sendall(_response(status, body, {}))

    return act


def reset_in_mid_body(connection, request):
    read_body(connection, request, limit=request.length // 2)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_without_an_answer(connection, request):
    read_body(connection, request)


def stop_reading(connection, request):
    request.server_closes.wait()


def never_answer(connection, request):
    read_body(connection, request)
    request.server_closes.wait()


def answer_a_byte_at_a_time(connection, request):
    read_body(connection, request)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not request.server_closes.wait(0.05):
        connection.sendall(b"a")


def talk_nonsense(connection, request):
    read_body(connection, request)
    connection.sendall(b"220 smtp.example.org ESMTP\r\n")


def error_xml(code, message="no"):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{message}</Message><RequestId>1</RequestId></Error>"
    ).encode()


def _response(status, body, headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if status == 204 else body)
