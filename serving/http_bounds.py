"""How much a client may send, hold and wait over HTTP, before its path or secret is looked at.

uvicorn's parser in C (httptools) keeps headers of any size and number, and uvicorn waits for ever
for the rest of a request. So every server of the worker uses the parser h11, which bounds the bytes
of a head, and the protocol here, which bounds the rest.
"""

import asyncio
import itertools
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import orjson
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# A browser's requests have some 20 headers of 2 kB together; a proxy adds a few.
MAX_HEAD_BYTES = 32_768
MAX_HEADERS = 100
# A process may have 1,024 files open by default, and the model's files are among them.
MAX_CONNECTIONS = 500

# Seconds; a test may set them lower.
HEAD_S = 10.0  # from the connection, or the last answer, to the end of the next request's head
BODY_S = 60.0  # from the head to the end of the body: 2 MB at 35 kB a second
STALLED_S = 60.0  # without taking what is written, of which at most 64 kB wait
LINGER_S = 1.0  # for a client to read why it is refused while it still sends

# h11 looks at its bound when it has read all that it is given, which may be 256 kB at once.
_PIECE_BYTES = 16_384


def config(app: "ASGIApp", **options: Any) -> uvicorn.Config:
    """uvicorn's configuration of an application, with the bounds."""
    return uvicorn.Config(
        _with_bounded_heads(app),
        http=BoundedProtocol,
        ws="none",  # its protocol has other bounds, and no path speaks it
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,  # logs.py's
        access_log=False,  # serving/http_api.py logs a line for each job
        server_header=False,
        **options,
    )


def _with_bounded_heads(app: "ASGIApp") -> "ASGIApp":
    async def bounded(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            size = sum(len(name) + len(value) for name, value in headers)
            size += len(scope["raw_path"]) + len(scope["query_string"])
            if size > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS:
                await JSONResponse({"error": _HEAD_TOO_LARGE}, 431)(scope, receive, send)
                return
        await app(scope, receive, send)

    return bounded


_HEAD_TOO_LARGE = (
    f"head_too_large: a request's line and headers may have {MAX_HEAD_BYTES} bytes, and there may "
    f"be {MAX_HEADERS} headers"
)
# A clock that no two clients share: those of one turn of the event loop have the same time.
_clock = itertools.count()

_TOO_SLOW = "request_timeout: the request did not come in time; send it again, faster"
_UNREADABLE = "invalid_input: this is no HTTP/1.1 request that can be read"


class BoundedProtocol(H11Protocol):
    """A connection, which waits for its client, is at work, or is being closed.

    Whatever waits may be closed to make room for a new client, the longest first. A request is at
    work from its head to its answer, unless its client doesn't take the answer.
    """

    # When, by `_clock`, the client began to be waited for; None while at work.
    _since: int | None = None
    _waits_for: str | None = None  # "head" or "body"
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), _PIECE_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            super().data_received(data[begin : begin + _PIECE_BYTES])

    def handle_events(self) -> None:
        super().handle_events()
        if not self._is_refused:
            self._look()

    def on_response_complete(self) -> None:
        self._look()  # before the next request, which may have come already, is begun
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._since = next(_clock)
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
        self._since = next(_clock) if self._waits_for == "head" else None

    def _should_upgrade(self) -> bool:
        return False  # and no line in the log for each request that asks for it

    def _look(self) -> None:
        """Set what the client is waited for. Bytes that don't end it give it no more time."""
        if self.cycle is None or self.cycle.response_complete:
            wanted: str | None = "head"
        else:
            wanted = "body" if self.cycle.more_body else None
        if wanted == self._waits_for:
            return
        self._waits_for = wanted
        self._since = next(_clock) if wanted == "head" else None
        self._expect({"head": HEAD_S, "body": BODY_S, None: None}[wanted])

    def _expect(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._out_of_time)

    def _out_of_time(self) -> None:
        if self._is_refused:
            self.transport.abort()
        else:
            self._refuse(408, _TOO_SLOW)

    def _make_room(self) -> None:
        """Close the connection that has waited longest: this one, if all others are at work."""
        connections: set[Any] = self.connections
        waiting = [connection for connection in connections if connection._since is not None]
        longest = min(waiting, key=lambda connection: connection._since)
        connections.discard(longest)
        longest.transport.abort()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are too few
        """Answer what h11 can't read. uvicorn calls it while it handles h11's error."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status, _HEAD_TOO_LARGE if status == 431 else _UNREADABLE)

    def _refuse(self, status: int, message: str) -> None:
        """Answer, if nothing is answered yet, and close the connection."""
        self._is_refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = orjson.dumps({"error": message})
        # While idle it is no request that is answered: the last one's may have been another kind.
        is_under_way = self.conn.our_state is h11.SEND_RESPONSE
        is_head = is_under_way and self.cycle.scope["method"] == "HEAD"
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        reason = HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, headers=headers, reason=reason)
        data = h11.Data(data=b"" if is_head else body)
        for event in (response, data, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        # To close while the client still sends would reset the connection, and lose the answer.
        self.transport.write_eof()
        self.flow.resume_reading()
        self._since = next(_clock)
        self._expect(LINGER_S)
