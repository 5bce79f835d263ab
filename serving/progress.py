"""A job's progress, for those who poll its status on Runpod.

The SDK's `progress_update` posts from a thread a call, in no order, and a late one reopens a job
that has its result. Here one task posts the newest update, one at a time, and has ended before the
result is handed over.
"""

import asyncio
import contextlib
import logging
from typing import Any

from runpod.http_client import AsyncClientSession

from serving import runpod_posts

logger = logging.getLogger(__name__)

# Posts begin at least this far apart, but for the last one.
_INTERVAL_S = 0.5
# A post is given up after this long: it must not hold the result back.
_POST_TIMEOUT_S = 1.0


class ProgressPosts:
    """Posts a job's updates to Runpod while the job runs, rising and never after `end`."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        # How far the job has come: its stage, the share of the whole that is done (0 to 1), words.
        self._first: dict[str, Any] | None = None
        self._latest: dict[str, Any] = {}
        self._posted = -1.0
        self._failed = False
        self._succeeded = False
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._ended = asyncio.Event()
        self._posts = asyncio.create_task(self._post_until_ended())

    def report(self, stage: str, progress: float, message: str) -> None:
        """Take an update from the thread that does the work."""
        self._latest = {"stage": stage, "progress": round(progress, 4), "message": message}
        if self._first is None:
            self._first = self._latest
            self._loop.call_soon_threadsafe(self._begun.set)

    def drop(self) -> None:
        """Post nothing more, and give up the post that is under way: the job was stopped."""
        self._posts.cancel()

    async def end(self, *, succeeded: bool) -> None:
        """Wait for the post that is under way and, after a success, post that all is done."""
        self._succeeded = succeeded
        self._ended.set()
        self._begun.set()
        await self._posts

    async def _post_until_ended(self) -> None:
        await self._begun.wait()
        if self._first is None:
            return
        async with AsyncClientSession() as session:
            await self._post(session, self._first)
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _INTERVAL_S)
                    break
                await self._post(session, self._latest)
            # When the last post failed, another would only hold the result back.
            if self._succeeded and not self._failed:
                await self._post(session, {**self._latest, "progress": 1.0, "message": "done"})

    async def _post(self, session: Any, update: dict[str, Any]) -> None:
        if update["progress"] <= self._posted:
            return
        self._posted = update["progress"]
        self._failed = True
        try:
            async with asyncio.timeout(_POST_TIMEOUT_S):
                await runpod_posts.post_progress(session, self._job, update)
            self._failed = False
        except Exception as error:  # whatever it is, the job goes on
            logger.debug("job %s: progress not posted: %s", self._job["id"], type(error).__name__)
