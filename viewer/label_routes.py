"""What the page asks this server about the features of a graph."""

import re
from collections.abc import Callable

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from viewer import feature_panels
from viewer.descriptions import Descriptions
from viewer.graph_files import Graph

MOST_FEATURES = 50  # of which the page asks labels at once (web_assets/feature_labels.js)
_MOST_BYTES = 10_000
_FEATURE = re.compile("[0-9]{1,40}")  # layer and index as one number
# What browsers say of a request of the page itself, and of an address that a person types.
_OWN = {"same-origin", "none"}


def feature_routes(
    graph_of: Callable[[Request], Graph],
    as_json: Callable[[object], Response],
    descriptions: Descriptions | None,
) -> list[Route]:
    """The routes to the features of each graph.

    Args:
        descriptions: of real models' features. None: they are not asked for.
    """

    async def index(request: Request) -> Response:
        metadata = graph_of(request).metadata
        asked = descriptions is not None
        return as_json(feature_panels.index(metadata, are_labels_asked_for=asked))

    async def feature(request: Request) -> Response:
        metadata, number = graph_of(request).metadata, request.path_params["feature"]
        if not _FEATURE.fullmatch(number):
            raise HTTPException(404)
        if descriptions is None:
            return as_json(feature_panels.panel(metadata, int(number)))
        _refuse_other_sites(request)
        panel = await run_in_threadpool(feature_panels.panel, metadata, int(number), descriptions)
        return as_json(panel)

    async def labels(request: Request) -> Response:
        metadata = graph_of(request).metadata
        if descriptions is None:
            raise HTTPException(404)
        _refuse_other_sites(request)
        numbers = await _numbers_in(request)
        found = await run_in_threadpool(feature_panels.labels, metadata, numbers, descriptions)
        return as_json(found)

    return [
        Route("/features_of/{name}.json", index),
        Route("/features_of/{name}/labels", labels, methods=["POST"]),
        Route("/features_of/{name}/{feature}.json", feature),
    ]


def _refuse_other_sites(request: Request) -> None:
    """Another site's page must not make this server ask Neuronpedia, with the user's key."""
    if request.headers.get("Sec-Fetch-Site", "none") not in _OWN:
        raise HTTPException(403)


async def _numbers_in(request: Request) -> list[int]:
    """The features that a request names: a list of numbers, as JSON."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise HTTPException(413)
    try:
        numbers = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400) from None
    if not isinstance(numbers, list) or len(numbers) > MOST_FEATURES:
        raise HTTPException(400)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise HTTPException(400)
    return numbers
