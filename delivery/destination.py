"""Where an upload may go and which headers it carries: what is checked before a byte is sent.

A job's URL comes from outside. It may be http(s) only, and its host may have public addresses
only, unless the worker's owner exempts it. A signed URL's query is a password: no message has it.
"""

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from errors import InvalidInput, UploadFailed, UploadUrlRefused

CONTENT_TYPE = "application/json"

_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # no space, no control character, no backslash
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\t -~\xa0-\xff]*")
# The transport's own: they say how the message is framed, not what is signed.
_FRAMING = {"connection", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Target:
    """A signed URL, taken apart."""

    scheme: str
    host: str  # lower case, no brackets, no dot at its end
    port: int
    netloc: str
    path_and_query: str = field(repr=False)
    signed_header_names: frozenset[str]  # X-Amz-SignedHeaders; empty when the URL doesn't say

    @classmethod
    def of(cls, signed_url: str) -> "Target":
        """Take a URL apart.

        Raises:
            UploadUrlRefused: it isn't a URL that can be uploaded to.
        """
        if not _PRINTABLE.fullmatch(signed_url):
            raise UploadUrlRefused(
                "signed_url has a space, a backslash or a character that isn't ASCII; "
                "percent-encode it"
            )
        try:
            parts = urlsplit(signed_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UploadUrlRefused(
                "signed_url isn't a URL; its host or port is malformed"
            ) from None
        if parts.scheme not in {"http", "https"}:
            raise UploadUrlRefused("signed_url must begin with https:// or http://")
        if not host or port == 0:
            raise UploadUrlRefused("signed_url names no host, or port 0")
        if "@" in parts.netloc:
            raise UploadUrlRefused("signed_url has a user name; a signed URL needs none")
        names = parse_qs(parts.query).get("X-Amz-SignedHeaders", [""])[0]
        return cls(
            scheme=parts.scheme,
            host=host.lower().rstrip("."),
            port=port or (443 if parts.scheme == "https" else 80),
            netloc=parts.netloc,
            path_and_query=(parts.path or "/") + ("?" + parts.query if parts.query else ""),
            signed_header_names=frozenset(names.lower().split(";")) - {""},
        )


def without_query(signed_url: str) -> str:
    """Return the URL of the object: what may be shown of a signed URL."""
    return urlsplit(signed_url)._replace(query="", fragment="").geturl()


def check_url(signed_url: str, allowed_hosts: Collection[str] = ()) -> None:
    """Refuse a URL that can't be uploaded to, before any work is done for it.

    The host's name is not resolved here: `upload` does that, and checks what it connects to.

    Args:
        allowed_hosts: hosts that may have any address, in lower case, without port.

    Raises:
        UploadUrlRefused: it is no http(s) URL, or its host is an address that isn't public, in
            whatever notation (`127.1`, `2130706433`, `[::1]`).
    """
    target = Target.of(signed_url)
    if target.host in allowed_hosts:
        return
    if target.host == "localhost" or target.host.endswith(".localhost"):
        raise not_public()
    try:
        numeric = socket.getaddrinfo(target.host, target.port, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        return  # a name
    if not all(is_public(str(address[0])) for *_, address in numeric):
        raise not_public()


def check_headers(
    signed_url: str, signed_headers: Mapping[str, str] | None, *, compress: bool
) -> None:
    """Refuse headers with which the upload can't succeed, before any work is done for it.

    Raises:
        InvalidInput: a header isn't one, is the transport's own, contradicts the URL or
            `compress`, or was signed into the URL and is missing.
        UploadUrlRefused: as `check_url`.
    """
    _content_headers(Target.of(signed_url), signed_headers or {}, compress)


def request_headers(
    target: Target, signed_headers: Mapping[str, str], *, size: int, compressed: bool
) -> dict[str, str]:
    """Return every header of the request, the signed ones as they were given.

    Raises:
        InvalidInput: as `check_headers`.
        UploadFailed: a Content-Length was signed, and it isn't the body's.
    """
    headers = _content_headers(target, signed_headers, compressed)
    given = _value(headers, "content-length")
    if given is None:
        headers["Content-Length"] = str(size)
    elif given != str(size):
        raise UploadFailed(
            f"signed_headers has a Content-Length of {given}, the graph has {size} bytes; "
            "sign the URL without a length"
        )
    return headers


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, however it is wrapped.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) counts as what is inside.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if not all(is_public(str(v4)) for v4 in inner if v4 is not None):
            return False
        if ip.ipv4_mapped is not None:
            return True
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast


def not_public() -> UploadUrlRefused:
    """The refusal of an address. It doesn't say which: names inside a network stay inside."""
    return UploadUrlRefused(
        "signed_url leads to an address that isn't public (loopback, private, link-local or "
        "reserved); the worker's owner can exempt its host with UPLOAD_ALLOWED_HOSTS"
    )


def _content_headers(
    target: Target, signed_headers: Mapping[str, str], compressed: bool
) -> dict[str, str]:
    headers = dict(signed_headers)
    names = [name.lower() for name in headers]
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InvalidInput(
                f"signed_headers: {name[:50]!r} or its value has a character that HTTP headers "
                "can't have"
            )
        if name.lower() in _FRAMING:
            raise InvalidInput(f"signed_headers: {name} belongs to the connection; leave it out")
    if len(set(names)) < len(names):
        raise InvalidInput("signed_headers has a header twice, in different case")

    if _value(headers, "host") is None:
        headers = {"Host": target.netloc, **headers}
    elif str(_value(headers, "host")).lower() != target.netloc.lower():
        raise InvalidInput("signed_headers: Host isn't the host of signed_url; leave it out")

    encoding = _value(headers, "content-encoding")
    if encoding is None and compressed:
        headers["Content-Encoding"] = "gzip"
    elif encoding is not None and ("gzip" in encoding.lower()) != compressed:
        raise InvalidInput(
            f"signed_headers: Content-Encoding is {encoding!r} and compress is "
            f"{str(compressed).lower()}; one of them must change"
        )
    if _value(headers, "content-type") is None:
        headers["Content-Type"] = CONTENT_TYPE

    sent = {name.lower() for name in headers} | {"content-length"}
    if missing := target.signed_header_names - sent:
        raise InvalidInput(
            f"signed_headers lacks {', '.join(sorted(missing))[:200]}, which signed_url was "
            "signed with"
        )
    return headers


def _value(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)
