"""The client against the HTTP door, served in this process, and what is at neither kind of URL."""

import json
import re
import signal
import subprocess
import sys

import pytest

from client import Client, main
from model_loader import get_model
from remote.errors import JobTimedOut, NotAllowed, Unreachable, WorkerFailure, WrongTarget
from remote.retries import Patience
from serving import http_api
from tests.support.demo_worker import PROMPT, ask, demo_settings, without_times
from tests.support.http_server import STEER, get, serving, until_idle
from tests.support.object_store import BUCKET, running_store
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port
from tests.support.raw_server import RawServer

PATIENCE = Patience(outage_s=5.0, busy_s=20.0, first_wait_s=0.02, longest_wait_s=0.2)


@pytest.fixture(scope="module")
def server():
    with serving(upload_allowed_hosts=("127.0.0.1",)) as running:
        yield running


@pytest.fixture
def client(server):
    with Client.to_url(server.url, patience=PATIENCE) as client:
        yield client


def test_every_action_answers_as_the_worker_does(client):
    graph = client.generate_graph(PROMPT, slug_identifier="test")
    asked = {"action": "generate-graph", "prompt": PROMPT, "slug_identifier": "test"}
    assert without_times(graph) == without_times(ask(asked))
    steered = client.steer(**STEER)
    assert steered.model_dump(mode="json") == ask({"action": "steer", **STEER})
    passed = client.forward_pass(messages=[{"role": "user", "content": PROMPT}])
    rendered = "".join(passed.input_tokens)
    assert rendered == passed.prompt
    [message] = client.parse_chat_prompt(rendered).messages
    assert message.content == PROMPT


def test_a_failed_job_has_the_worker_s_code(client):
    with pytest.raises(WorkerFailure) as caught:
        client.generate_graph("a " * 80)
    assert caught.value.code == "prompt_too_long"


def test_the_secret_is_sent_and_asked_for(server):
    with serving(secret="a-secret") as guarded:
        with Client.to_url(guarded.url, "a-secret\n") as client:
            assert client.forward_pass(PROMPT).salient_logits
        for secret in (None, "another"):
            with (
                Client.to_url(guarded.url, secret) as client,
                pytest.raises(NotAllowed, match="set SECRET"),
            ):
                client.forward_pass(PROMPT)


def test_a_job_waits_while_the_worker_is_busy(client, monkeypatch):
    monkeypatch.setattr(http_api, "RETRY_AFTER_S", 0)
    lock = get_model(demo_settings()).lock
    lock.acquire()
    seen = []

    def on_progress(progress):
        if progress.stage == "waiting" and not seen:
            lock.release()
            seen.append(progress.message)

    assert client.forward_pass(PROMPT, on_progress=on_progress).salient_logits
    assert re.match(r"503: busy: .*; trying again in \d+ s", seen[0])


def test_a_worker_that_stays_busy_is_said_to_be(server):
    patience = Patience(busy_s=0.2)
    with (
        get_model(demo_settings()).lock,
        Client.to_url(server.url, patience=patience) as client,
        pytest.raises(Unreachable, match="was busy"),
    ):
        client.forward_pass(PROMPT)


def test_a_job_over_its_time_limit_is_given_up(client, server, held_model):
    _, go_on = held_model
    with pytest.raises(JobTimedOut, match="time limit"):
        client.generate_graph(PROMPT, timeout_s=0.5)
    go_on.set()
    until_idle(server)


def test_ctrl_c_closes_the_connection_and_so_stops_the_job(server, held_model):
    entered, go_on = held_model
    failed = get(server, "/health").json()["jobs"]["failed"]
    process = subprocess.Popen(
        [sys.executable, "client.py", "graph", PROMPT, "--url", server.url],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert entered.wait(LONGEST_S)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert "the job is cancelled: the connection is closed" in errors
    assert "Traceback" not in errors
    go_on.set()
    until(lambda: get(server, "/health").json()["jobs"]["failed"] == failed + 1)


def test_an_uploaded_graph_is_downloaded_checked_and_shown(server, tmp_path, capsys):
    path = tmp_path / "graph.json"
    with running_store(tmp_path / "store") as store:
        for compress in ([], ["--compress"]):
            place = {"Bucket": BUCKET, "Key": "some/graph.json"}
            url = store.client.generate_presigned_url("get_object", Params=place)
            arguments = ["graph", PROMPT, "--slug-identifier", "test", "--url", server.url]
            arguments += ["--signed-url", store.presign("some/graph.json"), *compress]
            assert main([*arguments, "--download-url", url, "-o", str(path)]) == 0
            said = capsys.readouterr()
            assert "its SHA-256 is right" in said.out
            assert '" basket"' in said.out
            assert "Signature" not in said.out + said.err
            asked = {"action": "generate-graph", "prompt": PROMPT, "slug_identifier": "test"}
            assert without_times(json.loads(path.read_text())) == without_times(ask(asked))
            path.unlink()


def test_a_url_that_is_neither_kind_of_server_is_said_to_be_none():
    with RawServer([page(200, "{}")]) as other, pytest.raises(WrongTarget, match="--server"):
        Client.to_url(f"http://127.0.0.1:{other.port}")


def test_a_runpod_endpoint_is_told_from_a_url():
    health = page(200, '{"jobs": {}, "workers": {}}')
    with RawServer([health]) as other, pytest.raises(WrongTarget, match="name the endpoint"):
        Client.to_url(f"http://127.0.0.1:{other.port}")


def test_a_redirect_is_not_followed_with_the_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password theirs\n")
    with RawServer([page(200, "{}")]) as elsewhere:
        location = {"Location": elsewhere.url()}
        with RawServer([page(307, "{}", **location)]) as other:
            client = Client.to_url(f"http://127.0.0.1:{other.port}", "a-secret", kind="http")
            with client, pytest.raises(Unreachable, match="answered 307"):
                client.forward_pass(PROMPT)
        assert elsewhere.requests == []
    [request] = other.requests
    assert ("x-secret-key", "a-secret") in request.headers
    assert not [name for name, _ in request.headers if name == "Authorization"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "https://127.0.0.1:{port}"])
def test_where_nothing_listens_it_is_said_at_once(url, capsys):
    port = free_port()
    assert main(["health", "--url", url.format(port=port)]) == 3
    assert capsys.readouterr().err == f"error  127.0.0.1:{port}: nothing takes connections there\n"


def page(status, body, **headers):
    """Answer with this, whatever the request."""

    def act(connection, _request):
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    return act
