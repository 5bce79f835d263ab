"""Graphs with automatic groups in the viewer's page, with a worker that has their model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from client import Client
from remote.viewer_worker import worker_of
from settings import Settings
from tests.support.demo_worker import ask, demo_settings
from tests.support.http_server import serving
from tests.support.traced_demo import serving_complete_demo
from tests.support.viewer_server import showing

PROMPTS = {"french": "Michael Jordan joue au", "spanish": "Michael Jordan juega al"}


@contextmanager
def plain_demo(directory: Path) -> Iterator[str]:
    """The address of the page with the demo's graph of each of PROMPTS."""
    with _shown(directory, demo_settings()) as url:
        yield url


@contextmanager
def complete_demo(directory: Path) -> Iterator[str]:
    """The same of the complete demo, which is the process's one model meanwhile."""
    with serving_complete_demo() as settings, _shown(directory, settings) as url:
        yield url


@contextmanager
def _shown(directory: Path, settings: Settings) -> Iterator[str]:
    names = ("model_id", "transcoder_set")
    chosen = {name: getattr(settings, name) for name in names}
    with (
        serving(**{name: value for name, value in chosen.items() if value}) as server,
        Client.to_url(server.url) as client,
        showing(_written(directory, settings), worker=worker_of(client)) as url,
    ):
        yield url


def _written(directory: Path, settings: Settings) -> Sequence[Path]:
    paths = []
    for slug, prompt in PROMPTS.items():
        graph = ask({"prompt": prompt, "slug_identifier": slug, "supernodes": "auto"}, settings)
        paths.append(directory / f"{slug}.json")
        paths[-1].write_bytes(orjson.dumps(graph))
    return paths
