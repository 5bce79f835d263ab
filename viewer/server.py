"""Serve graphs in circuit-tracer's own viewer, to browsers on this machine only.

    python client.py view FILE...

The page, its scripts and its styles come from web_assets/. The files of the graphs are streamed as
they are. Nothing is written, and the page loads nothing from another host.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import socket
import threading
import webbrowser
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

import web_assets
from viewer import feature_panels

LOOPBACK = "127.0.0.1"

# Files of web_assets/, which have the same paths in this server's addresses.
_PAGE_FOLDER = "vendor/circuit-tracer/circuit_tracer/frontend/assets"
# These replace the scripts that circuit-tracer's page loads from other hosts. Two of those have no
# replacement: one reloads the page while its author edits it, one reads .npy files.
_LOCAL_SCRIPTS = (
    "vendor/d3/dist/d3.min.js",
    "jetpack_into_d3.js",
    "vendor/d3-jetpack/build/d3-jetpack.cjs",
    "vendor/dagre/dist/dagre.min.js",
    "vendor/pako/dist/pako.min.js",
)
_ADDITIONS = "<link rel='stylesheet' href='./viewer.css'>\n<script src='./viewer.js'></script>\n"
_MEDIA_TYPES = {".cjs": "text/javascript", ".js": "text/javascript", ".css": "text/css"}
_REQUIRED: Mapping[str, type] = {"slug": str, "scan": str, "prompt": str, "prompt_tokens": list}
# The metadata that the page needs for its list of graphs.
_LISTED = ("scan", "prompt", "title_prefix", "node_threshold")
_HEAD_BYTES = 1_000_000
_GZIP = b"\x1f\x8b"


class ViewerError(Exception):
    """There is nothing to show; the message says why and what to do."""


@dataclass(frozen=True)
class Graph:
    """A graph document on disk. `name` identifies it in the addresses of this server."""

    name: str
    path: Path
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """circuit-tracer's page with local scripts, the files it refers to by their paths in this
    server's addresses, and its Content-Security-Policy."""

    text: str
    files: Mapping[str, Path]
    policy: str


def view(paths: Sequence[Path], *, port: int, open_browser: bool) -> None:
    """Serve these graphs on loopback until Ctrl-C. The page begins with the first one.

    Args:
        paths: graph documents, JSON or gzipped JSON.
        port: 0 takes a free one.

    Raises:
        ViewerError: a file is no graph document, or the port is taken.
    """
    application = create_app(read_graphs(paths))
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


def read_graphs(paths: Sequence[Path]) -> list[Graph]:
    """The graphs in these files, with their metadata. The rest of a file is not read.

    Raises:
        ViewerError: there is none, or a file is no graph document.
    """
    if not paths:
        raise ViewerError("name the file of a graph; `make run` writes one into out/")
    graphs: list[Graph] = []
    for path in paths:
        metadata = _read_metadata(path)
        slug = re.sub(r"[^a-zA-Z0-9_-]+", "-", metadata["slug"]) or "graph"
        taken = {graph.name for graph in graphs}
        names = [slug, *(f"{slug}-{number}" for number in range(2, len(paths) + 1))]
        graphs.append(Graph(next(n for n in names if n not in taken), path, metadata))
    return graphs


def _read_metadata(path: Path) -> Mapping[str, Any]:
    try:
        with gzip.open(path) if _is_gzipped(path) else path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            metadata = _leading_metadata(head)
            if metadata is None:
                metadata = orjson.loads(head + file.read())["metadata"]
    except OSError as error:
        raise ViewerError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError, zlib.error):
        metadata = None
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(name), kind) for name, kind in _REQUIRED.items()
    ):
        raise ViewerError(
            f"{path}: no graph document, which has {', '.join(_REQUIRED)} in its metadata"
        )
    return metadata


def _leading_metadata(head: bytes) -> Any:
    """The metadata of a document that begins with its metadata, as the worker's do; else None."""
    match = re.match(rb'\s*\{\s*"metadata"\s*:\s*', head)
    if match is None:
        return None
    try:
        text = head[match.end() :].decode(errors="ignore")
        return json.JSONDecoder().raw_decode(text)[0]
    except json.JSONDecodeError:
        return None


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


@cache
def read_page() -> Page:
    """circuit-tracer's page, in which every script and style has an address of this server."""
    text = (web_assets.DIRECTORY / _PAGE_FOLDER / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"(src|href)='\./", rf"\1='./{_PAGE_FOLDER}/", text)
    scripts = "".join(f"<script src='./{name}'></script>\n" for name in _LOCAL_SCRIPTS)
    text = re.sub(r"(<script src='https://[^']+'></script>\n)+", scripts, text)
    text = text.replace("<script>", f"{_ADDITIONS}<script>", 1)
    text = text.replace("<title>", "<link rel='icon' href='data:,'>\n<title>", 1)
    names = re.findall(r"(?:src|href)='\./([^']+)'", text)
    files = {name: web_assets.DIRECTORY / name for name in names}
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Text from a prompt can't run as a script, and the page can send requests to this server only.
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; "
        "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(text, files, policy)


def create_app(graphs: Sequence[Graph]) -> Starlette:
    """The application that shows these graphs."""
    page = read_page()
    by_name = {graph.name: graph for graph in graphs}
    headers = {
        "Content-Security-Policy": page.policy,
        "Cache-Control": "no-store",  # later another graph may have the same address
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    def graph_of(request: Request) -> Graph:
        try:
            return by_name[request.path_params["name"]]
        except KeyError:
            raise HTTPException(404) from None

    async def index(_: Request) -> Response:
        return Response(page.text, media_type="text/html", headers=headers)

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
        encoding = {"Content-Encoding": "gzip"} if _is_gzipped(graph.path) else {}
        return FileResponse(graph.path, media_type="application/json", headers=headers | encoding)

    async def features(request: Request) -> Response:
        return as_json(feature_panels.index(graph_of(request).metadata))

    async def feature(request: Request) -> Response:
        number = request.path_params["feature"]
        return as_json(feature_panels.panel(graph_of(request).metadata, number))

    async def file(request: Request) -> Response:
        path = page.files.get(request.path_params["path"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type=_MEDIA_TYPES[path.suffix], headers=headers)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/data/graph-metadata.json", listing),
            Route("/graph_data/{name}.json", document),
            Route("/features_of/{name}.json", features),
            Route("/features_of/{name}/{feature:int}.json", feature),
            Route("/{path:path}", file),
        ],
        # Otherwise another site could give its own name this address and read the graphs.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
    )
