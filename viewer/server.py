"""Serve graphs in circuit-tracer's own viewer, to browsers on this machine only.

    python client.py view FILE...

The page is viewer/page.py's. The files of the graphs are streamed as they are. Nothing is
written, and the page loads nothing from another host.
"""

import contextlib
import errno
import http.client
import json
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from viewer.descriptions import Descriptions
from viewer.graph_files import Graph, ViewerError, is_gzipped, read_graphs, shortest_names
from viewer.label_routes import feature_routes
from viewer.page import read_page
from viewer.worker_door import Worker, WorkerDoor

LOOPBACK = "127.0.0.1"
# The same each time, since addresses that were saved have it. No system gives this one to a
# program that asks for any port: those begin at 32768.
DEFAULT_PORT = 8046
_PORTS_TRIED = 20
_LISTING = "/data/graph-metadata.json"

# The metadata that the page needs for its list of graphs.
_LISTED = ("scan", "prompt", "title_prefix", "node_threshold")
_WORDS = ("title_prefix", "scan", "prompt")


def view(
    paths: Sequence[Path],
    *,
    port: int | None = None,
    open_browser: bool,
    descriptions: Descriptions | None = None,
    worker: Worker | None = None,
) -> None:
    """Serve these graphs on loopback until Ctrl-C. The page begins with the first one.

    Args:
        paths: graph documents, JSON or gzipped JSON.
        port: 0 takes a free one; None DEFAULT_PORT, or the next free one where it is taken.
        descriptions: of real models' features, where they are asked for.
        worker: what the page may ask about pinned features.

    Raises:
        ViewerError: a file is no graph document, or the port that was named is taken.
    """
    application = create_app(read_graphs(paths), descriptions, worker)
    listener = _default_listener() if port is None else _listener(port)
    taken = listener.getsockname()[1]
    url = f"http://{LOOPBACK}:{taken}/"
    count = "1 graph" if len(paths) == 1 else f"{len(paths)} graphs"
    elsewhere = "" if port is not None or taken == DEFAULT_PORT else _what_is_at_the_default_port()
    print(f"{count} at {url} until Ctrl-C{elsewhere}", flush=True)
    if open_browser:
        # With a text browser in this terminal, `open` returns only when the user leaves it.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    # uvicorn raises KeyboardInterrupt again when it has stopped.
    with listener, contextlib.suppress(KeyboardInterrupt):
        server(application).run(sockets=[listener])


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port))
    except OverflowError:
        raise ViewerError(f"port {port}: a port is a number from 0 to 65535") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ViewerError(f"port {port}: {reason}; name another, or 0 for a free one") from None


def _default_listener() -> socket.socket:
    for port in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED):
        try:
            return socket.create_server((LOOPBACK, port))
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                break
    return _listener(0)


def _what_is_at_the_default_port() -> str:
    connection = http.client.HTTPConnection(LOOPBACK, DEFAULT_PORT, timeout=1)
    try:
        connection.request("GET", _LISTING)
        is_view = b'"graphs"' in connection.getresponse().read(1_000_000)
    except (OSError, http.client.HTTPException):
        is_view = False
    finally:
        connection.close()
    who = "another `view`" if is_view else "another program"
    return f" (not at port {DEFAULT_PORT}, where saved addresses lead: {who} is there)"


def server(application: Starlette) -> uvicorn.Server:
    """A uvicorn server for the application. Call its `run` with a listening socket."""
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


def create_app(
    graphs: Sequence[Graph],
    descriptions: Descriptions | None = None,
    worker: Worker | None = None,
) -> Starlette:
    """The application that shows these graphs, with what `descriptions` say of their features,
    and hands the page's questions to the worker."""
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
        return as_json({"graphs": _listed(graphs)})

    async def document(request: Request) -> Response:
        graph = graph_of(request)
        try:
            encoding = {"Content-Encoding": "gzip"} if is_gzipped(graph.path) else {}
        except OSError:  # it was removed since the start
            raise HTTPException(404) from None
        return FileResponse(graph.path, media_type="application/json", headers=headers | encoding)

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
            Route(_LISTING, listing),
            Route("/graph_data/{name}.json", document),
            *feature_routes(graph_of, as_json, descriptions),
            *door.routes,
            Route("/{path:path}", file),
        ],
        lifespan=door.lifespan,
        # Otherwise another site could give its own name this address and read the graphs.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
    )


def _listed(graphs: Sequence[Graph]) -> list[dict[str, Any]]:
    """What the page's list says of each graph; of those that it would say the same of, the file."""
    listed = [
        {name: graph.metadata[name] for name in _LISTED if name in graph.metadata}
        | {"slug": graph.name}
        for graph in graphs
    ]
    words = [tuple(entry.get(name) or "" for name in _WORDS) for entry in listed]
    for entry, words_of_it in zip(listed, words, strict=True):
        same = [graph for graph, others in zip(graphs, words, strict=True) if others == words_of_it]
        if len(same) > 1:
            names = shortest_names([graph.path for graph in same])
            entry["file"] = names[[graph.name for graph in same].index(entry["slug"])]
    return listed
