"""The HTTP door's paths: a JSON body in, an output or `{"error": "code: sentence"}` out.

The work is `actions.answer`'s, one job at a time. Importing this module loads no torch.
"""

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Request, Security
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from errors import InvalidInput, WorkerError
from schemas import REQUESTS, canonical_action, shown
from serving import http_docs
from settings import Settings

if TYPE_CHECKING:
    import actions
    from delivery import Spooled
    from loading.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2_000_000  # a steer of as many features as there may be fits
RETRY_AFTER_S = 5

# zlib's levels above 3 take several times as long for a few percent.
_GZIP_LEVEL = 3
_GZIP_FROM_BYTES = 1_000


class Refusal(Exception):
    """A request that never becomes a job. Its codes are the HTTP door's own."""

    def __init__(
        self, status: int, code: str, sentence: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.code}: {self.args[0]}"


@dataclass
class Door:
    """The loaded model and the one job that may have it. Used on the event loop only."""

    settings: Settings
    loaded: "LoadedModel"
    jobs: http_docs.Jobs = field(default_factory=http_docs.Jobs)

    @property
    def is_busy(self) -> bool:
        return self.jobs.inProgress > 0 or self.loaded.lock.locked()

    async def perform(self, action: str, request: Request) -> Response:
        """Read the request, do its action and answer.

        Raises:
            Refusal: the body can't be read, or another job has the model.
            WorkerError: as `actions.answer` does.
        """
        started = time.perf_counter()
        outcome = "stopped"
        try:
            body = _with_action(await _read_json(request), action)
            if action == "parse-chat-prompt":  # needs only the tokenizer
                response = await self._answer(body, request)
            else:
                response = await self._answer_alone(body, request)
            outcome = "done"
            return response
        except (Refusal, WorkerError) as error:
            outcome = error.code
            raise
        finally:
            logger.info("%s: %s in %.2f s", action, outcome, time.perf_counter() - started)

    async def _answer_alone(self, body: object, request: Request) -> Response:
        if self.is_busy:
            raise Refusal(
                503,
                "busy",
                "another job has the model; send the request again when /check-busy says so",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self.jobs.inProgress += 1
        try:
            response = await self._answer(body, request)
            self.jobs.completed += 1
            return response
        except BaseException:
            self.jobs.failed += 1
            raise
        finally:
            self.jobs.inProgress -= 1

    async def _answer(self, body: object, request: Request) -> Response:
        """Do the work in a thread, and stop it when the client goes or the server ends."""
        from actions import answer

        cancelled = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(answer, body, self.settings, cancelled))
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            cancelled.set()
            # The model is free only once the thread has ended.
            await asyncio.wait({work})
            work.exception()  # seen, whatever becomes of this task
        return _response(work.result())


def create_app(settings: Settings, loaded: "LoadedModel") -> FastAPI:
    """The application on a loaded model: a path an action, `/check-busy`, `/health`, `/docs`."""
    app = FastAPI(
        title="attribution-worker",
        description="Attribution graphs and steering of the loaded model.",
        redirect_slashes=False,
        docs_url=None,  # http_docs adds it
        redoc_url=None,
    )
    door = Door(settings, loaded)
    guards = [] if settings.secret is None else [Depends(_secret_check(settings.secret))]
    for action, model in REQUESTS.items():
        app.add_api_route(
            f"/{action}",
            _endpoint(door, action),
            methods=["POST"],
            operation_id=action,
            summary=(model.__doc__ or "").splitlines()[0],
            dependencies=guards,
            response_model=None,
            responses=http_docs.responses(*http_docs.RESPONSES[action]),
            openapi_extra=http_docs.request_body(action),
        )
    _add_status_routes(app, door)
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES, compresslevel=_GZIP_LEVEL)
    app.add_exception_handler(WorkerError, _answer_error)
    app.add_exception_handler(Refusal, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    _document(app)
    http_docs.add_page(app)
    return app


def _endpoint(door: Door, action: str) -> Callable[[Request], Awaitable[Response]]:
    async def perform(request: Request) -> Response:
        return await door.perform(action, request)

    return perform


def _add_status_routes(app: FastAPI, door: Door) -> None:
    async def check_busy() -> Response:
        return _response(http_docs.CheckBusyResponse(busy=door.is_busy))

    async def health() -> Response:
        return _response(
            http_docs.HealthResponse(
                model=door.loaded.entry.label,
                token_limit=min(door.settings.token_limit, door.loaded.n_context),
                busy=door.is_busy,
                jobs=door.jobs,
            )
        )

    for path, endpoint, model in (
        ("/check-busy", check_busy, http_docs.CheckBusyResponse),
        ("/health", health, http_docs.HealthResponse),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            operation_id=path[1:],
            summary=(model.__doc__ or "").splitlines()[0],
            response_model=None,
            responses=http_docs.responses(model, errors=False),
        )


def _document(app: FastAPI) -> None:
    """Put the schemas that the operations refer to into the OpenAPI document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {})["schemas"] = http_docs.COMPONENTS
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _secret_check(secret: SecretStr) -> Callable[..., Awaitable[None]]:
    header = APIKeyHeader(name="x-secret-key", auto_error=False)
    wanted = secret.get_secret_value().encode()

    async def check(given: Annotated[str | None, Security(header)]) -> None:
        if given is None:
            raise Refusal(401, "unauthorized", "send the worker's secret as x-secret-key")
        # Header values are decoded as latin-1.
        if not hmac.compare_digest(given.encode("latin-1"), wanted):
            raise Refusal(403, "forbidden", "x-secret-key is not the worker's secret")

    return check


async def _read_json(request: Request) -> object:
    """The body as JSON, of at most MAX_BODY_BYTES however it is sent."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can't send this type to another host without asking first.
    if media_type != "application/json":
        raise Refusal(
            415, "unsupported_media_type", "send the body with Content-Type: application/json"
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    except ClientDisconnect:
        raise Refusal(400, "invalid_input", "the connection ended within the body") from None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_input", f"the body is no JSON: {error}") from None


def _too_large() -> Refusal:
    return Refusal(
        413, "body_too_large", f"a request's body may have {MAX_BODY_BYTES} bytes, this has more"
    )


def _with_action(body: object, action: str) -> object:
    """The body with the path's action.

    Raises:
        InvalidInput: the body names another one.
    """
    if not isinstance(body, dict):
        return body
    for name in ("action", "request_type"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or canonical_action(value) != action:
            raise InvalidInput(
                f"{name} is {shown(value)}, the path says {action}: leave it out, or post to "
                "the path of that action"
            )
    rest = {key: value for key, value in body.items() if key != "request_type"}
    return {**rest, "action": action}


async def _until_gone(request: Request) -> None:
    """Return once the client has closed the connection; the body has to be read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(result: "actions.Response") -> Response:
    if isinstance(result, BaseModel):
        return Response(result.model_dump_json(), media_type="application/json")
    return StreamingResponse(
        _chunks(result),
        media_type="application/json",
        headers={"Content-Length": str(result.size)},
    )


def _chunks(document: "Spooled") -> Iterator[bytes]:
    with document:
        yield from document.chunks()


async def _answer_error(_: Request, error: Exception) -> Response:
    """Any error as `{"error": "code: sentence"}`; of an unforeseen one nothing but that."""
    if isinstance(error, WorkerError):
        return _error(error.http_status, str(error))
    if isinstance(error, Refusal):
        return _error(error.status, str(error), error.headers)
    if not isinstance(error, HTTPException):
        return _error(500, "internal: an unexpected error; the worker's log has its place")
    if error.status_code == 404:
        return _error(404, f"not_found: there is POST /{', /'.join(REQUESTS)} and GET /docs")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _error(405, f"method_not_allowed: use {allowed} here", dict(error.headers or {}))
    return _error(error.status_code, f"invalid_input: {error.detail}")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)
