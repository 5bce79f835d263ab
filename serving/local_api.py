"""The SDK's local API (`handler.py --rp_serve_api`), with the `GET /health` that Runpod has.

The SDK's own would answer every web page that a browser on this machine shows, and hold whatever a
client sends.
"""

import contextlib
import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import uvicorn
from runpod.serverless.modules import rp_fastapi
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import http_bounds
from serving.http_api import MAX_BODY_BYTES, check_secret, too_large
from serving.loopback_only import LoopbackOnly
from settings import Settings

logger = logging.getLogger(__name__)

# Seconds in which a job may end after the server was stopped.
_GRACE_S = 10


class LocalApi(rp_fastapi.WorkerAPI):
    """The SDK's API, which counts its jobs for `/health`. Used on the event loop only."""

    def __init__(
        self, config: dict[str, Any], *, settings: Settings, listeners: Sequence[socket.socket]
    ) -> None:
        super().__init__({**config, "handler": self._counted})
        self._handler = config["handler"]
        self._under_way = self._completed = self._failed = 0
        self._settings, self._listeners = settings, listeners
        self.rp_app.add_api_route("/health", self.health, summary="Jobs and workers.")

    def start_uvicorn(self, *_: Any, **__: Any) -> None:
        """Serve on the sockets that were opened before the model was loaded."""
        app = _with_bounded_body(self.rp_app)
        app = _with_secret(app, self._settings) if self._settings.secret else LoopbackOnly(app)
        config = http_bounds.config(app, timeout_graceful_shutdown=_GRACE_S)
        for listener in self._listeners:
            logger.info("the SDK's local API listens on %s port %d", *listener.getsockname()[:2])
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has stopped
            uvicorn.Server(config).run(list(self._listeners))

    async def _counted(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run the handler. It turns every failure of a job into an output with `error`."""
        self._under_way += 1
        try:
            output: dict[str, Any] = await self._handler(job)
        finally:
            self._under_way -= 1
        has_failed = "error" in output
        self._failed += has_failed
        self._completed += not has_failed
        return output

    async def health(self) -> dict[str, dict[str, int]]:
        """Runpod's form. One job has the model at a time; the others wait for it."""
        running = min(self._under_way, 1)
        return {
            "jobs": {
                "completed": self._completed,
                "failed": self._failed,
                "inProgress": running,
                "inQueue": self._under_way - running,
                "retried": 0,
            },
            "workers": {"idle": 1 - running, "running": running},
        }


def _with_secret(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application, for callers who send SECRET as `x-secret-key`, or as Runpod's key is sent:
    `Authorization: Bearer ...`."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = headers.get("x-secret-key", key if kind.lower() == "bearer" else None)
            try:
                check_secret(settings.secret, given)
            except HTTPException as error:
                await _refused(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def _with_bounded_body(app: ASGIApp) -> ASGIApp:
    """The application, which gets a body whole, and of MAX_BODY_BYTES at most."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body, has_more = bytearray(), True
        while has_more:
            message = await receive()
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                await _refused(too_large())(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body)}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await app(scope, replay, send)

    return bounded


def _refused(error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code)


def install(settings: Settings, listeners: Sequence[socket.socket]) -> None:
    """Have the SDK serve this API, on these sockets, in the place of its own."""
    rp_fastapi.WorkerAPI = partial(LocalApi, settings=settings, listeners=listeners)
