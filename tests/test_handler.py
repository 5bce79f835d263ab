"""The Runpod door: cheap to import, an output or an error string for every job, stoppable."""

import asyncio
import json
import os

import pytest
import torch

import handler as door
from model_loader import get_model
from schemas import REQUESTS
from serving import local_job
from serving.http_docs import EXAMPLES
from settings import get_settings
from tests.support.demo_worker import (
    FORWARD,
    GRAPH,
    PARSE,
    TOO_LONG,
    ask,
    demo_settings,
    without_times,
)
from tests.support.polling import LONGEST_S
from tests.support.programs import ROOT, imported_by, run


@pytest.fixture(autouse=True)
def _demo(monkeypatch):
    for name in ("MODEL_ID", "TRANSCODER_SET", "MAX_OUTPUT_BYTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def run_job(body):
    return asyncio.run(door.handler({"id": "job", "input": body}))


def test_importing_the_handler_loads_no_torch_and_no_model_library():
    program = "import handler, schemas, settings"
    assert not imported_by(program, "torch", "transformer_lens", "transformers")


@pytest.mark.parametrize("body", [FORWARD, PARSE])
def test_a_job_s_output_is_the_action_s_response(body):
    assert run_job(body) == ask(body)


def test_a_graph_that_fits_is_the_output():
    assert without_times(run_job(GRAPH)) == without_times(ask(GRAPH))


def test_a_graph_above_the_limit_is_an_error_that_says_its_size_and_the_way_out(monkeypatch):
    monkeypatch.setenv("MAX_OUTPUT_BYTES", "5000")
    get_settings.cache_clear()
    error = run_job(GRAPH)["error"]
    assert error.startswith("output_too_large: ")
    assert "5000" in error
    assert "signed_url" in error


@pytest.mark.parametrize("body", [FORWARD, PARSE, GRAPH], ids=lambda body: body["action"])
def test_the_limit_is_of_the_bytes_that_are_posted(monkeypatch, body):
    def posted(limit):
        monkeypatch.setenv("MAX_OUTPUT_BYTES", str(limit))
        get_settings.cache_clear()
        result = asyncio.run(door.answer_job({"id": "job", "input": body}))
        return result.error, len(result.body())

    _, size = posted(10**7)
    # The times that a graph carries have not always as many digits.
    slack = 100 if body is GRAPH else 0
    assert posted(size + slack)[0] is None
    error = posted(size - slack - 1)[0]
    assert error.startswith("output_too_large: the output has ")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, "invalid_input"),
        ({"action": "fly"}, "unknown_action"),
        ({**FORWARD, "model_id": "gpt2"}, "model_not_loaded"),
        ({**FORWARD, "prompt": TOO_LONG}, "prompt_too_long"),
        ({**FORWARD, "deadline": 1}, "deadline_exceeded"),
    ],
)
def test_a_failed_job_is_one_string_with_a_stable_code(body, code):
    output = run_job(body)
    assert list(output) == ["error"]
    assert output["error"].startswith(f"{code}: ")


def test_a_job_without_input_is_refused():
    assert asyncio.run(door.handler({"id": "job"}))["error"].startswith("invalid_input: ")


def test_the_event_loop_stays_free_while_a_graph_is_computed(held_model):
    entered, go_on = held_model

    async def ticks_meanwhile():
        job = asyncio.create_task(door.handler({"id": "job", "input": GRAPH}))
        while not entered.is_set():
            await asyncio.sleep(0.01)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not job.done()
        go_on.set()
        return await job

    assert asyncio.run(ticks_meanwhile())["nodes"]


def test_a_cancelled_job_ends_and_the_next_is_answered(held_model):
    entered, go_on = held_model

    async def cancel_then_ask():
        job = asyncio.create_task(door.handler({"id": "job", "input": GRAPH}))
        assert await asyncio.to_thread(entered.wait, LONGEST_S)
        job.cancel()
        for _ in range(10):  # turns of the event loop, in which the job is told
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await job
        return await door.handler({"id": "next", "input": FORWARD})

    output = asyncio.run(cancel_then_ask())
    assert len(get_model(demo_settings()).graphs.kept) == 0
    assert output == ask(FORWARD)


@pytest.mark.parametrize("action", [action for action in REQUESTS if action != "parse-chat-prompt"])
def test_a_job_that_is_cancelled_within_a_layer_runs_no_other(action, held_model):
    entered, go_on = held_model
    run = []
    block = get_model(demo_settings()).model.blocks[1]
    handle = block.register_forward_hook(lambda *_: run.append(None))

    async def cancel_within_the_first_layer():
        body = {"action": action, **EXAMPLES[action]}
        job = asyncio.create_task(door.handler({"id": "job", "input": body}))
        assert await asyncio.to_thread(entered.wait, LONGEST_S)
        job.cancel()
        for _ in range(10):  # turns of the event loop, in which the job is told
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await job

    try:
        asyncio.run(cancel_within_the_first_layer())
    finally:
        handle.remove()
    assert run == []


@pytest.fixture
def failing_model():
    """Make the model's next run raise."""
    handles = []

    def fail(exception):
        def raise_it(*_):
            raise exception

        block = get_model(demo_settings()).model.blocks[1]
        handles.append(block.register_forward_pre_hook(raise_it))

    yield fail
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "exception",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    ],
)
def test_a_broken_device_fails_the_job_and_asks_for_another_worker(failing_model, exception):
    failing_model(exception)
    output = run_job(FORWARD)
    assert set(output) == {"error", "refresh_worker"}
    assert output["refresh_worker"] is True
    assert output["error"].startswith("internal: ")
    assert "send the job again" in output["error"]


@pytest.mark.parametrize(
    ("exception", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (torch.AcceleratorError("CUDA error: out of memory", 2), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "internal"),
        (ValueError("CUDA error: only a value"), "internal"),
    ],
)
def test_any_other_failure_keeps_the_worker(failing_model, exception, code):
    failing_model(exception)
    output = run_job(FORWARD)
    assert list(output) == ["error"]
    assert output["error"].startswith(f"{code}: ")


def local_run(tmp_path, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RUNPOD_")}
    environment["COLUMNS"] = "120"
    return run(ROOT / "handler.py", *arguments, cwd=tmp_path, env=environment)


def test_the_sdk_s_local_mode_ends_with_a_summary_and_keeps_the_graph(tmp_path):
    (tmp_path / "test_input.json").write_text((ROOT / "test_input.json").read_text())
    done = local_run(tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ('" basket"', "nodes", "links", "replacement", "completeness", "stages"):
        assert words in done.stdout
    [path] = (tmp_path / "out").iterdir()
    assert str(path.relative_to(tmp_path)) in done.stdout
    assert json.loads(path.read_text())["metadata"]["slug"] == path.stem


def test_a_local_job_that_fails_ends_with_its_error_and_a_failing_status(tmp_path):
    done = local_run(tmp_path, "--test_input", json.dumps({"input": {"action": "fly"}}))
    assert done.returncode == 1
    assert "unknown_action: action 'fly'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


INPUT = '{"input": {"prompt": "Michael Jordan joue au"}}'


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (INPUT[:-1] + ",}", "is no JSON: line 1, column 48: a comma stands before the }"),
        (INPUT.replace('"', "'"), "is no JSON: line 1, column 2: JSON takes double quotes"),
        (INPUT.replace('"', ""), "is no JSON: line 1, column 2: names take double quotes"),
        (INPUT[:-1], "the text ends here, and } is missing"),
        ("job.json", "'job.json' is a file's name; write --test_input \"$(cat job.json)\""),
        ("[]", "a job is an object, such as " + INPUT),
        ('{"prompt": "a"}', "has no input; put its fields into one, such as " + INPUT),
        ("{}", "the job has no input, such as " + INPUT),
        ('{"input": "a"}', 'invalid_input: input must be an object, got a string; such as {"p'),
        ('{"input": {"promt": "a"}}', "promt is no field of this action; did you mean prompt?"),
        ('{"input": {"action": "grpah"}}', "did you mean generate-graph?"),
        ('{"input": {"input": {}}}', "input is no field of this action; put what it holds in"),
    ],
)
def test_a_local_job_that_is_wrong_is_refused_with_what_was_meant(given, said):
    with pytest.raises(SystemExit) as refused:
        local_job.check(["--test_input", given])
    assert str(refused.value).startswith("error  --test_input")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--test-input", INPUT], "there is no option --test-input; did you mean --test_input?"),
        (["--testinput=" + INPUT], "there is no option --testinput; did you mean --test_input?"),
        (["--rp_serve_apy"], "there is no option --rp_serve_apy; did you mean --rp_serve_api?"),
        (["--zzz"], "there is no option --zzz"),
        (["--test_input"], "argument --test_input: expected one argument"),
        (["--test_input", ""], "--test_input is no JSON: it is empty"),
        (["--test_input", " "], "--test_input is no JSON: it is empty"),
        ([INPUT], "an argument is unexpected; the job is given as --test_input '" + INPUT),
    ],
)
def test_an_argument_that_the_sdk_would_ignore_is_refused(arguments, said):
    with pytest.raises(SystemExit) as refused:
        local_job.check(arguments)
    assert str(refused.value).startswith(f"error  {said}")


def test_the_options_that_are_let_through_are_the_sdk_s():
    from runpod.serverless import parser

    options = {o for action in parser._actions for o in action.option_strings} - {"-h", "--help"}
    assert set(local_job._OPTIONS) == options


def test_a_wrong_file_of_a_local_job_is_refused_before_a_model_is_loaded(tmp_path):
    (tmp_path / "test_input.json").write_text(INPUT + "}")
    environment = {**os.environ, "MODEL_ID": "/nowhere/model"}
    done = run(ROOT / "handler.py", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "test_input.json is no JSON: line 1, column 48: there is a } too many" in done.stderr
    assert "/nowhere" not in done.stderr


def test_without_a_job_the_program_says_how_to_give_one_before_a_model_is_loaded(tmp_path):
    done = local_run(tmp_path)
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith("error  there is no test_input.json here; ")
    assert said.endswith(f"--test_input '{INPUT}'")


def test_a_file_of_a_graph_has_nowhere_to_go_which_is_said_before_a_model_is_loaded(tmp_path):
    job = json.dumps({"input": {"prompt": "Michael Jordan joue au", "format": "pt"}})
    done = local_run(tmp_path, "--test_input", job)
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith('error  --test_input: invalid_input: format is "pt", a file')


def test_a_right_local_job_is_let_through(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    local_job.check([])
    local_job.check(["--test_input", INPUT, "--rp_log_level", "DEBUG"])


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TOKEN_LIMIT", "none", "TOKEN_LIMIT='none'"),
        ("MODEL_ID", "/nowhere/model", "TRANSCODER_SET"),
        ("MODEL_ENGINE", "jax", "MODEL_ENGINE='jax'"),
    ],
)
def test_a_worker_that_cannot_start_says_which_setting_is_why(tmp_path, variable, value, words):
    environment = {**os.environ, variable: value}
    done = run(ROOT / "handler.py", "--rp_serve_api", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
