"""What requests are made of: their bounds, and the fields that several of them have."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Threshold = Annotated[float, Field(ge=0, le=1)]
# A bound on the length, even 0, makes pydantic refuse half of a surrogate pair.
Text = Annotated[str, Field(min_length=0)]
NonEmpty = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(le=2**53)]  # what JSON's numbers hold exactly
FeatureKind = Literal["transcoder", "lorsa"]

# No caller needs more than these bounds, and the others that are named MAX. A request outside them
# is refused in milliseconds.
MAX_ITEMS = 5_000
MAX_FEATURES = 10_000  # all that a graph has by default: keeping a circuit ablates the others
MAX_FIELDS = 100
# Only the first fault of a long list is reported.
Many = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)


def refuse_many_fields(data: Any) -> Any:
    """Refuse a large object at once, before each of its fields gets an error of its own."""
    if isinstance(data, dict) and len(data) > MAX_FIELDS:
        raise ValueError(f"an object with {len(data)} fields, there may be {MAX_FIELDS}")
    return data


class Schema(BaseModel):
    """An object that callers send: strict, without unknown fields, nulls left out."""

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
        if isinstance(refuse_many_fields(data), dict) and None in data.values():
            return {key: value for key, value in data.items() if value is not None}
        return data


class ChatMessage(Schema):
    """One turn of a conversation."""

    role: NonEmpty = Field(examples=["user"])
    content: Text = Field(examples=["What is the capital of France?"])


class AnyRequest(Schema):
    """What every action takes."""

    deadline: float | None = Field(
        None, gt=0, description="Unix seconds after which the answer is of no use"
    )


class PromptRequest(AnyRequest):
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
