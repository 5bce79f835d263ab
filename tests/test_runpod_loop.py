"""What becomes of a handler's answer that is none, under the SDK's real loop."""

import pytest

from tests.control_plane import ControlPlane, running_worker

PROGRAM = """
import logs
import runpod_loop

async def handler(job):
    if job["input"] == "raise":
        raise ValueError("planted https://store/?X-Amz-Signature=planted")
    return {"value": object()} if job["input"] == "object" else {"value": job["input"]}

logs.set_up("DEBUG", as_json=True)
runpod_loop.serve(handler, shutdown_grace_s=1, jobs_at_once=2)
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
        ("object", "internal: the result can't be written as JSON"),
    ],
)
def test_what_the_handler_can_not_answer_is_internal_and_tells_nothing(plane, value, error):
    assert plane.result(plane.submit(value)) == {"error": error}
    assert plane.result(plane.submit("fine")) == {"output": {"value": "fine"}}
