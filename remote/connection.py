"""HTTP requests to a worker or a store, with keys and signed URLs kept out of every message.

Redirects of a worker are not followed, so that a key goes to no other host. The messages of
requests and urllib3 quote the URL, so `_reason` words each failure itself. What a server sends is
bounded twice: on the wire, by remote/wire.py, and unpacked, here.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from requests.exceptions import ConnectTimeout, ProxyError, SSLError, Timeout
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import Retry

from remote.errors import NobodyThere, Unreachable, WrongTarget
from remote.interruption import Interruption
from remote.retries import FOREVER, OnRetry, Patience, TemporaryFailure
from remote.unpacking import Damaged, TooLarge, bounded, unpacked
from remote.wire import Limits, limited, new_session

_CONNECT_TIMEOUT_S = 10.0
_TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}

# Runpod carries outputs of up to 20 MB. `start.py` sends graphs of any size: a million links have
# 67 MB.
ANSWER_BYTES = 50_000_000
OUTPUT_BYTES = 500_000_000
# The file of a graph before pruning, of up to 35,000 nodes. It goes to the disk as it comes.
FILE_BYTES = 5_000_000_000
_ERROR_BYTES = 1_000_000
_PIECE_BYTES = 65_536
_LONGEST_WORDS = 300


OnPart = Callable[[Any], None]  # called with each part of a streamed steer, as JSON
# Called with the name and the pieces of a file that comes; its result is the answer's body.
OnFile = Callable[[str, Iterator[bytes]], Any]

_FILE_TYPE = "application/octet-stream"
_NAME = re.compile(r'filename="([^"]*)"')


@dataclass(frozen=True)
class Answer:
    """A status and the JSON that came with it; None when it wasn't JSON.

    Of a file, what an `OnFile` made of it.
    """

    status: int
    body: Any

    def describe(self) -> str:
        """The status, and an error's sentence in any of the forms that servers use."""
        fields = self.body if isinstance(self.body, dict) else {}
        for name in ("error", "detail", "message", "title"):
            if isinstance(fields.get(name), str):
                return f"{self.status}: {fields[name][:_LONGEST_WORDS]}"
        return str(self.status)


class Connection:
    """Requests to one server, each with the headers that authenticate the caller."""

    def __init__(self, url: str, headers: Mapping[str, str], patience: Patience) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise WrongTarget(f"{url[:100]!r} is no http(s) URL; give one such as http://host:5004")
        self.url = url.rstrip("/")
        self.name = parts.netloc.rpartition("@")[2]
        self._patience = patience
        self._session = new_session(headers)

    def close(self) -> None:
        self._session.close()

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        is_repeatable: bool = True,
        read_timeout_s: float | None = 30.0,
        until: float = FOREVER,
        most_bytes: int = ANSWER_BYTES,
        interruption: Interruption | None = None,
        on_retry: OnRetry | None = None,
        on_part: OnPart | None = None,
        on_file: OnFile | None = None,
    ) -> Answer:
        """Make a request and return the answer, whatever its status.

        A repeatable request is made again after a lost connection, a timeout, 408, 425, 429 or
        5xx. Any other, such as one that starts a job, is made again only when the server says that
        it did nothing: 429, or 503 with a Retry-After.

        Args:
            read_timeout_s: seconds that may pass without a byte; None for no limit.
            until: `time.monotonic()` after which no attempt begins. An attempt that is under way
                ends then too, but has `read_timeout_s` in any case.
            most_bytes: of the answer, as it comes and unpacked; of a file `FILE_BYTES`.
            interruption: what may end the wait for the answer.
            on_part: called with the parts of a stream of events, where the server sends one.
            on_file: called with a file, where the server sends one.

        Raises:
            Unreachable: no usable answer came within the patience.
        """

        most_on_the_wire = most_bytes if on_file is None else FILE_BYTES

        def attempt() -> Answer:
            least_s = FOREVER if read_timeout_s is None else read_timeout_s
            with send(
                self._session,
                method,
                self.url + path,
                name=self.name,
                is_repeatable=is_repeatable,
                read_timeout_s=read_timeout_s,
                limits=Limits(
                    most_on_the_wire,
                    max(until, time.monotonic() + least_s),
                    lasts=on_part is not None,
                    interruption=interruption,
                ),
                data=None if body is None else orjson.dumps(body),
                headers=None if on_part is None else {"Accept": "text/event-stream"},
            ) as response:
                most = most_bytes if response.status_code == 200 else _ERROR_BYTES
                with _reading(self.name, is_repeatable=is_repeatable):
                    if on_part is not None and _is_event_stream(response):
                        return _last_event(response, on_part, most, self.name)
                    if on_file is not None and _is_file(response):
                        pieces = pieces_of(response, most=FILE_BYTES)
                        return Answer(response.status_code, on_file(_name(response), pieces))
                    return Answer(response.status_code, _json(response, most))

        return self._patience.retry(attempt, self.name, until=until, on_retry=on_retry)


def send(
    session: requests.Session,
    method: str,
    url: str,
    *,
    name: str,
    is_repeatable: bool,
    read_timeout_s: float | None,
    limits: Limits,
    **options: Any,
) -> requests.Response:
    """Make one attempt at a request. The response is to be read and closed by the caller.

    Args:
        name: the server's, for the errors.
        options: for `requests.Session.request`.

    Raises:
        TemporaryFailure: the request may be made again.
        NobodyThere, Unreachable: there was no answer, and the request must not be made again.
        WrongTarget: the URL is not valid.
    """
    timeout = (_CONNECT_TIMEOUT_S, read_timeout_s)
    try:
        with limited(limits):
            response = session.request(method, url, timeout=timeout, stream=True, **options)
    except TooLarge as error:
        raise Unreachable(f"{name}: its answer has {error}") from None
    except requests.RequestException as error:
        if isinstance(error, ValueError):
            problem = type(error).__name__
            raise WrongTarget(f"{name}: its URL can't be used ({problem})") from None
        if is_repeatable and not isinstance(error, SSLError):
            raise TemporaryFailure(_reason(error)) from None
        kind = NobodyThere if isinstance(_cause(error), NewConnectionError) else Unreachable
        raise kind(f"{name}: {_reason(error)}") from None
    retry_after = response.headers.get("Retry-After")
    status = response.status_code
    is_busy = status == 429 or (status == 503 and retry_after is not None)
    if is_busy or (is_repeatable and status in _TEMPORARY_STATUSES):
        with response, _reading(name, is_repeatable=is_repeatable or is_busy):
            words = Answer(status, _json(response, _ERROR_BYTES)).describe()
        raise TemporaryFailure(words, retry_after_s=_seconds(retry_after), is_busy=is_busy)
    return response


def _is_event_stream(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _is_file(response: requests.Response) -> bool:
    is_file = response.headers.get("Content-Type", "").startswith(_FILE_TYPE)
    return response.status_code == 200 and is_file


def _name(response: requests.Response) -> str:
    """What the server calls the file, whatever that is; empty where it doesn't say."""
    found = _NAME.search(response.headers.get("Content-Disposition", ""))
    return "" if found is None else found[1]


def pieces_of(response: requests.Response, *, most: int) -> Iterator[bytes]:
    """Yield the body in small pieces, unpacked.

    Raises:
        TooLarge: it has more than `most` bytes.
        Damaged: it is packed in a way that was not asked for, or not as it says.
    """
    packing = response.headers.get("Content-Encoding", "").strip().lower()
    raw = response.raw.stream(_PIECE_BYTES, decode_content=False)
    if packing not in {"", "identity", "gzip", "x-gzip"}:
        raise Damaged(f"packed as {packing[:20]!r}, which was not asked for")
    return unpacked(raw, most=most) if "gzip" in packing else bounded(raw, most=most)


@contextlib.contextmanager
def _reading(name: str, *, is_repeatable: bool) -> Iterator[None]:
    """Word what goes wrong while an answer is read."""
    try:
        yield
    except TooLarge as error:
        raise Unreachable(f"{name}: its answer has {error}") from None
    except Damaged as error:
        raise Unreachable(f"{name}: its answer can't be unpacked: {error}") from None
    except HTTPError as error:
        slow = isinstance(error, ReadTimeoutError)
        reason = "its answer came too slowly" if slow else "the connection was lost"
        if is_repeatable:
            raise TemporaryFailure(reason) from None
        raise Unreachable(f"{name}: {reason}") from None


def _last_event(response: requests.Response, on_part: OnPart, most: int, name: str) -> Answer:
    """Hand the parts of a stream on as they come, and return the answer that ends it."""
    event, data = b"", b""
    for line in _lines(pieces_of(response, most=most)):
        field, _, value = line.partition(b": ")
        if field == b"event":
            event = value
        elif field == b"data":
            data = value
        elif not line and event:
            try:
                content = orjson.loads(data)
            except orjson.JSONDecodeError:
                raise Unreachable(f"{name}: the stream has an event that is no JSON") from None
            if event != b"part":
                return Answer(200 if event == b"output" else 500, content)
            on_part(content)
            event = b""
    raise Unreachable(f"{name}: the stream ended before the output")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream of events, without their ends."""
    rest: list[bytes] = []  # of a line whose end hasn't come
    for piece in pieces:
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line]).removesuffix(b"\r")
            rest.clear()
        rest.append(last)


# The first of these that an error, or its cause, is an instance of says why there was no answer.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (
        SSLError,
        "its certificate is not to be trusted; REQUESTS_CA_BUNDLE names a file of authorities "
        "that are",
    ),
    (
        ProxyError,
        "the proxy of HTTP_PROXY or HTTPS_PROXY did not let the request through; NO_PROXY names "
        "hosts that need none",
    ),
    (ConnectTimeout, f"no connection within {_CONNECT_TIMEOUT_S:.0f} s"),
    (Timeout, "no answer in time"),
    (NameResolutionError, "no address is known for this name"),
    (NewConnectionError, "nothing takes connections there"),
)


def _reason(error: requests.RequestException) -> str:
    """Why a request had no answer, without any of its URL."""
    cause = _cause(error)
    found = (
        words for kind, words in _REASONS if isinstance(error, kind) or isinstance(cause, kind)
    )
    return next(found, "the connection was lost")


def _cause(error: requests.RequestException) -> object:
    """What urllib3 says of it."""
    cause = error.args[0] if error.args else None
    return getattr(cause, "reason", cause)


def _json(response: requests.Response, most: int) -> Any:
    """The body; None when it is no JSON, or the page of an error that is too long to read."""
    try:
        return orjson.loads(b"".join(pieces_of(response, most=most)))
    except orjson.JSONDecodeError:
        return None
    except TooLarge:
        if response.status_code == 200:
            raise
        return None


def _seconds(retry_after: str | None) -> float:
    """The seconds that a Retry-After asks for, in either of its forms; 0 without a usable one."""
    try:
        return Retry().parse_retry_after(retry_after or "0")
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
