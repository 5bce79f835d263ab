"""The four actions as functions, whichever kind of server does them."""

import re
import time
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeVar, overload

from pydantic import BaseModel, ValidationError

import schemas
from remote.connection import FOREVER, Connection, Patience
from remote.errors import Unreachable, WrongTarget
from remote.jobs import JobStatus, OnProgress, Progress
from remote.servers import HttpDoor, RunpodEndpoint, SdkApi, Server, find_kind

RUNPOD_URL = "https://api.runpod.ai/v2"

Kind = Literal["auto", "http", "sdk"]
Messages = Sequence[schemas.ChatMessage | dict[str, str]]
R = TypeVar("R", bound=BaseModel)


class Client:
    """A worker that takes jobs. Made by `to_runpod` or `to_url`; a context manager.

    Every action takes `prompt` or `messages`, and besides what is named:

        fields: the action's other fields, as schemas.py has them.
        on_progress: called with a `Progress` whenever there is news, from the calling thread.
        timeout_s: seconds after which the caller stops waiting and the job is stopped; a little
            later is the job's `deadline`, unless one is given.

    and raises:

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
        kind: Kind = "auto",
        patience: Patience | None = None,
    ) -> Self:
        """`start.py`, or the SDK's local API (`handler.py --rp_serve_api`), at an address.

        Args:
            secret: sent as `x-secret-key`; the SDK's API asks for none.
            kind: which of the two it is; `auto` asks it.

        Raises:
            WrongTarget, Unreachable: `auto` found neither.
        """
        headers = _JSON if secret is None else {"x-secret-key": secret, **_JSON}
        connection = Connection(url, headers, patience or Patience())
        if kind == "auto":
            return cls(find_kind(connection)(connection))
        return cls(HttpDoor(connection) if kind == "http" else SdkApi(connection))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.server.connection.close()

    @overload
    def generate_graph(
        self,
        prompt: str | None = ...,
        *,
        messages: Messages | None = ...,
        signed_url: None = ...,
        on_progress: OnProgress | None = ...,
        timeout_s: float | None = ...,
        **fields: Any,
    ) -> dict[str, Any]: ...

    @overload
    def generate_graph(
        self,
        prompt: str | None = ...,
        *,
        messages: Messages | None = ...,
        signed_url: str,
        on_progress: OnProgress | None = ...,
        timeout_s: float | None = ...,
        **fields: Any,
    ) -> schemas.UploadReceipt: ...

    def generate_graph(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        signed_url: str | None = None,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> dict[str, Any] | schemas.UploadReceipt:
        """The attribution graph of a prompt; with `signed_url`, a receipt of its upload there.

        Without `signed_url` Runpod and the SDK's API carry graphs of up to 10 MB, and a larger one
        fails with `output_too_large`; `start.py` sends any. `download` gets an uploaded one.
        """
        fields |= {"prompt": prompt, "messages": messages, "signed_url": signed_url}
        output = self.run({"action": "generate-graph", **fields}, on_progress, timeout_s)
        if signed_url is not None:
            return self._read(output, schemas.UploadReceipt)
        if not {"nodes", "links", "metadata"} <= set(output):
            raise self._unread("a graph")
        return output

    def steer(
        self,
        prompt: str | None = None,
        *,
        features: Sequence[schemas.SteerFeature | dict[str, Any]],
        messages: Messages | None = None,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> schemas.SteerResponse:
        """A prompt continued as the model would, and with features changed."""
        fields |= {"prompt": prompt, "messages": messages, "features": list(features)}
        output = self.run({"action": "steer", **fields}, on_progress, timeout_s)
        return self._read(output, schemas.SteerResponse)

    def forward_pass(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> schemas.ForwardPassResponse:
        """A prompt's tokens and its likeliest next tokens."""
        fields |= {"prompt": prompt, "messages": messages}
        output = self.run({"action": "forward-pass", **fields}, on_progress, timeout_s)
        return self._read(output, schemas.ForwardPassResponse)

    def parse_chat_prompt(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> schemas.ParseChatPromptResponse:
        """A rendered prompt read back into messages."""
        fields |= {"prompt": prompt}
        output = self.run({"action": "parse-chat-prompt", **fields}, on_progress, timeout_s)
        return self._read(output, schemas.ParseChatPromptResponse)

    def run(
        self,
        job: dict[str, Any],
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Any job, as its `input` is written; returns its output."""
        until = FOREVER if timeout_s is None else time.monotonic() + timeout_s
        if timeout_s is not None:
            job = {"deadline": time.time() + timeout_s + _DEADLINE_AFTER_S, **job}
        return self._object(self.server.run(_checked(job), on_progress or _ignored, until))

    def submit(self, job: dict[str, Any]) -> str:
        """Put a job into Runpod's queue and return its id."""
        return self._runpod.submit(_checked(job))

    def wait(
        self, job_id: str, on_progress: OnProgress | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The output of a job of Runpod's, once it is done. It goes on when this is given up."""
        until = FOREVER if timeout_s is None else time.monotonic() + timeout_s
        return self._object(self._runpod.wait(job_id, on_progress or _ignored, until))

    def status(self, job_id: str) -> JobStatus:
        """How a job of Runpod's is."""
        return self._runpod.status(job_id)

    def cancel(self, job_id: str) -> None:
        """Stop a job of Runpod's, queued or running."""
        self._runpod.cancel(job_id)

    def health(self) -> dict[str, Any]:
        """What the server says of itself: on Runpod its jobs and workers, over HTTP its model."""
        return self.server.health()

    @property
    def _runpod(self) -> RunpodEndpoint:
        if not isinstance(self.server, RunpodEndpoint):
            raise WrongTarget(
                f"{self.server.connection.name} has no jobs to ask for, it answers each within "
                "its request; only a Runpod endpoint has; name one with --endpoint"
            )
        return self.server

    def _object(self, output: object) -> dict[str, Any]:
        if not isinstance(output, dict):
            raise self._unread("an action's output")
        return output

    def _read(self, output: object, model: type[R]) -> R:
        try:
            return model.model_validate(output)
        except ValidationError:
            raise self._unread(f"a {model.__name__}") from None

    def _unread(self, wanted: str) -> Unreachable:
        return Unreachable(
            f"{self.server.connection.name} answered with something else than {wanted}; is it "
            "this version of the worker?"
        )


# The caller stops the job at its time limit; the deadline is for when it is gone or can't.
_DEADLINE_AFTER_S = 5.0
_ENDPOINT_ID = re.compile(r"[A-Za-z0-9_-]+")
_JSON = {"Content-Type": "application/json", "User-Agent": "attribution-worker-client"}


def _ignored(_: Progress) -> None:
    pass


def _checked(job: dict[str, Any]) -> dict[str, Any]:
    """The job in its JSON form, checked as the worker will check it."""
    request = schemas.parse_request(job)
    return {"action": request.action, **request.model_dump(mode="json", exclude_unset=True)}
