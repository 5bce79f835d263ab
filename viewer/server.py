"""Serve graphs in circuit-tracer's own viewer, to browsers on this machine only.

    python client.py view FILE...

The page is viewer/page.py's. The files of the graphs are streamed as they are. Nothing is
written, and the page loads nothing from another host.
"""

import contextlib
import json
import os
import re
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from viewer import feature_panels
from viewer.graph_files import Graph, ViewerError, is_gzipped, read_graphs
from viewer.page import read_page
from viewer.worker_door import Worker, WorkerDoor

LOOPBACK = "127.0.0.1"

# The metadata that the page needs for its list of graphs.
_LISTED = ("scan", "prompt", "title_prefix", "node_threshold")
_FEATURE = re.compile("[0-9]{1,40}")  # layer and index as one number


def view(
    paths: Sequence[Path], *, port: int, open_browser: bool, worker: Worker | None = None
) -> None:
    """Serve these graphs on loopback until Ctrl-C. The page begins with the first one.

    Args:
        paths: graph documents, JSON or gzipped JSON.
        port: 0 takes a free one.
        worker: what the page may ask about pinned features.

    Raises:
        ViewerError: a file is no graph document, or the port is taken.
    """
    application = create_app(read_graphs(paths), worker)
    try:
        listener = socket.create_server((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        errno = getattr(error, "errno", None)
        reason = os.strerror(errno) if errno else error
        raise ViewerError(f"port {port}: {reason}; name another, or 0 for a free one") from None
    url = f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
    count = "1 graph" if len(paths) == 1 else f"{len(paths)} graphs"
    print(f"{count} at {url} until Ctrl-C", flush=True)
    if open_browser:
        # With a text browser in this terminal, `open` returns only when the user leaves it.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    # uvicorn raises KeyboardInterrupt again when it has stopped.
    with listener, contextlib.suppress(KeyboardInterrupt):
        server(application).run(sockets=[listener])


def server(application: Starlette) -> uvicorn.Server:
    """A uvicorn server for the application. Call its `run` with a listening socket."""
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


def create_app(graphs: Sequence[Graph], worker: Worker | None = None) -> Starlette:
    """The application that shows these graphs, and hands the page's questions to the worker."""
    page = read_page()
    by_name = {graph.name: graph for graph in graphs}
    headers = {
        "Content-Security-Policy": page.policy,
        "Cache-Control": "no-store",  # later another graph may have the same address
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    door = WorkerDoor(worker, by_name, headers)

    def graph_of(request: Request) -> Graph:
        try:
            return by_name[request.path_params["name"]]
        except KeyError:
            raise HTTPException(404) from None

    async def index(_: Request) -> Response:
        return Response(page.text, media_type="text/html", headers=headers)

    async def comparison(_: Request) -> Response:
        return Response(page.comparison, media_type="text/html", headers=headers)

    def as_json(value: object) -> Response:
        # Plain ASCII, because UTF-8 can't encode half of a surrogate pair.
        return Response(json.dumps(value), media_type="application/json", headers=headers)

    async def listing(_: Request) -> Response:
        listed = [
            {name: graph.metadata[name] for name in _LISTED if name in graph.metadata}
            | {"slug": graph.name}
            for graph in graphs
        ]
        return as_json({"graphs": listed})

    async def document(request: Request) -> Response:
        graph = graph_of(request)
        try:
            encoding = {"Content-Encoding": "gzip"} if is_gzipped(graph.path) else {}
        except OSError:  # it was removed since the start
            raise HTTPException(404) from None
        return FileResponse(graph.path, media_type="application/json", headers=headers | encoding)

    async def features(request: Request) -> Response:
        return as_json(feature_panels.index(graph_of(request).metadata))

    async def feature(request: Request) -> Response:
        number = request.path_params["feature"]
        if not _FEATURE.fullmatch(number):
            raise HTTPException(404)
        return as_json(feature_panels.panel(graph_of(request).metadata, int(number)))

    async def file(request: Request) -> Response:
        try:
            content, media_type = page.read(request.path_params["path"])
        except KeyError:
            raise HTTPException(404) from None
        return Response(content, media_type=media_type, headers=headers)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/compare", comparison),
            Route("/data/graph-metadata.json", listing),
            Route("/graph_data/{name}.json", document),
            Route("/features_of/{name}.json", features),
            Route("/features_of/{name}/{feature}.json", feature),
            *door.routes,
            Route("/{path:path}", file),
        ],
        lifespan=door.lifespan,
        # Otherwise another site could give its own name this address and read the graphs.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
    )
