"""Graphs in circuit-tracer's own viewer, served to this machine's browser and to none other.

    python client.py view FILE...

The page, its scripts and styles come from the installed library and from web_assets/; the files
of the graphs are streamed as they are. Nothing is written, and nothing is asked of another host.
"""

import base64
import contextlib
import gzip
import hashlib
import html
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
from importlib.util import find_spec
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

# The scripts that the library's page takes from elsewhere, by how their address ends, and what
# stands in for them.
_STAND_INS: Mapping[str, tuple[str, ...]] = {
    "/lib/hotserver-client-ws.js": (),  # reloads the page as its author types
    "/lib/d3.js": ("vendor/d3/d3.min.js",),
    "/lib/jetpack_2024-07-20.js": ("jetpack_into_d3.js", "vendor/d3-jetpack/d3-jetpack.cjs"),
    "/lib/npy_v0.js": (),  # no graph has .npy files
    "/dagre@0.8.5/dist/dagre.min.js": ("vendor/dagre/dagre.min.js",),
    "/pako@2.1.0/dist/pako.min.js": ("vendor/pako/pako.min.js",),
}
_MEDIA_TYPES = {".cjs": "text/javascript", ".js": "text/javascript", ".css": "text/css"}
_NEEDED: Mapping[str, type] = {"slug": str, "scan": str, "prompt": str, "prompt_tokens": list}
# What the page reads of a graph that it only lists.
_LISTED = ("scan", "prompt", "title_prefix", "node_threshold")
_HEAD_BYTES = 1_000_000
_GZIP = b"\x1f\x8b"


class ViewerError(Exception):
    """There is nothing to show; the message says why and what to do."""


@dataclass(frozen=True)
class Graph:
    """A graph document on disk. `name` is its own in the addresses of this server."""

    name: str
    path: Path
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """The library's page with local scripts, and every file that it refers to, by address."""

    text: str
    files: Mapping[str, Path]
    policy: str


def view(paths: Sequence[Path], *, port: int, open_browser: bool) -> None:
    """Serve these graphs on loopback until Ctrl-C, the first one shown.

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
    shown = "1 graph" if len(paths) == 1 else f"{len(paths)} graphs"
    print(f"{shown} at {url} until Ctrl-C", flush=True)
    if open_browser:
        # A browser in the terminal returns only when it is left.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with listener, contextlib.suppress(KeyboardInterrupt):  # raised anew once uvicorn has ended
        server(application).run(sockets=[listener])


def server(application: Starlette) -> uvicorn.Server:
    """The server of the application, to be run on a socket."""
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


def read_graphs(paths: Sequence[Path]) -> list[Graph]:
    """What is said about each of these graphs.

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
        with _opened(path) as file:
            head = file.read(_HEAD_BYTES)
            metadata = _leading_metadata(head)
            if metadata is None:
                metadata = orjson.loads(head + file.read())["metadata"]
    except OSError as error:
        raise ViewerError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError, zlib.error):
        metadata = None
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(name), kind) for name, kind in _NEEDED.items()
    ):
        raise ViewerError(
            f"{path}: no graph document, which has {', '.join(_NEEDED)} in its metadata"
        )
    return metadata


def _leading_metadata(head: bytes) -> Any:
    """The metadata of a document that begins with them, as ours do, or None."""
    match = re.match(rb'\s*\{\s*"metadata"\s*:\s*', head)
    if match is None:
        return None
    try:
        text = head[match.end() :].decode(errors="ignore")
        return json.JSONDecoder().raw_decode(text)[0]
    except json.JSONDecodeError:
        return None


def _opened(path: Path) -> Any:
    return gzip.open(path) if _is_gzipped(path) else path.open("rb")


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


@cache
def library_page() -> Page:
    """circuit-tracer's page, as it is installed."""
    spec = find_spec("circuit_tracer")  # found, not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise ViewerError("circuit-tracer is not installed: make .venv/.runtime")
    assets = Path(spec.origin).parent / "frontend" / "assets"
    text = (assets / "index.html").read_text(encoding="utf-8")
    files: dict[str, Path] = {}

    def local(match: re.Match[str]) -> str:
        stand_ins = next((s for end, s in _STAND_INS.items() if match[1].endswith(end)), ())
        return "\n".join(ours(name) for name in stand_ins)

    def ours(name: str) -> str:
        address = f"local/{name}"
        files[f"/{address}"] = web_assets.DIRECTORY / name
        if name.endswith(".css"):
            return f"<link rel='stylesheet' href='./{html.escape(address)}'>"
        return f"<script src='./{html.escape(address)}'></script>"

    text = re.sub(r"<script src='(https?://[^']+)'></script>", local, text)
    start = text.index("<script>")
    text = f"{text[:start]}{ours('viewer.css')}\n{ours('viewer.js')}\n{text[start:]}"
    text = text.replace("<title>", "<link rel='icon' href='data:,'>\n<title>", 1)
    for name in re.findall(r"(?:src|href)='\./([^']+)'", text):
        files.setdefault(f"/{name}", assets / name)
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Page(text, files, _policy(digest))


def _policy(script_digest: str) -> str:
    """A Content-Security-Policy: what a prompt's tokens say is no script, and no other host is
    asked for anything."""
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{script_digest}'; "
        "style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def create_app(graphs: Sequence[Graph]) -> Starlette:
    """The application that shows these graphs."""
    page = library_page()
    by_name = {graph.name: graph for graph in graphs}
    headers = {
        "Content-Security-Policy": page.policy,
        "Cache-Control": "no-store",  # another graph may have this address tomorrow
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    def asked(request: Request) -> Graph:
        try:
            return by_name[request.path_params["name"]]
        except KeyError:
            raise HTTPException(404) from None

    async def index(_: Request) -> Response:
        return Response(page.text, media_type="text/html", headers=headers)

    def as_json(value: object) -> Response:
        # ASCII, which half a surrogate pair can be said in too.
        return Response(json.dumps(value), media_type="application/json", headers=headers)

    async def listing(_: Request) -> Response:
        listed = [
            {name: graph.metadata[name] for name in _LISTED if name in graph.metadata}
            | {"slug": graph.name}
            for graph in graphs
        ]
        return as_json({"graphs": listed})

    async def document(request: Request) -> Response:
        graph = asked(request)
        encoding = {"Content-Encoding": "gzip"} if _is_gzipped(graph.path) else {}
        return FileResponse(graph.path, media_type="application/json", headers=headers | encoding)

    async def features(request: Request) -> Response:
        return as_json(feature_panels.index(asked(request).metadata))

    async def feature(request: Request) -> Response:
        number = request.path_params["feature"]
        return as_json(feature_panels.panel(asked(request).metadata, number))

    async def file(request: Request) -> Response:
        path = page.files.get(f"/{request.path_params['path']}")
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
        # Another site's page can't read the graphs by giving its own host this address.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
    )
