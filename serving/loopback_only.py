"""Who may call while no SECRET is set: programs on this machine, and pages that it serves itself.

A server on loopback is within reach of every web page that a browser on this machine shows. The
page may name the server in a request, and its own host's name may change to the server's address
("DNS rebinding"); then the browser lets it read the answers. The browser tells both in `Origin` and
`Host`, which the page can't change.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+)(:[0-9]{0,5})?")
_SHOWN_CHARACTERS = 100


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost` or an address of loopback, without brackets."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Python 3.11 and 3.13 differ on what they say of an IPv4 address within an IPv6 one.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def why_refused(hosts: Iterable[str], origins: Iterable[str]) -> str | None:
    """The error of a request with these `Host` and `Origin` headers; None if it may be answered.

    `Origin` may be absent: programs send none. `null`, which a page in a sandbox sends, may come
    from anywhere.
    """
    hosts = list(hosts)
    if len(hosts) != 1 or not _is_loopback_host(hosts[0]):
        return _refusal("Host", ", ".join(hosts))
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if scheme not in {"http", "https"} or not separator or not _is_loopback_host(host):
            return _refusal("Origin", origin)
    return None


def _is_loopback_host(host: str) -> bool:
    """Whether a host with its port, if it has one, is loopback."""
    if _HOST.fullmatch(host) is None:
        return False
    return is_loopback(urlsplit(f"//{host}").hostname or "")


def _refusal(header: str, value: str) -> str:
    shown = repr(value[:_SHOWN_CHARACTERS])
    return (
        f"forbidden: {header} is {shown}; without SECRET the worker answers only what is sent to "
        "localhost or 127.0.0.1, by no page of another host; set SECRET to serve others"
    )


class LoopbackOnly:
    """An application, which answers 403 to what comes from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the application answer; `scope` may be any that ASGI has."""
        error = None
        if scope["type"] != "lifespan":
            sent = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
            hosts = [value for name, value in sent if name == b"host"]
            error = why_refused(hosts, (value for name, value in sent if name == b"origin"))
        if error is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"error": error}, 403)(scope, receive, send)
