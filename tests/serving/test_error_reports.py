"""What Sentry gets of the worker's own faults, with secrets planted in all that it must not get."""

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import sys
import time

import brotli
import pytest
import sentry_sdk
import torch
from safetensors.torch import load_file, save_file

import handler as door
from loading.registry import DEMO
from model_loader import get_model
from serving import error_reports, http_api
from settings import SettingsError, get_settings
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import demo_settings, forget_graphs
from tests.support.http_server import FORWARD, GRAPH, STEER, assert_error, post, serving
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT
from tests.support.raw_server import RawServer, answer

PLANTED = {
    "prompt": "planted prompt",
    "slug_identifier": "planted-slug",
    "signed_url": "https://127.0.0.1/planted?X-Amz-Signature=planted-signature",
    "signed_headers": {"x-amz-meta-key": "planted-header"},
    "user_id": "planted-user",
}
DECOMPRESS = {"gzip": gzip.decompress, "br": brotli.decompress}
SECRETS = {"secret": "planted-secret", "hf_token": "planted-token"}


@pytest.fixture
def sentry():
    """A sink of Sentry's envelopes on loopback."""
    with RawServer([answer(200)]) as sink:
        yield sink
        sentry_sdk.get_client().close()


def dsn(sink):
    return f"http://planted-key@127.0.0.1:{sink.port}/1"


def events(sink):
    """The events that came, as JSON; and that nothing else came."""
    sentry_sdk.flush(10)
    found = []
    for request in sink.requests:
        assert request.request_line == "POST /api/1/envelope/ HTTP/1.1"
        decompress = DECOMPRESS[dict(request.headers)["Content-Encoding"]]
        _, *items = decompress(request.body).splitlines()
        for head, body in zip(items[::2], items[1::2], strict=True):
            assert json.loads(head)["type"] == "event"
            found.append(json.loads(body))
    return found


def assert_scrubbed(event, error_type, function):
    [*_, raised] = event["exception"]["values"]
    assert raised["type"] == error_type
    assert function in [frame["function"] for frame in raised["stacktrace"]["frames"]]
    for exception in event["exception"]["values"]:
        assert set(exception) == {"type", "module", "stacktrace"}
        for frame in exception["stacktrace"]["frames"]:
            assert set(frame) <= {"filename", "module", "function", "lineno", "in_app"}
    known = {"event_id", "timestamp", "level", "platform", "release", "environment", "tags"}
    assert set(event) <= known | {"exception"}
    assert "planted" not in json.dumps(event)


@pytest.fixture
def failing_model():
    """The demo model, each of whose runs raises, with what a request has in its message."""
    forget_graphs()

    def fail(*_):
        planted = "planted local variable"
        raise RuntimeError(f"planted message {planted}")

    block = get_model(demo_settings()).model.blocks[1]
    handle = block.register_forward_pre_hook(fail)
    yield
    handle.remove()


def test_a_fault_over_http_is_reported_by_its_type_and_place_alone(sentry, failing_model):
    settings = demo_settings(sentry_dsn=dsn(sentry), upload_allowed_hosts=("127.0.0.1",), **SECRETS)
    error_reports.set_up(settings)
    chosen = settings.model_dump(exclude={"device"})
    with serving(**chosen) as server:
        headers = {"x-secret-key": "planted-secret", "x-other": "planted-other"}
        response = post(server, "generate-graph?key=planted", {**GRAPH, **PLANTED}, **headers)
        assert_error(response, 500, "internal")
        # The caller's own errors are no faults of the worker's.
        response = post(server, "steer", {**STEER, "prompt": "planted " * 100}, **headers)
        assert_error(response, 413, "prompt_too_long")
    [event] = events(sentry)
    assert_scrubbed(event, "RuntimeError", "fail")
    assert event["tags"] == {"code": "internal", "action": "generate-graph"}
    assert event["release"] == "attribution-worker@0.1.0"
    assert "X-Sentry-Auth" in dict(sentry.requests[0].headers)


def test_a_fault_of_the_http_door_itself_is_reported(sentry, monkeypatch):
    def fail_to_write(*_):
        raise ValueError("planted message")

    settings = demo_settings(sentry_dsn=dsn(sentry))
    error_reports.set_up(settings)
    monkeypatch.setattr(http_api, "_response", fail_to_write)
    with serving(sentry_dsn=dsn(sentry)) as server:
        assert_error(post(server, "forward-pass", FORWARD), 500, "internal")
    [event] = events(sentry)
    assert_scrubbed(event, "ValueError", "fail_to_write")


def test_a_fault_on_runpod_is_reported(sentry, failing_model, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("SENTRY_DSN", dsn(sentry))
    get_settings.cache_clear()
    error_reports.set_up(get_settings())
    try:
        body = {"action": "forward-pass", "prompt": "planted prompt"}
        output = asyncio.run(door.handler({"id": "planted-job", "input": body}))
    finally:
        get_settings.cache_clear()
    assert output["error"].startswith("internal: ")
    [event] = events(sentry)
    assert_scrubbed(event, "RuntimeError", "fail")
    assert event["tags"] == {"code": "internal", "action": "forward-pass"}


@pytest.mark.parametrize("program", ["start.py", "handler.py"])
def test_a_start_that_fails_is_reported_before_the_process_ends(sentry, tmp_path, program):
    model = tmp_path / "planted-model"
    shutil.copytree(DEMO.model, model)
    (model / "config.json").write_text('{"planted": ')
    names = {"MODEL_ID": str(model), "TRANSCODER_SET": DEMO.transcoder_set}
    done = start(program, tmp_path, SENTRY_DSN=dsn(sentry), **names)
    assert done.returncode == 1
    assert "start: " in done.stderr
    assert "planted-key" not in done.stderr
    [event] = events(sentry)
    assert event["exception"]["values"][-1]["type"] == "ModelLoadError"
    assert event["tags"]["code"] == "start"
    assert "planted" not in json.dumps(event)


def test_a_start_goes_on_to_its_end_once_its_report_is_sent():
    """What follows may be `os._exit`, which waits for nothing."""

    def answer_late(connection, request):
        time.sleep(0.5)
        answer(200)(connection, request)

    with RawServer([answer_late]) as sink:
        settings = demo_settings(sentry_dsn=dsn(sink))
        error_reports.set_up(settings)
        with pytest.raises(RuntimeError), error_reports.of_the_start(settings):
            raise RuntimeError("planted message")
        assert sink.requests[0].body
        sentry_sdk.get_client().close()


def test_a_worker_on_runpod_that_is_not_fit_is_reported(sentry, tmp_path):
    model = tmp_path / "planted-model"
    shutil.copytree(DEMO.model, model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    names = {"MODEL_ID": str(model), "TRANSCODER_SET": DEMO.transcoder_set}
    with (
        ControlPlane() as plane,
        running_worker(plane, tmp_path, SENTRY_DSN=dsn(sentry), **names) as worker,
    ):
        assert worker.process.wait(LONGEST_S) == 1
    [event] = events(sentry)
    assert_scrubbed(event, "UnfitError", "check_weights")


def start(program, directory, **variables):
    """Start a program in a folder that has a job for it."""
    (directory / "test_input.json").write_text('{"input": {"prompt": "hello"}}')
    return subprocess.run(
        [sys.executable, str(ROOT / program)],
        cwd=directory,
        env={**os.environ, "DEVICE": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


@pytest.mark.parametrize("program", ["start.py", "handler.py"])
def test_a_dsn_that_is_none_stops_the_start_without_being_shown(tmp_path, program):
    done = start(program, tmp_path, SENTRY_DSN="planted")
    assert done.returncode == 1
    assert "start: SENTRY_DSN=***: it must be https://KEY@HOST/PROJECT" in done.stderr
    assert "planted" not in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_dsn_sentry_is_not_imported(tmp_path):
    check = (
        "import sys, handler\n"
        "from serving import startup\n"
        "startup.load(startup.prepare(), check=True)\n"
        "import start\n"
        "assert 'sentry_sdk' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", check],
        cwd=ROOT,
        env={**os.environ, "DEVICE": "cpu"},
        check=True,
        capture_output=True,
    )


def test_a_dsn_is_no_part_of_what_the_settings_show():
    settings = demo_settings(sentry_dsn="https://planted-key@host/1")
    assert "planted" not in repr(settings)
    with pytest.raises(SettingsError) as raised:
        error_reports.set_up(demo_settings(sentry_dsn="planted"))
    assert "planted" not in str(raised.value)
