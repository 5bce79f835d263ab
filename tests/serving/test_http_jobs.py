"""One job at a time over HTTP: who is sent away, what is stopped, what is counted."""

import json
import threading

import pytest

import attribution
from model_loader import get_model
from serving import http_docs
from tests.support.demo_worker import ask, comparable, demo_settings
from tests.support.http_server import (
    ACTIONS,
    FORWARD,
    GRAPH,
    PARSE,
    STEER,
    assert_error,
    get,
    post,
    raw_request,
    serving,
    until_idle,
)
from tests.support.polling import LONGEST_S, until


def test_while_the_model_is_busy_jobs_are_sent_away_and_prompts_are_still_parsed(server):
    with get_model(demo_settings()).lock:
        assert get(server, "/check-busy").json() == {"busy": True}
        assert get(server, "/health").json()["busy"] is True
        for action in ("generate-graph", "steer", "forward-pass"):
            response = post(server, action, http_docs.EXAMPLES[action])
            assert_error(response, 503, "busy")
            assert int(response.headers["Retry-After"]) > 0
        assert post(server, "parse-chat-prompt", PARSE).status_code == 200
    assert get(server, "/check-busy").json() == {"busy": False}
    assert post(server, "forward-pass", FORWARD).status_code == 200


def test_the_server_answers_while_a_job_is_worked_on(server, held_model):
    entered, go_on = held_model
    with raw_request(server, "generate-graph", json.dumps(GRAPH).encode()) as connection:
        assert entered.wait(LONGEST_S)
        assert get(server, "/health").json()["jobs"]["inProgress"] == 1
        assert_error(post(server, "steer", STEER), 503, "busy")
        go_on.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_job_is_alone_until_its_graph_is_written_not_only_while_it_has_the_model(
    server, monkeypatch
):
    entered, go_on = threading.Event(), threading.Event()

    def hold(*arguments):
        entered.set()
        assert go_on.wait(LONGEST_S)
        return prune(*arguments)

    prune = attribution.prune
    monkeypatch.setattr(attribution, "prune", hold)
    with raw_request(server, "generate-graph", json.dumps(GRAPH).encode()) as connection:
        assert entered.wait(LONGEST_S)
        assert not get_model(demo_settings()).lock.locked()
        assert_error(post(server, "forward-pass", FORWARD), 503, "busy")
        go_on.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "parse-chat-prompt"])
def test_a_client_that_hangs_up_cancels_its_job(action, server, held_model):
    entered, go_on = held_model
    failed = get(server, "/health").json()["jobs"]["failed"]
    body = http_docs.EXAMPLES[action]
    with raw_request(server, action, json.dumps(body).encode()):
        assert entered.wait(LONGEST_S)
    until(lambda: not server.server_state.connections)
    for _ in range(3):  # turns of the event loop, in which the job is told
        assert get(server, "/check-busy").json() == {"busy": True}
    go_on.set()
    until_idle(server)
    assert get(server, "/health").json()["jobs"]["failed"] == failed + 1
    assert len(get_model(demo_settings()).graphs.kept) == 0
    expected = ask({"action": action, **body})
    assert comparable(post(server, action, body).json()) == comparable(expected)


def test_a_server_told_to_stop_cancels_the_job_that_takes_too_long_to_end(held_model, caplog):
    entered, go_on = held_model
    with serving() as server:
        server.config.timeout_graceful_shutdown = 0
        with raw_request(server, "generate-graph", json.dumps(GRAPH).encode()):
            assert entered.wait(LONGEST_S)
            server.should_exit = True
            # uvicorn's last word on the request, after which it waits for the thread.
            until(lambda: "Exception in ASGI application" in caplog.text)
            go_on.set()
    assert len(get_model(demo_settings()).graphs.kept) == 0
    assert ask({"action": "forward-pass", **FORWARD})["salient_logits"]


def test_a_client_that_hangs_up_within_its_body_leaves_nothing_behind(server):
    with raw_request(server, "steer", b'{"prompt"', length=100):
        pass
    assert get(server, "/check-busy").json() == {"busy": False}
    assert post(server, "forward-pass", FORWARD).status_code == 200


def test_health_names_the_model_its_limit_and_the_jobs_as_runpod_does(server):
    before = get(server, "/health").json()
    assert before["model"] == "demo"
    assert before["token_limit"] == 64
    assert before["jobs"]["inQueue"] == 0
    post(server, "forward-pass", FORWARD)
    post(server, "forward-pass", {})
    after = get(server, "/health").json()["jobs"]
    assert after["completed"] == before["jobs"]["completed"] + 1
    assert after["failed"] == before["jobs"]["failed"] + 1
