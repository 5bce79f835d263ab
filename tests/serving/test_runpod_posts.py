"""Results that Runpod doesn't take, at once or at all, and what other jobs do meanwhile."""

import asyncio
import logging
import signal
import time

import orjson
import pytest
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http

from serving import runpod_loop, runpod_posts
from serving.job_result import JobResult
from serving.runpod_loop import WorkerLoop
from tests.support.control_plane import WORKER_ID, ControlPlane, running_worker
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, ask
from tests.support.polling import LONGEST_S, until
from tests.support.sdk_jobs import STEER

LIMIT = 60_000


@pytest.fixture(scope="module")
def worker(plane, tmp_path_factory):
    """A worker that takes one job at a time."""
    directory = tmp_path_factory.mktemp("worker")
    with running_worker(plane, directory, MAX_OUTPUT_BYTES=str(LIMIT)) as worker:
        yield worker
        assert worker.process.poll() is None
        assert "Traceback" not in worker.log()


def assert_nothing_after(plane, job_id):
    time.sleep(1.5)
    assert plane.jobs[job_id].after_result == []


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_an_error_is_posted_in_place_of_an_output_that_runpod_refuses(plane, worker, status):
    job_id = "refused-" + str(status)
    plane.refuse_results(job_id, status)
    plane.submit_raw(orjson.dumps({"id": job_id, "input": FORWARD}))
    error = plane.result(job_id)["error"]
    if status == 413:
        assert error.startswith("output_too_large: Runpod refused the output")
    else:
        assert error.startswith("internal: Runpod refused the output")
        assert str(status) in error
    assert plane.result(plane.submit(FORWARD))["output"]
    assert_nothing_after(plane, job_id)


def test_an_output_above_runpod_s_own_limit_is_output_too_large(plane, worker):
    plane.most_result_bytes = 300
    try:
        error = plane.result(plane.submit(STEER))["error"]
    finally:
        plane.most_result_bytes = 1 << 28
    assert error.startswith("output_too_large: Runpod refused the output")


def test_an_error_that_runpod_refuses_is_not_posted_again(plane, worker):
    plane.refuse_results("refused-error", 400, 400)
    plane.submit_raw(orjson.dumps({"id": "refused-error", "input": {"action": "fly"}}))
    until(lambda: "job refused-error: its result was not taken: 400" in worker.log())
    assert plane.result(plane.submit(FORWARD))["output"]
    assert len(plane.result_faults["refused-error"]) == 1
    assert plane.jobs["refused-error"].results == []


def test_other_jobs_go_on_while_a_result_is_posted_again_and_again(plane, worker):
    plane.refuse_results("retried", 503, "drop", 429, *[503] * 9)
    plane.submit_raw(orjson.dumps({"id": "retried", "input": FORWARD}))
    until(lambda: len(plane.result_faults["retried"]) < 12)
    others = [plane.submit(body) for body in (FORWARD, PARSE, STEER)]
    for other in others:
        assert plane.result(other)["output"]
    assert plane.jobs["retried"].results == []
    plane.submit_raw(orjson.dumps({"id": "retried", "input": PARSE}))
    until(lambda: "job retried was handed over twice" in worker.log())
    plane.result_faults["retried"].clear()
    assert plane.result("retried") == {"output": ask(FORWARD)}
    assert_nothing_after(plane, "retried")


def test_a_job_is_stopped_while_its_result_is_posted_again(plane, worker):
    plane.refuse_results("stopped", *[503] * 20)
    plane.submit_raw(orjson.dumps({"id": "stopped", "input": FORWARD}))
    until(lambda: "job stopped: its result is not posted yet" in worker.log())
    plane.stop("stopped")
    for _ in range(2):  # the first may be that of a poll that was on its way
        plane.poll_round_trip()
    plane.result_faults["stopped"].clear()
    plane.submit_raw(orjson.dumps({"id": "stopped", "input": PARSE}))  # sent again, it runs
    assert plane.result("stopped") == {"output": ask(PARSE)}
    assert_nothing_after(plane, "stopped")


TOO_LARGE = {
    "generate-graph": {**GRAPH, "node_threshold": 1.0, "edge_threshold": 1.0},
    "steer": {**STEER, "top_k": 1_000},
    "forward-pass": {**FORWARD, "max_n_logits": 1_295, "desired_logit_prob": 1.0},
    "parse-chat-prompt": {**PARSE, "prompt": "é" * 35_000},
}


@pytest.mark.parametrize("action", TOO_LARGE)
def test_an_output_above_the_limit_is_refused_whatever_the_action(plane, worker, action):
    body = TOO_LARGE[action]
    assert len(orjson.dumps({"output": ask(body)})) > LIMIT
    job_id = plane.submit(body)
    error = plane.result(job_id)["error"]
    assert error.startswith("output_too_large: the output has ")
    assert f"a job's may have {LIMIT}" in error
    [line] = [line for line in worker.log().splitlines() if f'"job_id":"{job_id}","action"' in line]
    assert '"message":"job failed: output_too_large"' in line


def test_a_worker_told_to_end_posts_the_result_that_waits(tmp_path):
    with ControlPlane() as plane, running_worker(plane, tmp_path, SHUTDOWN_GRACE_S="1") as worker:
        plane.refuse_results("waits", *[503] * 12)
        plane.submit_raw(orjson.dumps({"id": "waits", "input": FORWARD}))
        until(lambda: "job waits: its result is not posted yet" in worker.log())
        other = plane.submit(FORWARD)
        assert plane.result(other)["output"]
        assert plane.jobs["waits"].results == []
        worker.process.send_signal(signal.SIGTERM)
        until(lambda: "no more jobs are taken" in worker.log())
        plane.result_faults["waits"].clear()
        assert worker.process.wait(LONGEST_S) == 0
        assert plane.jobs["waits"].results == [{"output": ask(FORWARD)}]
        assert plane.jobs["waits"].after_result == []


# In this process, where the attempts can be fewer


@pytest.fixture
def few_attempts(plane, monkeypatch):
    base = f"http://127.0.0.1:{plane.port}/v2/endpoint/job-done/{WORKER_ID}/$ID?gpu=none"
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", base)
    monkeypatch.setattr(runpod_posts, "_RESULT_ATTEMPTS", 2)


def post(job_id, result):
    async def work():
        async with AsyncClientSession() as session:
            await runpod_posts.post_result(session, {"id": job_id}, result)

    asyncio.run(work())


@pytest.mark.usefixtures("few_attempts")
@pytest.mark.parametrize("fault", [503, "drop"])
def test_an_error_is_posted_in_place_of_an_output_that_no_attempt_brought_over(plane, fault):
    job_id = f"never-{fault}"
    plane.refuse_results(job_id, fault, fault)
    post(job_id, JobResult(output=b'{"planted": 1}'))
    error = plane.jobs[job_id].results[0]["error"]
    assert error.startswith("internal: Runpod")
    assert "25 bytes" in error
    assert "planted" not in error


@pytest.mark.usefixtures("few_attempts")
def test_a_result_that_can_not_be_posted_in_any_way_is_logged(plane, caplog):
    caplog.set_level(logging.ERROR)
    plane.refuse_results("lost", 503, 503, 400)
    post("lost", JobResult(output=b"{}"))
    assert plane.jobs["lost"].results == []
    assert "job lost: its result was not taken: 503" in caplog.text
    assert "job lost: the error in its place was not taken: 400" in caplog.text


class NoRoom(WorkerLoop):
    """A loop whose jobs are done at once and whose results can't be posted until `taken` is set."""

    def __init__(self, monkeypatch):
        config = {"handler": None, "concurrency_modifier": lambda _current: 1}
        super().__init__(config, answer=self.done, shutdown_grace_s=0)
        self.taken = asyncio.Event()
        monkeypatch.setattr(runpod_loop, "post_result", self.waiting)
        monkeypatch.setattr(runpod_loop, "_POST_PATIENCE_S", 0.0)

    async def done(self, job):
        return JobResult(output=b"{}")

    async def waiting(self, *_):
        await self.taken.wait()

    async def handle(self, job_id):
        job = {"id": job_id, "input": None}
        self.jobs_queue.put_nowait(job)
        self.job_progress.add(job)
        self.jobs_queue.get_nowait()
        await self.handle_job(None, job)


def test_no_more_than_ten_results_wait_while_other_jobs_are_taken(monkeypatch):
    async def work():
        loop = NoRoom(monkeypatch)
        for number in range(10):
            await loop.handle(f"waiting-{number}")
            assert loop.current_occupancy() == 0
        assert loop.job_progress.get_job_count() == 10
        await loop.handle("one-too-many")
        assert loop.current_occupancy() == loop.current_concurrency
        loop._room.clear()
        loop.taken.set()
        await loop._room.wait()
        await asyncio.sleep(0)
        assert loop.current_occupancy() == loop.job_progress.get_job_count() == 0

    asyncio.run(work())
