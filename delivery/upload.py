"""The upload: attempts, what each answer means, and when to try again.

S3's rules: a URL can be used again until it expires, so what may be the network's or the store's
passing trouble is tried again; what the store has against the request itself is final.
"""

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import tenacity
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from delivery.destination import Target, check_url, request_headers
from delivery.put import Answer, ConnectionFailed, Network, put
from delivery.spooling import Spooled
from errors import DeadlineExceeded, UploadFailed, WorkerError

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_TAKEN = {200, 201, 204}
_AGAIN = {408, 429}
_AGAIN_CODES = {"RequestTimeout", "SlowDown"}  # S3 sends the first with a 400
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")

_ADVICE = {
    "AccessDenied": "the URL has expired or does not allow this PUT; sign a new one",
    "ExpiredToken": "the signer's credentials have expired; sign a new URL with valid ones",
    "SignatureDoesNotMatch": (
        "the URL was signed for another request; sign a PUT, and give every header that was "
        "signed, with its value, in signed_headers"
    ),
    "RequestTimeTooSkewed": (
        "the URL has expired, or the signer's clock is off; set the clock and sign a new one"
    ),
    "NoSuchBucket": "the bucket does not exist; create it or sign a URL of another",
    "EntityTooLarge": "ask for less with node_threshold and edge_threshold, or set compress",
}
_ADVICE_BY_STATUS = {
    401: _ADVICE["AccessDenied"],
    403: _ADVICE["AccessDenied"],
    404: _ADVICE["NoSuchBucket"],
    413: _ADVICE["EntityTooLarge"],
}


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again: after `first_wait_s`, then twice as long each time, with jitter."""

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 60.0  # a store's Retry-After counts up to this


def upload(
    spooled: Spooled,
    signed_url: str,
    signed_headers: Mapping[str, str] | None = None,
    *,
    allowed_hosts: Collection[str] = (),
    timeout_s: float = 120.0,
    deadline: float | None = None,
    check: Callable[[], None] = lambda: None,
    policy: RetryPolicy | None = None,
    network: Network | None = None,
) -> None:
    """PUT the body to the URL, each attempt from its start. The body stays open, come what may.

    Sent are the signed headers, exactly, and Host, Content-Length, Content-Type and, for a gzipped
    body, Content-Encoding where they aren't among them. Connection errors, timeouts, 408, 429 and
    5xx are tried again within the deadline; redirects and every other answer are final.

    Args:
        allowed_hosts: as for `check_url`.
        timeout_s: seconds without progress after which an attempt is given up.
        deadline: Unix seconds at which the upload stops.
        check: called several times a second, also from another thread; the WorkerError that it
            raises stops the upload.

    Raises:
        UploadUrlRefused, InvalidInput: as `check_url` and `check_headers`; or the host turns out
            to have an address that isn't public.
        UploadFailed: the store did not take the body. The sentence has the store's own error code.
        DeadlineExceeded: the deadline has passed.
        WorkerError: what `check` raises.
    """
    check_url(signed_url, allowed_hosts)
    target = Target.of(signed_url)
    headers = request_headers(
        target, signed_headers or {}, size=spooled.size, compressed=spooled.compressed
    )
    policy, network = policy or RetryPolicy(), network or Network()
    limits = _Limits(deadline, check)

    def attempt() -> None:
        limits.check()
        try:
            answer = put(
                target,
                headers,
                spooled.file,
                exempt=target.host in allowed_hosts,
                timeout_s=timeout_s,
                network=network,
                is_over=limits.over,
            )
        except ConnectionFailed as failure:
            limits.check()
            raise _PassingError(str(failure)) from None
        _judge(answer, spooled.size)

    _retry(attempt, policy, limits)


def _retry(attempt: Callable[[], None], policy: RetryPolicy, limits: "_Limits") -> None:
    stop: tenacity.stop.stop_base = tenacity.stop_after_attempt(policy.attempts)
    if limits.deadline is not None:
        stop = stop | tenacity.stop_before_delay(limits.left_s())
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_PassingError),
        stop=stop,
        wait=_wait(policy),
        sleep=limits.sleep,
        before_sleep=_log_retry,
        reraise=True,
    )
    try:
        retrying(attempt)
    except _PassingError as error:
        attempts = retrying.statistics["attempt_number"]
        rest = "" if attempts == policy.attempts else "; the deadline leaves no time for another"
        raise UploadFailed(
            f"the store did not take the graph in {attempts} attempts, the last because "
            f"{error}{rest}"
        ) from None


class _PassingError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Limits:
    """When the upload has to stop."""

    deadline: float | None
    check_job: Callable[[], None]

    def check(self) -> None:
        self.check_job()
        if self.left_s() <= 0:
            raise DeadlineExceeded(
                f"deadline {self.deadline:.0f} passed while the graph was being uploaded; send "
                "the job again with a later one"
            )

    def over(self) -> bool:
        try:
            self.check()
        except WorkerError:
            return True
        return False

    def left_s(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.time()

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _POLL_S))


def _wait(policy: RetryPolicy) -> Callable[[tenacity.RetryCallState], float]:
    backoff = tenacity.wait_exponential_jitter(
        policy.first_wait_s, policy.longest_wait_s, jitter=policy.first_wait_s
    )

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, _PassingError) else 0.0
        return max(backoff(state), min(asked, policy.longest_retry_after_s))

    return wait


def _log_retry(state: tenacity.RetryCallState) -> None:
    logger.warning(
        "upload attempt %d failed: %s; the next in %.1f s",
        state.attempt_number,
        state.outcome.exception() if state.outcome else None,
        state.upcoming_sleep,
    )


def _judge(answer: Answer, size: int) -> None:
    """Return when the body was taken, and raise what the answer means when it wasn't.

    Of the answer only its status and its error code are shown: S3's explanation of a signature
    that doesn't match quotes the query.
    """
    if answer.status in _TAKEN:
        if answer.body_was_sent:
            return
        raise _PassingError(f"it answered {answer.status} before it had the whole graph")
    found = _CODE.search(answer.body)
    code = found[1].decode() if found else ""
    said = f"{answer.status} {code}".strip()
    if answer.status in _AGAIN or answer.status >= 500 or code in _AGAIN_CODES:
        raise _PassingError(f"it answered {said}", _retry_after_s(answer.retry_after))
    if 300 <= answer.status < 400:
        raise UploadFailed(
            f"the store answered {said}, and redirects are not followed; sign a URL of the "
            "bucket's own region and endpoint"
        )
    advice = _ADVICE.get(code) or _ADVICE_BY_STATUS.get(answer.status)
    advice = advice or "check signed_url and signed_headers, and sign a new URL"
    raise UploadFailed(f"the store refused the graph of {size} bytes with {said}: {advice}")


def _retry_after_s(header: str | None) -> float:
    """Return the seconds that a Retry-After asks for, in either of its forms; 0 without one."""
    if header is None:
        return 0.0
    try:
        return Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
