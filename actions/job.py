"""One job: what it runs under, when it has to stop, and the checks that every action makes."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import steering
from errors import Cancelled, DeadlineExceeded, ModelNotLoaded
from prompting import prompts
from settings import Settings

if TYPE_CHECKING:
    from loading.loaded_model import LoadedModel
    from schemas import ChatMessage, PromptRequest, SteerPart

_LOCK_POLL_S = 0.1

# Called with a stage, the share of the whole job that is done (0 to 1) and words for a reader.
OnProgress = Callable[[str, float, str], None]
# Called with each token of a steer that asks for a stream.
OnPart = Callable[["SteerPart"], None]


@dataclass
class Job:
    """The settings and limits of one job; `timings_ms` gets the time of each stage at its end.

    `counts` are the sizes that its log line gives. `shares` are the usual shares of the stages in
    the job's time, in their order and with any sum; without them no progress is reported.
    """

    settings: Settings
    cancelled: threading.Event
    on_progress: OnProgress | None = None
    on_part: OnPart | None = None
    takes_files: bool = False  # the door can answer with something else than JSON
    deadline: float | None = None  # Unix seconds
    timings_ms: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    queue_ms: float | None = None  # time that it waited for the model; None: it has not had it yet
    shares: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded when the job has no reason to go on."""
        if self.cancelled.is_set():
            raise Cancelled("the job was stopped before it was done")
        if self.deadline is not None and time.time() > self.deadline:
            late = time.time() - self.deadline
            raise DeadlineExceeded(
                f"deadline {self.deadline:.0f} passed {late:.1f} s ago; send the job again with a "
                "later one"
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, after checking that the job should go on."""
        self.check()
        self.report(name, 0.0, name)
        started = time.perf_counter()
        yield
        self.timings_ms[name] = round((time.perf_counter() - started) * 1000, 1)

    def report(self, stage: str, done: float, message: str) -> None:
        """Report that the share `done` (0 to 1) of a stage is done."""
        if self.on_progress is None or stage not in self.shares:
            return
        names = list(self.shares)
        before = sum(self.shares[name] for name in names[: names.index(stage)])
        whole = sum(self.shares.values())
        self.on_progress(stage, (before + done * self.shares[stage]) / whole, message)

    def counted(self, stage: str, things: str) -> Callable[[int, int], None]:
        """A function that reports how many of a stage's things are done, of how many in all."""
        return lambda done, total: self.report(
            stage, done / max(total, 1), f"{done} of {total} {things}"
        )

    @contextmanager
    def model(self, loaded: "LoadedModel") -> Iterator[None]:
        """Have the model alone, and check before each of its layers that the job should go on.

        While another job has the model, wait and go on checking.
        """
        started = time.perf_counter()
        while not loaded.lock.acquire(timeout=_LOCK_POLL_S):
            self.check()
        try:
            waited_ms = (time.perf_counter() - started) * 1000
            self.queue_ms = round((self.queue_ms or 0.0) + waited_ms, 1)
            with steering.stoppable(loaded.model, self.check):
                yield
        finally:
            loaded.lock.release()


def check_model(model_id: str | None, loaded: "LoadedModel") -> None:
    """Raise ModelNotLoaded unless `model_id` is absent or one of the loaded model's ids."""
    if model_id is not None and not loaded.answers_to(model_id):
        raise ModelNotLoaded(
            f"model_id {model_id[:100]!r} is not served here; this worker has {loaded.entry.label}"
        )


def prepare_prompt(
    request: "PromptRequest",
    loaded: "LoadedModel",
    job: Job,
    *,
    up_to_context: bool = False,
) -> prompts.Prompt:
    """Check the request's model and turn its prompt or messages into tokens.

    A prompt may have TOKEN_LIMIT tokens; with `up_to_context`, as many as the model takes.
    """
    check_model(request.model_id, loaded)
    return prepare_text(request.prompt, request.messages, loaded, job, up_to_context=up_to_context)


def prepare_text(
    prompt: str | None,
    messages: "Sequence[ChatMessage] | None",
    loaded: "LoadedModel",
    job: Job,
    *,
    up_to_context: bool = False,
) -> prompts.Prompt:
    """The same for a prompt or messages, whichever is given."""
    context = loaded.n_context
    token_limit = context if up_to_context else min(job.settings.token_limit, context)
    prepared = prompts.prepare(
        prompt or [message.model_dump() for message in messages or ()],
        loaded.tokenizer,
        token_limit=token_limit,
        limit_name="the model's context" if token_limit == context else "the limit",
        model_name=loaded.name,
        leading_token=not loaded.is_complete,
    )
    job.counts["tokens"] = job.counts.get("tokens", 0) + len(prepared.ids)
    return prepared
