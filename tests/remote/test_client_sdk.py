"""The client against the SDK's own local API: `python handler.py --rp_serve_api`."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from client import Client, main
from remote.errors import Unreachable, WorkerFailure, WrongTarget
from remote.servers import SdkApi
from tests.support.demo_worker import PROMPT, TOO_LONG, ask, without_times
from tests.support.http_server import STEER
from tests.support.polling import LONGEST_S, until
from tests.support.programs import ROOT, free_port
from tests.support.sdk_jobs import LONG_GRAPH


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    port = free_port()
    kept = {name: v for name, v in os.environ.items() if not name.startswith("RUNPOD_")}
    with (tmp_path_factory.mktemp("sdk") / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "handler.py", "--rp_serve_api", "--rp_api_port", str(port)],
            cwd=ROOT,
            env={**kept, "DEVICE": "cpu"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://localhost:{port}"
    try:
        until(lambda: answers(url) or process.poll() is not None)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the SDK pings from a process of its own
        process.wait()


def answers(url):
    try:
        Client.to_url(url).close()
    except Unreachable:
        return False
    return True


@pytest.fixture
def client(url):
    with Client.to_url(url) as client:
        yield client


def test_every_action_answers_as_the_worker_does(client):
    graph = client.generate_graph(PROMPT, slug_identifier="test")
    asked = {"action": "generate-graph", "prompt": PROMPT, "slug_identifier": "test"}
    assert without_times(graph) == without_times(ask(asked))
    assert client.steer(**STEER).model_dump(mode="json") == ask({"action": "steer", **STEER})
    parts = []
    streamed = client.steer(**STEER, on_part=parts.append)
    assert streamed.model_dump(mode="json") == ask({"action": "steer", **STEER})
    assert parts == []  # this API has no stream of a job whose handler is no generator
    passed = client.forward_pass(PROMPT)
    assert passed.model_dump() == ask({"action": "forward-pass", "prompt": PROMPT})
    parsed = client.parse_chat_prompt(PROMPT)
    assert parsed.model_dump() == ask({"action": "parse-chat-prompt", "prompt": PROMPT})


def test_a_failed_job_has_the_worker_s_code(client):
    with pytest.raises(WorkerFailure) as caught:
        client.generate_graph("a " * 80)
    assert caught.value.code == "prompt_too_long"


def test_it_has_no_jobs_to_ask_for(client, url, capsys):
    with pytest.raises(WrongTarget, match="only a Runpod endpoint"):
        client.status("test-1")
    assert main(["health", "--url", url]) == 0
    assert "local API" in capsys.readouterr().out


def test_its_health_is_in_runpod_s_form_and_counts_jobs(client, url):
    before = client.health()
    names = ["completed", "failed", "inProgress", "inQueue", "retried"]
    assert sorted(before["jobs"]) == names
    assert (before["jobs"]["inProgress"], before["jobs"]["inQueue"]) == (0, 0)
    assert before["workers"] == {"idle": 1, "running": 0}
    client.forward_pass(PROMPT)
    with pytest.raises(WorkerFailure):
        client.forward_pass(TOO_LONG)
    after = client.health()["jobs"]
    assert after["completed"] == before["jobs"]["completed"] + 1
    assert after["failed"] == before["jobs"]["failed"] + 1


def test_its_health_says_how_many_jobs_wait_for_the_one_that_runs(client, url):
    with ThreadPoolExecutor(2) as threads:
        long = {"input": {**LONG_GRAPH, "max_feature_nodes": 1500}}
        asked = [threads.submit(requests.post, f"{url}/runsync", json=long) for _ in range(2)]
        until(lambda: client.health()["jobs"]["inQueue"] == 1)
        busy = client.health()
        assert busy["jobs"]["inProgress"] == 1
        assert busy["workers"] == {"idle": 0, "running": 1}
        assert [job.result().json()["status"] for job in asked] == ["COMPLETED", "COMPLETED"]
    assert client.health()["workers"] == {"idle": 1, "running": 0}


def test_it_is_told_from_a_runpod_endpoint_by_its_document(client):
    assert isinstance(client.server, SdkApi)
    assert "workers" in client.health()


def test_ctrl_c_says_that_it_can_not_stop_a_job(url):
    prompt = LONG_GRAPH["prompt"]
    process = subprocess.Popen(
        [sys.executable, "client.py", "graph", prompt, "--batch-size", "1", "--url", url],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "running" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert errors.endswith("can't cancel a job: the worker finishes it, answer or not\n")
