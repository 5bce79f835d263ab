"""What a client without the secret costs the HTTP door, with its bounds and without.

    python -m benchmarks.http_load

The demo model behind start.py's own server, beside the same application behind uvicorn as it comes
(httptools, no bounds), each in a process of its own, on loopback. First what honest requests take,
then what a hostile client gains: memory of the server for endless headers, connections that stay
open, and how long one is kept for a byte a second.
"""

import argparse
import contextlib
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from benchmarks.measure import cpu_seconds, status_bytes

SECRET = "secret-of-the-benchmark"
KINDS = ("plain", "bounded")
PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
N_REQUESTS, N_ROUNDS = 2_000, 5
HEADER_BYTES, N_HEADERS = 50_000_000, 1_000_000
N_SILENT = 900
SILENT_S, SLOW_S = 15.0, 30.0


def serve(kind: str) -> None:
    """Serve the demo model until the process is killed; its port is printed."""
    import uvicorn

    import start
    from model_loader import get_model
    from serving.http_api import create_app
    from settings import Settings

    settings = Settings(_env_file=None, device="cpu", secret=SECRET)
    loaded = get_model(settings)
    server = start.server(settings, loaded)
    if kind == "plain":
        app = create_app(settings, loaded)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    server.run([listener])


class Server:
    """A server in a process of its own."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http_load", "--serve", kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        with self.connect() as connection:
            answered(connection, PING)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def cpu_s(self) -> float:
        return cpu_seconds(self.process.pid)

    def bytes(self, field: str) -> int:
        return status_bytes(field, self.process.pid)


@contextlib.contextmanager
def running(kind: str) -> Iterator[Server]:
    server = Server(kind)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def answered(connection: socket.socket, request: bytes) -> bytes:
    """Send a request and read its answer, which has a Content-Length."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    wanted = int(found[1]) if found else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head


def post(path: str, body: bytes) -> bytes:
    return (
        f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nx-secret-key: {SECRET}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def cost(server: Server, request: bytes, n: int) -> tuple[float, float]:
    """Milliseconds of a request on one connection, and of the server's CPU."""
    with server.connect() as connection:
        began, cpu = time.perf_counter(), server.cpu_s()
        for _ in range(n):
            answered(connection, request)
        return (
            (time.perf_counter() - began) * 1e3 / n,
            (server.cpu_s() - cpu) * 1e3 / n,
        )


def flood(server: Server, piece: bytes, n: int) -> tuple[int, int]:
    """Bytes that the server takes of endless headers, and what its memory grew by at its peak."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # forget the peak so far
    before, sent = server.bytes("VmRSS"), 0
    with server.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: a")
        for _ in range(n):
            connection.sendall(piece)
            sent += len(piece)
    return sent, server.bytes("VmHWM") - before


def still_open(server: Server) -> tuple[int, bool]:
    """Of N_SILENT clients those that are connected SILENT_S later, and whether a new one is
    answered."""
    with contextlib.ExitStack() as clients:
        selector = clients.enter_context(selectors.DefaultSelector())
        for _ in range(N_SILENT):
            client = clients.enter_context(server.connect())
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ)
        is_answered = b" 200 " in answered(clients.enter_context(server.connect()), PING)
        open_clients, end = N_SILENT, time.monotonic() + SILENT_S
        while time.monotonic() < end:
            for key, _ in selector.select(1):
                with contextlib.suppress(BlockingIOError):
                    try:
                        ended = key.fileobj.recv(65536) == b""  # type: ignore[union-attr]
                    except ConnectionError:
                        ended = True
                    if ended:
                        selector.unregister(key.fileobj)
                        open_clients -= 1
        return open_clients, is_answered


def kept_s(server: Server) -> float:
    """Seconds for which a client is kept that sends a byte a second, SLOW_S at most."""
    began = time.monotonic()
    with server.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: ")
        while time.monotonic() - began < SLOW_S:
            client.sendall(b"a")
            time.sleep(1)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    kind = parser.parse_args().serve
    if kind is not None:
        serve(kind)
        return
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(running(kind)) for kind in KINDS}
        print("| | " + " | ".join(KINDS) + " |\n| --- | ---: | ---: |")

        def row(name: str, measured: Callable[[Server], str]) -> None:
            print(f"| {name} | " + " | ".join(map(measured, servers.values())) + " |", flush=True)

        requests = {
            "ping": (PING, N_REQUESTS),
            "parse-chat-prompt": (post("parse-chat-prompt", b'{"prompt": "a b"}'), N_REQUESTS // 4),
            "a body of 1.9 MB, refused": (post("steer", b'{"a": "' + b"a" * 1_900_000 + b'"}'), 20),
        }
        for name, (request, n) in requests.items():
            costs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            for _ in range(N_ROUNDS):
                for kind, server in servers.items():
                    costs[kind].append(cost(server, request, n))
            cells = (
                f"{median(c[0] for c in of):.2f} ms ({median(c[1] for c in of):.2f} of CPU)"
                for of in costs.values()
            )
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        floods = {
            "one header": (b"a" * 100_000, HEADER_BYTES // 100_000),
            "small headers": (b"\r\na:" * 10_000, N_HEADERS // 10_000),
        }
        for name, (piece, n) in floods.items():

            def taken(server: Server, piece: bytes = piece, n: int = n) -> str:
                sent, grown = flood(server, piece, n)
                return f"{sent / 1e6:.0f} MB sent, memory + {grown / 1e6:.0f} MB"

            row(f"{name}, {len(piece) * n / 1e6:.0f} MB", taken)

        def silent(server: Server) -> str:
            left, is_answered = still_open(server)
            return f"{left}, a new client is {'' if is_answered else 'not '}answered"

        row(f"{N_SILENT} silent clients, open after {SILENT_S:.0f} s", silent)
        row(f"a byte a second, kept (at most {SLOW_S:.0f} s)", lambda s: f"{kept_s(s):.0f} s")


if __name__ == "__main__":
    main()
