"""The worker loop where the SDK's own would lose time or answers."""

import asyncio

import pytest

from serving.runpod_loop import WorkerLoop
from tests.support.control_plane import ControlPlane, running_worker

PROGRAM = """
import orjson
import logs
from serving import runpod_loop
from serving.job_result import JobResult

async def answer(job):
    if job["input"] == "raise":
        raise ValueError("planted https://store/?X-Amz-Signature=planted")
    value = object() if job["input"] == "object" else job["input"]
    return JobResult(output=orjson.dumps({"value": value}))

logs.set_up("DEBUG", as_json=True)
runpod_loop.serve(answer, shutdown_grace_s=1, jobs_at_once=2)
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    directory = tmp_path_factory.mktemp("worker")
    with ControlPlane() as plane, running_worker(plane, directory, "-c", PROGRAM) as worker:
        yield plane
        assert worker.process.poll() is None
        assert "planted" not in worker.log()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("raise", "internal: an unexpected ValueError stopped the job"),
        ("object", "internal: an unexpected TypeError stopped the job"),
    ],
)
def test_what_the_handler_can_not_answer_is_internal_and_tells_nothing(plane, value, error):
    assert plane.result(plane.submit(value)) == {"error": error}
    assert plane.result(plane.submit("fine")) == {"output": {"value": "fine"}}


class Asking(WorkerLoop):
    """A loop that notes when it asks for jobs, and whose jobs do nothing."""

    def __init__(self):
        config = {"handler": None, "concurrency_modifier": lambda _current: 1}
        super().__init__(config, answer=None, shutdown_grace_s=0)
        self.jobs_handler = self.do_nothing
        self.asked = asyncio.Event()

    async def do_nothing(self, *_):
        pass

    async def _take_jobs(self, session, count):
        self.asked.set()
        await asyncio.Event().wait()


async def turns_of_the_event_loop(n=10):
    for _ in range(n):
        await asyncio.sleep(0)


def test_a_full_worker_asks_for_the_next_job_as_soon_as_one_ends():
    async def work():
        loop, job = Asking(), {"id": "first"}
        loop.jobs_queue.put_nowait(job)
        loop.job_progress.add(job)
        loop.jobs_queue.get_nowait()
        taking = asyncio.create_task(loop._keep_taking(None))
        await turns_of_the_event_loop()
        assert not loop.asked.is_set()
        await loop.handle_job(None, job)
        await turns_of_the_event_loop()
        assert loop.asked.is_set()
        taking.cancel()

    asyncio.run(work())


def test_a_job_stopped_when_its_task_has_not_begun_makes_room_for_the_next():
    async def work():
        loop, job = Asking(), {"id": "stopped"}
        loop.jobs_handler = loop._run_and_post
        loop.jobs_queue.put_nowait(job)
        loop.job_progress.add(job)
        loop.jobs_queue.get_nowait()
        task = asyncio.create_task(loop.handle_job(None, job))
        loop.jobs_tasks[job["id"]] = task
        assert await loop.stop_job(job["id"])
        await asyncio.wait([task])
        assert task.cancelled()
        assert loop.current_occupancy() == 0

    asyncio.run(work())
