"""What the actions that only read a prompt take: `forward-pass` and `parse-chat-prompt`."""

from typing import ClassVar

from pydantic import Field

from contract.fields import AnyRequest, NonEmpty, PromptRequest, Text, Whole


class ForwardPassRequest(PromptRequest):
    """The likeliest next tokens of a prompt."""

    action: ClassVar = "forward-pass"

    max_n_logits: Whole = Field(10, ge=1)
    desired_logit_prob: float = Field(0.95, gt=0, le=1)


class ParseChatPromptRequest(AnyRequest):
    """Read a rendered prompt back into messages."""

    action: ClassVar = "parse-chat-prompt"

    prompt: Text
    model_id: NonEmpty | None = None
