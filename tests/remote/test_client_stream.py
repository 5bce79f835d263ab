"""A streamed steer from the client: over HTTP, from Runpod, on a terminal and in a pipe."""

import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from client import Client
from prompting.token_text import joined
from remote.errors import Interrupted, JobTimedOut, Unreachable, WorkerFailure
from remote.retries import Patience
from tests.support.demo_worker import PROMPT, ask, held
from tests.support.http_server import get
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT
from tests.support.raw_server import RawServer
from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY
from tests.support.sdk_jobs import FEATURE, stopped

STEER = {"prompt": PROMPT, "features": [FEATURE], "n_tokens": 12, "temperature": 5.0, "seed": 4}
COMMAND = ["steer", PROMPT, "--feature", "2:5:4=+20", "--temperature", "5", "--seed", "4"]
COMMAND += ["--n-tokens", "12", "--stream"]
FIRST_TOKENS = 6  # runs of the model after which they are there: three are of the prompt
PATIENCE = Patience(outage_s=5.0, busy_s=20.0, first_wait_s=0.02, longest_wait_s=0.2)


@pytest.fixture
def over_http(server):
    with Client.to_url(server.url, patience=PATIENCE) as client:
        yield client


@pytest.fixture
def on_runpod(endpoint):
    where = {"base_url": endpoint.base_url, "patience": PATIENCE}
    with Client.to_runpod(ENDPOINT_ID, USER_KEY, **where) as client:
        yield client


def assert_all_of(parts, output):
    for side in ("default", "steered"):
        of_side = [part for part in parts if part.side == side]
        entries = getattr(output, f"{side.upper()}_LOGITS_BY_TOKEN")[4:]
        assert [(part.token, part.top_logits) for part in of_side] == entries
        text = getattr(output, f"{side.upper()}_GENERATION")
        assert PROMPT + joined(part.token for part in of_side) == text


@pytest.mark.parametrize("where", ["over_http", "on_runpod"])
def test_each_token_is_handed_on_and_the_output_is_the_same_as_without(where, request):
    client, parts = request.getfixturevalue(where), []
    output = client.steer(**STEER, on_part=parts.append)
    assert output.model_dump(mode="json") == ask({"action": "steer", **STEER})
    assert_all_of(parts, output)


def test_on_runpod_the_first_tokens_come_long_before_the_last(on_runpod, endpoint):
    seen, longer = [], {**STEER, "n_tokens": 24}
    on_runpod.steer(**longer, on_part=lambda part: seen.append(endpoint.count("status")))
    assert seen[-1] - seen[0] >= 3
    assert len(set(seen)) > 3


def test_parts_that_runpod_hands_out_twice_are_handed_on_once(on_runpod, plane):
    """As it does when an answer to the worker's post was lost."""
    parts = []

    def take(part):
        parts.append(part)
        if len(parts) == 1:
            [record] = [one for one in list(plane.jobs.values()) if one.streamed][-1:]
            record.unread.append(record.streamed[0])

    output = on_runpod.steer(**STEER, on_part=take)
    assert_all_of(parts, output)


def test_a_stream_that_can_not_be_read_does_not_fail_the_job(on_runpod, endpoint):
    endpoint.fail("stream", *["drop", 500, "page"] * 1_000)
    parts = []
    output = on_runpod.steer(**STEER, on_part=parts.append)
    assert output.model_dump(mode="json") == ask({"action": "steer", **STEER})
    assert parts == []


def test_without_on_part_no_stream_is_asked_for(on_runpod, endpoint, over_http):
    on_runpod.steer(**STEER)
    assert endpoint.count("stream") == 0
    assert "stream" not in endpoint.submitted[-1]["input"]


@pytest.mark.parametrize("where", ["over_http", "on_runpod"])
def test_a_failed_job_has_the_worker_s_code(where, request):
    client = request.getfixturevalue(where)
    with pytest.raises(WorkerFailure) as caught:
        client.steer(**{**STEER, "prompt": "a " * 80}, on_part=print)
    assert caught.value.code == "prompt_too_long"


def test_an_error_in_mid_stream_has_the_worker_s_code(over_http, pass_the_deadline):
    parts = []

    def take(part):
        parts.append(part)
        pass_the_deadline()
        go_on.set()

    with held(FIRST_TOKENS) as (_, go_on), pytest.raises(WorkerFailure) as caught:
        over_http.steer(**STEER, deadline=time.time() + 600, on_part=take)
    assert parts
    assert caught.value.code == "deadline_exceeded"


def test_a_time_limit_that_passes_in_mid_stream_stops_the_job(over_http, server):
    parts = []
    failed = get(server, "/health").json()["jobs"]["failed"]
    with held(FIRST_TOKENS):
        with pytest.raises(JobTimedOut, match="time limit"):
            over_http.steer(**STEER, timeout_s=4, on_part=parts.append)
        assert parts
    until(lambda: get(server, "/health").json()["jobs"]["failed"] == failed + 1)


def test_ctrl_c_in_mid_stream_closes_the_connection_and_so_stops_the_job(over_http, server):
    failed = get(server, "/health").json()["jobs"]["failed"]

    def press(_part):
        raise KeyboardInterrupt

    with (
        held(FIRST_TOKENS),
        pytest.raises(Interrupted, match="the job is cancelled: the connection is closed"),
    ):
        over_http.steer(**STEER, on_part=press)
    until(lambda: get(server, "/health").json()["jobs"]["failed"] == failed + 1)


def test_a_stream_that_breaks_off_is_no_output():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    part = b'{"side":"default","position":5,"token":" a","top_logits":[]}'

    def break_off(connection, _request):
        connection.sendall(head + b"event: part\r\ndata: " + part + b"\r\n\r\n")

    parts = []
    with (
        RawServer([break_off]) as other,
        Client.to_url(f"http://127.0.0.1:{other.port}", kind="http") as client,
        pytest.raises(Unreachable, match="the stream ended before the output"),
    ):
        client.steer(**STEER, on_part=parts.append)
    assert [part.token for part in parts] == [" a"]


def test_in_a_pipe_there_is_a_line_for_each_token_and_stdout_has_the_summary_alone(server):
    done = subprocess.run(
        [sys.executable, "client.py", *COMMAND, "--url", server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = re.findall(r"^(default|steered)  (\d+)  \"(.*)\"$", done.stderr, re.MULTILINE)
    output = ask({"action": "steer", **STEER})
    for side in ("default", "steered"):
        entries = output[f"{side.upper()}_LOGITS_BY_TOKEN"][4:]
        assert [int(at) for name, at, _ in lines if name == side] == list(
            range(5, 5 + len(entries))
        )
    assert done.stdout.lstrip().startswith("default")
    assert "Traceback" not in done.stderr


def test_on_a_terminal_both_texts_grow_and_ctrl_c_stops_the_job_in_the_worker(
    endpoint, plane, worker
):
    ours, theirs = pty.openpty()
    longer = [*COMMAND, "--n-tokens", "40"]
    process = subprocess.Popen(
        [sys.executable, "client.py", *longer, "--endpoint", ENDPOINT_ID],
        cwd=ROOT,
        env={**os.environ, **endpoint.environment(), "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    body = {"action": "steer", **STEER, "n_tokens": 40}
    first = re.escape(ask(body)["STEERED_LOGITS_BY_TOKEN"][4][0].strip())
    assert len(first) > 2
    too_late = threading.Timer(LONGEST_S, process.kill)
    too_late.start()
    screen, text = b"", ""
    while not re.search(rf"default +steered.*{first}.*{first}", text, re.S):
        screen += os.read(ours, 65536)
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.decode(errors="replace"))
    assert process.poll() is None
    process.send_signal(2)
    assert process.wait(LONGEST_S) == 130
    too_late.cancel()
    [job_id] = endpoint.cancelled
    until(lambda: stopped(worker, job_id))
    assert plane.jobs[job_id].results == []
    os.close(ours)
