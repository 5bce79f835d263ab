"""The client against Runpod's public side, behind which a real worker takes the jobs."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import requests

from client import Client, main
from remote import servers
from remote.errors import (
    JobCancelled,
    JobGone,
    JobTimedOut,
    NotAllowed,
    Unreachable,
    WorkerFailure,
    WrongTarget,
)
from remote.retries import Patience
from tests.support.demo_worker import PROMPT, ask, without_times
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT
from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY
from tests.support.sdk_jobs import FEATURE, GRAPH, LONG_STEER, STEER, stopped

LONG = ["steer", PROMPT, "--feature", "2:5:4=+20", "--temperature", "5", "--seed", "4"]
LONG += ["--n-tokens", "40", "--endpoint", ENDPOINT_ID]


@pytest.fixture
def client(endpoint):
    with connect(endpoint) as client:
        yield client


def connect(endpoint, *, endpoint_id=ENDPOINT_ID, key=USER_KEY, outage_s=20.0):
    patience = Patience(outage_s=outage_s, busy_s=20.0, first_wait_s=0.02, longest_wait_s=0.2)
    return Client.to_runpod(endpoint_id, key, base_url=endpoint.base_url, patience=patience)


def start(endpoint, arguments, **how):
    return subprocess.Popen(
        [sys.executable, "client.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **endpoint.environment()},
        **how,
    )


def test_a_graph_is_the_worker_s_own(client):
    graph = client.generate_graph(PROMPT, slug_identifier=GRAPH["slug_identifier"])
    assert without_times(graph) == without_times(ask(GRAPH))


def test_a_steer_comes_back_typed_and_its_progress_rises_through_the_stages(client):
    seen = []
    fields = {"features": [FEATURE], "n_tokens": 16, "temperature": 5.0, "seed": 4}
    output = client.steer(PROMPT, **fields, on_progress=seen.append)
    assert output.model_dump(mode="json") == ask({**STEER, **fields})
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages[:2] == ["submitting", "in the queue"]
    assert stages[-1] == "generate"
    shares = [progress.share for progress in seen if progress.share is not None]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]
    assert len({progress.job_id for progress in seen[1:]} - {None}) == 1


def runsync(endpoint, job, query=""):
    url = f"{endpoint.base_url}/{ENDPOINT_ID}/runsync{query}"
    headers = {"Authorization": f"Bearer {USER_KEY}"}
    return requests.post(url, json={"input": job}, headers=headers, timeout=120).json()


def test_a_job_that_runsync_answers_before_its_end_can_be_waited_for_by_its_id(endpoint, client):
    early = runsync(endpoint, LONG_STEER, "?wait=1000")
    assert early["status"] in {"IN_QUEUE", "IN_PROGRESS"}
    assert "STEERED_GENERATION" not in early.get("output", {})
    assert client.wait(early["id"]) == ask(LONG_STEER)
    done = runsync(endpoint, STEER)
    assert (done["status"], done["output"]) == ("COMPLETED", ask(STEER))


def test_the_client_s_own_jobs_are_polled_and_never_wait_on_runsync(endpoint, client):
    client.forward_pass(PROMPT)
    assert endpoint.count("run") == 1
    assert endpoint.count("status") > 0
    assert endpoint.count("runsync") == 0


def test_a_failed_job_is_an_exception_with_the_worker_s_code_and_sentence(client):
    with pytest.raises(WorkerFailure) as caught:
        client.generate_graph("a " * 80)
    assert caught.value.code == "prompt_too_long"
    assert caught.value.message.endswith("the limit is 64")


def test_what_can_not_be_right_is_not_sent(client, endpoint):
    with pytest.raises(Exception, match="n_token is no field of this action; did you mean n_tok"):
        client.steer(PROMPT, features=[FEATURE], n_token=3)
    assert endpoint.requests == []


def test_lost_connections_and_answers_of_no_use_are_outlived(client, endpoint):
    endpoint.fail("run", 429, Retry_After="0")
    endpoint.fail("status", "drop", 502, 500, 429, "drop", 503)
    seen = []
    assert client.forward_pass(PROMPT, on_progress=seen.append).salient_logits
    assert len(endpoint.submitted) == 1
    assert endpoint.count("status") > 6
    words = [progress.message for progress in seen if "trying again" in progress.message]
    assert len(words) == 7
    assert words[1].startswith("the connection was lost")
    assert words[2].startswith("502")


def test_a_job_that_may_have_been_taken_is_not_sent_twice(client, endpoint):
    for fault in ("drop", 502):
        endpoint.fail("run", fault)
        with pytest.raises(Unreachable):
            client.forward_pass(PROMPT)
    assert endpoint.count("run") == 2


def test_an_outage_ends_the_waiting_when_the_patience_is_over(endpoint):
    with connect(endpoint, outage_s=0.5) as client:
        endpoint.fail("status", *[502] * 100)
        with pytest.raises(Unreachable, match=r"no usable answer.*: 502; job job-\d+ may go on"):
            client.forward_pass(PROMPT)


def test_an_answer_that_is_no_status_is_said_to_be_none(client, endpoint):
    endpoint.fail("status", "page")
    with pytest.raises(Unreachable, match="tells nothing of the job"):
        client.forward_pass(PROMPT)


def test_a_job_whose_result_is_kept_no_longer_is_gone(client, endpoint):
    job_id = client.submit({"action": "forward-pass", "prompt": PROMPT})
    assert client.wait(job_id)["salient_logits"]
    assert client.status(job_id).state == "COMPLETED"
    endpoint.forget(job_id)
    for ask_for in (client.wait, client.status, client.cancel):
        with pytest.raises(JobGone, match=f"no job {job_id}.* 30 minutes"):
            ask_for(job_id)


def test_a_job_that_runpod_gives_up_has_timed_out(client, endpoint, plane):
    job_id = client.submit({"action": "forward-pass", "prompt": PROMPT})
    endpoint.timed_out.append(job_id)
    with pytest.raises(JobTimedOut, match="execution timeout"):
        client.wait(job_id)
    plane.result(job_id)


@pytest.mark.parametrize(
    ("target", "error"),
    [({"key": "another"}, NotAllowed), ({"endpoint_id": "another"}, WrongTarget)],
)
def test_a_wrong_key_or_endpoint_is_named_at_once(endpoint, target, error):
    with (
        connect(endpoint, **target) as client,
        pytest.raises(error, match=ENDPOINT_ID[-8:] + "|another"),
    ):
        client.forward_pass(PROMPT)
    assert len(endpoint.requests) == 1


def test_the_commands_that_take_an_id_follow_a_job_from_the_queue_to_its_end(
    client, endpoint, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)

    def say(*arguments):
        assert main([*arguments, "--endpoint", ENDPOINT_ID]) == 0
        return capsys.readouterr().out

    job_id = client.submit({"action": "generate-graph", "prompt": PROMPT, "slug_identifier": "a"})
    assert "graph   out/a.json" in say("wait", job_id)
    rows = [line.split() for line in say("status", job_id).splitlines()]
    assert rows[:2] == [["job", job_id], ["state", "COMPLETED"]]
    assert json.loads(say("status", job_id, "--json"))["output"]["nodes"]
    assert say("cancel", job_id) == f"job {job_id} is cancelled\n"
    assert "workers  idle 0, initializing 1" in say("health")


@pytest.fixture
def long_job(client, plane, worker):
    """A job under way, which is over when the test is."""
    job_id = client.submit(LONG_STEER)
    until(lambda: plane.jobs[job_id].progress)
    yield job_id
    with contextlib.suppress(JobGone):
        client.cancel(job_id)
    until(lambda: stopped(worker, job_id) or plane.jobs[job_id].results)


def test_status_shows_the_stage_of_a_running_job_and_the_workers_a_waiting_one_waits_for(
    client, long_job, monkeypatch
):
    status = client.status(long_job)
    assert status.state == "IN_PROGRESS"
    assert 0 <= status.progress.share < 1
    monkeypatch.setattr(servers, "_QUEUE_NEWS_S", 0.0)
    seen = []
    with pytest.raises(JobTimedOut):
        client.run({"action": "forward-pass", "prompt": PROMPT}, seen.append, timeout_s=3.0)
    assert ("in the queue", "workers: 1 initializing") in {(p.stage, p.message) for p in seen}


def test_a_job_that_somebody_cancels_is_cancelled_for_who_waits(client, long_job):
    threading.Timer(0.3, client.cancel, [long_job]).start()
    with pytest.raises(JobCancelled, match=long_job):
        client.wait(long_job)


def test_a_job_over_its_time_limit_is_stopped_in_the_worker(client, endpoint, worker):
    job = {"action": "steer", "prompt": PROMPT, "features": [FEATURE], "temperature": 5.0}
    with pytest.raises(JobTimedOut, match=r"time limit; job \S+ is cancelled"):
        client.run({**job, "seed": 4, "n_tokens": 40}, timeout_s=4.0)
    [job_id] = endpoint.cancelled
    until(lambda: stopped(worker, job_id))
    assert endpoint.submitted[-1]["input"]["deadline"] < time.time() + 5


def test_a_time_limit_that_passes_in_an_outage_stops_the_job_as_well(client, endpoint, worker):
    endpoint.fail("status", *[502] * 100)
    job = {"action": "steer", "prompt": PROMPT, "features": [FEATURE], "temperature": 5.0}
    with pytest.raises(JobTimedOut, match=r"time limit; job \S+ is cancelled"):
        client.run({**job, "seed": 4, "n_tokens": 40}, timeout_s=4.0)
    [job_id] = endpoint.cancelled
    until(lambda: stopped(worker, job_id))


def test_on_a_terminal_a_bar_runs_and_ctrl_c_stops_the_job_in_the_worker(endpoint, plane, worker):
    screen = b""
    ours, theirs = pty.openpty()
    process = start(
        endpoint, LONG, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    while not re.search(rb"about \d+ s left", screen):
        screen += os.read(ours, 65536)
    os.write(ours, b"\x03")
    with contextlib.suppress(OSError):  # how the end of a terminal shows
        while piece := os.read(ours, 65536):
            screen += piece
    assert process.wait(LONGEST_S) == 130
    [job_id] = endpoint.cancelled
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.decode())
    assert re.search(r"generate +━+.*\d+% \d:\d\d:\d\d about \d+ s left \d+ of 40 tokens", text)
    assert f"job {job_id} is cancelled" in text
    assert "Traceback" not in text
    until(lambda: stopped(worker, job_id))
    assert plane.jobs[job_id].results == []
    os.close(ours)


def take_terminal():
    """Make standard input the controlling terminal, so that its Ctrl-C is a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_second_ctrl_c_ends_the_client_whatever_runpod_does(endpoint, client, worker):
    endpoint.fail("cancel", "hang")
    process = start(endpoint, LONG, stderr=subprocess.PIPE, text=True)
    assert "job job-" in "".join(process.stderr.readline() for _ in range(2))
    process.send_signal(signal.SIGINT)
    until(lambda: endpoint.count("cancel"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped"
    [job_id] = {job_id for route, job_id in endpoint.requests if route == "cancel"}
    client.cancel(job_id)


def test_without_a_terminal_there_is_a_line_a_stage_and_the_summary_alone_on_stdout(endpoint):
    arguments = ["steer", PROMPT, "--feature", "2:5:4=+20", "--n-tokens", "3"]
    process = start(
        endpoint,
        [*arguments, "--endpoint", ENDPOINT_ID],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0
    stages = [line.split("  ")[-1].split(",")[0] for line in errors.splitlines()]
    assert len(stages) == len(set(stages)) <= 6
    assert "in the queue" in stages
    assert output.lstrip().startswith("default")
    assert USER_KEY not in output + errors
