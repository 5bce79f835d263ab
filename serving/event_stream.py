"""A steer's tokens over HTTP as they come: server-sent events.

An event `part` for each token, then an event `output` with the whole output, or an event `error`.
What goes wrong before the first part is answered as without a stream, with its HTTP status.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from errors import WorkerError
from schemas import SteerPart
from serving.http_docs import Error

# Without this, a server that has to stop would cut streams off at once, while other answers have
# time to end.
AppStatus.disable_automatic_graceful_drain()

# Does the work of a request and hands each part to the argument; the context has its task.
Working = Callable[[Callable[[SteerPart], None]], AbstractAsyncContextManager[asyncio.Task[Any]]]


def is_wanted(action: str, body: object, request: Request) -> bool:
    """Whether a request asks for a stream, in its body and by its `Accept`."""
    accepts = "text/event-stream" in request.headers.get("accept", "")
    return accepts and action == "steer" and isinstance(body, dict) and body.get("stream") is True


async def response(
    working: Working, job: AbstractContextManager[Any], *, as_output: bool
) -> EventSourceResponse:
    """Begin the work and return, once the first part is there, the response with all of them.

    Args:
        job: exited when the work has ended.
        as_output: whether the last event is `{"output": ...}`, as Runpod has it.

    Raises:
        WorkerError: what ended the work before its first part.
    """
    events = _events(working, job, as_output)
    return _Response(await anext(events), events)


class _Response(EventSourceResponse):
    def __init__(self, first: ServerSentEvent, events: AsyncGenerator[ServerSentEvent]) -> None:
        super().__init__(self._all(first))
        self._events = events

    async def _all(self, first: ServerSentEvent) -> AsyncGenerator[ServerSentEvent]:
        yield first
        async for event in self._events:
            yield event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()  # stops the work, where the client went before its end


async def _events(
    working: Working, job: AbstractContextManager[Any], as_output: bool
) -> AsyncGenerator[ServerSentEvent]:
    parts: asyncio.Queue[SteerPart | None] = asyncio.Queue()  # None: that was the last
    loop = asyncio.get_running_loop()
    has_begun = False

    def add(part: SteerPart) -> None:
        loop.call_soon_threadsafe(parts.put_nowait, part)

    try:
        with job:
            async with working(add) as work:
                work.add_done_callback(lambda _: parts.put_nowait(None))
                while (part := await parts.get()) is not None:
                    has_begun = True
                    yield ServerSentEvent(part.model_dump_json(), event="part")
            output = work.result()
    except WorkerError as error:
        if not has_begun:
            raise
        yield ServerSentEvent(Error(error=str(error)).model_dump_json(), event="error")
    else:
        data = output.model_dump_json()
        yield ServerSentEvent(f'{{"output":{data}}}' if as_output else data, event="output")
