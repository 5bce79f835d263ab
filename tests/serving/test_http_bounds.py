"""What a client may send, hold and wait before its secret is looked at, over real connections."""

import contextlib
import re
import socket
import time
from urllib.parse import urlsplit

import orjson
import pytest

from serving import http_bounds
from tests.support.http_server import FORWARD, GRAPH, get, post, raw_request, serving
from tests.support.polling import LONGEST_S, until

HEAD = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n"
TOO_LARGE = (431, b'{"error":"head_too_large: ')


def connect(server):
    return socket.create_connection(("127.0.0.1", urlsplit(server.url).port), timeout=60)


def read(connection):
    """Status and body of an answer after which the server closes the connection."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else None), body


def ask(server, request):
    with connect(server) as connection:
        connection.sendall(request)
        return read(connection)


def is_closed(connection):
    """Whether the server has closed the connection, without waiting for it."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def send_until_cut_off(connection, piece, pause=0.0):
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sendall(piece)
            time.sleep(pause)


def connections(server):
    return len(server.server_state.connections)


def waiting_for_bodies(server):
    """The connections whose heads are read: the newest of others might be the ones let go."""
    return sum(c._waits_for == "body" for c in list(server.server_state.connections))


@pytest.fixture
def hurried(monkeypatch):
    """A server that waits for a second."""
    for name in ("HEAD_S", "BODY_S", "STALLED_S"):
        monkeypatch.setattr(http_bounds, name, 1.0)
    with serving() as server:
        yield server


@pytest.fixture
def crowded(monkeypatch):
    """A server that has room for ten clients."""
    monkeypatch.setattr(http_bounds, "MAX_CONNECTIONS", 10)
    with serving() as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * http_bounds.MAX_HEAD_BYTES,
        b"X" * http_bounds.MAX_HEAD_BYTES + b": a",
        b"\r\n".join(b"X: %d" % i for i in range(http_bounds.MAX_HEADERS)),
        b"\r\n".join(b"X: " + b"a" * 1_000 for _ in range(40)),
        b"\r\n".join(b"a:" for _ in range(60_000)),
        b"X: a\r\n" + b" folded\r\n" * 10_000 + b"Y: a",
    ],
    ids=["a value", "a name", "one too many", "together", "small ones", "folded"],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_head_above_the_bounds_is_refused(guarded, headers, is_whole):
    request = HEAD + headers + b"\r\n\r\n" * is_whole
    if not is_whole:
        request += b"\r\nY: " + b"a" * http_bounds.MAX_HEAD_BYTES
    status, body = ask(guarded, request)
    assert (status, body[: len(TOO_LARGE[1])]) == TOO_LARGE


def test_a_target_above_the_bound_is_refused(guarded):
    target = b"/ping?" + b"a" * http_bounds.MAX_HEAD_BYTES
    status, body = ask(guarded, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, body[: len(TOO_LARGE[1])]) == TOO_LARGE


def test_a_head_within_the_bounds_is_answered(guarded):
    headers = b"\r\n".join(b"X: " + b"a" * 300 for _ in range(http_bounds.MAX_HEADERS - 2))
    request = HEAD + headers + b"\r\nConnection: close\r\n\r\n"
    assert ask(guarded, request)[0] == 200


@pytest.mark.parametrize("line", [b"X: " + b"a" * 65_000 + b"\r\n", b"a:\r\n" * 16_000])
def test_endless_headers_are_cut_off(guarded, line):
    with connect(guarded) as connection:
        connection.sendall(HEAD)
        send_until_cut_off(connection, line)
    until(lambda: connections(guarded) == 0)


def test_endless_trailers_and_chunk_extensions_are_cut_off(guarded):
    head = b"POST /steer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for begun in (b"0\r\n", b"1;"):
        with connect(guarded) as connection:
            connection.sendall(head + begun)
            send_until_cut_off(connection, b"a" * 65_000)


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /ping HTTP/1.1\r\n\r\n",
        b"GET /ping\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /steer HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /steer HTTP/1.1\r\nHost: a\r\nContent-Length: 1" + b"0" * 5_000 + b"\r\n\r\n",
        b"POST /steer HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /steer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_request_is_answered_in_json_and_nothing_is_logged_as_a_fault(
    guarded, caplog, request_
):
    with connect(guarded) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        status, body = read(connection)
    assert status in {400, 401, 505}
    assert body.startswith(b'{"error":')
    until(lambda: connections(guarded) == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_what_follows_a_request_unasked_is_refused(guarded, caplog, method):
    asked = method + b" /health HTTP/1.0\r\n\r\n"
    # All of it is there when the answer goes out: more would come to a socket that is closed.
    status, body = ask(guarded, asked + b"[" * 30_000)
    assert status in {200, 400}
    assert (body == b"") is (method == b"HEAD")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_is_no_request_after_an_answered_head_is_refused(guarded, caplog):
    with connect(guarded) as connection:
        connection.sendall(b"HEAD /ping HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"400"]
    assert answer.endswith(b"}")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_websocket_is_not_opened(guarded, caplog):
    upgrade = b"Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    assert ask(guarded, HEAD + upgrade)[0] == 200
    assert "upgrade" not in caplog.text


@pytest.mark.parametrize("begun", [b"", b"G", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_client_that_does_not_finish_its_head_is_let_go(hurried, begun):
    with connect(hurried) as connection:
        connection.sendall(begun)
        status, _ = read(connection)
    assert status == (200 if HEAD + b"\r\n" in begun else 408)
    until(lambda: connections(hurried) == 0)


def test_a_byte_now_and_then_gains_a_client_no_time_for_its_head(hurried):
    with connect(hurried) as connection:
        connection.sendall(HEAD + b"X: ")
        send_until_cut_off(connection, b"a", pause=0.05)


def test_a_byte_now_and_then_gains_a_client_no_time_after_its_answer(hurried):
    with connect(hurried) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        send_until_cut_off(connection, b"a", pause=0.05)


def test_a_client_that_does_not_finish_its_body_is_told_and_let_go(hurried):
    with raw_request(hurried, "forward-pass", b"{", length=100) as connection:
        for _ in range(3):
            connection.sendall(b" ")
            time.sleep(0.05)
        status, body = read(connection)
    assert (status, body[:26]) == (408, b'{"error":"request_timeout:')
    until(lambda: connections(hurried) == 0)
    assert post(hurried, "forward-pass", FORWARD).status_code == 200


def test_a_client_that_does_not_take_its_answer_is_let_go(hurried):
    with connect(hurried) as connection:
        asset = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(asset)
        until(lambda: connections(hurried) == 0)


def test_a_client_that_takes_its_time_between_requests_is_answered_again(guarded):
    with connect(guarded) as connection:
        for _ in range(3):
            connection.sendall(HEAD + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)


def test_a_new_client_is_answered_however_many_wait(crowded):
    with contextlib.ExitStack() as waiting:
        others = [waiting.enter_context(connect(crowded)) for _ in range(50)]
        for other in others[25:]:
            with contextlib.suppress(ConnectionError):
                other.sendall(HEAD + b"X: ")
        assert get(crowded, "/ping").status_code == 200
        assert connections(crowded) <= http_bounds.MAX_CONNECTIONS
        until(lambda: sum(map(is_closed, others)) >= 40)


def test_a_request_at_work_is_not_closed_to_make_room(crowded, held_model):
    entered, go_on = held_model
    with raw_request(crowded, "generate-graph", orjson.dumps(GRAPH)) as at_work:
        assert entered.wait(LONGEST_S)
        with contextlib.ExitStack() as waiting:
            for _ in range(50):
                waiting.enter_context(connect(crowded))
            assert get(crowded, "/ping").status_code == 200
        go_on.set()
        assert at_work.recv(12) == b"HTTP/1.1 200"


def test_when_all_are_at_work_a_new_client_is_let_go(crowded, monkeypatch):
    body = b"x" * 10
    with contextlib.ExitStack() as senders:
        for _ in range(http_bounds.MAX_CONNECTIONS):
            senders.enter_context(raw_request(crowded, "forward-pass", body, length=100))
        until(lambda: waiting_for_bodies(crowded) == http_bounds.MAX_CONNECTIONS)
        with connect(crowded) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(HEAD + b"\r\n")
            assert read(connection)[0] is None
    until(lambda: connections(crowded) == 0)
    assert get(crowded, "/ping").status_code == 200
