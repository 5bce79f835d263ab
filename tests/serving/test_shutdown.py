"""How the worker ends, and how a steered generation under it is stopped."""

import signal

import pytest

from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import FORWARD, GRAPH, ask, ask_fresh_process, comparable
from tests.support.polling import LONGEST_S, until
from tests.support.sdk_jobs import (
    LONG_STEER,
    STEER,
    assert_as_a_fresh_worker,
    assert_ended_without_a_result,
    cancel_in_mid_stage,
    in_mid_stage,
    running,
)


@pytest.fixture
def slow_worker(tmp_path):
    """A control plane and a worker whose model is slow, which a test may end."""
    with (
        ControlPlane() as plane,
        running_worker(
            plane, tmp_path, "-m", "tests.support.slow_worker", SHUTDOWN_GRACE_S="1"
        ) as worker,
    ):
        yield plane, worker


def test_a_job_is_stopped_by_its_caller_and_the_next_fails_when_the_grace_is_over(slow_worker):
    plane, worker = slow_worker
    fresh = [comparable(output) for output in ask_fresh_process([GRAPH, STEER])]
    job_id = cancel_in_mid_stage(plane, worker, LONG_STEER, "generate")
    assert_as_a_fresh_worker(plane, fresh)
    assert_ended_without_a_result(plane, job_id)

    job_id = plane.submit(LONG_STEER)
    until(lambda: in_mid_stage(plane, job_id, "generate"))
    waiting = plane.submit(FORWARD)
    assert worker.terminate() == 0
    assert plane.jobs[job_id].results[0]["error"].startswith("cancelled: ")
    assert plane.jobs[job_id].after_result == []
    assert plane.jobs[waiting].results == []
    assert plane.untaken() == [waiting]


def test_a_job_that_ends_within_the_grace_is_answered(slow_worker):
    plane, worker = slow_worker
    job_id = plane.submit(FORWARD)
    until(lambda: running(worker, job_id))
    assert worker.terminate() == 0
    assert plane.jobs[job_id].results == [{"output": ask(FORWARD)}]


def test_a_job_is_answered_too_when_the_terminal_is_closed(slow_worker):
    plane, worker = slow_worker
    job_id = plane.submit(FORWARD)
    until(lambda: running(worker, job_id))
    worker.process.send_signal(signal.SIGHUP)
    assert worker.process.wait(LONGEST_S) == 0
    assert plane.jobs[job_id].results == [{"output": ask(FORWARD)}]


# `handler.py` whose load takes longer than the test.
LOADS_FOR_EVER = """
import time, handler, model_loader

def load(settings):
    print("loading", flush=True)
    time.sleep(10_000)

model_loader.load = load
handler.main()
"""


def test_a_worker_told_to_end_while_it_loads_its_model_ends(tmp_path):
    with (
        ControlPlane() as plane,
        running_worker(plane, tmp_path, "-c", LOADS_FOR_EVER) as worker,
    ):
        until(lambda: "loading\n" in worker.log())
        assert worker.terminate() == 0
        assert plane.requests["job-take"] == 0
