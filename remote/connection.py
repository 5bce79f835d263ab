"""Requests to a worker or a store that outlive passing trouble, and keep secrets to themselves.

Redirects are not followed, so a key goes to no other host. What requests and urllib3 say of a
failure quotes the URL, so it is never shown: `_reason` says it in its own words.
"""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import orjson
import requests
import tenacity
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection
from urllib3.exceptions import InvalidHeader, NameResolutionError, NewConnectionError
from urllib3.util import Retry

from remote.errors import Unreachable, WrongTarget

CONNECT_TIMEOUT_S = 10.0
FOREVER = float("inf")

_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_RETRY_AFTER_S = 60.0

# Called with a sentence whenever a request will be made again.
OnTrouble = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long trouble is taken for passing, and how long to wait between attempts."""

    outage_s: float = 120.0  # without a usable answer
    busy_s: float = 600.0  # of a server that says it is busy
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0


@dataclass(frozen=True)
class Answer:
    """A status and the JSON that came with it; None where it was no JSON."""

    status: int
    body: Any

    def said(self) -> str:
        """The status and, of an error in any of the forms that servers use, its sentence."""
        words = self.body if isinstance(self.body, dict) else {}
        for name in ("error", "detail", "message", "title"):
            if isinstance(words.get(name), str):
                return f"{self.status}: {words[name][:300]}"
        return str(self.status)


class PassingTrouble(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0, is_busy: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_busy = is_busy


class Connection:
    """Requests to one server, with the headers that prove who asks."""

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
        is_repeatable: bool,
        read_timeout_s: float | None = 30.0,
        until: float = FOREVER,
        on_trouble: OnTrouble | None = None,
    ) -> Answer:
        """Make a request and return the answer, whatever its status.

        A request that may be repeated is, after a lost connection, a timeout, 408, 425, 429 or
        5xx. One that starts a job is repeated only when the server says that it did not: 429, or
        503 with a Retry-After.

        Args:
            read_timeout_s: seconds that may pass without a byte; None for any number.
            until: `time.monotonic()` after which no attempt is begun.

        Raises:
            Unreachable: no usable answer came within the patience.
        """

        def attempt() -> Answer:
            try:
                response = self._session.request(
                    method,
                    self.url + path,
                    data=None if body is None else orjson.dumps(body),
                    timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                if is_repeatable and not isinstance(error, requests.exceptions.SSLError):
                    raise PassingTrouble(reason(error)) from None
                raise Unreachable(f"{self.name}: {reason(error)}") from None
            raise_if_passing(response, is_repeatable=is_repeatable)
            return Answer(response.status_code, _json(response))

        return try_again(attempt, self.name, self._patience, until=until, on_trouble=on_trouble)


def new_session(headers: Mapping[str, str]) -> requests.Session:
    """A session that sends these headers, and notices a server that is gone without a word."""
    session = requests.Session()
    session.auth = _Headers(headers)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _KeptAlive())
    return session


class _Headers(AuthBase):
    """The headers of every request. Being requests' `auth`, it keeps it from asking ~/.netrc."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name: value.strip().encode() for name, value in headers.items()}

    def __call__(self, request: Any) -> Any:
        request.headers.update(self._headers)
        return request


class _KeptAlive(HTTPAdapter):
    """Asks the other side for a sign of life, through the minutes that a job may take."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        options = [*HTTPConnection.default_socket_options]
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # not everywhere
                options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
        super().init_poolmanager(*args, socket_options=options, **kwargs)


def try_again(
    attempt: Callable[[], T],
    name: str,
    patience: Patience,
    *,
    until: float = FOREVER,
    on_trouble: OnTrouble | None = None,
) -> T:
    """Call `attempt` until it raises no PassingTrouble, for as long as the patience lasts.

    The waits double, with jitter, and are no shorter than the server's Retry-After.

    Raises:
        Unreachable: the patience is at its end, or it is `until`; `name` is the server's.
    """
    backoff = tenacity.wait_exponential_jitter(
        patience.first_wait_s, patience.longest_wait_s, jitter=patience.first_wait_s
    )

    def wait(state: tenacity.RetryCallState) -> float:
        asked_s = min(_trouble(state).retry_after_s, _LONGEST_RETRY_AFTER_S)
        return max(min(max(backoff(state), asked_s), until - time.monotonic()), 0.0)

    def is_enough(state: tenacity.RetryCallState) -> bool:
        longest = patience.busy_s if _trouble(state).is_busy else patience.outage_s
        waited = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        return waited > longest or time.monotonic() >= until

    def tell(state: tenacity.RetryCallState) -> None:
        if on_trouble is not None:
            on_trouble(f"{_trouble(state)}; trying again in {state.upcoming_sleep:.0f} s")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(PassingTrouble),
        wait=wait,
        stop=is_enough,
        before_sleep=tell,
        reraise=True,
    )
    started = time.monotonic()
    try:
        return retrying(attempt)
    except PassingTrouble as trouble:
        _give_up(name, trouble, time.monotonic() - started)


def _give_up(name: str, trouble: PassingTrouble, waited_s: float) -> NoReturn:
    since = f" for {waited_s:.0f} s" if waited_s >= 1 else ""
    was = "was busy" if trouble.is_busy else "gave no usable answer"
    raise Unreachable(f"{name} {was}{since}: {trouble}") from None


def _trouble(state: tenacity.RetryCallState) -> PassingTrouble:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, PassingTrouble)  # noqa: S101 - all that is tried again
    return error


def raise_if_passing(response: requests.Response, *, is_repeatable: bool) -> None:
    """Raise PassingTrouble for a status after which the request may be made again."""
    status = response.status_code
    asked = response.headers.get("Retry-After")
    is_busy = status == 429 or (status == 503 and asked is not None)
    if is_busy or (is_repeatable and status in _PASSING_STATUSES):
        said = Answer(status, _json(response)).said()
        raise PassingTrouble(said, retry_after_s=_seconds(asked), is_busy=is_busy)


def reason(error: requests.RequestException) -> str:
    """Why a request had no answer, without any of its URL."""
    cause = error.args[0] if error.args else None
    cause = getattr(cause, "reason", cause)
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not to be trusted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of HTTP_PROXY or HTTPS_PROXY did not let the request through"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(cause, NameResolutionError):
        return "no address is known for this name"
    if isinstance(cause, NewConnectionError):
        return "nothing takes connections there"
    return "the connection was lost"


def _json(response: requests.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None


def _seconds(header: str | None) -> float:
    """The seconds that a Retry-After asks for, in either of its forms; 0 without one."""
    if header is None:
        return 0.0
    try:
        return Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
