"""What callers send and get: every request and response, and how raw input becomes a request.

The checks here need no model. The actions check what depends on the loaded model: layers,
vocabulary, tokens. A field that is null counts as absent.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from errors import InvalidInput, UnknownAction

Threshold = Annotated[float, Field(ge=0, le=1)]
# A bound on the length, even 0, makes pydantic refuse half of a surrogate pair.
Text = Annotated[str, Field(min_length=0)]
NonEmpty = Annotated[str, Field(min_length=1)]

# No caller needs more than these bounds. A request outside them is refused in milliseconds.
MAX_ITEMS = 5_000
MAX_FEATURES = 10_000  # all that a graph has by default: keeping a circuit ablates the others
MAX_TARGETS = 1_000  # a graph of more can't be read, and a body has room for as many
MAX_TOKENS_PER_SIDE = 1_000  # of a difference of logits
MAX_FIELDS = 100
# Entries of each list of a trace: with many more, thousands of traces take gigabytes.
MAX_QK_TOPK = 256
MAX_URL_CHARACTERS = 16_384
Whole = Annotated[int, Field(le=2**53)]  # what JSON's numbers hold exactly
# Of a long list only the first fault is reported.
Many = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
ManyTargets = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)
ManyFeatures = Field(max_length=MAX_FEATURES, fail_fast=True)


def _refuse_many_fields(data: Any) -> Any:
    """Refuse a large object at once, before each of its fields gets an error of its own."""
    if isinstance(data, dict) and len(data) > MAX_FIELDS:
        raise ValueError(f"an object with {len(data)} fields, there may be {MAX_FIELDS}")
    return data


class _Schema(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(_refuse_many_fields(data), dict) and None in data.values():
            return {key: value for key, value in data.items() if value is not None}
        return data


class ChatMessage(_Schema):
    """One turn of a conversation."""

    role: NonEmpty = Field(examples=["user"])
    content: Text = Field(examples=["What is the capital of France?"])


class _Request(_Schema):
    deadline: float | None = Field(
        None, gt=0, description="Unix seconds after which the answer is of no use"
    )


class _PromptRequest(_Request):
    prompt: NonEmpty | None = Field(None, description="the text; or give `messages`")
    messages: Annotated[list[ChatMessage], Many] | None = Field(
        None,
        description="chat turns instead of `prompt`, rendered with the model's own template",
    )
    model_id: NonEmpty | None = Field(None, description="must be the loaded model when given")

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            given = "neither" if self.prompt is None else "both"
            raise ValueError(f"give exactly one of prompt and messages, got {given}")
        return self


Side = Annotated[
    list[NonEmpty], Field(min_length=1, max_length=MAX_TOKENS_PER_SIDE, fail_fast=True)
]


class TargetDifference(_Schema):
    """A difference of logits: the mean logit of some tokens less the mean of others."""

    plus: Side = Field(examples=[[" basket"]])
    minus: Side = Field(examples=[[" tennis"]])


class TargetFeature(_Schema):
    """A feature that is active at a position of the prompt: what made it fire."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    position: Whole = Field(ge=0)
    kind: Literal["transcoder", "lorsa"] = Field(
        "transcoder", description="`lorsa` for a feature of attention, where the set has them"
    )


def _kind_of_target(target: object) -> str | None:
    """Which kind of attribution target is meant, so that errors are about that kind alone."""
    if isinstance(target, str):
        return "token"
    for kind, model in _TARGET_MODELS.items():
        if isinstance(target, model) or (
            isinstance(target, dict)
            and any(target.get(name) is not None for name in model.model_fields)
        ):
            return kind
    return None


_TARGET_MODELS: dict[str, type[BaseModel]] = {
    "difference": TargetDifference,
    "feature": TargetFeature,
}

AttributionTarget = Annotated[
    Annotated[NonEmpty, Tag("token")]
    | Annotated[TargetDifference, Tag("difference")]
    | Annotated[TargetFeature, Tag("feature")],
    Discriminator(
        _kind_of_target,
        custom_error_type="no_target",
        custom_error_message='should be a token string, {"plus", "minus"} with lists of token '
        'strings, or {"layer", "index", "position"}',
    ),
]


class GenerateGraphRequest(_PromptRequest):
    """Attribute the next-token prediction of a prompt to features."""

    action: ClassVar = "generate-graph"

    slug_identifier: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=200)] | None = (
        Field(None, description="the graph's name; made from prompt and time when absent")
    )
    batch_size: Whole = Field(48, ge=1, description="rows of the adjacency matrix in a batch")
    max_n_logits: Whole = Field(10, ge=1, description="most logit nodes")
    desired_logit_prob: float = Field(
        0.95, gt=0, le=1, description="probability that the logit nodes cover together"
    )
    attribution_targets: Annotated[list[AttributionTarget], ManyTargets] | None = Field(
        None,
        description="what to attribute from instead of the likeliest tokens: tokens as documents "
        "show them, differences of logits, features at a position",
    )
    node_threshold: Threshold = Field(0.8, description="share of influence that nodes keep")
    edge_threshold: Threshold = Field(0.98, description="share of influence that links keep")
    max_feature_nodes: Whole | None = Field(
        None, ge=1, description="most feature nodes before pruning; MAX_FEATURE_NODES when absent"
    )
    signed_url: NonEmpty | None = Field(
        None, max_length=MAX_URL_CHARACTERS, description="presigned PUT for the graph"
    )
    signed_headers: Annotated[dict[NonEmpty, str], BeforeValidator(_refuse_many_fields)] | None = (
        Field(None, max_length=MAX_FIELDS, description="headers that the URL was signed with")
    )
    compress: bool = Field(False, description="gzip the upload")
    user_id: Text | None = Field(None, description="display name of the graph's creator")
    enable_qk_tracing: bool = Field(
        False,
        description="say why attention features look where they look most; needs a set with Lorsas",
    )
    qk_top_fraction: float = Field(
        0.6, gt=0, le=1, description="share of the attention features that are traced"
    )
    qk_topk: int = Field(
        10,
        ge=1,
        le=MAX_QK_TOPK,
        description="most contributors in each list: those of largest signed value",
    )

    @model_validator(mode="after")
    def _upload_options_need_a_url(self) -> Self:
        if self.signed_headers and self.signed_url is None:
            raise ValueError("signed_headers is given without signed_url")
        return self


class SteerFeature(_Schema):
    """One feature, where its activation is read, and where and how it is changed."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    kind: Literal["transcoder", "lorsa"] | None = Field(
        None,
        description="what it is a feature of; without it, of what is active at "
        "token_active_position",
    )
    token_active_position: Whole = Field(
        ge=0, description="position whose activation the new value starts from"
    )
    steer_position: Whole | None = Field(None, ge=0, description="prompt position to change")
    steer_generated_tokens: bool = Field(False, description="change every generated token instead")
    ablate: bool = Field(False, description="set the activation to 0")
    delta: float | None = Field(None, description="add this to the activation")

    @model_validator(mode="after")
    def _one_target_and_one_change(self) -> Self:
        if (self.steer_position is not None) == self.steer_generated_tokens:
            given = "both" if self.steer_generated_tokens else "neither"
            raise ValueError(
                f"give exactly one of steer_position and steer_generated_tokens: true, got {given}"
            )
        if (self.delta is not None) == self.ablate:
            given = "both" if self.ablate else "neither"
            raise ValueError(f"give exactly one of ablate: true and delta, got {given}")
        return self


class SteerRequest(_PromptRequest):
    """Continue a prompt twice: as the model would, and with features changed."""

    action: ClassVar = "steer"

    features: Annotated[list[SteerFeature], ManyFeatures] = Field(
        description="what to change; without any, both texts are the default one"
    )
    n_tokens: Whole = Field(10, ge=1, description="most tokens to generate")
    top_k: Whole = Field(5, ge=0, description="predictions reported after each token")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token")
    freq_penalty: float = Field(
        0.0,
        description="subtracted from a token's logit for each earlier use; below 0 is 0",
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**64, description="repeats a sampled generation exactly"
    )
    freeze_attention: bool = Field(False, description="keep the prompt's attention patterns")
    steered_output_only: bool = Field(False, description="skip the default generation")
    stream: bool = Field(False, description="send each token as it is generated")
    logits_format: Literal["pairs", "objects"] = Field(
        "pairs", description="form of the logits lists; `objects` when asked by `request_type`"
    )


class ForwardPassRequest(_PromptRequest):
    """The likeliest next tokens of a prompt."""

    action: ClassVar = "forward-pass"

    max_n_logits: Whole = Field(10, ge=1)
    desired_logit_prob: float = Field(0.95, gt=0, le=1)


class ParseChatPromptRequest(_Request):
    """Read a rendered prompt back into messages."""

    action: ClassVar = "parse-chat-prompt"

    prompt: Text
    model_id: NonEmpty | None = None


Request = GenerateGraphRequest | SteerRequest | ForwardPassRequest | ParseChatPromptRequest

REQUESTS: dict[str, type[Request]] = {model.action: model for model in get_args(Request)}

Token = Annotated[
    str,
    Field(
        description="a token as it stands in the text; part of a character as bytes, `<0xF0>`",
        examples=[" basket"],
    ),
]


class SalientLogit(BaseModel):
    token: Token
    token_id: int
    probability: float


class ForwardPassResponse(BaseModel):
    prompt: str
    input_tokens: list[Token]
    salient_logits: list[SalientLogit]
    total_salient_tokens: int
    cumulative_probability: float


class ParseChatPromptResponse(BaseModel):
    messages: list[ChatMessage] | None
    is_chat: bool
    prompt: str
    unsteerable_positions: list[int]


class TopLogit(BaseModel):
    token: Token
    prob: float


class LogitsOfToken(BaseModel):
    token: Token
    top_logits: list[TopLogit]


LogitsPair = tuple[Token, list[tuple[Token, float]]]


class SteerResponse(BaseModel):
    """Both texts, and for each token the predictions made after it.

    With `steered_output_only` the default text is the prompt and its list is empty.
    """

    DEFAULT_GENERATION: str
    STEERED_GENERATION: str
    DEFAULT_LOGITS_BY_TOKEN: list[LogitsPair] | list[LogitsOfToken]
    STEERED_LOGITS_BY_TOKEN: list[LogitsPair] | list[LogitsOfToken]
    ignored_features: list[SteerFeature] = []


class SteerPart(BaseModel):
    """A generated token of a steer with `stream: true`, as soon as it is there.

    A side's tokens come in order, each once; joined they continue the prompt. `token` and
    `top_logits` are those of the output's entry for the token, but for predictions over 10.
    """

    side: Literal["default", "steered"]
    position: int = Field(description="of the token, where 0 is the leading special token")
    token: Token
    top_logits: list[tuple[Token, float]] | list[TopLogit]


class UploadReceipt(BaseModel):
    """What the caller gets after the graph was uploaded. `url` is without its query."""

    success: Literal["Graph uploaded"] = "Graph uploaded"
    url: str
    bytes: int
    sha256: str
    compressed: bool
    num_nodes: int
    num_links: int
    num_tokens: int
    timings_ms: dict[str, float]


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
        raise InvalidInput(f"input must be an object, got {_quoted(body)}")
    fields = dict(body)
    action = _pop_action(fields, path_action)
    says_request_type = body.get("request_type") is not None
    if action == "steer" and says_request_type and fields.get("logits_format") is None:
        fields["logits_format"] = "objects"
    try:
        return REQUESTS[action].model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(_sentence(error, REQUESTS[action])) from None


def _pop_action(fields: dict[str, Any], path_action: str | None) -> str:
    """Take the fields that may name the action out, and return the action."""
    names = ("action", "request_type")
    given = {name: fields.pop(name) for name in names if fields.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str):
            raise InvalidInput(f"{name} must be a string, got {_quoted(value)}")
        if path_action is not None and canonical_action(value) != path_action:
            raise InvalidInput(
                f"{name} is {_quoted(value)}, the path says {path_action}: leave it out, or post "
                "to the path of that action"
            )
    if path_action is not None:
        return path_action
    actions = {canonical_action(value) for value in given.values()}
    if len(actions) > 1:
        raise InvalidInput(
            f"action {_quoted(given['action'])} and request_type {_quoted(given['request_type'])} "
            "name different actions: give one"
        )
    name, value = next(iter(given.items()), ("request_type", "generate-graph"))
    action = canonical_action(value)
    if action not in REQUESTS:
        raise UnknownAction(f"{name} {_quoted(value)} is none of {', '.join(REQUESTS)}")
    return action


def canonical_action(value: str) -> str:
    """An action's one name: hyphen and underscore are the same, `graph` is `generate-graph`."""
    action = value.replace("_", "-")
    return "generate-graph" if action == "graph" else action


# Values that carry a secret or a person's text are not repeated in an error.
_PRIVATE = {"signed_url", "signed_headers", "prompt", "messages", "content"}


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    details = error.errors(include_url=False, include_context=False)
    known = list(model.model_fields)
    sentences = [_explain(detail, known) for detail in details[:3]]
    if len(details) > 3:
        sentences.append(f"and {len(details) - 3} more")
    return "; ".join(sentences)


def _explain(detail: Any, known: list[str]) -> str:
    path = [str(part) for part in detail["loc"]]
    scope = known
    if path[:1] == ["features"]:
        scope = list(SteerFeature.model_fields)
    elif path[:1] == ["attribution_targets"] and len(path) > 2:
        kind = path.pop(2)  # which is no field
        scope = list(_TARGET_MODELS[kind].model_fields) if kind in _TARGET_MODELS else known
    where = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path)
    where = where.removeprefix(".")[:100]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1][:100], scope, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(scope)}"
        return f"{where or repr(where)} is no field of this action{hint}"
    if detail["type"] == "missing":
        return f"{where} is required"
    if detail["type"] == "string_unicode":
        return f"{where} holds half of a surrogate pair, which is no character; remove it"
    if detail["type"] == "no_target":
        return f"{where} {message}, got {_quoted(detail['input'])}"
    if detail["type"] == "value_error":
        return f"{where}: {message}" if where else message
    message = message[0].lower() + message[1:]
    if _PRIVATE & set(path):
        return f"{where}: {message}"
    return f"{where}: {message}, got {_quoted(detail['input'])}"


def _quoted(value: object) -> str:
    """A value in at most 80 characters, however large or deep it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
