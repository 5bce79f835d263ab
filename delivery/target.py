"""Where an upload goes and which headers it carries, checked before a byte is sent.

A job's URL comes from outside. It may be http(s) only, and its host may have public addresses
only, unless the worker's owner exempts it. A signed URL's query is a password: it is in no message.
"""

import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, urlsplit

from delivery.addresses import is_public
from delivery.spooling import JSON
from errors import InvalidInput, UploadUrlRefused

_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # no space, no control character, no backslash
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t -~]*")  # S3 takes no other characters
# The transport's own: they say how the message is framed, not what is signed.
_FRAMING = {"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


@dataclass(frozen=True)
class Target:
    """A signed URL and its headers, checked: what an upload needs to know of where it goes."""

    url: str = field(repr=False)  # without a fragment
    headers: Mapping[str, str] = field(repr=False)  # all of them but a Content-Length
    compressed: bool  # the body is gzipped
    exempt: bool  # its host may have an address that isn't public

    @property
    def object_url(self) -> str:
        """The URL without its query, which is a password."""
        return urlsplit(self.url)._replace(query="").geturl()


def read_target(
    signed_url: str,
    signed_headers: Mapping[str, str] | None = None,
    *,
    compressed: bool,
    media_type: str = JSON,
    allowed_hosts: Collection[str] = (),
) -> Target:
    """Check a job's URL and headers before any work is done for it.

    A host's name is not resolved here: `upload` does that, and checks what it connects to.

    Args:
        signed_headers: sent as they are. Host, Content-Type and, for a gzipped body,
            Content-Encoding are added where they aren't among them.
        media_type: the body's.
        allowed_hosts: hosts that may have any address, in lower case, without port.

    Raises:
        UploadUrlRefused: it is no http(s) URL, or its host is an address that isn't public, in
            whatever notation (`127.1`, `2130706433`, `[::1]`).
        InvalidInput: a header isn't one, is the transport's own, contradicts the URL or
            `compressed`, or was signed into the URL and is missing.
    """
    parts = _split(signed_url)
    host = str(parts.hostname).rstrip(".")
    if host not in allowed_hosts:
        _check_host(host)
    headers = _headers(dict(signed_headers or {}), parts.netloc, media_type, compressed)
    names = parse_qs(parts.query).get("X-Amz-SignedHeaders", [""])[0].lower()
    sent = {name.lower() for name in headers} | {"content-length", ""}
    if missing := set(names.split(";")) - sent:
        raise InvalidInput(
            f"signed_headers lacks {', '.join(sorted(missing))[:200]}, which signed_url was "
            "signed with"
        )
    return Target(
        url=parts._replace(fragment="").geturl(),
        headers=headers,
        compressed=compressed,
        exempt=host in allowed_hosts,
    )


def _split(signed_url: str) -> SplitResult:
    if not _PRINTABLE.fullmatch(signed_url):
        raise UploadUrlRefused(
            "signed_url has a space, a backslash or a character that isn't ASCII; percent-encode it"
        )
    try:
        parts = urlsplit(signed_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UploadUrlRefused("signed_url isn't a URL; its host or port is malformed") from None
    if parts.scheme not in {"http", "https"}:
        raise UploadUrlRefused("signed_url must begin with https:// or http://")
    if not host or port == 0:
        raise UploadUrlRefused("signed_url names no host, or port 0")
    if "@" in parts.netloc:
        raise UploadUrlRefused("signed_url has a user name; a signed URL needs none")
    return parts


def _check_host(host: str) -> None:
    """Refuse a host that is an address, or a name, of this machine or of a network inside."""
    if host == "localhost" or host.endswith(".localhost"):
        raise not_public()
    # The system's function below does not know each form of IPv6, such as one with a scope.
    if (":" in host or "%" in host) and not is_public(host):
        raise not_public()
    try:
        numeric = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return  # a name
    if not all(is_public(str(address[0])) for *_, address in numeric):
        raise not_public()


def not_public() -> UploadUrlRefused:
    """The refusal of an address. It doesn't say which: names inside a network stay inside."""
    return UploadUrlRefused(
        "signed_url leads to an address that isn't public (loopback, private, link-local or "
        "reserved); the worker's owner can exempt its host with UPLOAD_ALLOWED_HOSTS"
    )


def _headers(
    given: dict[str, str], netloc: str, media_type: str, compressed: bool
) -> dict[str, str]:
    """The headers of the request, the signed ones as they were given."""
    for name, value in given.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidInput(
                f"signed_headers: {name[:50]!r} or its value has a character that HTTP headers "
                "can't have; names and values are ASCII"
            )
        if name.lower() in _FRAMING:
            raise InvalidInput(f"signed_headers: {name} belongs to the connection; leave it out")
    values = {name.lower(): value for name, value in given.items()}
    if len(values) < len(given):
        raise InvalidInput("signed_headers has a header twice, in different case")
    if values.get("host", netloc).lower() != netloc.lower():
        raise InvalidInput("signed_headers: Host isn't the host of signed_url; leave it out")
    encoding = values.get("content-encoding")
    if encoding is not None and ("gzip" in encoding.lower()) != compressed:
        raise InvalidInput(
            f"signed_headers: Content-Encoding is {encoding!r} and compress is "
            f"{str(compressed).lower()}; one of them must change"
        )
    added = {"Host": netloc, "Content-Type": media_type}
    if compressed:
        added["Content-Encoding"] = "gzip"
    return {name: value for name, value in added.items() if name.lower() not in values} | given
