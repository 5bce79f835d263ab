"""The long runs of `make soak`: a thousand jobs, an idle hour, SIGTERM in each lasting stage."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from errors import WorkerError
from model_loader import get_model
from tests.support import raw_server
from tests.support.control_plane import ControlPlane, running_worker
from tests.support.demo_worker import GRAPH, ask, demo_settings, forget_graphs
from tests.support.polling import until
from tests.support.sdk_jobs import (
    BAD,
    GOOD,
    LONG_GRAPH,
    LONG_STEER,
    assert_each_answered_once,
    submit_mixed,
)

pytestmark = pytest.mark.soak

IDLE_S = int(os.environ.get("SOAK_IDLE_S", "3600"))


def resident_bytes(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid):
    """What the process has open that isn't a connection: those come and go with the polls."""
    links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sorted(str(link) for link in links if not str(link).startswith("socket:"))


def hooks():
    """Hooks on the modules of this process's model, of torch's and TransformerLens's kinds."""
    model = get_model(demo_settings()).model
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "fwd_hooks", "bwd_hooks")
    return {
        (name, kind): len(getattr(module, kind, ()))
        for name, module in model.named_modules()
        for kind in kinds
    }


def threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_a_thousand_good_and_bad_jobs_leave_nothing_behind(tmp_path):
    with (
        ControlPlane() as plane,
        running_worker(plane, tmp_path, JOBS_AT_ONCE="8", GRAPH_CACHE_BYTES="0") as worker,
    ):
        pid = worker.process.pid
        seen = []
        for _ in range(10):
            assert_each_answered_once(plane, submit_mixed(plane, 100))
            seen.append((resident_bytes(pid), threads(pid), open_files(pid)))
        assert len(plane.jobs) == 1000
        assert not any(record.after_result for record in plane.jobs.values())
        (memory_before, threads_before, files_before), *_, last = seen
        memory_after, threads_after, files_after = last
        assert memory_after < 1.05 * memory_before
        assert threads_after <= threads_before
        assert files_after == files_before


def test_a_worker_that_was_idle_for_an_hour_answers_the_next_job(tmp_path):
    with ControlPlane() as plane, running_worker(plane, tmp_path) as worker:
        for _ in range(2):
            plane.result(plane.submit(GRAPH))
        pid = worker.process.pid
        before = resident_bytes(pid), threads(pid), open_files(pid)
        time.sleep(IDLE_S)
        assert worker.process.poll() is None
        assert "nodes" in plane.result(plane.submit(GRAPH))["output"]
        memory, n_threads, files = resident_bytes(pid), threads(pid), open_files(pid)
        assert memory < 1.05 * before[0]
        assert (n_threads, files) == before[1:]


def test_a_thousand_good_and_bad_jobs_leave_no_hook_on_the_model():
    before = hooks()
    for number in range(1000):
        body = BAD[number // 5 % len(BAD)][0] if number % 5 == 4 else GOOD[number % len(GOOD)]
        forget_graphs()
        with contextlib.suppress(WorkerError):
            ask(body)
    assert hooks() == before


@pytest.mark.parametrize(
    ("body", "stage", "slowed"),
    [
        (GRAPH, "tokenise", ["prompting.prompts.tokenize"]),
        (LONG_GRAPH, "attribute", []),
        (GRAPH, "prune", ["attribution.pruning.drop_dead_ends"]),
        (GRAPH, "encode", ["graphs.document._link_chunks"]),
        (LONG_STEER, "tokenise", ["prompting.prompts.tokenize"]),
        (LONG_STEER, "activations", ["steering.feature_activations"]),
        (LONG_STEER, "generate", []),
        ({**GRAPH, "signed_url": "URL"}, "upload", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_told_to_end_in_a_stage_posts_a_retryable_error_and_ends(
    tmp_path, body, stage, slowed
):
    # The store reads nothing, so an upload lasts until it is stopped.
    with (
        raw_server.RawServer([raw_server.stop_reading]) as store,
        ControlPlane() as plane,
        running_worker(
            plane,
            tmp_path,
            "-m",
            "tests.support.slow_worker",
            *slowed,
            SHUTDOWN_GRACE_S="0",
            UPLOAD_ALLOWED_HOSTS="127.0.0.1",
        ) as worker,
    ):
        if stage == "upload":
            body = {**body, "signed_url": store.url()}
        job_id = plane.submit(body)
        until(lambda: any(p["stage"] == stage for p in plane.jobs[job_id].progress))
        assert worker.terminate() == 0
        record = plane.jobs[job_id]
        assert record.results[0]["error"].startswith("cancelled: ")
        assert record.after_result == []
        assert record.progress[-1]["progress"] < 1
