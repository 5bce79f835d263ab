"""What the worker's log tells of a job, and what it must not."""

import json
import logging
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from runpod.serverless.modules.rp_logger import RunPodLogger

import logs
from errors import Internal, WorkerError
from loading.registry import DEMO
from model_loader import get_model
from serving import sdk_log
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, ask, demo_settings, forget_graphs
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT

SECRET_WORDS = "Zanzibar saffron"
STEER = {
    "action": "steer",
    "features": [{"layer": 1, "index": 5, "token_active_position": 1, "steer_position": 1}],
}
BODIES = [
    {**GRAPH, "prompt": SECRET_WORDS},
    {**FORWARD, "prompt": SECRET_WORDS},
    {**PARSE, "prompt": SECRET_WORDS},
    {**STEER, "prompt": SECRET_WORDS, "n_tokens": 2},
]


@pytest.fixture
def written(capsys):
    """Set the logs up and give what they have written since, in lines."""

    def lines(*, as_json):
        logs.set_up("INFO", as_json=as_json)

        def read():
            return capsys.readouterr().err.splitlines()

        return read

    return lines


def test_a_graph_is_one_json_line_with_its_sizes_and_stage_timings(written):
    forget_graphs()
    ask(GRAPH)  # the model is loaded and says so
    forget_graphs()
    read = written(as_json=True)
    graph = ask(GRAPH)
    [line] = map(json.loads, read())
    assert line["message"] == "job done"
    assert line["level"] == "INFO"
    assert line["action"] == "generate-graph"
    assert line["tokens"] == len(graph["metadata"]["prompt_tokens"])
    assert line["nodes"] == len(graph["nodes"])
    assert line["links"] == len(graph["links"])
    assert line["active_features"] > 0
    assert set(line["timings_ms"]) == {"tokenise", "attribute", "prune", "encode"}


def test_a_refused_job_is_one_line_with_its_code(written):
    read = written(as_json=True)
    with pytest.raises(WorkerError):
        ask({**FORWARD, "max_n_logits": 10**6})
    [line] = map(json.loads, read())
    assert line["message"] == "job failed: invalid_input"
    assert line["action"] == "forward-pass"


@pytest.mark.parametrize("as_json", [True, False])
def test_no_prompt_and_no_signed_query_is_logged(written, as_json):
    read = written(as_json=as_json)
    for body in BODIES:
        for bad in ({}, {"deadline": 1}, {"model_id": SECRET_WORDS}, {SECRET_WORDS: 1}):
            try:
                ask({**body, **bad})
            except WorkerError:
                continue
    with pytest.raises(WorkerError):
        ask({**GRAPH, "signed_url": "http://127.0.0.1/key?X-Amz-Signature=feed"})
    lines = read()
    assert len(lines) > len(BODIES)
    for word in (*SECRET_WORDS.split(), "feed", "Signature"):
        assert not [line for line in lines if word.lower() in line.lower()]


def test_an_unforeseen_error_is_one_line_with_its_place_and_without_its_message(written):
    loaded = get_model(demo_settings())
    read = written(as_json=True)

    def fail(*_):
        raise RuntimeError(SECRET_WORDS)

    handle = loaded.model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(Internal):
        ask(FORWARD)
    handle.remove()
    [line] = map(json.loads, read())
    assert (line["level"], line["message"]) == ("ERROR", "job failed: internal")
    assert ", in fail" in line["exception"]
    assert line["exception"].endswith("RuntimeError")
    assert SECRET_WORDS not in str(line)


def test_a_json_line_has_its_time_in_utc_as_iso_8601(written):
    read = written(as_json=True)
    before = datetime.now(UTC)
    ask(PARSE)
    [line] = map(json.loads, read())
    time = datetime.fromisoformat(line["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(time - before) < timedelta(minutes=10)  # not in another zone's hours


def test_a_library_with_a_handler_of_its_own_writes_in_the_worker_s_form(written):
    library = logging.getLogger("a_library_of_this_test")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    read = written(as_json=True)
    logs.take_over_libraries()
    library.warning("something of note")
    warnings.warn("something old", stacklevel=1)
    [line, warning] = map(json.loads, read())
    assert (line["logger"], line["message"]) == (library.name, "something of note")
    assert "something old" in warning["message"]


def test_an_exception_that_ends_the_process_is_a_json_line_without_its_message():
    program = f"import logs\nlogs.set_up('INFO', as_json=True)\nraise ValueError('{SECRET_WORDS}')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    [line] = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "CRITICAL"
    assert line["exception"].endswith("ValueError")
    assert SECRET_WORDS not in done.stderr


def test_a_start_that_fails_on_runpod_is_a_json_line_with_the_reason(tmp_path):
    nowhere = {"MODEL_ID": "/nowhere/model", "TRANSCODER_SET": DEMO.transcoder_set}
    with ControlPlane() as plane, running_worker(plane, tmp_path, **nowhere) as worker:
        assert worker.process.wait(LONGEST_S) == 1
    *_, last = map(json.loads, worker.log().splitlines())
    assert last["level"] == "CRITICAL"
    assert last["message"].startswith("start: ")
    assert "/nowhere/model" in last["message"]


@pytest.fixture
def sdk():
    """The SDK's logger, whose lines go through `logging`."""
    printing, level = RunPodLogger.log, sdk_log.logger.level
    sdk_log.take_over("DEBUG")
    yield RunPodLogger()
    RunPodLogger.log = printing
    del sdk_log.runpod.serverless.print
    sdk_log.logger.setLevel(level)


def test_the_sdk_s_lines_are_the_worker_s_without_what_its_debug_says(written, sdk, capsys):
    read = written(as_json=True)
    sdk.debug(f"Job output: {SECRET_WORDS}", "job-1")
    sdk.info("Started.", "job-1")
    sdk.error("Fitness check failed")
    started, failed = map(json.loads, read())
    assert started.items() >= {"level": "DEBUG", "message": "Started.", "job_id": "job-1"}.items()
    assert (failed["level"], failed["message"]) == ("ERROR", "Fitness check failed")
    assert "job_id" not in failed
    assert capsys.readouterr().out == ""


def test_a_local_line_is_readable(written):
    ask(FORWARD)
    read = written(as_json=False)
    ask(FORWARD)
    [line] = read()
    assert "INFO actions.answer: job done" in line
    assert "action=forward-pass" in line
    assert "tokens=5" in line
