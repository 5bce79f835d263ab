"""What the client makes of the answers about a job, whatever they hold."""

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.connection import Answer
from remote.errors import JobEnded, RemoteError, WorkerFailure
from remote.jobs import State, failure, read_status

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
UPDATES = st.fixed_dictionaries({}, optional={"stage": JSON, "progress": JSON, "message": JSON})


def read(**body):
    return read_status(Answer(200, {"id": "job-1", **body}), "runpod")


@given(st.sampled_from(get_args(State)), UPDATES | JSON, JSON, JSON)
def test_any_status_has_progress_and_an_outcome_or_an_error_of_the_client_s(
    state, output, error, delay
):
    status = read(status=state, output=output, error=error, delayTime=delay)
    assert status.progress.share is None or 0 <= status.progress.share <= 1
    if status.is_over:
        try:
            assert status.result() == output
        except RemoteError as refused:
            assert str(refused)


@given(st.integers(100, 599), JSON)
def test_an_answer_of_another_form_is_none(status, body):
    with pytest.raises(RemoteError, match=f"answered {status}"):
        read_status(Answer(status, body), "runpod")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("out_of_memory: lower batch_size", "out_of_memory", "lower batch_size"),
        ("invalid_input: prompt: two\nlines", "invalid_input", "prompt: two\nlines"),
        (json.dumps({"error_type": "x", "error_message": "boom"}), "failed", "boom"),
        ("job timed out after 1 retries", "failed", "job timed out after 1 retries"),
        (None, "failed", "no reason is given"),
    ],
)
def test_an_error_has_the_worker_s_code_where_it_is_the_worker_s(error, code, message):
    found = failure(error)
    assert isinstance(found, WorkerFailure)
    assert (found.code, found.message) == (code, message)


def test_an_output_that_was_lost_is_not_taken_for_one():
    with pytest.raises(JobEnded, match="lost on the way"):
        read(status="COMPLETED").result()
