"""parse-chat-prompt: a rendered prompt, read back into messages. Needs only the tokenizer."""

from actions.job import Job, check_model
from loading.loaded_model import LoadedModel
from prompting import chat_prompt
from schemas import ChatMessage, ParseChatPromptRequest, ParseChatPromptResponse


def run(request: ParseChatPromptRequest, loaded: LoadedModel, job: Job) -> ParseChatPromptResponse:
    """The messages of a prompt, or None where it holds no turns of the model's chat template."""
    check_model(request.model_id, loaded)
    job.check()
    parsed = chat_prompt.parse(request.prompt, loaded.tokenizer, loaded.name)
    messages = None
    if parsed.messages is not None:
        messages = [ChatMessage.model_validate(message) for message in parsed.messages]
    return ParseChatPromptResponse(
        messages=messages,
        is_chat=parsed.is_chat,
        prompt=parsed.prompt,
        unsteerable_positions=parsed.unsteerable_positions,
    )
