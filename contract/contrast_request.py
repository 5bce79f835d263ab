"""What `contrast` takes: two prompts."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from contract.fields import MAX_FEATURES, ChatMessage, Many, NonEmpty, PromptRequest, Whole


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
