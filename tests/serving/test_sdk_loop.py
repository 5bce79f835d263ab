"""The worker under the SDK's real loop, against a control plane that speaks its protocol."""

import hashlib
import resource
import time
from itertools import pairwise
from statistics import median

import pytest

from delivery.spooling import MEMORY_LIMIT_BYTES
from tests.support.control_plane import API_KEY, running_worker
from tests.support.demo_worker import FORWARD, GRAPH, PARSE, ask, ask_fresh_process, comparable
from tests.support.polling import until
from tests.support.raw_server import RawServer, answer, close_without_an_answer, error_xml
from tests.support.sdk_jobs import (
    LONG_GRAPH,
    STEER,
    assert_as_a_fresh_worker,
    assert_each_answered_once,
    assert_ended_without_a_result,
    cancel_in_mid_stage,
    in_mid_stage,
    running,
    stopped,
    submit_mixed,
)

SECRETS = {"HF_TOKEN": "planted-hub-token", "SECRET": "planted-secret"}


@pytest.fixture(scope="module")
def worker(plane, tmp_path_factory):
    environment = {
        "JOBS_AT_ONCE": "64",
        "UPLOAD_ALLOWED_HOSTS": "127.0.0.1",
        **SECRETS,
    }
    directory = tmp_path_factory.mktemp("worker")
    with running_worker(plane, directory, **environment) as worker:
        yield worker


@pytest.fixture(scope="module")
def fresh(worker):
    """What a process that has done nothing else answers."""
    return [comparable(output) for output in ask_fresh_process([GRAPH, STEER])]


def test_every_job_of_a_mixed_flood_gets_its_own_result_exactly_once(plane, worker):
    expected = submit_mixed(plane, 300)
    assert_each_answered_once(plane, expected)
    assert set(plane.jobs) >= set(expected)
    assert plane.requests["job-take-batch"] > 1
    assert plane.unauthorized == 0
    assert "fitness check(s)" in worker.log()
    assert all(ping.get("status") != "unhealthy" for ping in plane.pings)


def test_a_job_that_is_handed_over_twice_is_answered_once(plane, worker):
    job_id = plane.submit({**LONG_GRAPH, "max_n_logits": 6})
    until(lambda: plane.jobs[job_id].progress)
    again = {"id": job_id, "input": FORWARD}
    plane.extra_jobs = [again, {"input": FORWARD}, None, {"id": 5, "input": FORWARD}]
    other = plane.submit(FORWARD)
    assert plane.result(other)["output"] == ask(FORWARD)
    assert plane.result(job_id)["output"]["nodes"]
    assert f"job {job_id} was handed over twice" in worker.log()
    assert "a job without an id was handed over" in worker.log()
    assert_nothing_more(plane, job_id)


def test_the_worker_pings_while_it_lives(plane, worker):
    seen = len(plane.pings)
    plane.wait(lambda: len(plane.pings) > seen)


def test_a_job_whose_result_could_not_be_posted_is_posted_again_until_it_is_taken(plane, worker):
    plane.fail("job-done", 500, "drop", 429)
    job_id = plane.submit(FORWARD)
    assert plane.result(job_id)["output"] == ask(FORWARD)
    assert not plane.faults["job-done"]
    assert plane.jobs[job_id].after_result == []


def test_the_worker_outlives_a_control_plane_that_fails_and_comes_back(plane, worker):
    for route in ("job-take", "job-take-batch"):
        plane.fail(route, 500, "drop", 502, "drop", 429)
    plane.fail("job-stop", 500, "drop", 429)
    plane.fail("ping", 500, "drop", 429)
    expected = submit_mixed(plane, 10)
    assert_each_answered_once(plane, expected)
    assert worker.process.poll() is None


def test_parsing_a_prompt_does_not_wait_however_many_graphs_do(plane, worker):
    # More of them than asyncio's own pool has threads.
    graphs = [plane.submit({**LONG_GRAPH, "max_n_logits": 7 + i}) for i in range(40)]
    until(lambda: running(worker, graphs[-1]))
    parsed = plane.submit(PARSE)
    assert plane.result(parsed)["output"] == ask(PARSE)
    waiting = [graph for graph in graphs if not plane.jobs[graph].results]
    for graph in graphs:
        plane.stop(graph)
    until(lambda: all(stopped(worker, graph) or plane.jobs[graph].results for graph in graphs))
    # A parse behind them in a pool would wait for all but as many as the pool has threads.
    assert len(waiting) > len(graphs) // 2


def test_stop_signals_are_heard_while_a_graph_is_computed(plane, worker):
    idle = median(plane.poll_round_trip() for _ in range(15))
    round_trips: list[float] = []
    graphs = (plane.submit({**LONG_GRAPH, "max_n_logits": n}) for n in range(70, 100))
    while len(round_trips) < 15:
        graph = next(graphs)
        until(lambda: in_mid_stage(plane, graph, "attribute"))  # noqa: B023 - called here only
        while not plane.jobs[graph].results and len(round_trips) < 15:
            round_trips.append(plane.poll_round_trip())
        plane.stop(graph)
        until(lambda: stopped(worker, graph) or plane.jobs[graph].results)  # noqa: B023
    # On a machine that other programs keep busy, a worker that does nothing is slow to hear, too.
    assert median(round_trips) < max(0.1, 10 * idle)


def test_a_job_stopped_before_it_has_begun_never_begins(plane, worker):
    job_id = plane.submit({**LONG_GRAPH, "max_n_logits": 61})
    until(lambda: f"job {job_id}: taken" in worker.log())
    plane.stop(job_id)
    until(lambda: stopped(worker, job_id))
    assert plane.jobs[job_id].results == []


def test_a_graph_cancelled_in_mid_attribution_ends_without_a_result(plane, worker, fresh):
    body = {**LONG_GRAPH, "max_n_logits": 2}
    job_id = cancel_in_mid_stage(plane, worker, body, "attribute")
    assert_as_a_fresh_worker(plane, fresh)
    assert_ended_without_a_result(plane, job_id)


def assert_rising(record, *, to):
    steps = [update["progress"] for update in record.progress]
    assert steps[0] == 0
    assert steps[-1] == to
    assert steps == sorted(set(steps))
    assert all(update["message"] for update in record.progress)
    assert record.after_result == []


def test_a_poller_sees_a_graph_s_progress_rise_to_the_end_and_nothing_after_it(plane, worker):
    job_id = plane.submit({**LONG_GRAPH, "max_n_logits": 4})
    plane.result(job_id)
    record = plane.jobs[job_id]
    assert_rising(record, to=1)
    stages = [update["stage"] for update in record.progress]
    assert stages[0] == "tokenise"
    assert "attribute" in stages
    assert stages[-1] == "encode"
    # All but the last are half a second apart; the rest is the network's.
    assert all(b - a > 0.25 for a, b in pairwise(record.posted_at[:-1]))


def test_progress_that_can_not_be_posted_does_not_hold_the_job_up(plane, worker):
    plane.fail("job-done", 500, "hang")
    job_id = plane.submit({**LONG_GRAPH, "max_n_logits": 5})
    assert plane.result(job_id)["output"]["nodes"]
    assert not plane.faults["job-done"]
    assert_nothing_more(plane, job_id)


def assert_nothing_more(plane, job_id):
    time.sleep(1.5)
    assert plane.jobs[job_id].after_result == []


def test_a_full_disk_fails_the_job_whose_graph_goes_there_and_no_other(plane, worker):
    # No file of the worker's may grow beyond this, its temporary ones with the graph least.
    large = {
        **LONG_GRAPH,
        "batch_size": 256,
        "max_feature_nodes": 1_150,
        "node_threshold": 1.0,
        "edge_threshold": 1.0,
    }
    pid, (_, hard) = worker.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    with RawServer([answer(200)]) as store:
        body = {**large, "signed_url": store.url()}
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_000_000, hard))
        error = plane.result(plane.submit(body))["error"]
        assert "the worker's disk did not take the graph" in error
        assert store.requests == []
        assert plane.result(plane.submit(GRAPH))["output"]["nodes"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        receipt = plane.result(plane.submit(body))["output"]
        assert receipt["bytes"] == len(store.requests[0].body) > MEMORY_LIMIT_BYTES
        assert receipt["sha256"] == hashlib.sha256(store.requests[0].body).hexdigest()


def test_secrets_and_signed_queries_appear_in_no_log_line_result_or_progress(plane, worker):
    query = "?X-Amz-Signature=planted-signature&X-Amz-Security-Token=planted-token"
    headers = {"x-amz-meta-key": "planted-header"}
    script = [
        answer(200),
        answer(403, error_xml("AccessDenied", query)),
        answer(503, error_xml("SlowDown", query)),
        close_without_an_answer,
        answer(200),
    ]
    with RawServer(script) as store:
        body = {**GRAPH, "signed_url": store.url(query), "signed_headers": headers}
        assert plane.result(plane.submit(body))["output"]["num_nodes"] > 0
        assert plane.result(plane.submit(body))["error"].startswith("upload_failed: ")
        assert plane.result(plane.submit(body))["output"]["num_nodes"] > 0
        assert all(query in request.request_line for request in store.requests)
        assert len(store.requests) == 5
    for url, code in (
        ("http://10.0.0.1/key" + query, "upload_url_refused"),
        ("http://planted-user:planted-password@host/" + query, "upload_url_refused"),
        ("http://127.0.0.1:1/key" + query, "invalid_input"),
    ):
        refused = {**body, "signed_url": url, "compress": code == "invalid_input"}
        refused["signed_headers"] = {**headers, "Content-Encoding": "identity"}
        assert plane.result(plane.submit(refused))["error"].startswith(f"{code}: ")
    seen = worker.log() + str(plane.jobs) + str(plane.pings)
    assert '"action":"generate-graph"' in seen
    assert "upload attempt 1 failed" in seen
    for secret in ("planted", API_KEY):
        assert secret not in seen


def test_an_idle_worker_ends_at_once(plane, worker):
    # The last test with this worker. Its long polls go on for an hour, which the SDK cuts to 90 s.
    plane.take_poll_s = 3_600.0
    plane.result(plane.submit(FORWARD))
    for _ in range(2):
        plane.poll_round_trip()
    assert worker.terminate(timeout_s=60) == 0
