"""A batch that several workers share in the SDK's real loop, one of which dies in the middle."""

import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from demo.facts import ATHLETES
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.polling import until
from tests.support.programs import ROOT
from tests.support.runpod_endpoint import ENDPOINT_ID, RunpodEndpoint

ENDINGS = ("joue au", "juega al", "plays", "joue", "juega", "likes", "aime", "ama")
PROMPTS = [" ".join(words) for words in itertools.product(ATHLETES, ENDINGS)]
SLOW = ("-m", "tests.support.slow_worker")


def write_prompts(path, count):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "max_n_logits", "athlete"])
        for prompt in PROMPTS[:count]:
            writer.writerow([prompt, 3, prompt.rsplit(" ", 1)[0]])


def start_batch(endpoint, folder, *arguments):
    command = [sys.executable, "client.py", "batch", folder / "prompts.csv", "--keep", "athlete"]
    command += ["--out", folder / "runs", "--endpoint", ENDPOINT_ID, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **endpoint.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answered(plane):
    return [job for job, record in list(plane.jobs.items()) if record.results]


def read_index(folder):
    with (folder / "runs" / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("n_prompts", "n_workers", "command"),
    [
        pytest.param(12, 2, SLOW, marks=pytest.mark.slow),
        pytest.param(200, 3, (), marks=pytest.mark.soak),
    ],
)
def test_workers_share_a_batch_and_one_that_is_killed_costs_no_prompt(
    tmp_path, n_prompts, n_workers, command
):
    write_prompts(tmp_path / "prompts.csv", n_prompts)
    names = [f"worker-{number}" for number in range(n_workers)]
    with (
        ControlPlane(*names) as plane,
        RunpodEndpoint(plane) as endpoint,
        contextlib.ExitStack() as stack,
    ):
        workers = {
            name: stack.enter_context(
                running_worker(plane, tmp_path, *command, RUNPOD_POD_ID=name, JOBS_AT_ONCE="2")
            )
            for name in names
        }
        plane.wait(lambda: plane.ready == {*names})
        batch = start_batch(endpoint, tmp_path)
        victim = names[-1]
        plane.wait(
            lambda: (
                len(answered(plane)) >= n_prompts // 4
                and any(plane.takers[job] == victim for job in answered(plane))
            )
        )
        lost = kill_in_mid_job(plane, workers[victim], victim)
        said, _ = batch.communicate(timeout=900)
        assert batch.returncode == 0, said
        assert {plane.takers[job] for job in lost} <= {*names} - {victim}
        assert {plane.takers[job] for job in plane.jobs} == {*names}
        assert_every_prompt_was_done_once(plane, endpoint, n_prompts)
        assert_index_is_whole(tmp_path, n_prompts)


def kill_in_mid_job(plane, worker, name):
    """Kill a worker that has jobs, and return those that Runpod gives to others."""
    while True:
        until(lambda: plane.held_by(name))
        os.killpg(worker.process.pid, signal.SIGSTOP)
        time.sleep(1.0)  # what it has posted arrives
        if plane.held_by(name):
            worker.kill()
            return plane.lose(name)
        os.killpg(worker.process.pid, signal.SIGCONT)


def assert_every_prompt_was_done_once(plane, endpoint, n_prompts):
    sent = [body["input"]["prompt"] for body in endpoint.submitted]
    assert sorted(sent) == sorted(PROMPTS[:n_prompts])
    assert len(plane.jobs) == n_prompts
    for record in plane.jobs.values():
        assert len(record.results) == 1
        assert "output" in record.results[0]
        assert record.after_result == []


def assert_index_is_whole(folder, n_prompts):
    index = read_index(folder)
    assert [line["prompt"] for line in index] == PROMPTS[:n_prompts]
    assert {line["state"] for line in index} == {"done"}
    assert len({line["file"] for line in index}) == n_prompts
    for line in index:
        graph = json.loads((folder / "runs" / line["file"]).read_bytes())
        assert graph["metadata"]["prompt"].endswith(line["prompt"])
        assert int(line["nodes"]) == len(graph["nodes"])
        assert int(line["links"]) == len(graph["links"])
        scores = graph["metadata"]["graph_scores"]
        assert float(line["replacement_score"]) == scores["replacement_score"]
        assert line["athlete"] == line["prompt"].rsplit(" ", 1)[0]
        [likeliest, *_] = json.loads(line["predictions"])
        assert likeliest == [line["prediction"], float(line["probability"])]
