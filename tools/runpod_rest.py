"""A stand-in of Runpod's REST API v2: it takes what the API's OpenAPI document allows.

The document isn't part of this repository. Where it lies in `shared/data` beside the checkout, or
further up, request bodies are checked against it; elsewhere any JSON object is taken.
"""

import json
import re
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.support.runpod_endpoint import ENDPOINT_ID, USER_KEY

HOST = "https://api.runpod.io"
_DOCUMENT = Path("shared", "data", "runpod-api-v2.json")
_FOUND = (parent / _DOCUMENT for parent in Path(__file__).parents)
OPENAPI = next((path for path in _FOUND if path.is_file()), None)


@cache
def _openapi() -> dict[str, Any] | None:
    return None if OPENAPI is None else json.loads(OPENAPI.read_text())


def faults(method: str, path: str, body: object) -> list[str]:
    """What is wrong with a request's body; nothing where the OpenAPI document isn't at hand.

    Args:
        path: with a resource's id in it, as it is sent.

    Raises:
        KeyError: the API has no such operation with a body.
    """
    document = _openapi()
    if document is None:
        return []
    template = re.sub(r"^(/v2/[^/]+)/[^/]+$", r"\1/{id}", path)
    operation = document["paths"][template][method.lower()]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    checked = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
    return [error.message for error in checked.iter_errors(body)]


def example(path: str) -> Any:
    """The document's example of an answer to a GET; None where the document isn't at hand.

    Raises:
        KeyError: there is nothing to get at this path.
    """
    document = _openapi()
    if document is None:
        return None
    template = re.sub(r"^(/v2/[^/]+)/[^/]+", r"\1/{id}", path)
    answer = document["paths"][template]["get"]["responses"]["200"]
    return next(iter(answer["content"]["application/json"]["examples"].values()))["value"]


class RunpodRest(BaseHTTPRequestHandler):
    """Answers with the id of what would be made, or with what is wrong with the body.

    A GET answers with the document's example.
    """

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {USER_KEY}":
            return self._send(401, {"title": "Unauthorized", "detail": "missing bearer token"})
        try:
            return self._send(200, example(self.path))
        except KeyError:
            return self._send(404, {"title": "Not Found", "detail": f"no {self.path}"})

    def do_POST(self) -> None:
        self._answer(201)

    def do_PATCH(self) -> None:
        self._answer(200)

    def _answer(self, status: int) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        if self.headers["Authorization"] != f"Bearer {USER_KEY}":
            return self._send(401, {"title": "Unauthorized", "detail": "missing bearer token"})
        try:
            wrong = faults(self.command, self.path, body)
        except KeyError:
            return self._send(404, {"title": "Not Found", "detail": f"no {self.path}"})
        if wrong:
            return self._send(422, {"title": "Unprocessable Entity", "errors": wrong})
        return self._send(status, {**body, "id": ENDPOINT_ID})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what the documents' commands print is enough."""

    def _send(self, status: int, body: Any) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
