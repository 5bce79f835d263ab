"""The worker's actions as functions, for every kind of server."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

from pydantic import BaseModel, ValidationError

import schemas
from remote.connection import Connection, OnPart
from remote.errors import Interrupted, Unreachable, WrongTarget
from remote.jobs import JobStatus, OnProgress, ignore_progress
from remote.retries import Patience
from remote.servers import HttpDoor, RunpodEndpoint, SdkApi, Server, find_server
from remote.torch_file import FORMAT, taking_to, wants_file

RUNPOD_URL = "https://api.runpod.ai/v2"

# The client stops the job at the caller's time limit. The job's own deadline, which is later, is
# for a client that died or can't stop it.
DEADLINE_AFTER_S = 5.0
# Without a time limit the caller waits as long as Runpod keeps an unfinished job.
_LONGEST_WAIT_S = 24 * 3600.0
_ENDPOINT_ID = re.compile(r"[A-Za-z0-9_-]+")
_JSON = {"Content-Type": "application/json", "User-Agent": "attribution-worker-client"}

R = TypeVar("R", bound=BaseModel)
OnSteerPart = Callable[[schemas.SteerPart], None]


class Client:
    """A worker that takes jobs. Made by `to_runpod` or `to_url`; a context manager.

    Every action takes `prompt` or `messages`, and as further arguments:

        any field of the action's request, as schemas.py has them.
        on_progress: called with a `Progress` at every change, in the calling thread.
        timeout_s: seconds after which the caller stops waiting and the job is stopped; a day
            without it. The job's `deadline` is a little later, unless the fields have one.

    Every action raises:

        errors.InvalidInput: the request can't be right. Nothing was sent.
        RemoteError: one of remote/errors.py.
        Interrupted: Ctrl-C. The job was stopped, where the server can stop one.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    @classmethod
    def to_runpod(
        cls,
        endpoint_id: str,
        api_key: str,
        *,
        base_url: str = RUNPOD_URL,
        patience: Patience | None = None,
    ) -> Self:
        """A serverless endpoint of Runpod's."""
        if not _ENDPOINT_ID.fullmatch(endpoint_id):
            raise WrongTarget(
                f"{endpoint_id[:100]!r} is no endpoint id; give one such as abc123def456"
            )
        headers = {"Authorization": f"Bearer {api_key.strip()}", **_JSON}
        url = f"{base_url.rstrip('/')}/{endpoint_id}"
        return cls(RunpodEndpoint(Connection(url, headers, patience or Patience()), endpoint_id))

    @classmethod
    def to_url(
        cls,
        url: str,
        secret: str | None = None,
        *,
        kind: Literal["auto", "http", "sdk"] = "auto",
        patience: Patience | None = None,
    ) -> Self:
        """`start.py`, or the SDK's local API (`handler.py --rp_serve_api`), at an address.

        Args:
            secret: sent as `x-secret-key`; the SDK's API needs none.
            kind: which of the two it is; `auto` asks the server.

        Raises:
            WrongTarget, Unreachable: `auto` found neither.
        """
        headers = _JSON if secret is None else {"x-secret-key": secret, **_JSON}
        connection = Connection(url, headers, patience or Patience())
        return cls({"auto": find_server, "http": HttpDoor, "sdk": SdkApi}[kind](connection))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.server.connection.close()

    @overload
    def generate_graph(
        self, prompt: str | None = ..., *, signed_url: None = ..., **arguments: Any
    ) -> dict[str, Any]: ...

    @overload
    def generate_graph(
        self, prompt: str | None = ..., *, signed_url: str, **arguments: Any
    ) -> schemas.UploadReceipt: ...

    def generate_graph(
        self, prompt: str | None = None, *, signed_url: str | None = None, **arguments: Any
    ) -> dict[str, Any] | schemas.UploadReceipt:
        """The attribution graph of a prompt; with `signed_url`, a receipt of its upload there.

        Without `signed_url` Runpod and the SDK's API carry graphs of up to 10 MB, and a larger one
        fails with `output_too_large`; `start.py` sends any. `download` gets an uploaded one. With
        `format="pt"` it needs `signed_url`, or is `save_graph`.
        """
        output = self._act("generate-graph", prompt=prompt, signed_url=signed_url, **arguments)
        if signed_url is not None:
            of_file = arguments.get("format") == FORMAT
            return self._read(output, schemas.FileReceipt if of_file else schemas.UploadReceipt)
        if not {"nodes", "links", "metadata"} <= set(output):
            raise self._unexpected("a graph")
        return output

    def save_graph(self, path: Path, prompt: str | None = None, **arguments: Any) -> Path:
        """Write the graph before pruning to `path`, as circuit-tracer's own file; return the path.

        Only `start.py` answers with a file. For other servers there is `generate_graph` with
        `format="pt"` and `signed_url`.
        """
        job = {"action": "generate-graph", "format": FORMAT, "prompt": prompt}
        limits = {name: arguments.pop(name, None) for name in ("on_progress", "timeout_s")}
        given = {name: value for name, value in limits.items() if value is not None}
        return self.run_to_file({**job, **arguments}, lambda _: path, **given)

    def steer(
        self,
        prompt: str | None = None,
        *,
        features: Sequence[schemas.SteerFeature | dict[str, Any]],
        on_part: OnSteerPart | None = None,
        **arguments: Any,
    ) -> schemas.SteerResponse:
        """The prompt's continuation by the model as it is, and with features changed.

        Args:
            on_part: called with each generated token as it comes (`stream` is then true), each
                side's in order. The SDK's local API sends none; on Runpod some may be lost, while
                the output has all.
        """
        output = self._act(
            "steer", prompt=prompt, features=list(features), on_part=on_part, **arguments
        )
        return self._read(output, schemas.SteerResponse)

    def forward_pass(
        self, prompt: str | None = None, **arguments: Any
    ) -> schemas.ForwardPassResponse:
        """The prompt's tokens and its likeliest next tokens."""
        output = self._act("forward-pass", prompt=prompt, **arguments)
        return self._read(output, schemas.ForwardPassResponse)

    def parse_chat_prompt(self, prompt: str, **arguments: Any) -> schemas.ParseChatPromptResponse:
        """The messages of which a prompt was rendered."""
        output = self._act("parse-chat-prompt", prompt=prompt, **arguments)
        return self._read(output, schemas.ParseChatPromptResponse)

    def intervene(
        self,
        prompt: str | None = None,
        *,
        groups: Mapping[str, Sequence[schemas.GroupFeature | dict[str, Any]]],
        experiments: Sequence[Sequence[schemas.GroupChange | dict[str, Any]]],
        **arguments: Any,
    ) -> schemas.InterveneResponse:
        """The next token and the groups' activations, as they are and under each experiment."""
        output = self._act(
            "intervene",
            prompt=prompt,
            groups={name: list(group) for name, group in groups.items()},
            experiments=[list(changes) for changes in experiments],
            **arguments,
        )
        return self._read(output, schemas.InterveneResponse)

    def contrast(
        self, prompt: str | None = None, other_prompt: str | None = None, **arguments: Any
    ) -> schemas.ContrastResponse:
        """The features that turn the prompt's prediction into the other's, and a steer of them."""
        output = self._act("contrast", prompt=prompt, other_prompt=other_prompt, **arguments)
        return self._read(output, schemas.ContrastResponse)

    def _act(
        self,
        action: str,
        *,
        on_progress: OnProgress = ignore_progress,
        timeout_s: float | None = None,
        on_part: OnSteerPart | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        return self.run({"action": action, **fields}, on_progress, timeout_s, on_part)

    def run(
        self,
        job: dict[str, Any],
        on_progress: OnProgress = ignore_progress,
        timeout_s: float | None = None,
        on_part: OnSteerPart | None = None,
    ) -> dict[str, Any]:
        """Run a job, given as its `input`, and return its output."""
        job = _with_deadline(job, timeout_s)
        if on_part is not None:
            job = {**job, "stream": True}
        take = None if on_part is None else self._each_once(on_part)
        return self._object(
            self.server.run(self._for_output(job), on_progress, until_after(timeout_s), take)
        )

    def run_to_file(
        self,
        job: dict[str, Any],
        place: Callable[[str], Path],
        on_progress: OnProgress = ignore_progress,
        timeout_s: float | None = None,
    ) -> Path:
        """Run a job that is answered with a file, write it, and return its path.

        Args:
            place: called with the name that the worker gives the file; returns its path here.
        """
        if not isinstance(self.server, HttpDoor):
            raise self._no_files()
        path = self.server.run(
            _checked(_with_deadline(job, timeout_s)),
            on_progress,
            until_after(timeout_s),
            on_file=taking_to(place, on_progress),
        )
        if not isinstance(path, Path):
            raise self._unexpected("a file")
        return path

    def submit(self, job: dict[str, Any]) -> str:
        """Put a job into Runpod's queue and return its id."""
        return self._runpod.submit(self._for_output(job))

    def wait(
        self,
        job_id: str,
        on_progress: OnProgress = ignore_progress,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Wait for a job on Runpod and return its output. Its time limit doesn't stop the job."""
        try:
            return self._object(self._runpod.wait(job_id, on_progress, until_after(timeout_s)))
        except KeyboardInterrupt:
            raise Interrupted(f"no longer waiting; job {job_id} goes on") from None

    def status(self, job_id: str) -> JobStatus:
        """The state of a job on Runpod."""
        return self._runpod.status(job_id)

    def cancel(self, job_id: str) -> None:
        """Stop a job on Runpod, queued or running."""
        self._runpod.cancel(job_id)

    def health(self) -> dict[str, Any]:
        """What the server reports: Runpod its jobs and workers, the HTTP server its model."""
        return self.server.health()

    def transcoders(self) -> str | None:
        """The name of the set that the server has, where it says so: `start.py` does.

        Raises:
            RemoteError: it can't be asked.
        """
        if not isinstance(self.server, HttpDoor):
            return None  # the others report jobs and workers alone
        # A user waits for it, so a lost connection is said at once.
        answer = self.server.connection.ask("GET", "/health", is_repeatable=False)
        name = answer.body.get("transcoders") if isinstance(answer.body, dict) else None
        return name if isinstance(name, str) else None

    @property
    def _runpod(self) -> RunpodEndpoint:
        if not isinstance(self.server, RunpodEndpoint):
            raise WrongTarget(
                f"{self.server.connection.name} has no jobs to ask for, it answers each within "
                "its request; only a Runpod endpoint has; name one with --endpoint"
            )
        return self.server

    def _for_output(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job, checked, which must be one that has an output."""
        if not wants_file(job):
            return _checked(job)
        if isinstance(self.server, HttpDoor):
            raise WrongTarget("format is pt, a file and no output: save it with save_graph")
        raise self._no_files()

    def _no_files(self) -> WrongTarget:
        return WrongTarget(
            f"{self.server.connection.name} answers jobs with JSON, and format is pt, a file: give "
            "signed_url (--signed-url) to have it uploaded, or ask start.py"
        )

    def _object(self, output: object) -> dict[str, Any]:
        if not isinstance(output, dict):
            raise self._unexpected("an action's output")
        return output

    def _each_once(self, on_part: OnSteerPart) -> OnPart:
        """What reads parts and hands each on once: Runpod may have one twice."""
        last: dict[str, int] = {}  # by side, the position

        def take(fields: object) -> None:
            part = self._read(fields, schemas.SteerPart)
            if part.position > last.get(part.side, -1):
                last[part.side] = part.position
                on_part(part)

        return take

    def _read(self, output: object, model: type[R]) -> R:
        try:
            return model.model_validate(output)
        except ValidationError:
            raise self._unexpected(f"a {model.__name__}") from None

    def _unexpected(self, wanted: str) -> Unreachable:
        return Unreachable(
            f"{self.server.connection.name} answered with something else than {wanted}; is it "
            "this version of the worker?"
        )


def until_after(timeout_s: float | None) -> float:
    """The `time.monotonic()` at which a caller with this time limit stops waiting."""
    return time.monotonic() + (_LONGEST_WAIT_S if timeout_s is None else timeout_s)


def _with_deadline(job: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
    if timeout_s is None:
        return job
    return {"deadline": time.time() + timeout_s + DEADLINE_AFTER_S, **job}


def _checked(job: dict[str, Any]) -> dict[str, Any]:
    """The job in its JSON form, checked as the worker will check it."""
    request = schemas.parse_request(job)
    return {"action": request.action, **request.model_dump(mode="json", exclude_unset=True)}
