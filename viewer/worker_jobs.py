"""What the page asks a worker about pinned features: its question as a job, the output as answer.

A question has a row for each pinned feature and each group (supernode): its features, and what they
are set to. The prompt and the model are the graph's own.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import schemas
from errors import InvalidInput

MAX_BODY_BYTES = 4_000_000  # schemas.MAX_FEATURES features of some 100 bytes, and as much again
_LONGEST_NAME = 60
_TOP_K = 10
_MAX_TOKENS = 1_000  # more would take minutes, and no page shows them well

Metadata = Mapping[str, Any]


class _Form(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class _Feature(_Form):
    """A feature at a position, with its activation in the graph."""

    layer: schemas.Whole = Field(ge=0)
    index: schemas.Whole = Field(ge=0)
    position: schemas.Whole = Field(ge=0)
    kind: Literal["transcoder", "lorsa"]
    activation: float | None = None

    def __str__(self) -> str:
        return f"L{self.layer}/{self.index} at position {self.position}"


class _Row(_Form):
    """Features that are set together: times `scale`, or to `value`; without both they stay."""

    label: str = Field(max_length=10_000)
    features: list[_Feature] = Field(min_length=1, max_length=schemas.MAX_FEATURES)
    scale: float | None = None
    value: float | None = None

    @property
    def is_changed(self) -> bool:
        return self.scale is not None or self.value is not None


class Question(_Form):
    """The graph's name in the server's addresses, and the rows; `n_tokens` is for a steer."""

    graph: str
    rows: list[_Row] = Field(min_length=1, max_length=schemas.MAX_GROUPS)
    n_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 10


def read_question(body: bytes) -> Question:
    """The question in the body of a request.

    Raises:
        InvalidInput: the sentence names the field.
    """
    try:
        question = Question.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:50] for part in first["loc"]) or "the body"
        raise InvalidInput(f"{where}: {first['msg'][:300]}") from None
    if not any(row.is_changed for row in question.rows):
        raise InvalidInput("nothing is changed: turn a row off, or set it to something")
    return question


def of_prompt(action: str, metadata: Metadata, **fields: object) -> dict[str, Any]:
    """A job on a graph's prompt, which only a worker with the graph's model takes."""
    return {
        "action": action,
        "model_id": metadata["scan"],
        "prompt": metadata["prompt"],
        **fields,
    }


def intervene_job(question: Question, metadata: Metadata) -> dict[str, Any]:
    """All rows are groups, so that the answer says what becomes of those that are left alone."""
    names = _names(question)
    groups = {
        name: [feature.model_dump(exclude={"activation"}) for feature in row.features]
        for name, row in zip(names, question.rows, strict=True)
    }
    changes = [
        {"group": name, **row.model_dump(include={"scale", "value"}, exclude_none=True)}
        for name, row in zip(names, question.rows, strict=True)
        if row.is_changed
    ]
    return of_prompt("intervene", metadata, groups=groups, experiments=[changes], top_k=_TOP_K)


def intervene_answer(output: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """Both predictions, and each row's share of its baseline activation, in the rows' order."""
    answer = schemas.InterveneResponse.model_validate(output)
    [changed] = answer.experiments
    return {
        "baseline": [token.model_dump() for token in answer.baseline.top],
        "changed": [token.model_dump() for token in changed.top],
        "shares": [changed.groups.get(name) for name in _names(question)],
    }


def steer_job(question: Question, metadata: Metadata) -> dict[str, Any]:
    """Features are changed where they are. Of two rows that change one feature, the last counts."""
    features = {
        (feature.layer, feature.index, feature.position, feature.kind): _steered(feature, row)
        for row in question.rows
        if row.is_changed
        for feature in row.features
    }
    return of_prompt(
        "steer", metadata, features=list(features.values()), n_tokens=question.n_tokens, top_k=1
    )


def _steered(feature: _Feature, row: _Row) -> dict[str, Any]:
    place = {
        **feature.model_dump(include={"layer", "index", "kind"}),
        "token_active_position": feature.position,
        "steer_position": feature.position,
    }
    value = row.value
    if row.scale == 0 or value == 0:
        return {**place, "ablate": True}
    if feature.activation is None:
        raise InvalidInput(
            f"the graph has no activation of {feature}, so it can only be turned off"
        )
    if value is None:
        value = feature.activation * (row.scale or 0)
    delta = value - feature.activation
    if not math.isfinite(delta):
        raise InvalidInput(f"{feature} would be set beyond all finite numbers; give a smaller one")
    return {**place, "delta": delta}


def steer_answer(output: Mapping[str, Any], _: Question) -> dict[str, Any]:
    """The prompt and both continuations; how many features a position didn't let be changed."""
    answer = schemas.SteerResponse.model_validate(output)
    prompt, default = _parted(answer.DEFAULT_LOGITS_BY_TOKEN)
    return {
        "prompt": prompt,
        "default": default,
        "steered": _parted(answer.STEERED_LOGITS_BY_TOKEN)[1],
        "ignored": len(answer.ignored_features),
    }


def _parted(entries: list[Any]) -> tuple[str, str]:
    """The prompt's text and what follows. The prompt's last token is the first with predictions."""
    tokens = [(entry[0], entry[1]) for entry in entries]
    last = next((n for n, (_, top) in enumerate(tokens) if top), len(tokens) - 1)
    words = [token for token, _ in tokens]
    return "".join(words[: last + 1]), "".join(words[last + 1 :])


def _names(question: Question) -> list[str]:
    """A name for each row, no two alike: its label, with a number where an earlier row has it."""
    names: list[str] = []
    for row in question.rows:
        label = row.label[:_LONGEST_NAME].strip() or "features"
        number, name = 1, label
        while name in names:
            number += 1
            name = f"{label} {number}"
        names.append(name)
    return names


Ask = Callable[[Question, Metadata], dict[str, Any]]
Read = Callable[[Mapping[str, Any], Question], dict[str, Any]]
ACTIONS: Mapping[str, tuple[Ask, Read]] = {
    "intervene": (intervene_job, intervene_answer),
    "steer": (steer_job, steer_answer),
}
