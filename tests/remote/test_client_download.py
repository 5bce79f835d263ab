"""What a download does with the stores and networks that there are."""

import gzip
import hashlib

import pytest

from remote.download import download, replacing
from remote.errors import NotAllowed, NotTheGraph, Unreachable
from remote.retries import Patience
from schemas import UploadReceipt
from tests.support.raw_server import RawServer

GRAPH = b'{"nodes": [' + b", ".join(b"%d" % i for i in range(20_000)) + b"]}"
PATIENCE = Patience(outage_s=0.5, first_wait_s=0.02, longest_wait_s=0.1)


def receipt_of(stored, *, compressed=False):
    return UploadReceipt(
        url="https://bucket/graph.json",
        bytes=len(stored),
        sha256=hashlib.sha256(stored).hexdigest(),
        compressed=compressed,
        num_nodes=1,
        num_links=1,
        num_tokens=1,
        timings_ms={},
    )


def reply(status, body=b"", *, length=None, **headers):
    def act(connection, _request):
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {length or len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return act


def hang_up(connection, _request):
    pass


CUT_SHORT = reply(200, GRAPH[:-1000], length=len(GRAPH))


@pytest.fixture
def path(tmp_path):
    """A file with a graph of before, alone in its directory."""
    path = tmp_path / "graph.json"
    path.write_bytes(b"before")
    return path


def fetch(path, *script, receipt=None):
    with RawServer(list(script)) as store:
        download(receipt or receipt_of(GRAPH), store.url(), path, patience=PATIENCE)
    return store.requests


def assert_untouched(path):
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_graph_is_put_in_its_place(path):
    [request] = fetch(path, reply(200, GRAPH))
    assert path.read_bytes() == GRAPH
    assert list(path.parent.iterdir()) == [path]
    assert ("Accept-Encoding", "identity") in request.headers


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {}])
def test_a_gzipped_graph_is_checked_as_it_is_stored_and_written_as_json(path, headers):
    stored = gzip.compress(GRAPH)
    receipt = receipt_of(stored, compressed=True)
    [request] = fetch(path, reply(200, stored, **headers), receipt=receipt)
    assert path.read_bytes() == GRAPH
    assert ("Accept-Encoding", "gzip") in request.headers


def test_a_download_that_breaks_off_is_begun_again(path):
    requests = fetch(path, CUT_SHORT, hang_up, reply(503), reply(200, GRAPH))
    assert len(requests) == 4
    assert path.read_bytes() == GRAPH


@pytest.mark.parametrize(("act", "words"), [(CUT_SHORT, "broke off after"), (hang_up, "lost")])
def test_one_that_always_does_is_given_up(path, act, words):
    with pytest.raises(Unreachable, match=words):
        fetch(path, act)
    assert_untouched(path)


LARGE = b"[" + b"1234567, " * 500_000 + b"0]"
A_BIT_MORE = 1_200_000  # bytes that a connection brings before it breaks


def range_of(request):
    """The first byte that a request asks for."""
    asked = dict(request.headers).get("Range", "bytes=0-")
    return int(asked.removeprefix("bytes=").removesuffix("-"))


def breaking_store(stored):
    """Sends a bit from the byte that is asked for, and breaks off."""

    def act(connection, request):
        first = range_of(request)
        piece = stored[first : first + A_BIT_MORE]
        lines = [f"HTTP/1.1 {206 if first else 200} X", f"Content-Length: {len(stored) - first}"]
        if first:
            lines.append(f"Content-Range: bytes {first}-{len(stored) - 1}/{len(stored)}")
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + piece)

    return act


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzipped"])
def test_on_a_connection_that_always_breaks_a_download_goes_on_where_it_was(path, compressed):
    """Each time the patience, which is shorter than all of it, begins anew."""
    stored = gzip.compress(LARGE, compresslevel=0) if compressed else LARGE
    receipt = receipt_of(stored, compressed=compressed)
    requests = fetch(path, breaking_store(stored), receipt=receipt)
    assert path.read_bytes() == LARGE
    assert list(path.parent.iterdir()) == [path]
    begun_at = [range_of(request) for request in requests]
    assert begun_at[0] == 0
    assert begun_at == sorted(set(begun_at))
    assert begun_at[-1] >= len(stored) - A_BIT_MORE


@pytest.mark.parametrize(
    "odd",
    [
        reply(416),
        reply(206, GRAPH[5:], Content_Range=f"bytes 5-{len(GRAPH) - 1}/{len(GRAPH)}"),
        reply(206, GRAPH),
    ],
    ids=["refused", "another range", "no range named"],
)
def test_a_store_that_does_not_go_on_there_is_asked_for_all_of_it(path, odd):
    requests = fetch(path, CUT_SHORT, odd, reply(200, GRAPH))
    assert [range_of(request) > 0 for request in requests] == [False, True, False]
    assert path.read_bytes() == GRAPH


OTHER = GRAPH.replace(b"1234", b"1235")


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (OTHER, "SHA-256 is"),
        (GRAPH[:-1], f"has {len(GRAPH) - 1} bytes"),
        (GRAPH + b" ", "larger than"),
    ],
)
def test_another_object_is_refused_and_the_file_left_as_it_was(path, stored, words):
    with pytest.raises(NotTheGraph, match=words):
        fetch(path, reply(200, stored))
    assert_untouched(path)


def test_an_object_that_is_not_gzipped_is_not_the_gzipped_graph(path):
    with pytest.raises(NotTheGraph, match="not gzipped"):
        fetch(path, reply(200, GRAPH), receipt=receipt_of(GRAPH, compressed=True))
    assert_untouched(path)


@pytest.mark.parametrize("status", [403, 404, 400])
def test_a_store_s_refusal_is_final_and_shows_none_of_the_url_s_query(path, status):
    with pytest.raises(NotAllowed, match=rf"answered {status} .*bucket/graph\.json") as caught:
        fetch(path, reply(status))
    assert "Signature" not in str(caught.value)
    assert_untouched(path)


def test_of_two_that_write_one_file_at_once_each_puts_its_own_whole_in_place(path):
    with replacing(path) as first:
        first.write(b"the first ")
        with replacing(path) as second:
            second.write(b"the second")
        assert path.read_bytes() == b"the second"
        first.write(b"whole")
    assert path.read_bytes() == b"the first whole"
    assert list(path.parent.iterdir()) == [path]
