"""The demo model behind the worker's own front: what a door calls, in this process or a new one."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import model_loader
from actions.answer import Response, answer
from delivery import Spooled
from graphs.cache import GraphCache
from settings import Settings
from tests.support.polling import LONGEST_S
from tests.support.programs import output_of

PROMPT = "Michael Jordan joue au"
TOO_LONG = "a " * 600  # more tokens than the demo model's context has
GRAPH = {"action": "generate-graph", "prompt": PROMPT, "slug_identifier": "test"}
FORWARD = {"action": "forward-pass", "prompt": PROMPT}
PARSE = {"action": "parse-chat-prompt", "prompt": PROMPT}


def demo_settings(**changed: Any) -> Settings:
    """The settings of the demo model, whatever the environment says."""
    return Settings(_env_file=None, device="cpu", **changed)


def settings_at(home: Path, **changed: Any) -> Settings:
    """The settings of a worker that has weights in this home of Hugging Face's and nowhere else."""
    absent = str(home / "none")
    return demo_settings(
        hf_home=str(home), image_weights=absent, runpod_model_cache=absent, **changed
    )


def ask(
    body: object, settings: Settings | None = None, cancelled: threading.Event | None = None
) -> dict[str, Any]:
    """The output of a request as JSON gives it, a graph loaded from its document."""
    settings = settings or demo_settings()
    return as_json(answer(body, model_loader.get_model(settings), settings, cancelled))


def as_json(response: Response) -> dict[str, Any]:
    """An action's response as its caller reads it."""
    if isinstance(response, Spooled):
        with response:
            return json.loads(b"".join(response.chunks()))
    return json.loads(response.model_dump_json())


def forget_graphs(max_bytes: int = 10**9) -> None:
    """Drop every attribution that the process has kept."""
    loaded = model_loader.get_model(demo_settings())
    # In place, though it is frozen: a server that runs in this process has the same model.
    object.__setattr__(loaded, "graphs", GraphCache(max_bytes))


@contextmanager
def held(after_runs: int) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Holds the demo model within its later runs: is it there, and may it go on?"""
    reached, go_on = threading.Event(), threading.Event()
    runs: list[None] = []

    def hold(*_: Any) -> None:
        runs.append(None)
        if len(runs) > after_runs:
            reached.set()
            assert go_on.wait(2 * LONGEST_S)  # longer than a test waits for what must not wait

    block = model_loader.get_model(demo_settings()).model.blocks[0]
    handle = block.register_forward_pre_hook(hold)
    try:
        yield reached, go_on
    finally:
        go_on.set()
        handle.remove()


def ask_fresh_process(bodies: list[object]) -> list[dict[str, Any]]:
    """The outputs of a process that has answered nothing before each list."""
    program = (
        "import json, sys\n"
        "from tests.support.demo_worker import ask\n"
        "print(json.dumps([ask(body) for body in json.load(sys.stdin)]))\n"
    )
    return json.loads(output_of(program, input=json.dumps(bodies)).splitlines()[-1])


def without_times(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph without what differs between two equal runs: when it was made, and how fast."""
    metadata = json.loads(json.dumps(graph["metadata"]))
    metadata["info"].pop("create_time_ms")
    metadata["info"].pop("timings_ms")
    return {**graph, "metadata": metadata}


def comparable(output: dict[str, Any]) -> dict[str, Any]:
    """Any action's output without what differs between two equal runs."""
    return without_times(output) if "nodes" in output else output
