"""One PUT, on a connection that is checked and that can be cut off.

The request is made by http.client, on a socket of our own. urllib3 and requests write the whole
URL to their logs and into their exceptions, and a signed URL's query must be in neither; they
also resolve a name again after it was checked.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import certifi

from delivery.destination import Target, is_public, not_public
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
class Network:
    """How names become addresses, and which certificates are believed."""

    resolve: Callable[..., list[Any]] = socket.getaddrinfo
    tls_context: Callable[[], ssl.SSLContext] = tls_context


@dataclass(frozen=True)
class Answer:
    """What a store said."""

    status: int
    retry_after: str | None
    body: bytes  # its beginning
    body_was_sent: bool  # the request's; False when the store stopped reading it


class ConnectionFailed(Exception):
    """No answer came. The message says why, without any of the URL."""


def put(
    target: Target,
    headers: Mapping[str, str],
    body: IO[bytes],
    *,
    exempt: bool,
    timeout_s: float,
    network: Network,
    is_over: Callable[[], bool],
) -> Answer:
    """Send the body from its start, and return the answer, whatever it is.

    Args:
        headers: all of them, Host and Content-Length included; nothing is added.
        exempt: the target may have an address that isn't public.
        timeout_s: seconds without progress after which the attempt is given up; also what the
            answer may take once the body is sent.
        is_over: asked several times a second from another thread; True cuts the connection off.

    Raises:
        UploadUrlRefused: the target has an address that isn't public. Nothing was sent to it.
        UploadFailed: the server isn't who its certificate says.
        ConnectionFailed: there was no answer.
    """
    try:
        return _exchange(target, headers, body, exempt, timeout_s, network, is_over)
    except ssl.SSLCertVerificationError:
        wrong_certificate = True
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        wrong_certificate = False
        reason = _reason(error)
    # Raised out here so that the exceptions above, with all they quote, are not their context.
    if wrong_certificate:
        raise UploadFailed("the store's TLS certificate isn't valid for the host of signed_url")
    raise ConnectionFailed(reason)


def _exchange(
    target: Target,
    headers: Mapping[str, str],
    body: IO[bytes],
    exempt: bool,
    timeout_s: float,
    network: Network,
    is_over: Callable[[], bool],
) -> Answer:
    with contextlib.ExitStack() as stack:
        sock = _connect(target, exempt, min(timeout_s, _CONNECT_TIMEOUT_S), network)
        stack.callback(lambda: sock.close())
        watch = stack.enter_context(_watch(sock, is_over))
        sock.settimeout(timeout_s)
        if target.scheme == "https":
            sock = network.tls_context().wrap_socket(sock, server_hostname=target.host)

        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = sock
        connection.putrequest(
            "PUT", target.path_and_query, skip_host=True, skip_accept_encoding=True
        )
        for name, value in headers.items():
            connection.putheader(name, value)
        body_was_sent = _send(connection, body)
        watch.until = time.monotonic() + timeout_s
        response = connection.getresponse()
        if watch.has_cut:  # http.client takes half a head for a whole one
            raise ConnectionResetError
        return Answer(
            response.status,
            response.getheader("Retry-After"),
            _beginning(response),
            body_was_sent,
        )


def _connect(target: Target, exempt: bool, timeout_s: float, network: Network) -> socket.socket:
    """Connect to one of the addresses that the host has now, after checking them all.

    The connection is made to the address itself, so a name server that answers differently the
    next time is not asked.
    """
    found = network.resolve(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(address[0] for *_, address in found))
    if not exempt and not all(is_public(address) for address in addresses):
        raise not_public()
    failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for address in addresses:
        try:
            return socket.create_connection((address, target.port), timeout_s)
        except OSError as error:
            failure = error
    raise failure


@dataclass
class _Watch:
    until: float = float("inf")  # monotonic seconds at which the connection is cut off
    has_cut: bool = False


@contextlib.contextmanager
def _watch(sock: socket.socket, is_over: Callable[[], bool]) -> Iterator[_Watch]:
    """Cut the connection off when `is_over` or its time is up, whatever it is waiting for."""
    watch, done = _Watch(), threading.Event()
    same = sock.dup()  # wrapping a socket in TLS takes its descriptor away

    def look() -> None:
        while not done.wait(_POLL_S):
            if time.monotonic() > watch.until or is_over():
                watch.has_cut = True
                with contextlib.suppress(OSError):
                    same.shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=look, name="upload-watch", daemon=True)
    watcher.start()
    try:
        yield watch
    finally:
        done.set()
        watcher.join()
        same.close()


def _send(connection: http.client.HTTPConnection, body: IO[bytes]) -> bool:
    """Send headers and body. Return False when the store stopped reading: it may have answered."""
    body.seek(0)
    try:
        connection.endheaders()
        while piece := body.read(_PIECE_BYTES):
            connection.send(piece)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        return False
    return True


def _beginning(response: http.client.HTTPResponse) -> bytes:
    """Return what there is of an answer's body: its status counts even when the rest is lost."""
    try:
        return response.read(_ANSWER_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _reason(error: Exception) -> str:
    """Say why there was no answer, in words of our own."""
    match error:
        case socket.gaierror() | UnicodeError():
            return "the host of signed_url could not be resolved"
        case TimeoutError():
            return "it made no progress for too long (UPLOAD_TIMEOUT_S)"
        case ConnectionRefusedError():
            return "the connection was refused"
        case ConnectionError() | http.client.IncompleteRead():
            return "the connection was closed before the store answered"
        case ssl.SSLError():
            return "the TLS handshake failed"
        case http.client.HTTPException():
            return "the answer was not HTTP"
        case _:
            return "the connection failed"
