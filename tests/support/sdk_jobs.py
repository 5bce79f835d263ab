"""Jobs for a worker under the SDK's loop, and what has to become of them."""

import time

from tests.support.demo_worker import FORWARD, GRAPH, PARSE, TOO_LONG, ask, comparable
from tests.support.polling import until

FEATURE = {"layer": 2, "index": 5, "token_active_position": 4, "steer_position": 4, "delta": 20.0}
STEER = {"action": "steer", "prompt": "Michael Jordan joue au", "features": [FEATURE]}
INTERVENE = {
    "action": "intervene",
    "prompt": "Michael Jordan joue au",
    "groups": {"a": [{"layer": 2, "index": 157, "position": 4}]},
    "experiments": [[{"group": "a", "scale": 0}]],
    "constrained_layers": [1, 2],
}
CONTRAST = {
    "action": "contrast",
    "prompt": "Michael Jordan joue au",
    "other_prompt": "Michael Jordan juega al",
}
# Seconds of attribution: a batch for each of thousands of feature nodes.
LONG_GRAPH = {
    **GRAPH,
    "prompt": " ".join(["Michael Jordan joue au"] * 15),
    "batch_size": 1,
}

GOOD = [
    GRAPH,
    FORWARD,
    PARSE,
    STEER,
    {**STEER, "temperature": 1.5, "seed": 11},
    {**GRAPH, "prompt": "Rafael Nadal juega al", "max_n_logits": 3},
    {**FORWARD, "prompt": "Rafael Nadal juega al", "max_n_logits": 2},
    {**STEER, "n_tokens": 3, "steered_output_only": True},
    INTERVENE,
    CONTRAST,
]
BAD = [
    ({"action": "fly"}, "unknown_action"),
    ({**GRAPH, "batch_size": 0}, "invalid_input"),
    ({**FORWARD, "prompt": TOO_LONG}, "prompt_too_long"),
    ({**STEER, "deadline": 1}, "deadline_exceeded"),
]


# What the caller of a job that is cancelled may wait for its end; where other programs keep the
# machine busy, so many times what the worker takes to hear of anything.
CANCELLED_WITHIN_S = 2.0
CANCELLED_WITHIN_ROUND_TRIPS = 20

# So hot that no end of text comes up.
LONG_STEER = {**STEER, "n_tokens": 40, "temperature": 5.0, "seed": 4}


def submit_mixed(plane, count):
    """Jobs with what each has to end as; every fifth is bad."""
    expected = {}
    for number in range(count):
        if number % 5 == 4:
            body, code = BAD[number // 5 % len(BAD)]
            expected[plane.submit(body)] = code
        else:
            body = GOOD[number % len(GOOD)]
            expected[plane.submit(body)] = body
    return expected


def assert_each_answered_once(plane, expected):
    answers = {str(body): comparable(ask(body)) for body in GOOD}
    for job_id, wanted in expected.items():
        result = plane.result(job_id)
        if isinstance(wanted, str):
            assert list(result) == ["error"]
            assert result["error"].startswith(f"{wanted}: ")
        else:
            assert list(result) == ["output"]
            assert comparable(result["output"]) == answers[str(wanted)]
    assert not any(plane.jobs[job_id].after_result for job_id in expected)


def running(worker, job_id):
    """Whether the SDK's line in the log says that the job has been started."""
    return f'"message":"Started.","job_id":"{job_id}"' in worker.log()


def stopped(worker, job_id):
    return f'"message":"Job stopped.","job_id":"{job_id}"' in worker.log()


def in_mid_stage(plane, job_id, stage):
    """Whether a poller has seen the stage under way."""
    start = {"attribute": 0.02, "generate": 0.11}[stage]
    return any(p["stage"] == stage and p["progress"] > start for p in plane.jobs[job_id].progress)


def assert_as_a_fresh_worker(plane, fresh):
    for body, expected in zip([GRAPH, STEER], fresh, strict=True):
        assert comparable(plane.result(plane.submit(body))["output"]) == expected


def cancel_in_mid_stage(plane, worker, body, stage):
    job_id = plane.submit(body)
    until(lambda: in_mid_stage(plane, job_id, stage))
    round_trip_s = max(plane.poll_round_trip() for _ in range(2))
    within_s = max(CANCELLED_WITHIN_S, CANCELLED_WITHIN_ROUND_TRIPS * round_trip_s)
    told = time.monotonic()
    plane.stop(job_id)
    until(lambda: stopped(worker, job_id))
    assert time.monotonic() - told < within_s
    return job_id


def assert_ended_without_a_result(plane, job_id):
    record = plane.jobs[job_id]
    assert record.results == []
    assert record.progress[-1]["progress"] < 1
