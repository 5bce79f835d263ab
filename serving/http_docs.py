"""What the paths of the HTTP door take and give, as OpenAPI, and the page that shows it.

The schemas are those of schemas.py, which the requests are checked against; FastAPI checks none.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import schemas
import web_assets

PROMPT = "Michael Jordan joue au"

# For the demo model, so that "Try it out" works as it stands.
EXAMPLES: Mapping[str, dict[str, Any]] = {
    "generate-graph": {
        "prompt": PROMPT,
        "slug_identifier": "michael-jordan-joue-au",
        "max_n_logits": 5,
        "node_threshold": 0.8,
        "edge_threshold": 0.85,
    },
    "steer": {
        "prompt": PROMPT,
        "features": [
            {
                "layer": 2,
                "index": 157,
                "token_active_position": 4,
                "steer_position": 4,
                "ablate": True,
            },
            {
                "layer": 2,
                "index": 146,
                "token_active_position": 4,
                "steer_position": 4,
                "delta": 10.8,
            },
        ],
        "n_tokens": 5,
        "top_k": 3,
    },
    "forward-pass": {"prompt": PROMPT, "max_n_logits": 5, "desired_logit_prob": 0.9},
    "parse-chat-prompt": {"prompt": PROMPT},
}

ERRORS = {
    400: "Not JSON, a model that isn't loaded, or a signed URL that isn't allowed",
    401: "No `x-secret-key`",
    403: "A wrong `x-secret-key`",
    413: "Too large a body, or too long a prompt",
    415: "A body that isn't `application/json`",
    422: "A wrong field, or numbers that overflow in the model's dtype",
    500: "A fault of the worker's",
    502: "The store did not take the graph",
    503: "Busy with another job, out of time or memory, or cancelled",
}


class Error(BaseModel):
    """A stable code, a colon, and a sentence to act on."""

    error: str


class CheckBusyResponse(BaseModel):
    """Whether a job has the model."""

    busy: bool


class Jobs(BaseModel):
    """Jobs since the start, as Runpod's `/health` names them. None queues here."""

    completed: int = 0
    failed: int = 0
    inProgress: int = 0  # noqa: N815 - Runpod's name
    inQueue: int = 0  # noqa: N815 - Runpod's name


class HealthResponse(BaseModel):
    """What is served, and whether it has time."""

    model: str
    token_limit: int
    busy: bool
    jobs: Jobs


class GraphLink(BaseModel):
    """A direct effect of one node on another."""

    source: str
    target: str
    weight: float


class Graph(BaseModel):
    """A graph document as its readers see it; it is streamed, never held as this."""

    metadata: dict[str, Any]
    qParams: dict[str, Any]  # noqa: N815 - the document's name
    nodes: list[dict[str, Any]]
    links: list[GraphLink]


RESPONSES: Mapping[str, tuple[type[BaseModel], ...]] = {
    "generate-graph": (Graph, schemas.UploadReceipt),
    "steer": (schemas.SteerResponse,),
    "forward-pass": (schemas.ForwardPassResponse,),
    "parse-chat-prompt": (schemas.ParseChatPromptResponse,),
}

_refs, _definitions = models_json_schema(
    [
        *((model, "validation") for model in schemas.REQUESTS.values()),
        *((model, "serialization") for models in RESPONSES.values() for model in models),
        *((model, "serialization") for model in (Error, CheckBusyResponse, HealthResponse)),
    ],
    ref_template="#/components/schemas/{model}",
)
COMPONENTS: dict[str, Any] = _definitions["$defs"]


def request_body(action: str) -> dict[str, Any]:
    """The `requestBody` of an action's operation, with its example."""
    content = {
        "schema": _refs[schemas.REQUESTS[action], "validation"],
        "examples": {"demo": {"summary": "the demo model", "value": EXAMPLES[action]}},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def responses(*models: type[BaseModel], errors: bool = True) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that answers with one of `models`, or with an error."""
    refs = [_refs[model, "serialization"] for model in models]
    answers: dict[int | str, dict[str, Any]] = {
        200: _described("Done", refs[0] if len(refs) == 1 else {"anyOf": refs})
    }
    if errors:
        for status, meaning in ERRORS.items():
            answers[status] = _described(meaning, _refs[Error, "serialization"])
        answers[503]["headers"] = {
            "Retry-After": {
                "description": "Seconds to wait, when another job has the model",
                "schema": {"type": "integer"},
            }
        }
    return answers


def add_page(app: FastAPI) -> None:
    """Serve Swagger UI at `/docs`, with its scripts and styles: a reader needs no internet."""

    async def docs() -> HTMLResponse:
        # Relative addresses hold behind a proxy too, whatever path it adds.
        return get_swagger_ui_html(
            title=app.title,
            openapi_url="openapi.json",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},  # else it asks swagger.io
        )

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.mount("/docs/assets", StaticFiles(directory=web_assets.VENDOR / "swagger-ui-dist"))


def _described(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
