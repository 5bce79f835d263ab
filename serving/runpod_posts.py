"""What the worker posts to Runpod about a job: its progress, its parts, its result.

The SDK (runpod 1.12) posts a result once and drops it when that fails. Here it is posted until
Runpod takes it; where Runpod refuses it, an error is posted in its place.
"""

import logging
from typing import Any

import orjson
import tenacity
from aiohttp import ClientError, ClientResponseError, ClientSession, ClientTimeout
from runpod.serverless.modules import rp_http

from errors import Internal, OutputTooLarge, WorkerError
from serving.job_result import JobResult

logger = logging.getLogger(__name__)

# 0.5, 1, 2, ... 30 s between attempts: a control plane may be away for three minutes.
_RESULT_ATTEMPTS = 12
_RESULT_S = 300.0  # no attempt begins later than this after the first
_ATTEMPT_S = 120.0
# Attempts to post an error in place of a result that was not taken.
_ERROR_ATTEMPTS = 3
_AGAIN = {408, 429}
_TOO_LARGE = 413


async def post_result(session: ClientSession, job: dict[str, Any], result: JobResult) -> None:
    """Post a job's result, again and again while Runpod is unreachable, busy or failing.

    Where it isn't taken, an error is posted in its place: the caller has to hear of it.
    """
    try:
        body = result.body()
        refusal = await _post(session, job, body, _RESULT_ATTEMPTS)
        if refusal is None:
            return
        logger.error("job %s: its result was not taken: %s", job["id"], refusal)
        if result.error is None:
            failure = JobResult(error=str(_failure(refusal, len(body))))
            refusal = await _post(session, job, failure.body(), _ERROR_ATTEMPTS)
            if refusal is not None:
                logger.error("job %s: the error in its place was not taken: %s", job["id"], refusal)
    except Exception as error:
        logger.exception("job %s: its result was not posted: %s", job["id"], type(error).__name__)


def _failure(refusal: int | str, size: int) -> WorkerError:
    """The error in the place of an output of `size` bytes as posted."""
    if refusal == _TOO_LARGE:
        return OutputTooLarge(
            f"Runpod refused the output, which has {size} bytes, as too large; ask for less, or "
            "pass signed_url to have a graph uploaded"
        )
    if isinstance(refusal, int):
        return Internal(
            f"Runpod refused the output, which has {size} bytes, with status {refusal}; send the "
            "job again"
        )
    return Internal(f"Runpod did not take the output, which has {size} bytes; send the job again")


async def _post(
    session: ClientSession, job: dict[str, Any], body: bytes, attempts: int
) -> int | str | None:
    """Post a result; what was wrong, a status or an exception's name, where it wasn't taken."""
    request = _request(job, body, rp_http.JOB_DONE_URL)
    try:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((ClientError, TimeoutError)),
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_after_delay(_RESULT_S),
            wait=tenacity.wait_exponential(0.5, max=30),
            reraise=True,
        ):
            with attempt:
                status = await _status(session, request)
    except ClientResponseError as error:
        return error.status
    except (ClientError, TimeoutError) as error:
        return type(error).__name__
    return status if status >= 400 else None


async def _status(session: ClientSession, request: dict[str, Any]) -> int:
    """Post, and return the status unless another attempt may have another."""
    async with session.post(**request, timeout=ClientTimeout(total=_ATTEMPT_S)) as response:
        if response.status in _AGAIN or response.status >= 500:
            response.raise_for_status()
        return response.status


async def post_progress(session: ClientSession, job: dict[str, Any], progress: object) -> None:
    """Post a job's progress, as the SDK's `progress_update` does but awaited, in one attempt.

    Raises:
        aiohttp.ClientError: it could not be posted.
    """
    update = orjson.dumps({"status": "IN_PROGRESS", "output": progress})
    request = _request(job, update, rp_http.JOB_DONE_URL)
    async with session.post(**request, raise_for_status=True):
        pass


async def post_parts(session: ClientSession, job: dict[str, Any], parts: list[Any]) -> None:
    """Post what `/stream` hands out, as the SDK's `stream_result` does but in one attempt.

    Raises:
        aiohttp.ClientError: it could not be posted.
    """
    request = _request(job, orjson.dumps({"output": parts}), rp_http.JOB_STREAM_URL)
    async with session.post(**request, raise_for_status=True):
        pass


def _request(job: dict[str, Any], body: bytes, url: str) -> dict[str, Any]:
    """The request by which the SDK's `send_result` posts `body`, and its `stream_result`."""
    return {
        "url": url.replace("$ID", job["id"]) + "&isStream=false",
        "data": body,
        "headers": {
            "charset": "utf-8",
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job["id"],
        },
    }
