"""Parsing is the inverse of rendering, whatever the messages say, for every kind of template."""

from hypothesis import assume, given, settings

from prompting import chat_prompt, prompts
from tests.support.conversations import CONVERSATIONS, TOKENIZERS, Message, rendered


def parse(prompt: str, family: str) -> list[Message] | None:
    return chat_prompt.parse(prompt, TOKENIZERS[family]).messages


@settings(max_examples=100)
@given(CONVERSATIONS)
def test_parsing_gives_back_the_messages_of_an_open_prompt(
    conversation: tuple[str, list[Message]],
) -> None:
    family, messages = conversation
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages[-1]["content"] = ""  # blank: the generation prompt

    assert parse(rendered(messages, family, closed=False), family) == messages


@settings(max_examples=100)
@given(CONVERSATIONS)
def test_parsing_gives_back_the_messages_of_a_closed_prompt(
    conversation: tuple[str, list[Message]],
) -> None:
    family, messages = conversation
    assume(family != "llama2" or messages[-1]["role"] == "assistant")

    assert parse(rendered(messages, family, closed=True), family) == messages


@settings(max_examples=100)
@given(CONVERSATIONS)
def test_parsing_needs_no_bos(conversation: tuple[str, list[Message]]) -> None:
    family, messages = conversation
    prompt = rendered(messages, family, closed=False)

    parsed = chat_prompt.parse(prompt, TOKENIZERS[family])

    assert chat_prompt.parse(parsed.prompt, TOKENIZERS[family]) == parsed


@settings(max_examples=100)
@given(CONVERSATIONS)
def test_positions_are_the_same_for_the_prompt_given_back(
    conversation: tuple[str, list[Message]],
) -> None:
    family, messages = conversation
    tokenizer = TOKENIZERS[family]
    prompt = rendered(messages, family, closed=False)

    parsed = chat_prompt.parse(prompt, tokenizer)

    ids = prompts.tokenize(prompt, tokenizer)
    assert prompts.tokenize(parsed.prompt, tokenizer) == ids
    assert parsed.unsteerable_positions == prompts.unsteerable_positions(ids)
