"""The viewer's server in a thread of this process, on a free port of loopback."""

import json
from contextlib import contextmanager

from tests.support.uvicorn_thread import in_a_thread
from viewer import server as viewer


@contextmanager
def showing(paths, descriptions=None, worker=None):
    """Serve these files, with what descriptions say of features and the worker that is asked, if
    there are any; gives the address of the page."""
    server = viewer.server(viewer.create_app(viewer.read_graphs(paths), descriptions, worker))
    with in_a_thread(server) as url:
        yield f"{url}/"


@contextmanager
def showing_graphs(directory, *graphs, **options):
    """The same for documents, which are written into a directory first."""
    paths = [directory / f"graph-{number}.json" for number in range(len(graphs))]
    for path, graph in zip(paths, graphs, strict=True):
        path.write_text(json.dumps(graph))
    with showing(paths, **options) as url:
        yield url
