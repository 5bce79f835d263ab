"""The upload: attempts, what each answer means, and when to try again.

S3's rules: a URL can be used again until it expires, so what may be the network's or the store's
passing trouble is tried again; what the store has against the request itself is final.
"""

import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tenacity
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from delivery.put import Answer, TemporaryFailure, put, tls_context
from delivery.spooling import Spooled
from delivery.target import Target
from errors import UploadFailed

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
    "EntityTooLarge": (
        "ask for less with node_threshold and edge_threshold, of format pt with "
        "max_feature_nodes, or set compress"
    ),
}
# What a status means without one of these codes.
_CODES = {401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchBucket", 413: "EntityTooLarge"}


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again: after `first_wait_s`, then twice as long each time, with jitter."""

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 60.0  # a store's Retry-After counts up to this


_POLICY = RetryPolicy()


def upload(
    spooled: Spooled,
    target: Target,
    *,
    timeout_s: float = 120.0,
    deadline: float | None = None,
    check: Callable[[], None] = lambda: None,
    policy: RetryPolicy = _POLICY,
    tls_context: Callable[[], ssl.SSLContext] = tls_context,
) -> None:
    """PUT the body to the target, each attempt from its start. The body stays open, come what may.

    Connection errors, timeouts, 408, 429 and 5xx are tried again within the deadline; redirects
    and every other answer are final.

    Args:
        timeout_s: seconds without progress after which an attempt is given up.
        deadline: Unix seconds; no attempt is waited for that would begin after it.
        check: called several times a second; the upload ends with what it raises.

    Raises:
        UploadUrlRefused: the host has an address that isn't public.
        UploadFailed: the store did not take the body. The sentence has the store's own error code.
    """
    headers = _with_length(target.headers, spooled.size)

    def attempt() -> None:
        check()
        answer = put(
            target,
            headers,
            spooled.file,
            timeout_s=timeout_s,
            check=check,
            tls_context=tls_context,
        )
        _judge(answer, spooled.size)

    _retry(attempt, policy, deadline, check)


def _with_length(headers: Mapping[str, str], size: int) -> dict[str, str]:
    given = next((v for name, v in headers.items() if name.lower() == "content-length"), None)
    if given is None:
        return {**headers, "Content-Length": str(size)}
    if given != str(size):
        raise UploadFailed(
            f"signed_headers has a Content-Length of {given}, the graph has {size} bytes; "
            "sign the URL without a length"
        )
    return dict(headers)


def _retry(
    attempt: Callable[[], None],
    policy: RetryPolicy,
    deadline: float | None,
    check: Callable[[], None],
) -> None:
    stop: tenacity.stop.stop_base = tenacity.stop_after_attempt(policy.attempts)
    if deadline is not None:
        stop = stop | tenacity.stop_before_delay(deadline - time.time())
    backoff = tenacity.wait_exponential_jitter(
        policy.first_wait_s, policy.longest_wait_s, jitter=policy.first_wait_s
    )

    def wait(state: tenacity.RetryCallState) -> float:
        asked_s = min(_failure(state).retry_after_s, policy.longest_retry_after_s)
        return max(backoff(state), asked_s)

    def report(state: tenacity.RetryCallState) -> None:
        words = "upload attempt %d failed: %s; the next in %.1f s"
        logger.warning(words, state.attempt_number, _failure(state), state.upcoming_sleep)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            check()
            time.sleep(min(left, _POLL_S))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TemporaryFailure),
        stop=stop,
        wait=wait,
        sleep=sleep,
        before_sleep=report,
        reraise=True,
    )
    try:
        retrying(attempt)
    except TemporaryFailure as error:
        attempts = retrying.statistics["attempt_number"]
        rest = "" if attempts == policy.attempts else "; the deadline leaves no time for another"
        raise UploadFailed(
            f"the store did not take the graph in {attempts} attempts, the last because "
            f"{error}{rest}"
        ) from None


def _failure(state: tenacity.RetryCallState) -> TemporaryFailure:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TemporaryFailure)  # noqa: S101 - nothing else is retried
    return error


def _judge(answer: Answer, size: int) -> None:
    """Return when the body was taken, and raise what the answer means when it wasn't.

    Of the answer only its status and its error code are shown: S3's explanation of a signature
    that doesn't match quotes the query.
    """
    if answer.status in _TAKEN:
        if answer.body_was_sent:
            return
        raise TemporaryFailure(f"it answered {answer.status} before it had the whole graph")
    found = _CODE.search(answer.body)
    code = found[1].decode() if found else ""
    said = f"{answer.status} {code}".strip()
    if answer.status in _AGAIN or answer.status >= 500 or code in _AGAIN_CODES:
        raise TemporaryFailure(f"it answered {said}", _retry_after_s(answer.retry_after))
    if 300 <= answer.status < 400:
        raise UploadFailed(
            f"the store answered {said}, and redirects are not followed; sign a URL of the "
            "bucket's own region and endpoint"
        )
    advice = _ADVICE.get(code) or _ADVICE.get(_CODES.get(answer.status, ""))
    advice = advice or "check signed_url and signed_headers, and sign a new URL"
    raise UploadFailed(f"the store refused the graph of {size} bytes with {said}: {advice}")


def _retry_after_s(header: str | None) -> float:
    """Return the seconds that a Retry-After asks for, in either of its forms; 0 without one."""
    try:
        return Retry().parse_retry_after(header or "0")
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
