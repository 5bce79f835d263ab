"""One PUT, to an address that was checked, which ends when its job does.

aiohttp makes the request in an event loop of its own, so that it can be ended whatever it waits
for. Its exceptions may quote the host or the URL, and a signed URL's query is a password: what is
raised here says why in our own words.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import aiohttp
import certifi
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from delivery.addresses import is_public
from delivery.target import Target, not_public
from errors import UploadFailed

_CONNECT_TIMEOUT_S = 10.0
_POLL_S = 0.2
_PIECE_BYTES = 1024 * 1024  # of which one must go through within the timeout
_ANSWER_BYTES = 64 * 1024


def tls_context() -> ssl.SSLContext:
    """Return a context that verifies against the system's certificates and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # slim images have none of their own
    return context


@dataclass(frozen=True)
class Answer:
    """What a store answered."""

    status: int
    retry_after: str | None
    body: bytes  # its beginning
    body_was_sent: bool  # the request's; False when the store stopped reading it


class TemporaryFailure(Exception):
    """An attempt failed in a way that another may not. The message has nothing of the URL."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class ReadBeforeLost(socket.socket):
    """A socket whose answer is read before asyncio hears that nothing more can be written.

    A store that refuses a body answers and hangs up, after which writing fails, and asyncio would
    drop the connection with the answer unread. So the first failure looks as if the connection
    were busy: asyncio reads what has come, and then writes again.
    """

    _has_failed = False

    def send(self, *arguments: Any) -> int:
        return self._sent(super().send, *arguments)

    def sendmsg(self, *arguments: Any) -> int:
        return self._sent(super().sendmsg, *arguments)

    def _sent(self, send: Callable[..., int], *arguments: Any) -> int:
        try:
            return send(*arguments)
        except ConnectionError:
            if self._has_failed:
                raise
            self._has_failed = True
            raise BlockingIOError from None


class CheckingResolver(ThreadedResolver):
    """Gives a connection the addresses of a host, after checking all of them.

    The connection is made to these addresses, so a name server that answers differently the next
    time is not asked again.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            UploadUrlRefused: one of them is not public, and the target is not exempt.
            OSError: there is none.
        """
        addresses = await super().resolve(host, port, family)
        if not self._target.exempt and not all(is_public(found["host"]) for found in addresses):
            raise not_public()
        return addresses


def put(
    target: Target,
    headers: Mapping[str, str],
    body: IO[bytes],
    *,
    timeout_s: float,
    check: Callable[[], None],
    tls_context: Callable[[], ssl.SSLContext],
) -> Answer:
    """Send the body from its start, and return the answer, whatever it is.

    Args:
        headers: all of them, Host and Content-Length included; nothing is added.
        timeout_s: seconds without progress after which the attempt is given up; also what the
            answer may take once the body is sent.
        check: called several times a second; ends the connection with what it raises.
        tls_context: makes the context that verifies the store's certificate.

    Raises:
        UploadUrlRefused: the target has an address that isn't public. Nothing was sent to it.
        UploadFailed: the server isn't who its certificate says.
        TemporaryFailure: there was no answer.
    """
    sent = _Body(body)
    exchange = _exchange(target, headers, sent, timeout_s, tls_context)
    try:
        return asyncio.run(_watched(exchange, sent, timeout_s, check))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = _reason(error)
    # Raised out here so that the exceptions above, with all they quote, are not their context.
    if reason is None:
        raise UploadFailed("the store's TLS certificate isn't valid for the host of signed_url")
    raise TemporaryFailure(reason)


@dataclass
class _Body:
    """The body on its way, and when its last piece was taken."""

    file: IO[bytes]
    was_sent: bool = False
    moved_at: float = field(default_factory=time.monotonic)

    async def pieces(self) -> AsyncIterator[bytes]:
        self.file.seek(0)
        while piece := self.file.read(_PIECE_BYTES):
            yield piece
            self.moved_at = time.monotonic()
        self.was_sent = True


async def _watched(
    answer: Coroutine[Any, Any, Answer], body: _Body, timeout_s: float, check: Callable[[], None]
) -> Answer:
    """The exchange, ended when `check` raises or nothing moves for `timeout_s`."""
    exchange = asyncio.ensure_future(answer)
    try:
        while not (await asyncio.wait([exchange], timeout=_POLL_S))[0]:
            check()
            if time.monotonic() - body.moved_at > timeout_s:
                raise TimeoutError
    finally:
        if not exchange.done():
            exchange.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
                await exchange
    return exchange.result()


async def _exchange(
    target: Target,
    headers: Mapping[str, str],
    body: _Body,
    timeout_s: float,
    tls_context: Callable[[], ssl.SSLContext],
) -> Answer:
    connector = aiohttp.TCPConnector(
        resolver=CheckingResolver(target),
        use_dns_cache=False,
        socket_factory=lambda address: ReadBeforeLost(*address[:3]),
        ssl=tls_context() if target.url.startswith("https:") else True,
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(timeout_s, _CONNECT_TIMEOUT_S))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
        session.put(
            URL(target.url, encoded=True),
            data=body.pieces(),
            headers=headers,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            allow_redirects=False,
        ) as response,
    ):
        beginning = b""
        # The status counts even when the rest of the answer is lost.
        with contextlib.suppress(aiohttp.ClientError, OSError):
            beginning = await response.content.read(_ANSWER_BYTES)
        return Answer(
            response.status, response.headers.get("Retry-After"), beginning, body.was_sent
        )


def _reason(error: Exception) -> str | None:
    """Why there was no answer, in words of our own; None for a certificate that proves nothing."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return None
        case aiohttp.ClientConnectorDNSError() | socket.gaierror() | ValueError():
            return "the host of signed_url could not be resolved"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "the TLS handshake failed"
        case TimeoutError():
            return "it made no progress for too long (UPLOAD_TIMEOUT_S)"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return "the connection was refused"
        case aiohttp.ClientResponseError():
            return "the answer was not HTTP"
        case (
            aiohttp.ClientOSError()
            | aiohttp.ClientPayloadError()
            | aiohttp.ServerDisconnectedError()
            | ConnectionError()
        ):
            return "the connection was closed before the store answered"
        case _:
            return "the connection failed"
