"""Raw input in, a checked request out."""

from typing import Any, get_args

from pydantic import ValidationError

from contract.closest import closest
from contract.contrast_request import ContrastRequest
from contract.faults import sentence_of
from contract.graph_request import GenerateGraphRequest
from contract.intervene_request import InterveneRequest
from contract.quoting import quoted
from contract.steer_request import SteerRequest
from contract.text_requests import ForwardPassRequest, ParseChatPromptRequest
from errors import InvalidInput, UnknownAction

Request = (
    GenerateGraphRequest
    | SteerRequest
    | ForwardPassRequest
    | ParseChatPromptRequest
    | InterveneRequest
    | ContrastRequest
)

REQUESTS: dict[str, type[Request]] = {model.action: model for model in get_args(Request)}

_EXAMPLE = '{"prompt": "Michael Jordan joue au"}'


def parse_request(body: object, path_action: str | None = None) -> Request:
    """Turn the `input` of a job, or the body of an HTTP request, into a checked request.

    Args:
        path_action: the action that the path of an HTTP request names. The body may repeat it.

    Raises:
        UnknownAction: `action` or `request_type` is the name of no action.
        InvalidInput: anything else that is wrong; the sentence names each field, its value and
            the bound.
    """
    if not isinstance(body, dict):
        given = "a string" if isinstance(body, str) else quoted(body)
        raise InvalidInput(f"input must be an object, got {given}; such as {_EXAMPLE}")
    fields = dict(body)
    action = _pop_action(fields, path_action)
    says_request_type = body.get("request_type") is not None
    if action == "steer" and says_request_type and fields.get("logits_format") is None:
        fields["logits_format"] = "objects"
    try:
        return REQUESTS[action].model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(sentence_of(error, REQUESTS[action])) from None


def _pop_action(fields: dict[str, Any], path_action: str | None) -> str:
    """Take the fields that may name the action out, and return the action."""
    names = ("action", "request_type")
    given = {name: fields.pop(name) for name in names if fields.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{name} must be a string, got {quoted(value)}")
        if path_action is not None and canonical_action(value) != path_action:
            raise InvalidInput(
                f"{name} is {quoted(value)}, the path says {path_action}: leave it out, or post "
                "to the path of that action"
            )
    if path_action is not None:
        return path_action
    actions = {canonical_action(value) for value in given.values()}
    if len(actions) > 1:
        raise InvalidInput(
            f"action {quoted(given['action'])} and request_type {quoted(given['request_type'])} "
            "name different actions: give one"
        )
    name, value = next(iter(given.items()), ("request_type", "generate-graph"))
    action = canonical_action(value)
    if action not in REQUESTS:
        close = closest_action(action)
        hint = f"; did you mean {close}?" if close else ""
        raise UnknownAction(f"{name} {quoted(value)} is none of {', '.join(REQUESTS)}{hint}")
    return action


def closest_action(value: str) -> str | None:
    """The action that a misspelt name most likely stands for."""
    close = closest(value.replace("_", "-"), [*REQUESTS, "graph"])
    return None if close is None else canonical_action(close)


def canonical_action(value: str) -> str:
    """An action's one name: hyphen and underscore are the same, `graph` is `generate-graph`."""
    action = value.replace("_", "-")
    return "generate-graph" if action == "graph" else action
