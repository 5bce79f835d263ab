"""The tokens of a streamed steer, for those who poll `/stream` on Runpod.

One task posts them in their order and has ended before the result is handed over. What comes during
a post goes with the next one, so the posts never fall behind the model.
"""

import asyncio
import contextlib
import logging
from itertools import accumulate
from typing import Any

import orjson
from runpod.http_client import AsyncClientSession

from schemas import SteerPart
from serving import runpod_posts

logger = logging.getLogger(__name__)

MAX_POST_BYTES = 900_000  # Runpod takes 1 MB
# A post is given up after this long, and all further posts after this many failures in a row.
_POST_TIMEOUT_S = 1.0
_MOST_FAILURES = 5
_PAUSE_S = 0.5  # after a failure
# The result waits at most this long for the last parts, which are in the output as well.
_END_S = 10.0


class PartPosts:
    """Posts a job's parts to Runpod while the job runs, in their order and never after `end`.

    A part whose post failed goes with the next one, so Runpod may have it twice.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._waiting: list[bytes] = []  # parts as JSON
        self._failures = 0  # in a row
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()  # a part, or the end
        self._ended = asyncio.Event()
        self._posts = asyncio.create_task(self._post_until_ended())

    def add(self, part: SteerPart) -> None:
        """Take a part from the thread that does the work."""
        self._loop.call_soon_threadsafe(self._add, part.model_dump_json().encode())

    def drop(self) -> None:
        """Post nothing more, and give up the post that is under way: the job was stopped."""
        self._posts.cancel()

    async def end(self) -> None:
        """Wait until all parts are posted, or can't be in the time that the result may wait."""
        self._ended.set()
        self._news.set()
        _, late = await asyncio.wait([self._posts], timeout=_END_S)
        if late:
            self._posts.cancel()
            await asyncio.wait([self._posts])

    def _add(self, part: bytes) -> None:
        if self._posts.done():  # given up, so the part would only take memory
            return
        self._waiting.append(part)
        self._news.set()

    async def _post_until_ended(self) -> None:
        await self._news.wait()
        if not self._waiting:
            return
        try:
            await self._post_all()
        finally:
            self._waiting.clear()

    async def _post_all(self) -> None:
        async with AsyncClientSession() as session:
            while self._failures < _MOST_FAILURES:
                self._news.clear()
                is_last = self._ended.is_set()
                if self._waiting:
                    await self._post(session)
                if self._failures and not is_last:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._ended.wait(), _PAUSE_S)
                elif self._failures or (is_last and not self._waiting):
                    return
                elif not self._waiting:
                    await self._news.wait()

    async def _post(self, session: Any) -> None:
        """Post as many of the waiting parts as fit."""
        sizes = accumulate(len(part) + 1 for part in self._waiting)
        count = max(1, sum(size <= MAX_POST_BYTES for size in sizes))
        parts = [orjson.Fragment(part) for part in self._waiting[:count]]
        try:
            async with asyncio.timeout(_POST_TIMEOUT_S):
                await runpod_posts.post_parts(session, self._job, parts)
        except Exception as error:  # whatever it is, the job goes on
            self._failures += 1
            logger.debug("job %s: parts not posted: %s", self._job["id"], type(error).__name__)
            return
        self._failures = 0
        del self._waiting[:count]
