"""parse-chat-prompt: a rendered prompt, read back into messages. Needs only the tokenizer."""

from dataclasses import asdict

from actions.job import Job, check_model
from loading.loaded_model import LoadedModel
from prompting import chat_prompt
from schemas import ParseChatPromptRequest, ParseChatPromptResponse


def run(request: ParseChatPromptRequest, loaded: LoadedModel, job: Job) -> ParseChatPromptResponse:
    """The messages of a prompt, or None where it holds no turns of the model's chat template."""
    check_model(request.model_id, loaded)
    job.check()
    parsed = chat_prompt.parse(
        request.prompt, loaded.tokenizer, loaded.name, leading_token=not loaded.is_complete
    )
    return ParseChatPromptResponse.model_validate(asdict(parsed))
