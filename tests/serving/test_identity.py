"""Which worker answers: said at the start of both doors and by `/health`."""

import json
import tomllib

from settings import VERSION
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import FORWARD
from tests.support.http_server import get, serving
from tests.support.programs import ROOT

DEMO = {
    "version": "1.2.3",
    "commit": "c0ffee",
    "model": "demo",
    "transcoders": "demo/transcoders",
    "revisions": [],
    "engine": "transformerlens",
    "device": "cpu",
    "dtype": "float32",
}


def test_the_version_is_the_project_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_health_says_which_worker_answers():
    with serving(worker_version="1.2.3", worker_revision="c0ffee") as server:
        health = get(server, "/health").json()
    assert health.items() >= DEMO.items()
    with serving() as server:
        health = get(server, "/health").json()
    assert health["version"] == VERSION
    assert health["commit"] is None


def test_a_worker_on_runpod_says_at_its_start_which_it_is_and_only_in_json(tmp_path):
    image = {"WORKER_VERSION": "1.2.3", "WORKER_REVISION": "c0ffee", "LOG_LEVEL": "INFO"}
    with ControlPlane() as plane, running_worker(plane, tmp_path, **image) as worker:
        jobs = [plane.submit(FORWARD), plane.submit({**FORWARD, "max_n_logits": 0})]
        for job in jobs:
            plane.result(job)
        assert worker.terminate() == 0
    lines = [json.loads(line) for line in worker.log().splitlines()]
    [identity] = [line for line in lines if line["message"] == "identity"]
    assert identity.items() >= DEMO.items()
    for line in lines:
        assert line["time"].endswith("+00:00")
        assert line["level"] in ("INFO", "WARNING")
    of_jobs = [line for line in lines if any(job in json.dumps(line) for job in jobs)]
    # On a busy machine a result takes its time.
    of_jobs = [line for line in of_jobs if "its result is not posted yet" not in line["message"]]
    assert [(line["job_id"], line["message"]) for line in of_jobs] == [
        (jobs[0], "job done"),
        (jobs[1], "job failed: invalid_input"),
    ]
