"""The HTTP door's paths: a JSON body in, an output or `{"error": "code: sentence"}` out.

`actions.answer` does the work, one job at a time. Importing this module loads no torch.
"""

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import BaseModel, SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import web_assets
from contract.closest import closest
from contract.json_text import NotJson, read_json
from errors import Internal, WorkerError
from schemas import REQUESTS, closest_action
from serving import error_reports, event_stream, http_docs
from serving.identity import identify
from serving.metrics import Metrics
from settings import Settings

if TYPE_CHECKING:
    import actions.answer
    from actions.job import OnPart
    from delivery import Spooled
    from loading.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2_000_000  # a steer of as many features as there may be fits
RETRY_AFTER_S = 5

# zlib's levels above 3 take several times as long for a few percent.
_GZIP_LEVEL = 3
_GZIP_FROM_BYTES = 1_000


@dataclass
class Door:
    """The loaded model and the one job that may have it. Used on the event loop only.

    A request that never becomes a job ends as an HTTPException, whose detail is the code and the
    sentence. Its codes are the HTTP door's own.
    """

    settings: Settings
    loaded: "LoadedModel"
    jobs: http_docs.Jobs = field(default_factory=http_docs.Jobs)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def is_busy(self) -> bool:
        return self.jobs.inProgress > 0 or self.loaded.lock.locked()

    async def perform(self, action: str, request: Request) -> Response:
        """Read the request, do its action and answer.

        Raises:
            HTTPException: the secret is wrong, the body can't be read, or another job has the
                model.
            WorkerError: as `actions.answer` does.
        """
        with ExitStack() as job:
            job.enter_context(self._counted(action))
            self._check_secret(request)
            body, is_job = _without_envelope(await _read_json(request))
            if action != "parse-chat-prompt":  # which needs only the tokenizer
                job.enter_context(self._one_job())
            # A job's output is JSON: only an answer without an envelope can be a file.
            working = partial(self._working, action, body, request, takes_files=not is_job)
            if event_stream.is_wanted(action, body, request):
                return await event_stream.response(working, job.pop_all(), as_output=is_job)
            async with working() as work:
                await asyncio.wait({work})
            response = _response(work.result())
            return _as_output(response) if is_job else response

    @contextmanager
    def _counted(self, action: str) -> Iterator[None]:
        """Count and log a request that is refused before it is a job; report what is unforeseen."""
        try:
            yield
        except HTTPException as error:
            code = error.detail.split(":")[0]
            self.metrics.count_refused(action, code)
            logger.info("request refused: %s", code, extra={"event": {"action": action}})
            raise
        except Exception as error:
            if not isinstance(error, WorkerError):  # which `answer` has seen
                error_reports.report(self.settings, error, Internal.code, action)
            raise

    def _check_secret(self, request: Request) -> None:
        check_secret(self.settings.secret, request.headers.get("x-secret-key"))

    @contextmanager
    def _one_job(self) -> Iterator[None]:
        """Count a job, or refuse it while another one has the model."""
        if self.is_busy:
            raise HTTPException(
                503,
                "busy: another job has the model; send the request again when /check-busy says so",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self.jobs.inProgress += 1
        try:
            yield
            self.jobs.completed += 1
        except BaseException:
            self.jobs.failed += 1
            raise
        finally:
            self.jobs.inProgress -= 1

    @asynccontextmanager
    async def _working(
        self,
        action: str,
        body: object,
        request: Request,
        on_part: "OnPart | None" = None,
        *,
        takes_files: bool,
    ) -> AsyncIterator["asyncio.Task[actions.answer.Response]"]:
        """The work in a thread, which stops when the client goes or the context ends."""
        from actions.answer import answer

        cancelled = threading.Event()
        work = asyncio.create_task(
            asyncio.to_thread(
                answer,
                body,
                self.loaded,
                self.settings,
                cancelled,
                action=action,
                on_part=on_part,
                takes_files=takes_files,
                on_end=self._job_ended,
            )
        )
        gone = asyncio.create_task(_until_gone(request))
        gone.add_done_callback(lambda _: cancelled.set())
        try:
            yield work
        finally:
            gone.cancel()
            cancelled.set()
            # The model is free only once the thread has ended.
            with anyio.CancelScope(shield=True):
                await asyncio.wait({work})
            work.exception()  # else asyncio logs it where nobody awaits the result

    def _job_ended(self, code: str, event: Mapping[str, Any], error: BaseException | None) -> None:
        self.metrics.count_job(code, event)
        if error is not None:
            error_reports.report(self.settings, error, code, event["action"])

    async def check_busy(self, _: Request) -> Response:
        return _response(http_docs.CheckBusyResponse(busy=self.is_busy))

    async def health(self, _: Request) -> Response:
        return _response(
            http_docs.HealthResponse(
                **identify(self.loaded, self.settings).model_dump(),
                token_limit=min(self.settings.token_limit, self.loaded.n_context),
                busy=self.is_busy,
                jobs=self.jobs,
            )
        )

    async def show_metrics(self, request: Request) -> Response:
        self._check_secret(request)
        content, media_type = self.metrics.exposition(
            self.loaded, identify(self.loaded, self.settings), request.headers.get("accept", "")
        )
        return Response(content, headers={"Content-Type": media_type})


def create_app(settings: Settings, loaded: "LoadedModel") -> Starlette:
    """The application on a loaded model: a path an action, the worker's state, `/docs`."""
    door = Door(settings, loaded)
    document = http_docs.openapi(with_secret=settings.secret is not None)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def docs(_: Request) -> Response:
        return FileResponse(web_assets.DIRECTORY / "docs.html")

    app = Starlette(
        routes=[
            *(
                Route(f"/{action}", partial(door.perform, action), methods=["POST"])
                for action in REQUESTS
            ),
            Route("/ping", _ping),
            Route("/check-busy", door.check_busy),
            Route("/health", door.health),
            Route("/metrics", door.show_metrics),
            Route("/openapi.json", openapi),
            Route("/docs", docs),
            Mount("/docs/assets", StaticFiles(directory=web_assets.VENDOR / "swagger-ui-dist")),
        ],
        middleware=[
            Middleware(GZipMiddleware, minimum_size=_GZIP_FROM_BYTES, compresslevel=_GZIP_LEVEL)
        ],
        exception_handlers=dict.fromkeys((WorkerError, HTTPException, Exception), _answer_error),
    )
    app.router.redirect_slashes = False
    return app


def check_secret(secret: SecretStr | None, given: str | None) -> None:
    """Compare what a request gives with the worker's secret, if it has one.

    Raises:
        HTTPException: it gives none, or another.
    """
    if secret is None:
        return
    if given is None:
        raise HTTPException(401, "unauthorized: send the worker's secret as x-secret-key")
    # Header values are decoded as latin-1.
    if not hmac.compare_digest(given.encode("latin-1"), secret.get_secret_value().encode()):
        raise HTTPException(403, "forbidden: x-secret-key is not the worker's secret")


async def _ping(_: Request) -> Response:
    return Response()  # there is a model; until then serving/listening.py answers


async def _read_json(request: Request) -> object:
    """The body as JSON, of at most MAX_BODY_BYTES however it is sent."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can't send this type to another host without asking first.
    if media_type != "application/json":
        raise HTTPException(
            415, "unsupported_media_type: send the body with Content-Type: application/json"
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise too_large()
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise too_large()
    except ClientDisconnect:
        raise HTTPException(400, "invalid_input: the connection ended within the body") from None
    try:
        return read_json(bytes(body))
    except NotJson as error:
        raise HTTPException(400, f"invalid_input: the body is no JSON: {error}") from None


def _without_envelope(body: object) -> tuple[object, bool]:
    """The `input` of a body that is only that, as Runpod's jobs are, and whether it was one."""
    if isinstance(body, dict) and list(body) == ["input"]:
        return body["input"], True
    return body, False


def too_large() -> HTTPException:
    """The refusal of a body of more than MAX_BODY_BYTES."""
    return HTTPException(
        413, f"body_too_large: a request's body may have {MAX_BODY_BYTES} bytes, this has more"
    )


async def _until_gone(request: Request) -> None:
    """Return once the client has closed the connection; the body has to be read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(result: "actions.answer.Response") -> Response:
    if isinstance(result, BaseModel):
        return Response(result.model_dump_json(), media_type="application/json")
    headers = {"Content-Length": str(result.size)}
    if result.file_name is not None:  # made of characters that need no quoting
        headers["Content-Disposition"] = f'attachment; filename="{result.file_name}"'
    return StreamingResponse(_chunks(result), media_type=result.media_type, headers=headers)


def _chunks(body: "Spooled") -> Iterator[bytes]:
    with body:
        yield from body.chunks()


def _as_output(response: Response) -> Response:
    """A JSON response within `{"output": ...}`. What was to be streamed is streamed."""
    before, after = b'{"output":', b"}"
    if not isinstance(response, StreamingResponse):
        return Response(before + response.body + after, media_type=response.media_type)
    pieces = response.body_iterator

    async def within() -> AsyncIterator[bytes | str | memoryview]:
        yield before
        async for piece in pieces:
            yield piece
        yield after

    response.body_iterator = within()
    length = int(response.headers["Content-Length"]) + len(before) + len(after)
    response.headers["Content-Length"] = str(length)
    return response


_OTHER_PATHS = ("ping", "check-busy", "health", "metrics", "openapi.json", "docs")


def _did_you_mean(path: str) -> str:
    """The path that an unknown one most likely stands for, as the end of a sentence."""
    name = path.strip("/")
    action, other = closest_action(name), closest(name, _OTHER_PATHS)
    if action is not None:
        return f"; did you mean POST /{action}?"
    return "" if other is None else f"; did you mean GET /{other}?"


async def _answer_error(request: Request, error: Exception) -> Response:
    """Any error as `{"error": "code: sentence"}`; of an unforeseen one nothing but that."""
    status, headers = 500, None
    text = "internal: an unexpected error; the worker's log has its place"
    if isinstance(error, WorkerError):
        status, text = error.http_status, str(error)
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
        texts = {
            404: f"not_found: there is POST /{', /'.join(REQUESTS)} and GET /docs"
            + _did_you_mean(request.url.path),
            405: f"method_not_allowed: use {(headers or {}).get('Allow')} here",
        }
        text = texts.get(status, error.detail)
    return JSONResponse({"error": text}, status, headers)
