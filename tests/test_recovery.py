"""After any failing job the next one answers as a fresh process would, bit for bit."""

import threading
import time

import pytest

import attribution.expansion
import model_loader
from actions import answer
from attribution.sweep import attribution_rows
from errors import Cancelled, DeadlineExceeded, Internal, OutOfMemory, WorkerError
from tests.demo_worker import (
    FORWARD,
    GRAPH,
    PARSE,
    PROMPT,
    ask,
    ask_fresh_process,
    demo_settings,
    forget_graphs,
    without_times,
)

FEATURE = {"layer": 2, "index": 5, "token_active_position": 4, "steer_position": 4, "delta": 20.0}
STEER = {"action": "steer", "prompt": PROMPT, "features": [FEATURE], "n_tokens": 6}
SAMPLED = {**STEER, "temperature": 1.5, "seed": 11}
# Distinct from GRAPH, so that no kept attribution answers for it.
OTHER_GRAPH = {**GRAPH, "prompt": "Rafael Nadal juega al", "max_n_logits": 3}
GOOD = [GRAPH, STEER, SAMPLED, FORWARD, PARSE]

BAD = [
    {**GRAPH, "batch_size": 0},
    {**GRAPH, "prompt": "a " * 80},
    {**GRAPH, "model_id": "gpt2"},
    {**GRAPH, "attribution_targets": ["not one token"]},
    {**GRAPH, "max_n_logits": 10**6},
    {**STEER, "features": [{**FEATURE, "layer": 40}]},
    {**STEER, "features": [{**FEATURE, "delta": 1e300}]},
    {**STEER, "n_tokens": 10**6},
    {**FORWARD, "max_n_logits": 10**6},
    {**PARSE, "prompt": 5},
    {"action": "nothing"},
    "not an object",
]


def comparable(output):
    return without_times(output) if "nodes" in output else output


@pytest.fixture(scope="module")
def fresh():
    """What a process that has done nothing else answers to each good request."""
    return [comparable(output) for output in ask_fresh_process(GOOD)]


@pytest.fixture(autouse=True)
def _as_fresh_afterwards(fresh):
    """Whatever a test did to the process, good requests are answered as by a fresh one."""
    yield
    forget_graphs()
    assert [comparable(ask(body)) for body in GOOD] == fresh


@pytest.fixture
def model():
    return model_loader.get_model(demo_settings()).model


@pytest.fixture
def failing_block(model):
    """Make the third block raise on its nth run from now on."""
    handles = []

    def fail(exception, on_run=1):
        runs = iter(range(1, 1000))

        def raise_on_run(*_):
            if next(runs) >= on_run:
                raise exception

        handles.append(model.blocks[2].register_forward_pre_hook(raise_on_run))

    yield fail
    for handle in handles:
        handle.remove()


def test_refused_requests_leave_nothing_behind():
    for body in BAD:
        with pytest.raises(WorkerError):
            ask(body)


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER, FORWARD], ids=["graph", "steer", "forward"])
def test_an_exception_inside_the_model_is_internal_and_tells_nothing(failing_block, body):
    failing_block(ValueError(f"{PROMPT} https://store/key?X-Amz-Signature=feed"))
    with pytest.raises(Internal) as raised:
        ask(body)
    assert "feed" not in str(raised.value)
    assert PROMPT not in str(raised.value)
    assert raised.value.__cause__ is None


def test_an_exception_between_two_batches_of_attribution_is_internal(monkeypatch):
    batches = []

    def rows_of_the_first_batch_only(*arguments):
        batches.append(arguments)
        if len(batches) == 2:
            raise RuntimeError("broken")
        attribution_rows(*arguments)

    monkeypatch.setattr(attribution.expansion, "attribution_rows", rows_of_the_first_batch_only)
    with pytest.raises(Internal):
        ask(OTHER_GRAPH)
    assert len(batches) == 2


def test_an_exception_inside_the_steered_generation_is_internal(model, failing_block):
    runs = []
    counting = model.blocks[2].register_forward_pre_hook(lambda *_: runs.append(1))
    ask(STEER)
    counting.remove()
    failing_block(RuntimeError("broken"), on_run=len(runs))
    with pytest.raises(Internal):
        ask(STEER)


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER, FORWARD], ids=["graph", "steer", "forward"])
def test_out_of_memory_names_what_to_lower(failing_block, body):
    failing_block(MemoryError())
    with pytest.raises(OutOfMemory, match="batch_size"):
        ask(body)


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER, FORWARD], ids=["graph", "steer", "forward"])
def test_a_job_that_starts_after_its_deadline_is_refused(body):
    with pytest.raises(DeadlineExceeded, match="deadline"):
        ask({**body, "deadline": time.time() - 5})


def test_a_generation_stops_when_its_deadline_passes(model):
    handle = model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(0.2))
    try:
        with pytest.raises(DeadlineExceeded):
            ask({**STEER, "deadline": time.time() + 0.3})
    finally:
        handle.remove()


@pytest.mark.parametrize("body", [OTHER_GRAPH, STEER], ids=["graph", "steer"])
def test_a_cancelled_job_stops_before_its_end(model, body):
    cancelled = threading.Event()
    handle = model.blocks[1].register_forward_pre_hook(lambda *_: cancelled.set())
    try:
        with pytest.raises(Cancelled):
            answer(body, demo_settings(), cancelled)
    finally:
        handle.remove()


def test_a_job_that_waits_for_the_model_can_be_cancelled():
    loaded = model_loader.get_model(demo_settings())
    cancelled = threading.Event()
    with loaded.lock:
        threading.Timer(0.2, cancelled.set).start()
        with pytest.raises(Cancelled):
            answer(FORWARD, demo_settings(), cancelled)


def test_parsing_a_prompt_does_not_wait_for_the_model():
    with model_loader.get_model(demo_settings()).lock:
        assert ask(PARSE)["prompt"] == PROMPT
