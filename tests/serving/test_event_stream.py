"""A streamed steer over HTTP: server-sent events on a real connection."""

import io
import json
import logging
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest
import requests

import logs
from model_loader import get_model
from prompting.token_text import joined
from tests.support.demo_worker import PROMPT, ask, demo_settings, held
from tests.support.http_server import (
    STEER,
    assert_error,
    get,
    post,
    raw_request,
    serving,
    until_idle,
)
from tests.support.polling import LONGEST_S, until
from tools.documents import read

STREAMED = {**STEER, "stream": True, "n_tokens": 12, "temperature": 5.0, "seed": 4}
ACCEPT = {"Accept": "text/event-stream"}
SECRET = "planted-secret"


def events_of(text):
    """The events of a whole stream, read as the standard says."""
    blocks = re.split(r"\r\n\r\n", text)
    for block in blocks:
        fields = [line.partition(": ") for line in block.split("\r\n")]
        named = {name: value for name, _, value in fields if name}  # without comments
        if named:
            yield named["event"], json.loads(named["data"])


def stream(server, body=STREAMED, **headers):
    return post(server, "steer", body, **ACCEPT, **headers)


@pytest.mark.parametrize("dialect", [{}, {"request_type": "steer", "logits_format": "objects"}])
def test_a_part_comes_for_each_token_and_then_the_same_output_as_without(server, dialect):
    response = stream(server, {**STREAMED, **dialect})
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert "Content-Encoding" not in response.headers
    *parts, (name, output) = events_of(response.text)
    assert {name for name, _ in parts} == {"part"}
    assert name == "output"
    assert output == ask({"action": "steer", **STREAMED, **dialect, "stream": False})
    for side in ("default", "steered"):
        of_side = [part for _, part in parts if part["side"] == side]
        text = PROMPT + joined(part["token"] for part in of_side)
        assert text == output[f"{side.upper()}_GENERATION"]
        entries = output[f"{side.upper()}_LOGITS_BY_TOKEN"][4:]
        assert [list(entry.values()) if dialect else entry for entry in entries] == [
            [part["token"], part["top_logits"]] for part in of_side
        ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_page_s_curl_command_streams_what_the_page_shows(server):
    section = read("docs/http.md").split("## Token by token")[1].split("\n## ")[0]
    command, shown = re.findall(r"```\w*\n(.*?)```", section, re.S)
    command = command.strip().replace("http://localhost:5004", server.url) + " --silent"
    done = subprocess.run(command, shell=True, capture_output=True, check=True, text=True)
    printed = list(events_of(done.stdout.replace("\n", "\r\n")))
    assert printed[-1][0] == "output"
    first = json.loads(re.search(r"data: (.*)", shown)[1])
    [[token, probability]] = printed[0][1].pop("top_logits")
    [[token_shown, probability_shown]] = first.pop("top_logits")
    assert printed[0] == ("part", first)
    assert token == token_shown
    assert probability == pytest.approx(probability_shown, abs=1e-4)
    start = re.search(r'data: (\{"DEFAULT_GENERATION":".*?) \.\.\.', shown)[1]
    assert start in done.stdout


@pytest.mark.parametrize(
    ("fields", "accept"), [({}, "*/*"), ({"stream": False}, "text/event-stream")]
)
def test_without_the_header_or_the_field_the_output_alone_comes(server, fields, accept):
    response = post(server, "steer", {**STREAMED, **fields}, Accept=accept)
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == ask({"action": "steer", **STREAMED, "stream": False})


@pytest.mark.parametrize("action", ["forward-pass", "parse-chat-prompt"])
def test_other_actions_have_no_stream(server, action):
    assert post(server, action, {"prompt": PROMPT}, **ACCEPT).json()
    assert_error(
        post(server, action, {"prompt": PROMPT, "stream": True}, **ACCEPT), 422, "invalid_input"
    )


def test_what_goes_wrong_before_the_first_part_has_its_own_status(server):
    failed = get(server, "/health").json()["jobs"]["failed"]
    assert_error(stream(server, {**STREAMED, "prompt": "a " * 80}), 413, "prompt_too_long")
    assert_error(stream(server, {**STREAMED, "n_tokens": 0}), 422, "invalid_input")
    with get_model(demo_settings()).lock:
        response = stream(server)
    assert_error(response, 503, "busy")
    assert int(response.headers["Retry-After"]) > 0
    assert get(server, "/health").json()["jobs"]["failed"] == failed + 2
    assert get(server, "/check-busy").json() == {"busy": False}


@pytest.fixture
def held_model():
    """Held when the first tokens are there: three runs are of the prompt."""
    with held(6) as events:
        yield events


@pytest.fixture
def held_prompt():
    with held(0) as events:
        yield events


@contextmanager
def reading(server):
    """The lines of a stream of which one pass of the model is there and has been read."""
    with requests.post(
        f"{server.url}/steer", json=STREAMED, headers=ACCEPT, stream=True, timeout=60
    ) as response:
        lines = response.iter_lines(chunk_size=None)  # it would close the connection at its own end
        for _ in range(2):
            assert b"event: part" in lines
        yield lines


def test_parts_come_while_the_model_is_still_at_work(server, held_model):
    reached, go_on = held_model
    with reading(server) as lines:
        assert reached.wait(LONGEST_S)
        assert not go_on.is_set()
        assert get(server, "/health").json()["jobs"]["inProgress"] == 1
        assert_error(post(server, "steer", STEER), 503, "busy")
        go_on.set()
        assert b"event: output" in lines


def test_a_client_that_hangs_up_in_mid_stream_cancels_its_job(server, held_model):
    reached, go_on = held_model
    failed = get(server, "/health").json()["jobs"]["failed"]
    with reading(server):
        assert reached.wait(LONGEST_S)
    until(lambda: not server.server_state.connections)
    assert get(server, "/check-busy").json() == {"busy": True}  # until the thread has ended
    go_on.set()
    until_idle(server)
    assert get(server, "/health").json()["jobs"]["failed"] == failed + 1
    assert post(server, "steer", STEER).json() == ask({"action": "steer", **STEER})


def test_a_client_that_hangs_up_before_the_first_part_cancels_its_job(server, held_prompt):
    reached, go_on = held_prompt
    failed = get(server, "/health").json()["jobs"]["failed"]
    body = json.dumps(STREAMED).encode()
    with raw_request(server, "steer", body, **ACCEPT):
        assert reached.wait(LONGEST_S)
    until(lambda: not server.server_state.connections)
    go_on.set()
    until_idle(server)
    jobs = get(server, "/health").json()["jobs"]
    assert jobs["failed"] == failed + 1
    assert jobs["inProgress"] == 0


def test_an_error_in_mid_stream_is_an_event_with_the_same_string(server, pass_the_deadline):
    """The deadline passes in the run of the second token: a run stops before its next layer."""
    runs = []

    def count(*_):
        runs.append(None)
        if len(runs) == 5:
            pass_the_deadline()

    handle = get_model(demo_settings()).model.blocks[0].register_forward_pre_hook(count)
    try:
        response = stream(server, {**STREAMED, "deadline": time.time() + 600})
    finally:
        handle.remove()
    assert response.status_code == 200
    *parts, (name, body) = events_of(response.text)
    assert parts
    assert name == "error"
    assert list(body) == ["error"]
    assert body["error"].startswith("deadline_exceeded: deadline ")
    assert get(server, "/check-busy").json() == {"busy": False}


def test_a_server_told_to_stop_lets_a_stream_end_within_its_grace(held_model):
    reached, go_on = held_model
    with serving() as server, reading(server) as lines:
        assert reached.wait(LONGEST_S)
        server.should_exit = True
        go_on.set()
        assert b"event: output" in lines


def test_no_prompt_text_or_secret_of_a_stream_is_logged():
    logs.set_up("DEBUG", as_json=False)
    [handler] = logging.root.handlers
    handler.setStream(io.StringIO())
    with serving(secret=SECRET) as server:
        body = {**STREAMED, "prompt": "planted joue au"}
        response = stream(server, body, **{"x-secret-key": SECRET})
        *parts, (name, _) = events_of(response.text)
        assert name == "output"
        assert_error(stream(server, body), 401, "unauthorized")
    written = handler.stream.getvalue()
    assert "job done job_id=None action=steer" in written
    assert "planted" not in written
    words = [part["token"] for _, part in parts if len(part["token"]) > 4]
    assert words
    assert not [word for word in words if word in written]
