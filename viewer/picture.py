"""A picture of a graph, as the viewer's page shows it: taken by a browser that nobody sees.

A PNG is the whole page. An SVG is what the page's own button saves: the link graph, and the
subgraph where the document pins nodes (web_assets/picture_export.js).
"""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from viewer.descriptions import Descriptions
from viewer.graph_files import ViewerError, read_graphs
from viewer.server import LOOPBACK, create_app, server

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WIDTH, _HEIGHT = 1600, 1000
# The page's own time until the picture, which stands still while the page loads and computes.
_SETTLING_MS = 8_000
_LIMIT_S = 120.0
_FLAGS = [
    "--headless=new",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {LOOPBACK}",
    f"--window-size={_WIDTH},{_HEIGHT}",
    f"--virtual-time-budget={_SETTLING_MS}",
]


def take_picture(
    graph: Path, form: Literal["png", "svg"] = "png", descriptions: Descriptions | None = None
) -> bytes:
    """The page with a graph as a PNG, or the graph as an SVG that needs no other file; with labels
    where `descriptions` has some.

    Raises:
        ViewerError: the file is no graph, or there is no browser that could take the picture.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise ViewerError(
            f"a picture needs Chromium or Chrome, and none of {', '.join(_BROWSERS)} is installed"
        )
    flags = [*_FLAGS, *(["--no-sandbox"] if _is_root() else [])]  # root has no sandbox there
    with (
        _served(graph, descriptions) as url,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        path = Path(folder, "picture.png")
        asked = [f"--screenshot={path}", url]
        if form == "svg":
            asked = ["--dump-dom", f"{url}?picture=svg"]
        command = [browser, *flags, f"--user-data-dir={folder}/profile", *asked]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_LIMIT_S, check=True)  # noqa: S603
            return path.read_bytes() if form == "png" else _svg_in(done.stdout, graph)
        except subprocess.TimeoutExpired:
            raise ViewerError(f"{browser} took no picture within {_LIMIT_S:.0f} s") from None
        except (OSError, subprocess.CalledProcessError):
            raise ViewerError(f"{browser} took no picture; see what it says by itself") from None


class _PictureReader(HTMLParser):
    """Takes the text of two elements of a page: the picture, and why there is no graph."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[str, list[str]] = {}
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "pre" and attributes.get("id") == "picture":
            self._inside = "picture"
        elif tag == "p" and attributes.get("class") == "no-graph":
            self._inside = "no-graph"

    def handle_endtag(self, tag: str) -> None:
        if tag in {"pre", "p"}:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.texts.setdefault(self._inside, []).append(data)


def _svg_in(page: bytes, graph: Path) -> bytes:
    reader = _PictureReader()
    reader.feed(page.decode(errors="replace"))
    reader.close()
    if "picture" not in reader.texts:
        reason = "".join(reader.texts.get("no-graph", ["the page was not drawn in time"]))
        raise ViewerError(f"{graph}: {reason}")
    return "".join(reader.texts["picture"]).encode()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@contextmanager
def _served(graph: Path, descriptions: Descriptions | None) -> Iterator[str]:
    """The address of a server on loopback that shows the graph."""
    serving = server(create_app(read_graphs([graph]), descriptions))
    with socket.create_server((LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
        finally:
            serving.should_exit = True
            thread.join()
