"""Which Host and Origin are answered while no SECRET is set, over real connections."""

import socket
from urllib.parse import urlsplit

import pytest

from serving.loopback_only import why_refused
from tests.support.http_server import ACTIONS

OWN_HOSTS = [
    "localhost",
    "LocalHost:5004",
    "localhost:",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.8.9.10:5004",
    "[::1]",
    "[::1]:5004",
    "[0:0:0:0:0:0:0:1]:80",
    "[::ffff:127.0.0.1]:80",
]
OTHER_HOSTS = [
    "evil.example",
    "evil.example:5004",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example#@localhost",
    "evil.example/localhost",
    "localhost, evil.example",
    "evil.example\\@localhost",
    "0.0.0.0:5004",
    "[::]:5004",
    "[fe80::1]",
    "[::ffff:10.0.0.1]",
    "[::1",
    "::1",
    "[::1%25lo]",
    "127.1",
    "0x7f000001",
    "2130706433",
    "192.168.1.5",
    "localhost:5004:5004",
    "localhost:http",
    "localhost:500400",
    "xn--localhost",
    "ｌｏｃａｌｈｏｓｔ",
    "localhost\u3002",
    "",
    " ",
    "a" * 10_000,
]
OWN_ORIGINS = [f"{scheme}://{host}" for scheme in ("http", "https") for host in OWN_HOSTS]
OTHER_ORIGINS = [
    *(f"http://{host}" for host in OTHER_HOSTS),
    "null",
    "",
    "localhost",
    "file://",
    "file://localhost",
    "chrome-extension://localhost",
    "http:localhost",
    "http://localhost http://evil.example",
    "http://localhost/path",
]
PATHS = [
    *(("POST", f"/{action}") for action in ACTIONS),
    *(("OPTIONS", f"/{action}") for action in ACTIONS),
    *(("GET", path) for path in ("/ping", "/check-busy", "/health", "/metrics", "/openapi.json")),
    *(("GET", path) for path in ("/docs", "/docs/assets/swagger-ui.css", "/none", "/")),
    ("HEAD", "/health"),
]


def exchange(server, *lines, body=b""):
    """Status, head and body of the answer to a request with exactly these lines."""
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port), timeout=60) as sent:
        head = "\r\n".join([*lines, "Connection: close", "", ""])
        sent.sendall(head.encode("latin-1", errors="replace") + body)
        answer = b"".join(iter(lambda: sent.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), content


def post_forward(server, *headers):
    body = b'{"prompt": "a"}'
    return exchange(
        server,
        "POST /forward-pass HTTP/1.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
        body=body,
    )


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_host_that_is_loopback_is_answered_with_any_port(host):
    assert why_refused([host], []) is None


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_a_host_that_is_not_loopback_is_refused_with_a_short_reason(host):
    error = why_refused([host], [])
    assert error.startswith("forbidden: Host is ")
    assert len(error) < 500


@pytest.mark.parametrize("origin", OWN_ORIGINS)
def test_an_origin_that_is_loopback_is_answered(origin):
    assert why_refused(["localhost"], [origin]) is None


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_an_origin_that_is_not_loopback_is_refused(origin):
    assert why_refused(["localhost"], [origin]).startswith("forbidden: Origin is ")


def test_no_host_or_two_or_a_second_origin_from_elsewhere_are_refused():
    assert why_refused([], []) is not None
    assert why_refused(["localhost", "localhost"], []) is not None
    assert why_refused(["localhost"], ["http://localhost", "http://evil.example"]) is not None


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        ["Host: evil.example"],
        ["Host: localhost", "Origin: http://evil.example"],
        ["Host: localhost", "Origin: null"],
    ],
)
def test_no_path_is_answered_to_a_page_of_another_host(server, method, path, headers):
    status, head, body = exchange(server, f"{method} {path} HTTP/1.1", *headers)
    assert status == 403
    assert b"access-control" not in head
    assert method == "HEAD" or body.startswith(b'{"error":"forbidden: ')


def test_a_host_named_by_the_address_alone_is_refused(server):
    target = "http://127.0.0.1/health"
    assert exchange(server, f"GET {target} HTTP/1.1", "Host: evil.example")[0] == 403
    assert exchange(server, "GET /health HTTP/1.0")[0] == 403


def test_a_page_may_not_ask_beforehand_whether_it_may_send(server):
    asked = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type"]
    for origin in ("http://evil.example", "null"):
        status, head, _ = exchange(
            server, "OPTIONS /steer HTTP/1.1", "Host: localhost", f"Origin: {origin}", *asked
        )
        assert status == 403
        assert b"access-control" not in head


def test_this_machine_s_own_names_and_pages_are_answered(server):
    for host in ("localhost:5004", "127.0.0.1", "[::1]:80"):
        assert post_forward(server, f"Host: {host}")[0] == 200
    origin = f"Origin: {server.url}"
    assert post_forward(server, "Host: localhost", origin)[0] == 200
    assert exchange(server, "GET /docs HTTP/1.1", "Host: localhost", origin)[0] == 200


def test_with_a_secret_any_host_and_origin_are_served(guarded):
    for headers in (["Host: worker.example.org"], ["Host: a", "Origin: https://page.example"]):
        assert post_forward(guarded, *headers)[0] == 401
        assert exchange(guarded, "GET /ping HTTP/1.1", *headers)[0] == 200
