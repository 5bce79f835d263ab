"""What the actions answer."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from contract.fields import ChatMessage, FeatureKind
from contract.steer_request import SteerFeature

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


class FileReceipt(UploadReceipt):
    """The same of circuit-tracer's own file. Its counts are those of the graph before pruning."""

    format: Literal["pt"] = "pt"
