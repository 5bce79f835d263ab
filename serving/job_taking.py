"""Jobs as Runpod hands them over, read so that one that can't be read harms no other.

A job comes from outside. The SDK's `get_job` reads a whole answer or nothing: an integer of
thousands of digits or a deep nesting in one job loses it and all that came with it. Here each job
of such an answer is read alone, and one that can't be read is answered with an error.
"""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import ClientResponse, ClientSession
from runpod.serverless.modules import rp_job

from errors import InvalidInput

logger = logging.getLogger(__name__)

# Runpod takes inputs of 20 MB at most; characters that are written as escapes take more.
_MOST_BYTES_A_JOB = 32_000_000
# What is read within a tenth of a second, whatever it is; more is read in a thread, while the event
# loop goes on.
_MOST_BYTES_AT_ONCE = 100_000
_MOST_ID_CHARACTERS = 2_000  # servers take addresses of 8,000

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Brackets come in runs, so that a deep nesting is few tokens. A quote alone begins a string that
# doesn't end.
_TOKEN = re.compile(_STRING + rb'|"|[\[{]+|[\]}]+', re.DOTALL)
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb")?", re.DOTALL)


async def take_jobs(session: ClientSession, count: int) -> list[dict[str, Any]]:
    """Wait for jobs, at most `count` of them, and read them as `read_jobs` does.

    Raises:
        aiohttp.ClientError: Runpod can't be asked.
        ValueError: its answer has nothing in it that could be a job.
    """
    async with session.get(rp_job._job_get_url(count)) as response:
        if response.status in {204, 400}:  # Runpod answers 400 while Flashboot revives the worker
            return []
        response.raise_for_status()
        raw, is_whole = await _read(response, count * _MOST_BYTES_A_JOB)
    if len(raw) < _MOST_BYTES_AT_ONCE:
        return read_jobs(raw, is_whole=is_whole)
    return await asyncio.to_thread(read_jobs, raw, is_whole=is_whole)


def address_of(job_id: object) -> str | None:
    """An id as it stands in an address and in the log, or None for what can't be one.

    Whatever the id has in it, no two ids have one address, and none leads out of its place there.
    """
    if not isinstance(job_id, str) or job_id in {"", ".", ".."}:
        return None
    if len(job_id) > _MOST_ID_CHARACTERS:
        return None
    try:
        quoted = quote(job_id, safe="")
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    return quoted if len(quoted) <= _MOST_ID_CHARACTERS else None


def read_jobs(raw: bytes, *, is_whole: bool = True) -> list[dict[str, Any]]:
    """Every job of job-take's answer whose id can be found.

    Args:
        is_whole: whether nothing of the answer was left out behind `raw`.

    Returns:
        Jobs with their `id` (as `address_of` gives it) and `input`. One that can't be read has an
        error's text as `unreadable` instead of an input. Other keys of a job are dropped: the SDK
        would set each of them as an attribute of an object.

    Raises:
        ValueError: there is nothing that could be a job.
    """
    if raw.strip() in {b"", b"null"}:  # no job is waiting
        return []
    try:
        answer = orjson.loads(raw) if is_whole else None
    except orjson.JSONDecodeError:
        answer = None
    found: list[tuple[Any, str | None]]
    if isinstance(answer, dict | list):
        found = [(job, None) for job in (answer if isinstance(answer, list) else [answer])]
    else:
        found = [_read_alone(raw, *span) for span in _jobs_in(raw)]
        if not found:
            raise ValueError("job-take's answer is no job and no list of jobs")
    jobs = []
    for job, reason in found:
        job_id = address_of(job.get("id")) if isinstance(job, dict) else None
        if job_id is None:
            logger.error("a job without an id was handed over; it can't be answered")
        elif reason is not None:
            jobs.append({"id": job_id, "unreadable": str(InvalidInput(reason))})
        else:
            jobs.append({"id": job_id, "input": job.get("input")})
    return jobs


async def _read(response: ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The body up to `limit`, and whether that is all of it."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            return bytes(body[:limit]), False
    return bytes(body), True


def _jobs_in(raw: bytes) -> Iterator[tuple[int, int | None, bytes | None]]:
    """Where each job of an answer begins and ends (None: it doesn't), and its id as JSON.

    A job is an object that is the answer or stands in its list. Only brackets and strings count,
    so what else is in a job may be anything.
    """
    depth = job_depth = 0
    start: int | None = None
    job_id: bytes | None = None
    for match in _TOKEN.finditer(raw):
        position, end = match.span()
        if raw[position] == ord('"'):
            if end - position == 1:
                break
            if start is not None and depth == job_depth and _is_id(match[0]):
                value = _VALUE.match(raw, end)
                job_id = value[1] if value else job_id
        elif raw[position] in b"[{":
            while position < end and start is None:
                depth += 1
                if raw[position] == ord("{") and depth <= 2:
                    start, job_depth, job_id = position, depth, None
                position += 1
            depth += end - position
        else:
            while position < end:
                step = 1 if start is None else min(depth - job_depth + 1, end - position)
                position += step
                depth = max(depth - step, 0)
                if start is not None and depth < job_depth:
                    yield start, position, job_id
                    start = None
    if start is not None:
        yield start, None, job_id


def _is_id(text: bytes) -> bool:
    return text == b'"id"' or (b"\\" in text and len(text) < 30 and _parsed(text) == "id")


def _parsed(text: bytes | None) -> object:
    """A JSON string's text, None where it is none."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _read_alone(
    raw: bytes, start: int, end: int | None, job_id: bytes | None
) -> tuple[dict[str, Any], str | None]:
    """A job that stands in what can't be read as a whole, or its id and why it can't be read.

    Python's parser takes more than orjson: long integers, NaN, half of a surrogate pair. A request
    with one of them is refused later, with the name of its field.
    """
    if end is None:
        reason = f"the job does not end within {len(raw) - start} bytes"
        return {"id": _parsed(job_id)}, reason
    try:
        return json.loads(raw[start:end].decode()), None
    except RecursionError:
        reason = "the job is nested too deeply to be read"
    except UnicodeDecodeError as error:
        reason = f"the job is not UTF-8 at its byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"the job is no JSON at its character {error.pos}: {error.msg}"
    except ValueError:
        digits = sys.get_int_max_str_digits()
        reason = f"the job has an integer of more than {digits} digits"
    return {"id": _parsed(job_id)}, reason
