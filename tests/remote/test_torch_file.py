"""circuit-tracer's own file through the client: streamed to the disk, or downloaded."""

import json
import tracemalloc

import pytest
from circuit_tracer.graph import Graph

from client import Client, main
from remote import connection
from remote.errors import Unreachable, WorkerFailure, WrongTarget
from tests.support.demo_worker import PROMPT
from tests.support.http_server import serving
from tests.support.object_store import BUCKET, running_store
from tests.support.raw_server import RawServer, read_body

SLUG = ["--slug-identifier", "jordan"]


@pytest.fixture(scope="module")
def server():
    with serving(upload_allowed_hosts=("127.0.0.1",)) as running:
        yield running


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty working directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def files_in(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def ask(server, *options):
    return main(["graph", PROMPT, "--url", server.url, "--format", "pt", *options])


def test_a_file_is_written_where_it_is_asked_for_and_how_to_open_it_is_said(
    server, directory, capsys
):
    assert ask(server, "-o", "deep/graph.pt") == 0
    assert files_in(directory) == ["deep", "deep/graph.pt"]
    assert Graph.from_pt(str(directory / "deep/graph.pt")).n_pos == 5
    said = capsys.readouterr().out
    assert "deep/graph.pt" in said
    assert "circuit_tracer.graph.Graph.from_pt" in said
    assert "before pruning" in said


@pytest.mark.parametrize("slug", [SLUG, ["--slug-identifier", "a" * 200], []])
def test_without_a_name_the_file_gets_the_graph_s(server, directory, slug):
    assert ask(server, *slug) == 0
    [_, name] = files_in(directory)
    expected = {2: f"out/{slug[-1]}.pt"} if slug else {}
    assert name == expected.get(len(slug), name)
    assert name.startswith("out/")
    assert name.endswith(".pt")
    assert Graph.from_pt(str(directory / name)).n_pos == 5


def test_as_json_the_file_and_its_size_are_told(server, directory, capsys):
    assert ask(server, *SLUG, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    path = directory / "out/jordan.pt"
    assert said == {"file": "out/jordan.pt", "bytes": path.stat().st_size}


@pytest.mark.parametrize("compress", [[], ["--compress"]])
def test_an_uploaded_file_is_downloaded_checked_and_not_summarised(
    server, directory, tmp_path, capsys, compress
):
    with running_store(tmp_path / "store") as store:
        place = {"Bucket": BUCKET, "Key": "some/graph"}
        url = store.client.generate_presigned_url("get_object", Params=place)
        options = ["--signed-url", store.presign("some/graph"), "--download-url", url, *compress]
        assert ask(server, *options) == 0
    assert files_in(directory) == ["out", "out/graph.pt"]
    assert Graph.from_pt("out/graph.pt").n_pos == 5
    said = capsys.readouterr().out
    assert "its SHA-256 is right" in said
    assert "before pruning" in said
    assert "JSON" not in said
    assert "Graph.from_pt" in said


def test_an_upload_alone_says_what_was_uploaded(server, directory, tmp_path, capsys):
    with running_store(tmp_path / "store") as store:
        assert ask(server, "--signed-url", store.presign("graph.pt")) == 0
    assert files_in(directory) == []
    said = capsys.readouterr().out
    assert "before pruning" in said
    assert "JSON" not in said


def test_from_python_the_file_is_saved(server, tmp_path):
    path = tmp_path / "graph.pt"
    with Client.to_url(server.url) as client:
        assert client.save_graph(path, PROMPT, max_feature_nodes=20) == path
    assert len(Graph.from_pt(str(path)).selected_features) == 20


def test_from_python_a_file_is_no_output(server):
    with (
        Client.to_url(server.url) as client,
        pytest.raises(WrongTarget, match="save_graph"),
    ):
        client.generate_graph(PROMPT, format="pt")


def test_where_jobs_have_outputs_a_file_without_a_url_is_not_sent(capsys, monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "key")
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", "http://127.0.0.1:9/v2")
    assert main(["graph", PROMPT, "--endpoint", "abc123", "--format", "pt"]) == 2
    said = capsys.readouterr().err
    assert "--signed-url" in said
    assert "10 MB" not in said


def test_a_job_that_fails_writes_nothing(server, directory):
    with Client.to_url(server.url) as client, pytest.raises(WorkerFailure, match="prompt_too_long"):
        client.save_graph(directory / "graph.pt", "a " * 80)
    assert main(["graph", "a " * 80, "--url", server.url, "--format", "pt"]) == 1
    assert files_in(directory) == []


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b'Content-Disposition: attachment; filename="%s"\r\nContent-Length: %d\r\n\r\n'
)


def sends(body, length=None, name=b"graph.pt", head=HEAD):
    def act(connection, request):
        read_body(connection, request)
        connection.sendall(head % (name, length or len(body)))
        connection.sendall(body)

    return act


def save_from(path, act):
    with RawServer([act]) as other:
        url = f"http://127.0.0.1:{other.port}"
        with Client.to_url(url, kind="http") as client:
            return client.save_graph(path, PROMPT)


def test_a_file_that_breaks_off_leaves_the_one_of_before(tmp_path):
    path = tmp_path / "graph.pt"
    path.write_bytes(b"before")
    with pytest.raises(Unreachable, match="connection was lost"):
        save_from(path, sends(b"PK" * 1000, length=5000))
    assert path.read_bytes() == b"before"
    assert files_in(tmp_path) == ["graph.pt"]


def test_a_file_that_is_larger_than_any_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "FILE_BYTES", 1000)
    with pytest.raises(Unreachable, match="more than 1000 bytes"):
        save_from(tmp_path / "graph.pt", sends(b"PK" * 1000))
    assert files_in(tmp_path) == []


def test_a_server_s_name_stays_in_the_folder(directory):
    with RawServer([sends(b"PK\3\4", name=b"../../etc/../.bashrc")]) as other:
        url = f"http://127.0.0.1:{other.port}"
        assert main(["graph", PROMPT, "--url", url, "--server", "http", "--format", "pt"]) == 0
    [_, name] = files_in(directory)
    assert name.startswith("out/")
    assert name.count("/") == 1
    assert name.endswith(".pt")


@pytest.mark.parametrize("body", [b'{"nodes": []}', b"no file", b"[1]"])
def test_an_answer_that_is_no_file_is_not_written(tmp_path, body):
    head = HEAD.replace(b"application/octet-stream", b"application/json")
    with pytest.raises(Unreachable, match=r"something else than a file|answered 200"):
        save_from(tmp_path / "graph.pt", sends(body, head=head))
    assert files_in(tmp_path) == []


def test_a_file_is_never_held_in_memory(tmp_path):
    body = b"PK\3\4" + bytes(60_000_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        save_from(tmp_path / "graph.pt", sends(body))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (tmp_path / "graph.pt").stat().st_size == len(body)
    assert peak < 10_000_000


@pytest.mark.parametrize("command", ["view", "export"])
def test_a_file_is_no_document_for_the_commands_that_read_one(server, directory, capsys, command):
    assert ask(server, "-o", "graph.pt") == 0
    capsys.readouterr()
    options = {"view": ["--no-browser"], "export": ["--to", "csv"]}[command]
    assert main([command, "graph.pt", *options]) == 2
    said = capsys.readouterr().err
    assert "graph.pt" in said
    assert command == "view" or "circuit-tracer's own file" in said


def test_a_batch_takes_no_format(directory, capsys):
    (directory / "prompts.csv").write_text("prompt,format\nHi,pt\n")
    assert main(["batch", "prompts.csv", "--out", "runs"]) == 2
    assert "format can't be set in a batch" in capsys.readouterr().err
