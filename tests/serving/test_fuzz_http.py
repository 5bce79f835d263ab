"""Malformed and hostile HTTP of every kind: an answer with its code or a closed connection, soon.

Not what a job's fields may hold (test_fuzz.py), but what comes before: heads, hosts, framing.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import http_bounds
from serving.http_api import MAX_BODY_BYTES
from tests.serving.test_soak import resident_bytes
from tests.support.http_server import ACTIONS, FORWARD, SECRET, get, post, serving
from tests.support.polling import until
from tests.support.programs import ROOT, free_port, without

FUZZ = settings(database=None, suppress_health_check=list(HealthCheck))
CODES = {200, 206, 400, 401, 403, 404, 405, 408, 411, 413, 415, 416, 422, 431, 501, 503, 505}
WORDS = st.binary(max_size=30)

PATHS = [f"/{action}".encode() for action in ACTIONS] + [
    *(b"/ping", b"/check-busy", b"/health", b"/metrics", b"/openapi.json", b"/docs", b"/"),
    *(b"/docs/assets/../../start.py", b"/docs/assets/%2e%2e/%2e%2e/settings.py", b"//", b"*"),
    *(b"/docs/assets/%00", b"/steer/", b"/%ff", b"http://evil.example/health", b"/steer?a=1#b"),
    b"/" + b"a" * 40_000,
]
METHODS = [b"GET", b"POST", b"POST", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"TRACE"]
VERSIONS = [b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 x"]
HOSTS = [b"localhost", b"127.0.0.1:5004", b"[::1]", b"evil.example", b"", b"localhost, a", b"\xff"]
ORIGINS = [b"null", b"http://localhost:3000", b"http://evil.example", b"", b"file://", b"\x80"]
DEEP = b"[" * 100_000
BODIES = [
    json.dumps(FORWARD).encode(),
    json.dumps({"input": FORWARD}).encode(),
    b"",
    b"{",
    b"\xff\xfe",
    b"\x1f\x8b\x08\x00",
    DEEP,
    DEEP + b"]" * 100_000,
    b'{"a":' * 100_000,
    b'{"prompt": ' + b"9" * 100_000 + b"}",
    b'{"prompt": 1e999999, "prompt": -0}',
    b'{"prompt": "\\ud800"}',
    b'{"self": 1, "__class__": {}, "prompt": "a"}',
    b'{"prompt": NaN}',
    b" " * (MAX_BODY_BYTES + 1),
]
HEADERS = st.one_of(
    st.tuples(st.just(b"Host"), st.sampled_from(HOSTS)),
    st.tuples(st.just(b"Origin"), st.sampled_from(ORIGINS)),
    st.tuples(st.just(b"Content-Type"), st.sampled_from([b"application/json", b"text/plain", b""])),
    st.tuples(
        st.just(b"Content-Length"),
        st.sampled_from([b"0", b"5", b"-1", b"+5", b"5, 5", b"0x5", b"9" * 30, b"9" * 5_000, b"a"]),
    ),
    st.tuples(
        st.just(b"Transfer-Encoding"),
        st.sampled_from([b"chunked", b"gzip", b"chunked, chunked", b"identity", b"\x0bchunked"]),
    ),
    st.tuples(
        st.just(b"x-secret-key"), st.sampled_from([SECRET.encode(), b"a", b"", b"\xff" * 10_000])
    ),
    st.tuples(
        st.just(b"Accept"), st.sampled_from([b"text/event-stream", b"*/*", b";q=" + b"a" * 2_000])
    ),
    st.tuples(st.just(b"Expect"), st.sampled_from([b"100-continue", b"a"])),
    st.tuples(st.just(b"Connection"), st.sampled_from([b"close", b"upgrade", b"keep-alive, x"])),
    st.tuples(st.just(b"Upgrade"), st.sampled_from([b"websocket", b"h2c"])),
    st.tuples(st.just(b"Content-Encoding"), st.sampled_from([b"gzip", b"br"])),
    st.tuples(st.just(b"Range"), st.sampled_from([b"bytes=0-", b"bytes=" + b"0-1," * 2_000])),
    st.tuples(st.just(b"Accept-Encoding"), st.sampled_from([b"gzip", b"gzip;q=a", b"*"])),
    st.tuples(st.just(b"X"), st.sampled_from([b"a" * 40_000, b"a\r\n b", b"a\rb", b"a\x00b"])),
    st.tuples(WORDS, WORDS),
)


@st.composite
def framed(draw):
    """A request in which the head and the body may contradict each other."""
    headers = draw(st.lists(HEADERS, max_size=6))
    body = draw(st.sampled_from(BODIES))
    names = {name.lower() for name, _ in headers}
    if b"host" not in names and draw(st.integers(0, 9)):
        headers.append((b"Host", b"localhost"))
    if b"content-type" not in names and draw(st.integers(0, 9)):
        headers.append((b"Content-Type", b"application/json"))
    if draw(st.booleans()):
        headers.append((b"x-secret-key", SECRET.encode()))
    if not draw(st.integers(0, 19)):
        headers += [(b"a", b"")] * draw(st.sampled_from([90, 200, 20_000]))
    if b"transfer-encoding" in names:
        body = draw(
            st.sampled_from(
                [
                    b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
                    b"fffffffffffffffff\r\n" + body,
                    b"-1\r\n" + body,
                    b"5;" + b"a" * 40_000,
                    b"0\r\nX: " + b"a" * 40_000,
                    b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
                ]
            )
        )
    elif b"content-length" not in names and draw(st.integers(0, 9)):
        headers.append((b"Content-Length", b"%d" % len(body)))
    line = b" ".join(map(draw, map(st.sampled_from, (METHODS, PATHS, VERSIONS))))
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    request = end.join([line, *(b": ".join(header) for header in headers), b"", body])
    return request[: draw(st.integers(0, len(request)))] if not draw(st.integers(0, 9)) else request


SENT = st.one_of(
    framed(),
    framed(),
    framed(),
    st.lists(framed(), min_size=2, max_size=4).map(b"".join),
    st.binary(max_size=300),
    st.sampled_from(
        [b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50_000, b"\0"]
    ),
)


@pytest.fixture(scope="module", params=[{}, {"secret": SECRET}], ids=["loopback", "secret"])
def door(request):
    with serving(**request.param) as server:
        yield server


def exchange(port, sent):
    """All that the server answers to these bytes until it or we have ended."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        with contextlib.suppress(OSError):  # the server may have closed it by now
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while received := client.recv(1 << 20):
                answer += received
    return answer


def assert_withstands(port, sent):
    answer = exchange(port, sent)
    if answer:
        assert re.match(rb"HTTP/1\.1 (\d+) ", answer) is not None, answer[:100]
        statuses = {int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+) ", answer, re.M)}
        assert statuses <= CODES | {100}, answer[:500]
    assert b'"error":"internal' not in answer
    assert b"Traceback" not in answer


def assert_as_before(server, answer):
    headers = {"x-secret-key": SECRET}
    assert post(server, "forward-pass", FORWARD, **headers).json() == answer
    assert get(server, "/check-busy").json() == {"busy": False}
    until(lambda: not (server.server_state.connections or server.server_state.tasks))


@pytest.fixture(scope="module")
def answer(door):
    return post(door, "forward-pass", FORWARD, **{"x-secret-key": SECRET}).json()


@settings(FUZZ, max_examples=150)
@given(sent=SENT)
def test_whatever_is_sent_is_answered_or_refused(door, answer, caplog, sent):
    caplog.clear()
    assert_withstands(urlsplit(door.url).port, sent)
    faults = [r for r in caplog.records if r.levelname in {"ERROR", "CRITICAL"}]
    assert not faults, (sent[:300], faults[0].getMessage(), faults[0].exc_info)


def test_after_it_the_door_answers_as_before_and_holds_no_connection(door, answer):
    assert_as_before(door, answer)


@pytest.mark.soak
def test_ten_thousand_requests_leave_nothing_behind(tmp_path):
    port, resident, log = free_port(), [], tmp_path / "log"
    hidden = without("MODEL_ID", "TRANSCODER_SET", "PORT", "PORT_HEALTH")
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "start.py"), "--port", str(port)],
            cwd=tmp_path,
            env={**hidden, "SECRET": SECRET, "SERVER_HOST": "127.0.0.1", "DEVICE": "cpu"},
            stderr=written,
        )

    @settings(FUZZ, max_examples=1_000)
    @given(sent=SENT)
    def a_thousand(sent):
        assert_withstands(port, sent)

    def forward():
        headers = {"x-secret-key": SECRET}
        url = f"http://127.0.0.1:{port}/forward-pass"
        return requests.post(url, json=FORWARD, headers=headers, timeout=60).json()

    try:
        until(lambda: "serving demo" in log.read_text())
        answer = forward()
        for _ in range(10):
            a_thousand()
            assert forward() == answer
            resident.append(resident_bytes(process.pid))
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert " ERROR " not in log.read_text()
    assert resident[-1] < 1.05 * resident[1], resident


def test_the_bounds_are_those_that_are_tried():
    assert http_bounds.MAX_HEAD_BYTES < 40_000
    assert http_bounds.MAX_HEADERS < 200
