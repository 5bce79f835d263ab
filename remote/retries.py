"""The one policy by which remote/ makes a failed request again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import tenacity

from remote.errors import Unreachable
from remote.interruption import pause

FOREVER = float("inf")
_LONGEST_RETRY_AFTER_S = 60.0

# Called with a sentence before each wait for another attempt.
OnRetry = Callable[[str], None]
T = TypeVar("T")


class TemporaryFailure(Exception):
    """An attempt failed for a reason that may be gone at the next attempt.

    One that `came_further` than those before it, as a download that goes on where it broke off,
    shows that the server is there: the patience begins anew.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after_s: float = 0.0,
        is_busy: bool = False,
        came_further: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_busy = is_busy
        self.came_further = came_further


@dataclass(frozen=True)
class Patience:
    """How long failed attempts are repeated, and how long the waits between them are.

    The waits double, with jitter, and are never shorter than the server's Retry-After.
    """

    outage_s: float = 120.0  # seconds without a usable answer
    busy_s: float = 600.0  # seconds in which the server says that it is busy
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0

    def retry(
        self,
        attempt: Callable[[], T],
        name: str,
        *,
        until: float = FOREVER,
        on_retry: OnRetry | None = None,
    ) -> T:
        """Call `attempt` until it raises no TemporaryFailure, and return what it returns.

        Args:
            name: the server's, for the error.
            until: `time.monotonic()` after which no attempt begins.

        Raises:
            Unreachable: every attempt failed until the patience, or `until`, was over.
        """
        backoff = tenacity.wait_exponential_jitter(
            self.first_wait_s, self.longest_wait_s, jitter=self.first_wait_s
        )
        began = time.monotonic()

        def wait(state: tenacity.RetryCallState) -> float:
            failure = _failure(state)
            wanted_s = self.first_wait_s if failure.came_further else backoff(state)
            requested_s = min(failure.retry_after_s, _LONGEST_RETRY_AFTER_S)
            return max(min(max(wanted_s, requested_s), until - time.monotonic()), 0.0)

        def stop(state: tenacity.RetryCallState) -> bool:
            nonlocal began
            failure = _failure(state)
            if failure.came_further:
                began = time.monotonic()
            limit_s = self.busy_s if failure.is_busy else self.outage_s
            waited_s = time.monotonic() - began + state.upcoming_sleep
            return waited_s > limit_s or time.monotonic() >= until

        def report(state: tenacity.RetryCallState) -> None:
            if on_retry is not None:
                on_retry(f"{_failure(state)}; trying again in {state.upcoming_sleep:.0f} s")

        def give_up(state: tenacity.RetryCallState) -> NoReturn:
            waited_s = time.monotonic() - began
            duration = f" for {waited_s:.0f} s" if waited_s >= 1 else ""
            what = "was busy" if _failure(state).is_busy else "gave no usable answer"
            raise Unreachable(f"{name} {what}{duration}: {_failure(state)}") from None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TemporaryFailure),
            wait=wait,
            stop=stop,
            before_sleep=report,
            sleep=pause,
            retry_error_callback=give_up,
        )
        return retrying(attempt)


def _failure(state: tenacity.RetryCallState) -> TemporaryFailure:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TemporaryFailure)  # noqa: S101 - nothing else is retried
    return error
