"""What a worker, a store or somebody between can send: each is one error, soon and in bounds."""

import contextlib
import gzip
import hashlib
import itertools
import json
import time
import tracemalloc

import pytest

from client import Client, main
from remote import wire
from remote.download import download
from remote.errors import NotTheGraph, RemoteError, Unreachable, WrongTarget
from remote.retries import Patience
from schemas import UploadReceipt
from tests.support.hostile_graphs import sound
from tests.support.odd_graphs import odd_graph
from tests.support.raw_server import RawServer

PATIENCE = Patience(outage_s=0.3, busy_s=0.3, first_wait_s=0.02, longest_wait_s=0.1)
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31m\x9b1m\x7f\r\u202e[bold]x[/bold]\u2066"
BOMB = gzip.compress(bytes(200_000_000), 1)
EMPTY = gzip.compress(b"{}")
MEMORY = 90_000_000


def head(status=200, **headers):
    lines = [f"HTTP/1.1 {status} X", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def says(body, status=200, **headers):
    """Answer with this, whatever the request."""

    def act(connection, _request):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.sendall(head(status, Content_Length=len(content), **headers) + content)

    return act


def for_ever(beginning, repeated, *, pause_s=0.0):
    """Send the beginning, then the same again and again until the client hangs up."""

    def act(connection, _request):
        with contextlib.suppress(OSError):
            connection.sendall(beginning)
            while True:
                connection.sendall(repeated)
                time.sleep(pause_s)

    return act


def ask(*script, kind="http"):
    """Ask for a forward pass; the error that comes of it."""
    with RawServer(list(script)) as server:
        url = f"http://127.0.0.1:{server.port}"
        with (
            Client.to_url(url, kind=kind, patience=PATIENCE) as client,
            pytest.raises(RemoteError) as caught,
        ):
            client.forward_pass("a")
    return caught.value


@contextlib.contextmanager
def within_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def receipt_of(stored, *, compressed):
    return UploadReceipt(
        url="https://bucket/graph.json", bytes=len(stored),
        sha256=hashlib.sha256(stored).hexdigest(), compressed=compressed,
        num_nodes=1, num_links=1, num_tokens=1, timings_ms={},
    )  # fmt: skip


def fetch(path, stored, *script, compressed=False):
    with RawServer(list(script)) as store:
        receipt = receipt_of(stored, compressed=compressed)
        download(receipt, store.url(), path, patience=PATIENCE)
    return store.requests


def test_a_download_that_unpacks_to_what_no_graph_does_is_stopped(tmp_path):
    path = tmp_path / "graph.json"
    with within_memory(), pytest.raises(NotTheGraph, match=r"more than \d+ bytes"):
        fetch(path, BOMB, says(BOMB), compressed=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stored", [EMPTY[:-4], EMPTY + b"x", EMPTY * 2], ids=["cut", "longer", "twice"]
)
def test_a_download_that_is_not_one_whole_gzipped_file_is_no_graph(tmp_path, stored):
    with pytest.raises(NotTheGraph, match="can't be unpacked"):
        fetch(tmp_path / "graph.json", stored, says(stored), compressed=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [200, 302, 404, 500, 503])
def test_an_answer_that_unpacks_to_too_much_is_not_unpacked(status, monkeypatch):
    monkeypatch.setattr("remote.servers.OUTPUT_BYTES", 20_000_000)
    location = {"Location": "http://127.0.0.1:9/"} if status == 302 else {}
    act = says(BOMB * 4, status, Content_Encoding="gzip", Retry_After=0, **location)
    with within_memory():
        assert isinstance(ask(act), Unreachable)


def test_a_redirect_with_a_body_that_unpacks_to_much_is_followed_without_it(tmp_path):
    path = tmp_path / "graph.json"
    with RawServer([says(b"{}")]) as elsewhere, within_memory():
        away = says(BOMB, 302, Content_Encoding="gzip", Location=elsewhere.url())
        fetch(path, b"{}", away)
    assert path.read_bytes() == b"{}"


@pytest.mark.parametrize(
    "act",
    [
        for_ever(head(), b" " * 1_000_000),
        for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1_000_000),
        for_ever(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n" * 1_000),
        for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
        for_ever(head(Transfer_Encoding="chunked"), b"1" * 1_000_000),
        for_ever(head(Transfer_Encoding="chunked"), b"1;" + b"x" * 1_000 + b"\r\nx\r\n"),
        for_ever(head(Content_Encoding="gzip"), gzip.compress(b" " * 1_000_000)),
        for_ever(head(Content_Type="text/event-stream"), b"x" * 1_000_000),
    ],
    ids=["body", "header", "headers", "heads", "chunk length", "chunks", "gzip", "no line"],
)
def test_an_answer_without_end_is_ended(act, monkeypatch):
    monkeypatch.setattr("remote.servers.OUTPUT_BYTES", 5_000_000)
    assert isinstance(ask(act), Unreachable)


@pytest.mark.parametrize(
    ("beginning", "repeated"),
    [
        (head(), b" "),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (head(Transfer_Encoding="chunked"), b"1\r\nx\r\n"),
    ],
    ids=["body", "heads", "header", "chunks"],
)
def test_an_answer_that_comes_byte_by_byte_is_waited_for_no_longer(
    beginning, repeated, monkeypatch
):
    monkeypatch.setattr(wire, "_SLOW_BEGINNING_S", 0.3)
    monkeypatch.setattr(wire, "_LEAST_BYTES_PER_S", 10**9)
    error = ask(for_ever(beginning, repeated, pause_s=0.02))
    assert isinstance(error, Unreachable)


def test_a_caller_s_time_limit_ends_an_answer_that_comes_byte_by_byte():
    act = for_ever(head(), b" ", pause_s=0.02)
    with RawServer([act]) as server:
        url = f"http://127.0.0.1:{server.port}"
        with (
            Client.to_url(url, kind="http", patience=PATIENCE) as client,
            pytest.raises(RemoteError, match="time limit"),
        ):
            client.forward_pass("a", timeout_s=0.3)


def test_a_packing_that_was_not_asked_for_is_refused():
    assert "not asked for" in str(ask(says(b"x", Content_Encoding="br")))


def test_an_event_that_is_no_json_is_said_to_be_none():
    act = says(b"event: output\r\ndata: {\r\n\r\n", Content_Type="text/event-stream")
    with RawServer([act]) as server:
        url = f"http://127.0.0.1:{server.port}"
        with (
            Client.to_url(url, kind="http", patience=PATIENCE) as client,
            pytest.raises(Unreachable, match="no JSON"),
        ):
            client.steer("a", features=[], on_part=print)


def test_no_password_of_netrc_is_sent_to_a_store_or_to_where_it_redirects(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("default login someone password theirs\n")
    with RawServer([says(b"{}")]) as elsewhere:
        [first] = fetch(tmp_path / "graph.json", b"{}", says(b"", 307, Location=elsewhere.url()))
    [second] = elsewhere.requests
    for request in (first, second):
        assert "authorization" not in {name.lower() for name, _ in request.headers}


def test_a_store_that_redirects_for_ever_or_to_no_url_is_left(tmp_path):
    for location in ("http://[", "ftp://127.0.0.1/", "file:///etc/passwd", ""):
        with pytest.raises(WrongTarget):
            fetch(tmp_path / "graph.json", b"{}", says(b"", 302, Location=location))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def said(tmp_path, monkeypatch, capfd):
    """Run the command against a server that says this; its exit code, and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", "key")

    def run(line, *script):
        with RawServer(list(script)) as server:
            url = f"http://127.0.0.1:{server.port}"
            monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", url)
            code = main([*line.split(), "--url", url] if "--server" in line else line.split())
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run


HTTP = "--server http"


@pytest.mark.parametrize(
    ("line", "code", "answers"),
    [
        (f"forward-pass a {HTTP}", 1, [says({"error": f"internal: {ESCAPES}\nfile  x"}, 500)]),
        (f"forward-pass a {HTTP}", 3, [says({"detail": ESCAPES}, 400)]),
        (f"health {HTTP}", 0, [says({ESCAPES: {ESCAPES: ESCAPES}, "b" * 10**5: 1, "c": "d"})]),
        (f"health --json {HTTP}", 0, [says({ESCAPES: ESCAPES})]),
        (f"forward-pass a {HTTP}", 0, [says({ESCAPES: ESCAPES})]),
        (f"forward-pass a --json {HTTP}", 0, [says({ESCAPES: ESCAPES})]),
        ("status id --endpoint abc", 0,
         [says({"id": "id", "status": "IN_PROGRESS", "output": {"stage": ESCAPES, "progress": 0.5},
                "delayTime": "x", "executionTime": [1]})]),
        ("status id --endpoint abc", 3, [says({"id": ESCAPES, "status": "IN_PROGRESS"})]),
        ("status id --endpoint abc", 3, [says({"id": "i" * 10**6, "status": "IN_PROGRESS"})]),
        ("wait id --endpoint abc", 1,
         [says({"id": "id", "status": "IN_PROGRESS", "output": {"stage": ESCAPES}}),
          says({"id": "id", "status": "FAILED", "error": {"error_message": ESCAPES}})]),
        ("status id --endpoint abc", 2, [says({"error": ESCAPES}, 401)]),
    ],
)  # fmt: skip
def test_what_a_server_says_can_not_control_the_terminal(said, line, code, answers):
    found, printed = said(line, *answers)
    assert found == code
    assert_harmless(printed)


def assert_harmless(printed):
    assert "Traceback" not in printed
    assert not [c for c in printed if not c.isprintable() and c != "\n"]
    assert len(printed) < 100_000


def graph_named(slug):
    graph = sound()
    graph["metadata"]["slug"] = slug
    return graph


@pytest.mark.parametrize(
    "slug",
    ["../../x", "..", ".", "", ".bashrc", f"a{ESCAPES}", "a\0b", "a\nb", "é" * 500, "/etc/x"],
)
def test_a_graph_s_name_makes_a_file_in_out_and_nowhere_else(said, tmp_path, slug):
    code, printed = said(f"graph a {HTTP}", says(graph_named(slug)))
    assert code == 0
    assert_harmless(printed)
    [file] = (tmp_path / "out").iterdir()
    assert file.name.isprintable()
    assert not file.name.startswith(".")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("name", ["..", "", "x%00\x1b[2J", "." * 300])
def test_a_receipt_s_address_makes_a_file_in_out_and_nowhere_else(said, tmp_path, name):
    stored = json.dumps(sound()).encode()
    fields = receipt_of(stored, compressed=False).model_dump() | {"url": f"https://b/{name}"}
    with RawServer([says(stored)]) as store:
        line = f"graph a {HTTP} --signed-url https://b/x --download-url {store.url()}"
        code, printed = said(line, says(fields))
    assert code == 0
    assert_harmless(printed)
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("stored", [b"", b"{", b"[]", b'{"nodes": 1}', b"[" * 5_000])
def test_an_uploaded_object_that_is_no_graph_is_said_to_be_none(said, stored):
    with RawServer([says(stored)]) as store:
        line = f"graph a {HTTP} --signed-url https://b/x --download-url {store.url()} -o graph.json"
        receipt = receipt_of(stored, compressed=False).model_dump()
        code, printed = said(line, says(receipt))
    assert code == 5
    assert "is no graph" in printed
    assert_harmless(printed)


ODD_OUTPUTS = [
    {"nodes": []}, {"nodes": 1, "metadata": []}, {"sha256": 1}, {"sha256": "a", "bytes": "x"},
    {"STEERED_GENERATION": 1}, {"STEERED_GENERATION": "a", "DEFAULT_LOGITS_BY_TOKEN": [["a", []]]},
    {"salient_logits": {}}, {"is_chat": "x"},
]  # fmt: skip
DEEP = b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"


@pytest.mark.parametrize("options", ["", " --json"])
@pytest.mark.parametrize("output", [*ODD_OUTPUTS, DEEP, b'{"nodes": ' + DEEP + b"}"])
def test_an_odd_output_is_one_sentence(said, output, options):
    for command in ("graph a", "forward-pass a", "steer a"):
        code, printed = said(f"{command} {HTTP}{options}", says(output))
        assert code in {0, 3}  # 0 shows the JSON of what no action gives
        assert_harmless(printed)


@pytest.mark.parametrize("output", [1, [], {}, {"stream": 1}, {"stream": [1]}, {"stream": [{}]}])
def test_odd_parts_of_a_stream_on_runpod_do_not_fail_the_job(output):
    steered = {
        "DEFAULT_GENERATION": "a", "STEERED_GENERATION": "b", "DEFAULT_LOGITS_BY_TOKEN": [],
        "STEERED_LOGITS_BY_TOKEN": [],
    }  # fmt: skip
    over = says({"id": "id", "status": "COMPLETED", "output": steered})
    script = [says({"id": "id", "status": "IN_QUEUE"}), over, says(output)]
    with RawServer(script) as server:
        url = f"http://127.0.0.1:{server.port}"
        with Client.to_runpod("abc", "key", base_url=url, patience=PATIENCE) as client:
            done = client.steer("a", features=[], on_part=print)
    assert done.STEERED_GENERATION == "b"


def test_parts_of_a_stream_on_runpod_that_never_end_are_left(monkeypatch):
    monkeypatch.setattr("remote.servers._LAST_PARTS_S", 0.2)
    part = {"side": "default", "position": 1, "token": " a", "top_logits": []}
    steered = {
        "DEFAULT_GENERATION": "a", "STEERED_GENERATION": "b", "DEFAULT_LOGITS_BY_TOKEN": [],
        "STEERED_LOGITS_BY_TOKEN": [],
    }  # fmt: skip
    over = says({"id": "id", "status": "COMPLETED", "output": steered})
    endless = says({"stream": [{"output": [part]}]})
    with RawServer([says({"id": "id", "status": "IN_QUEUE"}), over, endless]) as server:
        url = f"http://127.0.0.1:{server.port}"
        with Client.to_runpod("abc", "key", base_url=url, patience=PATIENCE) as client:
            assert client.steer("a", features=[], on_part=print).STEERED_GENERATION == "b"


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.soak)])
def test_each_odd_graph_is_written_and_shown_or_is_one_error(tmp_path, monkeypatch, capfd, count):
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()
    codes = set()

    def act(connection, request):
        says(odd_graph(next(numbers)))(connection, request)

    with RawServer([act]) as server:
        url = f"http://127.0.0.1:{server.port}"
        for number in range(count):
            code = main(["graph", "a", *HTTP.split(), "--url", url])
            printed = capfd.readouterr()
            assert code in {0, 3}, number
            assert_harmless(printed.out + printed.err)
            codes.add(code)
    assert codes == {0, 3}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
