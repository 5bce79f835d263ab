"""The OpenAPI document of the HTTP door: what its paths take and give.

Its schemas are made from the models of schemas.py, against which the requests are checked.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import schemas
from serving.identity import Identity
from settings import VERSION

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
    "intervene": {
        "prompt": PROMPT,
        "groups": {
            "French": [
                {"layer": 2, "index": 157, "position": 4},
                {"layer": 1, "index": 120, "position": 4},
            ],
            "Spanish": [{"layer": 2, "index": 146, "position": 4}],
        },
        "experiments": [
            [{"group": "French", "scale": 0}],
            [{"group": "French", "scale": 0}, {"group": "Spanish", "value": 10.8}],
        ],
        "targets": [" basket", " baloncesto"],
        "top_k": 3,
    },
    "contrast": {"prompt": PROMPT, "other_prompt": "Michael Jordan juega al", "top_k": 5},
}

ERRORS = {
    400: "Not JSON, a model that isn't loaded, or a signed URL that isn't allowed",
    401: "No `x-secret-key`",
    403: "A wrong `x-secret-key`; or, on a server without one, a `Host` or `Origin` from elsewhere",
    408: "A request that did not come in time",
    413: "Too large a body, or too long a prompt",
    415: "A body that isn't `application/json`",
    422: "A wrong field, or numbers that overflow in the model's dtype",
    431: "Too large a head",
    500: "A fault of the worker's",
    502: "The store did not take the graph",
    503: "Loading the model, busy with another job, out of time or memory, or cancelled",
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


class HealthResponse(Identity):
    """What is served, and whether it has time."""

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
    qk_only_nodes: dict[str, dict[str, Any]] = {}  # with QK tracing


RESPONSES: Mapping[str, tuple[type[BaseModel], ...]] = {
    "generate-graph": (Graph, schemas.UploadReceipt, schemas.FileReceipt),
    "steer": (schemas.SteerResponse,),
    "forward-pass": (schemas.ForwardPassResponse,),
    "parse-chat-prompt": (schemas.ParseChatPromptResponse,),
    "intervene": (schemas.InterveneResponse,),
    "contrast": (schemas.ContrastResponse,),
}
_STATUS: Mapping[str, type[BaseModel]] = {"check-busy": CheckBusyResponse, "health": HealthResponse}

_STREAM = (
    "Done. With `stream: true` in the body and `Accept: text/event-stream`, server-sent events: "
    "`part` (a SteerPart) for each token, then `output` with what comes without a stream, or "
    "`error` with an Error"
)

_refs, _definitions = models_json_schema(
    [
        *((model, "validation") for model in schemas.REQUESTS.values()),
        *((model, "serialization") for models in RESPONSES.values() for model in models),
        *((model, "serialization") for model in _STATUS.values()),
        (Error, "serialization"),
        (schemas.SteerPart, "serialization"),
    ],
    ref_template="#/components/schemas/{model}",
)


def openapi(*, with_secret: bool) -> dict[str, Any]:
    """The document of a server that wants a secret for its actions, or of one that doesn't."""
    components = {"schemas": _definitions["$defs"]}
    secret: dict[str, Any] = {}
    if with_secret:
        header = {"type": "apiKey", "in": "header", "name": "x-secret-key"}
        components["securitySchemes"] = {"APIKeyHeader": header}
        secret = {"security": [{"APIKeyHeader": []}]}
    paths = {
        f"/{action}": {
            "post": {
                **_operation(action, model, _done(*RESPONSES[action]) | _errors()),
                "requestBody": _request_body(action, model),
                **secret,
            }
        }
        for action, model in schemas.REQUESTS.items()
    }
    steered = paths["/steer"]["post"]["responses"]["200"]
    steered["description"] = _STREAM
    steered["content"]["text/event-stream"] = {"schema": _refs[schemas.SteerPart, "serialization"]}
    files = paths["/generate-graph"]["post"]["responses"]["200"]["content"]
    files["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    for name, model in _STATUS.items():
        paths[f"/{name}"] = {"get": _operation(name, model, _done(model))}
    ready = {"200": {"description": "Ready"}, "204": {"description": "The model is being loaded"}}
    ping = {"operationId": "ping", "summary": "Whether the worker is ready.", "responses": ready}
    paths["/ping"] = {"get": ping}
    paths["/metrics"] = {"get": {**_metrics(), **secret}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "attribution-worker",
            "description": "Attribution graphs and steering of the loaded model. A body that is "
            'only `{"input": ...}` is answered as `{"output": ...}`.',
            "version": VERSION,
        },
        "paths": paths,
        "components": components,
    }


def _operation(name: str, model: type[BaseModel], responses: dict[str, Any]) -> dict[str, Any]:
    summary = (model.__doc__ or "").splitlines()[0]
    return {"operationId": name, "summary": summary, "responses": responses}


def _metrics() -> dict[str, Any]:
    done = {"description": "Prometheus's text format", "content": {"text/plain": {}}}
    return {
        "operationId": "metrics",
        "summary": "Counts, times and memory for Prometheus.",
        "responses": {"200": done, **{status: _errors()[status] for status in ("401", "403")}},
    }


def _request_body(action: str, model: type[BaseModel]) -> dict[str, Any]:
    content = {
        "schema": _refs[model, "validation"],
        "examples": {"demo": {"summary": "the demo model", "value": EXAMPLES[action]}},
    }
    return {"required": True, "content": {"application/json": content}}


def _done(*models: type[BaseModel]) -> dict[str, Any]:
    refs = [_refs[model, "serialization"] for model in models]
    return {"200": _described("Done", refs[0] if len(refs) == 1 else {"anyOf": refs})}


def _errors() -> dict[str, Any]:
    schema = _refs[Error, "serialization"]
    errors = {str(status): _described(meaning, schema) for status, meaning in ERRORS.items()}
    errors["503"]["headers"] = {
        "Retry-After": {
            "description": "Seconds to wait, when the model loads or another job has it",
            "schema": {"type": "integer"},
        }
    }
    return errors


def _described(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
