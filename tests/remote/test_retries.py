"""The policy by which failed requests are made again."""

import time

import pytest

from remote.errors import Unreachable
from remote.retries import Patience, TemporaryFailure


class Stopped(Exception):
    """Ends a retry before its first wait; its message is the sentence about that wait."""


def stop(sentence):
    raise Stopped(sentence)


def failing(**how):
    def attempt():
        attempts.append(attempt)
        raise TemporaryFailure("503", **how)

    attempts = []
    return attempt, attempts


@pytest.mark.parametrize(("retry_after_s", "waited"), [(7.0, "7 s"), (3600.0, "60 s")])
def test_a_wait_is_as_long_as_the_server_asks_but_no_longer_than_a_minute(retry_after_s, waited):
    attempt, _ = failing(retry_after_s=retry_after_s)
    with pytest.raises(Stopped, match=f"^503; trying again in {waited}$"):
        Patience(first_wait_s=0.01).retry(attempt, "the server", on_retry=stop)


@pytest.mark.parametrize(
    ("is_busy", "words"), [(True, "was busy"), (False, "gave no usable answer")]
)
def test_a_wait_that_would_outlast_the_patience_is_not_begun(is_busy, words):
    attempt, attempts = failing(retry_after_s=5.0, is_busy=is_busy)
    patience = Patience(**{"busy_s" if is_busy else "outage_s": 4.0})
    with pytest.raises(Unreachable, match=f"^the server {words}: 503$"):
        patience.retry(attempt, "the server", on_retry=stop)
    assert len(attempts) == 1


def test_no_attempt_begins_after_the_caller_s_time_limit():
    attempt, attempts = failing()
    with pytest.raises(Unreachable):
        Patience().retry(attempt, "the server", until=time.monotonic(), on_retry=stop)
    assert len(attempts) == 1


def test_a_fault_that_is_no_temporary_failure_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        Patience().retry(lambda: 1 / 0, "the server", on_retry=stop)
