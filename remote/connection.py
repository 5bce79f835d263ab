"""HTTP requests to a worker or a store, with keys and signed URLs kept out of every message.

Redirects of a worker are not followed, so that a key goes to no other host. The messages of
requests and urllib3 quote the URL, so `_reason` words each failure itself.
"""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectTimeout, ProxyError, SSLError, Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import InvalidHeader, NameResolutionError, NewConnectionError
from urllib3.util import Retry

from remote.errors import Unreachable, WrongTarget
from remote.retries import FOREVER, OnRetry, Patience, TemporaryFailure

_CONNECT_TIMEOUT_S = 10.0
_TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}


OnPart = Callable[[Any], None]  # called with each part of a streamed steer, as JSON


@dataclass(frozen=True)
class Answer:
    """A status and the JSON that came with it; None when it wasn't JSON."""

    status: int
    body: Any

    def describe(self) -> str:
        """The status, and an error's sentence in any of the forms that servers use."""
        fields = self.body if isinstance(self.body, dict) else {}
        for name in ("error", "detail", "message", "title"):
            if isinstance(fields.get(name), str):
                return f"{self.status}: {fields[name][:300]}"
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
        on_retry: OnRetry | None = None,
        on_part: OnPart | None = None,
    ) -> Answer:
        """Make a request and return the answer, whatever its status.

        A repeatable request is made again after a lost connection, a timeout, 408, 425, 429 or
        5xx. Any other, such as one that starts a job, is made again only when the server says that
        it did nothing: 429, or 503 with a Retry-After.

        Args:
            read_timeout_s: seconds that may pass without a byte; None for no limit.
            until: `time.monotonic()` after which no attempt begins and no event is waited for.
            on_part: called with the parts of a stream of events, where the server sends one.

        Raises:
            Unreachable: no usable answer came within the patience.
        """

        def attempt() -> Answer:
            response = send(
                self._session,
                method,
                self.url + path,
                name=self.name,
                is_repeatable=is_repeatable,
                read_timeout_s=read_timeout_s,
                data=None if body is None else orjson.dumps(body),
                allow_redirects=False,
                headers=None if on_part is None else {"Accept": "text/event-stream"},
                stream=on_part is not None,
            )
            if on_part is not None and _is_event_stream(response):
                return _last_event(response, on_part, until, self.name)
            return Answer(response.status_code, _json(response))

        return self._patience.retry(attempt, self.name, until=until, on_retry=on_retry)


def send(
    session: requests.Session,
    method: str,
    url: str,
    *,
    name: str,
    is_repeatable: bool,
    read_timeout_s: float | None,
    **options: Any,
) -> requests.Response:
    """Make one attempt at a request.

    Args:
        name: the server's, for the errors.
        options: for `requests.Session.request`.

    Raises:
        TemporaryFailure: the request may be made again.
        Unreachable: there was no answer, and the request must not be made again.
        WrongTarget: the URL is not valid.
    """
    timeout = (_CONNECT_TIMEOUT_S, read_timeout_s)
    try:
        response = session.request(method, url, timeout=timeout, **options)
    except requests.RequestException as error:
        if isinstance(error, ValueError | requests.TooManyRedirects):
            problem = type(error).__name__
            raise WrongTarget(f"{name}: its URL can't be used ({problem})") from None
        if is_repeatable and not isinstance(error, SSLError):
            raise TemporaryFailure(_reason(error)) from None
        raise Unreachable(f"{name}: {_reason(error)}") from None
    retry_after = response.headers.get("Retry-After")
    status = response.status_code
    is_busy = status == 429 or (status == 503 and retry_after is not None)
    if is_busy or (is_repeatable and status in _TEMPORARY_STATUSES):
        words = Answer(status, _json(response)).describe()
        raise TemporaryFailure(words, retry_after_s=_seconds(retry_after), is_busy=is_busy)
    return response


def _is_event_stream(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").startswith("text/event-stream")


def _last_event(response: requests.Response, on_part: OnPart, until: float, name: str) -> Answer:
    """Hand the parts of a stream on as they come, and return the answer that ends it."""
    event, data = "", b""
    try:
        with response:
            for line in response.iter_lines(chunk_size=None):
                if time.monotonic() >= until:
                    break
                field, _, value = line.partition(b": ")
                if field == b"event":
                    event = value.decode()
                elif field == b"data":
                    data = value
                elif not line and event == "part":
                    on_part(orjson.loads(data))
                    event = ""
                elif not line and event:
                    return Answer(200 if event == "output" else 500, orjson.loads(data))
    except requests.RequestException as error:
        raise Unreachable(f"{name}: {_reason(error)}") from None
    raise Unreachable(f"{name}: the stream ended before the output")


def new_session(headers: Mapping[str, str]) -> requests.Session:
    """A session that sends these headers and detects a server that disappeared."""
    encoded = {name: value.strip().encode() for name, value in headers.items()}

    def authenticate(request: Any) -> Any:
        request.headers.update(encoded)
        return request

    session = requests.Session()
    session.auth = authenticate  # which prevents a look into ~/.netrc
    for scheme in ("http://", "https://"):
        session.mount(scheme, _KeptAlive())
    return session


class _KeptAlive(HTTPAdapter):
    """Sends TCP keep-alives while a job runs, so that a dead connection is noticed."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [*HTTPConnection.default_socket_options]
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # not on every system
                options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        super().init_poolmanager(*args, socket_options=options, **kwargs)


# The first of these that an error, or its cause, is an instance of says why there was no answer.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (SSLError, "its certificate is not to be trusted"),
    (ProxyError, "the proxy of HTTP_PROXY or HTTPS_PROXY did not let the request through"),
    (ConnectTimeout, f"no connection within {_CONNECT_TIMEOUT_S:.0f} s"),
    (Timeout, "no answer in time"),
    (NameResolutionError, "no address is known for this name"),
    (NewConnectionError, "nothing takes connections there"),
)


def _reason(error: requests.RequestException) -> str:
    """Why a request had no answer, without any of its URL."""
    cause = error.args[0] if error.args else None
    cause = getattr(cause, "reason", cause)
    found = (
        words for kind, words in _REASONS if isinstance(error, kind) or isinstance(cause, kind)
    )
    return next(found, "the connection was lost")


def _json(response: requests.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None


def _seconds(retry_after: str | None) -> float:
    """The seconds that a Retry-After asks for, in either of its forms; 0 without a usable one."""
    try:
        return Retry().parse_retry_after(retry_after or "0")
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
