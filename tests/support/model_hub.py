"""A Hugging Face hub on this machine: its listing, its downloads, its refusals, its faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.support.handler_thread import answering
from tests.support.model_cache import commit_of
from tests.support.polling import LONGEST_S

MEMBER = "hf_member"  # the token that has accepted every gate


@dataclass
class Repository:
    files: dict[str, bytes]
    gated: bool = False
    claimed_sizes: dict[str, int] = field(default_factory=dict)  # listed instead of the real ones


@dataclass
class ModelHub:
    """What the hub has, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)  # "GET /owner/name/resolve/…"
    ranges: list[str] = field(default_factory=list)
    # Bytes of a file after which the connection breaks, once.
    break_after: dict[str, int] = field(default_factory=dict)
    # How often the hub answers 503 before it works again.
    failures: int = 0
    # Set while files are sent; cleared, their bytes wait.
    sends: threading.Event = field(default_factory=threading.Event)
    # How often the hub lists files before it answers 503 to that.
    listings_left: int = 10**6


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[ModelHub]:
    hub = ModelHub()
    hub.sends.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with answering(handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: ModelHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.failures > 0:
            self.hub.failures -= 1
            self._refuse(503, None)
        elif path.startswith("/api/models/") and self.hub.listings_left <= 0:
            self._refuse(503, None)
        elif path.startswith("/api/models/"):
            self.hub.listings_left -= 1
            self._list(*path.removeprefix("/api/models/").split("/revision/"))
        else:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._send_file(name, revision, file, with_body)

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _known(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in {"main", commit_of(name)}:
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _list(self, name: str, revision: str = "main") -> None:
        repository = self._known(name, revision)
        if repository is None:
            return
        siblings = [
            {
                "rfilename": file,
                "size": (size := repository.claimed_sizes.get(file, len(content))),
                "blobId": hashlib.sha1(content).hexdigest(),
                "lfs": {"size": size, "sha256": etag(content), "pointerSize": 130},
            }
            for file, content in repository.files.items()
        ]
        body = json.dumps(
            {"id": name, "sha": commit_of(name), "siblings": siblings, "gated": repository.gated}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, name: str, revision: str, file: str, with_body: bool) -> None:
        repository = self._known(name, revision)
        if repository is None:
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.gated and token != MEMBER:
            self._refuse(403 if token else 401, "GatedRepo")
        elif file not in repository.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(commit_of(name), file, repository.files[file], with_body)

    def _send(self, commit: str, file: str, content: bytes, with_body: bool) -> None:
        start = 0
        asked = self.headers.get("Range")
        if asked is not None:
            self.hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(200 if asked is None else 206)
        self.send_header("ETag", f'"{etag(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-ETag", f'"{etag(content)}"')
        self.send_header("Content-Length", str(len(content) - start))
        if asked is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        self.hub.sends.wait(LONGEST_S)
        broken_at = self.hub.break_after.pop(file, None)
        self.wfile.write(content[start:broken_at])
        if broken_at is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(1)
