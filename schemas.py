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
MAX_GROUPS = 50
MAX_EXPERIMENTS = 64
MAX_REPORTED = 1_000  # each is reported for every experiment


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


class PromptRequest(_Request):
    """What every action on a prompt takes."""

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


class GenerateGraphRequest(PromptRequest):
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
    supernodes: Literal["none", "auto"] = Field(
        "none", description="auto: features in named groups, and the strongest paths pinned"
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


FeatureKind = Literal["transcoder", "lorsa"]


class SteerFeature(_Schema):
    """One feature, where its activation is read, and where and how it is changed."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    kind: FeatureKind | None = Field(
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


class SteerRequest(PromptRequest):
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


class ForwardPassRequest(PromptRequest):
    """The likeliest next tokens of a prompt."""

    action: ClassVar = "forward-pass"

    max_n_logits: Whole = Field(10, ge=1)
    desired_logit_prob: float = Field(0.95, gt=0, le=1)


class ParseChatPromptRequest(_Request):
    """Read a rendered prompt back into messages."""

    action: ClassVar = "parse-chat-prompt"

    prompt: Text
    model_id: NonEmpty | None = None


class GroupFeature(_Schema):
    """One feature at one position of the prompt."""

    layer: Whole = Field(ge=0)
    index: Whole = Field(ge=0)
    position: Whole = Field(ge=0, description="of the prompt, where 0 is the leading special token")
    kind: FeatureKind | None = Field(None, description="`lorsa` for an attention feature")


class GroupChange(_Schema):
    """What an experiment sets the features of a group to."""

    group: NonEmpty = Field(description="its name in `groups`")
    scale: float | None = Field(None, description="times its activations on this prompt")
    value: float | None = Field(None, description="every feature's activation")

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        if (self.scale is None) == (self.value is None):
            given = "neither" if self.scale is None else "both"
            raise ValueError(f"give exactly one of scale and value, got {given}")
        return self


def _layer_range(data: Any) -> Any:
    """Refuse what is neither "all" nor two layers in their order."""
    if data is None or data == "all":
        return data
    is_pair = isinstance(data, list) and len(data) == 2 and all(type(n) is int for n in data)
    if not is_pair or not 0 <= data[0] <= data[1]:
        raise ValueError(
            f'give "all", or [first, last] with 0 <= first <= last, got {_quoted_list(data)}'
        )
    return data


class InterveneRequest(PromptRequest):
    """What the next token and other features become when groups of features are set."""

    action: ClassVar = "intervene"

    groups: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=200)],
            Annotated[list[GroupFeature], Field(min_length=1, fail_fast=True)],
        ],
        BeforeValidator(_refuse_many_fields),
    ] = Field(
        min_length=1,
        max_length=MAX_GROUPS,
        description=f"features by name of their group; {MAX_FEATURES} in all",
    )
    experiments: Annotated[
        list[Annotated[list[GroupChange], Field(max_length=MAX_FIELDS, fail_fast=True)]],
        Field(min_length=1, max_length=MAX_EXPERIMENTS, fail_fast=True),
    ] = Field(
        description="each is a list of groups to scale or set; of two on a feature the last counts"
    )
    targets: Annotated[list[NonEmpty], Field(max_length=MAX_REPORTED, fail_fast=True)] = Field(
        [],
        description="tokens whose logit and probability are reported, as documents show them",
    )
    top_k: Whole = Field(5, ge=0, description="likeliest next tokens that are reported")
    constrained_layers: Annotated[
        Literal["all"] | list[Whole] | None, BeforeValidator(_layer_range)
    ] = Field(
        None,
        description='layers whose MLPs are frozen, `[first, last]` or `"all"`, which freezes norms '
        "too",
    )
    freeze_attention: bool = Field(True, description="keep the prompt's attention patterns")

    @model_validator(mode="after")
    def _bounded_and_known(self) -> Self:
        n_features = sum(map(len, self.groups.values()))
        if n_features > MAX_FEATURES:
            raise ValueError(f"groups have {n_features} features, there may be {MAX_FEATURES}")
        for i, experiment in enumerate(self.experiments):
            for j, change in enumerate(experiment):
                if change.group not in self.groups:
                    close = difflib.get_close_matches(change.group[:100], self.groups, n=1)
                    known = [_quoted(name) for name in self.groups][:8]
                    hint = f"did you mean {_quoted(close[0])}?" if close else f"known: {known}"
                    raise ValueError(
                        f"experiments[{i}][{j}].group {_quoted(change.group)} is no name in "
                        f"groups; {hint}"
                    )
        return self


class ContrastRequest(PromptRequest):
    """Which features turn a prompt's prediction into another prompt's, and how to steer them."""

    action: ClassVar = "contrast"

    other_prompt: NonEmpty | None = Field(
        None, description="the text with the other prediction; or give `other_messages`"
    )
    other_messages: Annotated[list[ChatMessage], Many] | None = Field(
        None, description="chat turns instead of `other_prompt`"
    )
    position: Whole | None = Field(
        None, ge=0, description="where features are compared; the last token when absent"
    )
    other_position: Whole | None = Field(None, ge=0, description="the same in the other prompt")
    top_k: Whole = Field(20, ge=0, le=MAX_FEATURES, description="most features that are listed")
    n_steer: Whole = Field(
        3, ge=1, le=MAX_FEATURES // 2, description="most features to raise, and most to lower"
    )
    strength: float = Field(
        4.0, gt=0, description="features are raised to this many times their other activation"
    )

    @model_validator(mode="after")
    def _one_other_prompt(self) -> Self:
        if (self.other_prompt is None) == (self.other_messages is None):
            given = "neither" if self.other_prompt is None else "both"
            raise ValueError(f"give exactly one of other_prompt and other_messages, got {given}")
        return self


Request = (
    GenerateGraphRequest
    | SteerRequest
    | ForwardPassRequest
    | ParseChatPromptRequest
    | InterveneRequest
    | ContrastRequest
)

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


class TargetLogit(BaseModel):
    token: Token
    token_id: int
    logit: float
    probability: float


class InterventionOutcome(BaseModel):
    """What comes after the prompt, and what is inside: by group the share of its baseline."""

    top: list[SalientLogit]
    targets: list[TargetLogit]
    groups: dict[str, float | None]


class InterveneResponse(BaseModel):
    """The prompt as it is, and each experiment in the order of the request."""

    baseline: InterventionOutcome
    experiments: list[InterventionOutcome]


class ContrastedFeature(BaseModel):
    """A feature at `position`, and at `other_position` of the other prompt."""

    layer: int
    index: int
    kind: FeatureKind
    activation: float
    other_activation: float
    effect: float = Field(
        description="how much its move to the other activation adds to the logit of the other "
        "prediction, less that of the prompt's own; by the linear attribution"
    )


class ContrastResponse(BaseModel):
    """What tells two prompts apart at one position of each."""

    prediction: SalientLogit
    other_prediction: SalientLogit
    position: int
    other_position: int
    features: list[ContrastedFeature]
    steer: list[SteerFeature] = Field(description="`features` for a steer of the first prompt")


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
_PRIVATE |= {"other_prompt", "other_messages"}

# The fields of the objects in a field.
_FIELDS_WITHIN: dict[str, type[BaseModel]] = {
    "features": SteerFeature,
    "groups": GroupFeature,
    "experiments": GroupChange,
    "messages": ChatMessage,
    "other_messages": ChatMessage,
}


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
    if len(path) > 1 and path[0] in _FIELDS_WITHIN:
        scope = list(_FIELDS_WITHIN[path[0]].model_fields)
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


def _quoted_list(value: object) -> str:
    """The same, where a short list of numbers says more than its length."""
    if isinstance(value, list) and len(value) <= 4 and all(type(item) is int for item in value):
        return f"[{', '.join(map(_quoted, value))}]"
    return _quoted(value)


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
