"""Questions of the page to a worker: the page asks this server, and this server the worker.

A connected worker may cost money, and its key or secret is this program's. So only the page itself
may ask: each question needs the page's `Origin`, and a token that no other page can read. Questions
are bounded, and become jobs of two actions on the prompts of the graphs that are open.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import schemas
from errors import WorkerError
from viewer.graph_files import Graph
from viewer.worker_jobs import ACTIONS, MAX_BODY_BYTES, Question, of_prompt, read_question

TOKEN_HEADER = "x-viewer-token"  # noqa: S105 - the header's name
NOT_CONNECTED = (
    "no worker is connected; end the viewer and start it again with --worker, --url or --endpoint"
)
_BUSY = "the last question is still at work; wait for its end, then ask again"
_STOPPING_S = 3.0  # for a job to be cancelled, when the viewer ends or is asked the next question
# Marks that viewers put in the place of white space; some tokenizers' decoders drop spaces.
_SPACE = re.compile(r"[\s⏎↵→⇥]+")

logger = logging.getLogger(__name__)

Report = Callable[[str], None]
Read = TypeVar("Read")


class NoAnswer(Exception):
    """A worker gave no answer; the message is a sentence for the page."""


@dataclass(frozen=True)
class Worker:
    """A worker that is connected.

    Attributes:
        name: shown in the page.
        run: does a job and returns its output. It calls its second argument with words on how far
            the job is. Once its third is set, as it is at the end of each question, it returns at
            once and stops the job, where it can. Raises NoAnswer.
        transcoders: the set that the worker has, where it says so, else None. Raises NoAnswer.
    """

    name: str
    run: Callable[[dict[str, Any], Report, threading.Event], Mapping[str, Any]]
    transcoders: Callable[[], str | None]


class WorkerDoor:
    """The addresses under which the page asks the worker. It answers one question at a time."""

    def __init__(
        self, worker: Worker | None, graphs: Mapping[str, Graph], headers: Mapping[str, str]
    ) -> None:
        self._worker = worker
        self._graphs = graphs
        self._headers = headers
        self._token = secrets.token_urlsafe(24)
        self._checked: set[str] = set()  # graphs that are known to be the worker's model's
        self._stopped = threading.Event()  # the last question's
        self._ended = asyncio.Event()  # set while no question is at work
        self._ended.set()

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/worker.json", self._describe),
            Route("/worker/{action}", self._ask, methods=["POST"]),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Stop the job that runs when the server ends, and wait a little for it to be stopped."""
        yield
        self._stopped.set()
        await self._last_is_over()

    async def _describe(self, _: Request) -> Response:
        worker = self._worker
        token = None if worker is None else self._token
        return self._answer({"name": worker and worker.name, "token": token}, 200)

    async def _ask(self, request: Request) -> Response:
        action, worker = request.path_params["action"], self._worker
        if worker is None:
            return self._answer({"error": NOT_CONNECTED}, 409)
        refusal = self._refusal(request)
        if refusal is not None:
            return self._answer({"error": refusal}, 403)
        try:
            body = await _bounded_body(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            error = f"the question has more than {MAX_BODY_BYTES} bytes; pin fewer features"
            return self._answer({"error": error}, 413)
        try:
            question = read_question(body)
            graph = self._graphs.get(question.graph)
            if graph is None or action not in ACTIONS:
                return self._answer({"error": "there is no such graph or question here"}, 404)
            job = ACTIONS[action][0](question, graph.metadata)
        except WorkerError as error:
            return self._answer({"error": error.sentence}, 422)
        work = _Work(worker, action, question, graph, job)
        return StreamingResponse(
            self._events(work), media_type="application/x-ndjson", headers=dict(self._headers)
        )

    def _refusal(self, request: Request) -> str | None:
        """Why a request is not the page's own; None if it is.

        The server has checked that `Host` is this machine. Another page's requests have that
        page's `Origin`, and can't have the token.
        """
        own = f"http://{request.headers.get('host', '')}"
        if request.headers.getlist("origin") != [own]:
            return "forbidden: only the viewer's own page may ask the worker"
        given = request.headers.get(TOKEN_HEADER, "").encode()
        if not secrets.compare_digest(given, self._token.encode()):
            return "the viewer was started again since this page was loaded; reload the page"
        return None

    async def _events(self, work: "_Work") -> AsyncIterator[bytes]:
        """JSON lines: `state` as often as there is news, then `output` or `error`.

        When the page goes away or stops reading, the job is stopped.
        """
        if not await self._last_is_over():
            yield orjson.dumps({"error": _BUSY}) + b"\n"
            return
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        stopped, ended = self._stopped, self._ended = threading.Event(), asyncio.Event()

        def tell(event: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the viewer has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        def run() -> None:
            try:
                last = self._last_event(work, lambda words: tell({"state": words}), stopped)
            finally:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(ended.set)
            tell(last)

        # Not of asyncio's pool, whose threads are waited for when the program ends.
        threading.Thread(target=run, daemon=True).start()
        try:
            while True:
                event = await events.get()
                yield orjson.dumps(event) + b"\n"
                if "state" not in event:
                    return
        finally:
            stopped.set()

    async def _last_is_over(self) -> bool:
        """Whether no question is at work. One that was stopped gets a little time to end."""
        if self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _STOPPING_S)
        return self._ended.is_set()

    def _last_event(
        self, work: "_Work", report: Report, stopped: threading.Event
    ) -> dict[str, Any]:
        """What ends the answer. Called in a thread of its own."""
        try:
            if work.graph.name not in self._checked:
                report("comparing the worker's model with the graph's")
                work.check_model(stopped)
                self._checked.add(work.graph.name)
            return {"output": work.answer(report, stopped)}
        except NoAnswer as error:
            return {"error": str(error)}
        except Exception:
            logger.exception("a question to the worker failed")
            return {"error": "the viewer failed, see its terminal"}

    def _answer(self, value: object, status: int) -> Response:
        content = orjson.dumps(value)
        return Response(content, status, dict(self._headers), "application/json")


@dataclass(frozen=True)
class _Work:
    """A question, its job, and the graph that it is about."""

    worker: Worker
    action: str
    question: Question
    graph: Graph
    job: dict[str, Any]

    def check_model(self, stopped: threading.Event) -> None:
        """Raise NoAnswer unless the worker has the graph's model, set and tokens.

        A feature's number means something else in another set, and a position in other tokens.
        """
        metadata, worker = self.graph.metadata, self.worker
        info = metadata.get("info")
        wanted = info.get("transcoder_set") if isinstance(info, dict) else None
        found = worker.transcoders()
        if isinstance(wanted, str) and found is not None and wanted != found:
            raise NoAnswer(
                f"the graph's features are of {wanted[:100]!r}, and {worker.name} has "
                f"{found[:100]!r}; connect a worker with the graph's model and set"
            )
        job = of_prompt("forward-pass", metadata, max_n_logits=1)
        output = worker.run(job, lambda _: None, stopped)
        tokens = self._read(lambda: schemas.ForwardPassResponse.model_validate(output).input_tokens)
        shown = metadata["prompt_tokens"]
        if len(tokens) != len(shown) or any(
            _bare(token) != _bare(str(other)) for token, other in zip(tokens, shown, strict=True)
        ):
            raise NoAnswer(
                f"{worker.name} reads the graph's prompt as other tokens ({len(tokens)}, the graph "
                f"has {len(shown)}), so its positions are not the graph's; connect a worker with "
                "the graph's model and set"
            )

    def answer(self, report: Report, stopped: threading.Event) -> dict[str, Any]:
        report(f"asking {self.worker.name}")
        output = self.worker.run(self.job, report, stopped)
        return self._read(lambda: ACTIONS[self.action][1](output, self.question))

    def _read(self, reading: Callable[[], Read]) -> Read:
        """What is read of an answer; NoAnswer where it isn't of the form that was asked for."""
        try:
            return reading()
        except (ValueError, LookupError, TypeError):  # pydantic's are ValueErrors
            raise NoAnswer(
                f"{self.worker.name} answered with something else than was asked for"
            ) from None


def _bare(token: str) -> str:
    """A token without what viewers and decoders write in several ways."""
    return _SPACE.sub("", token)


async def _bounded_body(request: Request) -> bytes | None:
    """The body; None when it is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return None
        pieces.append(piece)
    return b"".join(pieces)
