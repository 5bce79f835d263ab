"""A streamed steer on Runpod: what a worker under the SDK's real loop posts for `/stream`."""

import asyncio
import itertools
import threading
import time

import pytest
from runpod.serverless.modules import rp_http

import handler as door
from errors import Cancelled
from prompting.token_text import joined
from schemas import SteerPart
from serving import part_posts
from settings import get_settings
from tests.support.control_plane import WORKER_ID, ControlPlane, running_worker
from tests.support.demo_worker import FORWARD, PROMPT, ask
from tests.support.polling import LONGEST_S, until
from tests.support.sdk_jobs import LONG_STEER, STEER, stopped

STREAMED = {**STEER, "stream": True, "n_tokens": 12, "temperature": 5.0, "seed": 4}
LONG_STREAM = {**LONG_STEER, "stream": True}
SAME = {**STREAMED, "stream": False}


@pytest.fixture(scope="module")
def plane():
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def worker(plane, tmp_path_factory):
    """A worker whose model takes a fifth of a second more for each of its runs."""
    directory = tmp_path_factory.mktemp("worker")
    command = ("-m", "tests.support.slow_worker")
    with running_worker(plane, directory, *command, LOG_LEVEL="DEBUG") as worker:
        yield worker


def parts_of(record):
    return list(itertools.chain.from_iterable(record.streamed))


def assert_all_of(parts, output):
    """The parts are all of the output's tokens after the prompt, each once and in order."""
    for side in ("default", "steered"):
        of_side = [part for part in parts if part["side"] == side]
        entries = output[f"{side.upper()}_LOGITS_BY_TOKEN"][4:]
        assert [[part["token"], part["top_logits"]] for part in of_side] == entries
        text = output[f"{side.upper()}_GENERATION"]
        assert PROMPT + joined(part["token"] for part in of_side) == text


def test_the_parts_are_posted_as_they_come_and_the_output_is_the_same_as_without(plane, worker):
    job_id = plane.submit(STREAMED)
    record = plane.jobs[job_id]
    output = plane.result(job_id)["output"]
    assert output == ask(SAME)
    assert_all_of(parts_of(record), output)
    # Before the result, as nothing comes after it.
    assert len(record.streamed) > 3
    assert len(record.streamed[0]) < 24
    assert record.progress[-1]["progress"] == 1
    assert_nothing_after(record)


def assert_nothing_after(record):
    time.sleep(1.5)
    assert record.after_result == []


def test_a_job_without_stream_posts_no_parts(plane, worker):
    posts = plane.requests["job-stream"]
    assert plane.result(plane.submit(SAME))["output"] == ask(SAME)
    assert plane.requests["job-stream"] == posts


def test_an_error_is_posted_as_without_a_stream(plane, worker):
    job_id = plane.submit({**STREAMED, "prompt": "a " * 80})
    assert plane.result(job_id)["error"].startswith("prompt_too_long: ")
    assert plane.jobs[job_id].streamed == []


def test_parts_that_could_not_be_posted_come_with_the_next_ones(plane, worker):
    plane.fail("job-stream", 500, "drop", "hang")
    job_id = plane.submit(LONG_STREAM)
    output = plane.result(job_id)["output"]
    assert not plane.faults["job-stream"]
    assert_all_of(parts_of(plane.jobs[job_id]), output)
    assert_nothing_after(plane.jobs[job_id])


def test_a_control_plane_that_refuses_every_part_still_gets_the_output(plane, worker):
    posts = plane.requests["job-stream"]
    plane.fail("job-stream", *[403] * 50)
    job_id = plane.submit(STREAMED)
    assert plane.result(job_id)["output"] == ask(SAME)
    plane.faults["job-stream"].clear()
    assert plane.jobs[job_id].streamed == []
    assert 2 <= plane.requests["job-stream"] - posts <= 6
    assert_nothing_after(plane.jobs[job_id])


def test_a_job_stopped_in_mid_stream_posts_nothing_more(plane, worker):
    job_id = plane.submit(LONG_STREAM)
    record = plane.jobs[job_id]
    plane.wait(lambda: len(parts_of(record)) > 4)
    plane.stop(job_id)
    until(lambda: stopped(worker, job_id))
    assert plane.result(plane.submit(FORWARD))["output"] == ask(FORWARD)
    posts = len(record.streamed)  # with the one that was under way
    time.sleep(1.0)
    assert record.results == []
    assert len(record.streamed) == posts


def test_no_part_of_the_prompt_or_of_the_text_is_logged(plane, worker):
    prompt = "planted joue au"
    job_id = plane.submit({**STREAMED, "prompt": prompt})
    output = plane.result(job_id)["output"]
    tokens = {part["token"] for part in parts_of(plane.jobs[job_id])}
    words = [token for token in tokens if len(token) > 4 and token != "<|eos|>"]
    assert words
    for text in ("planted", *words, output["STEERED_GENERATION"]):
        assert text not in worker.log()
    assert '"action":"steer"' in worker.log()


def test_a_job_that_outlives_the_grace_period_has_its_error_last(plane, tmp_path):
    command = ("-m", "tests.support.slow_worker")
    with (
        ControlPlane() as plane,
        running_worker(plane, tmp_path, *command, SHUTDOWN_GRACE_S="0") as worker,
    ):
        job_id = plane.submit(LONG_STREAM)
        record = plane.jobs[job_id]
        plane.wait(lambda: record.streamed)
        worker.terminate()
        assert record.results[0]["error"].startswith("cancelled: ")
        assert record.after_result == []


@pytest.fixture
def stream_url(plane, monkeypatch):
    """The address of job-stream for what runs in this process."""
    base = f"http://127.0.0.1:{plane.port}/v2/endpoint/job-stream/{WORKER_ID}/$ID?gpu=none"
    monkeypatch.setattr(rp_http, "JOB_STREAM_URL", base)


def large_part(position):
    return SteerPart(side="default", position=position, token="x" * 20_000, top_logits=[])


@pytest.mark.usefixtures("stream_url")
def test_many_parts_go_in_posts_of_less_than_a_megabyte(plane, monkeypatch):
    """Against the control plane, which refuses larger ones as Runpod does."""
    monkeypatch.setattr(part_posts, "_POST_TIMEOUT_S", LONGEST_S)
    monkeypatch.setattr(part_posts, "_END_S", LONGEST_S)

    async def work():
        posts = part_posts.PartPosts({"id": "large"})
        for position in range(200):
            posts.add(large_part(position))
        await asyncio.sleep(0)  # in which the parts arrive, all at once
        await posts.end()

    asyncio.run(work())
    record = plane.jobs["large"]
    assert [part["position"] for part in parts_of(record)] == list(range(200))
    assert len(record.streamed) == 5


@pytest.mark.usefixtures("stream_url")
def test_parts_that_can_not_be_posted_are_not_kept(plane, monkeypatch):
    monkeypatch.setattr(part_posts, "_PAUSE_S", 0.0)
    plane.fail("job-stream", *[401] * 5)

    async def work():
        posts = part_posts.PartPosts({"id": "given-up"})
        posts.add(large_part(0))
        await asyncio.wait([posts._posts])
        posts.add(large_part(1))
        await asyncio.sleep(0)
        assert posts._waiting == []
        await posts.end()

    asyncio.run(work())
    assert plane.jobs["given-up"].streamed == []


@pytest.mark.usefixtures("stream_url")
def test_the_result_does_not_wait_for_parts_that_are_posted_too_slowly(plane, monkeypatch):
    monkeypatch.setattr(part_posts, "_END_S", 0.0)
    plane.fail("job-stream", "hang")

    async def work():
        posts = part_posts.PartPosts({"id": "slow"})
        posts.add(large_part(0))
        await asyncio.sleep(0)
        await posts.end()
        assert posts._posts.cancelled()

    asyncio.run(work())
    plane.faults["job-stream"].clear()
    assert plane.jobs["slow"].streamed == []


def test_a_job_that_was_stopped_posts_no_progress_while_it_comes_to_its_end(plane, monkeypatch):
    """What comes after its error would open it again for those who poll its status."""
    base = f"http://127.0.0.1:{plane.port}/v2/endpoint/job-done/{WORKER_ID}/$ID?gpu=none"
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", base)
    monkeypatch.setenv("RUNPOD_WEBHOOK_POST_OUTPUT", base)
    get_settings.cache_clear()
    record = plane.jobs["late"]

    def answer(body, loaded, settings, cancelled, *, on_progress, **_):
        on_progress("attribute", 0.1, "before")
        assert cancelled.wait(LONGEST_S)
        on_progress("attribute", 0.2, "after")
        time.sleep(1.0)  # in which it would be posted
        raise Cancelled("stopped")

    monkeypatch.setattr("actions.answer.answer", answer)

    async def stop():
        job = asyncio.create_task(door.answer_job({"id": "late", "input": {}}))
        await asyncio.to_thread(plane.wait, lambda: record.progress)
        job.cancel()
        await asyncio.wait([job])
        assert job.cancelled()

    try:
        asyncio.run(stop())
    finally:
        get_settings.cache_clear()
    assert [update["message"] for update in record.progress] == ["before"]


def test_a_job_that_is_stopped_when_its_work_is_done_leaves_no_task_behind(plane, monkeypatch):
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", f"http://127.0.0.1:{plane.port}/none/$ID?gpu=none")
    monkeypatch.setenv("RUNPOD_WEBHOOK_POST_OUTPUT", "http://127.0.0.1/$ID")
    get_settings.cache_clear()
    done = threading.Event()

    class NeverEnding(part_posts.PartPosts):
        async def end(self):
            done.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(part_posts, "PartPosts", NeverEnding)

    async def stop():
        job = asyncio.create_task(door.answer_job({"id": "done", "input": FORWARD}))
        assert await asyncio.to_thread(done.wait, LONGEST_S)
        job.cancel()
        await asyncio.wait([job])
        assert job.cancelled()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        _, left = await asyncio.wait([job, *others], timeout=10)
        assert not left

    try:
        asyncio.run(stop())
    finally:
        get_settings.cache_clear()
