"""What is wrong with a request, in sentences that name each field, its value and the bound."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from contract.closest import closest
from contract.fields import ChatMessage
from contract.intervene_request import GroupChange, GroupFeature
from contract.quoting import quoted
from contract.steer_request import SteerFeature
from contract.targets import TARGET_MODELS

# Values that carry a secret or a person's text are not repeated in an error.
_PRIVATE = {"signed_url", "signed_headers", "prompt", "messages", "content"}
_PRIVATE |= {"other_prompt", "other_messages"}

# The fields of the objects in a field.
_FIELDS_WITHIN: dict[str, type[BaseModel]] = {
    "features": SteerFeature,
    "groups": GroupFeature,
    "experiments": GroupChange,
    "messages": ChatMessage,
    "other_messages": ChatMessage,
}

# pydantic's words for what JSON calls an object and a list.
_EXPECTED = {
    "dict_type": "input should be an object",
    "model_type": "input should be an object",
    "list_type": "input should be a list",
}


def sentence_of(error: ValidationError, model: type[BaseModel]) -> str:
    """The first faults of a request of this action, each with its field."""
    details = error.errors(include_url=False, include_context=False)
    known = list(model.model_fields)
    sentences = [_explain(detail, known) for detail in details[:3]]
    if len(details) > 3:
        sentences.append(f"and {len(details) - 3} more")
    return "; ".join(sentences)


def _explain(detail: Any, known: list[str]) -> str:
    path = [str(part) for part in detail["loc"]]
    scope = known
    if len(path) > 1 and path[0] in _FIELDS_WITHIN:
        scope = list(_FIELDS_WITHIN[path[0]].model_fields)
    elif path[:1] == ["attribution_targets"] and len(path) > 2:
        kind = path.pop(2)  # which is no field
        scope = list(TARGET_MODELS[kind].model_fields) if kind in TARGET_MODELS else known
    where = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path)
    where = where.removeprefix(".")[:100]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        if path == ["input"]:
            return f"{where} is no field of this action; put what it holds in its place"
        close = closest(path[-1], scope)
        hint = f"; did you mean {close}?" if close else f"; known: {', '.join(scope)}"
        owner = "this action" if len(path) == 1 else path[0]
        return f"{where or repr(where)} is no field of {owner}{hint}"
    if detail["type"] == "missing":
        return f"{where} is required"
    if detail["type"] == "string_unicode":
        return f"{where} holds half of a surrogate pair, which is no character; remove it"
    if detail["type"] == "no_target":
        return f"{where} {message}, got {quoted(detail['input'])}"
    if detail["type"] == "value_error":
        return f"{where}: {message}" if where else message
    message = _EXPECTED.get(detail["type"]) or _in_words_of_json(message)
    if path[-1] == "[key]":  # of an object whose names are chosen by the caller
        where, message = path[0], message.replace("string", "a name", 1)
    if _PRIVATE & set(path):
        return f"{where}: {message}"
    return f"{where}: {message}, got {quoted(detail['input'])}"


def _in_words_of_json(message: str) -> str:
    message = re.sub(" after validation, not [0-9]+$", "", message)
    message = message.replace("Dictionary should", "Object should")
    return message[0].lower() + message[1:]
