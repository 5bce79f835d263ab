"""Prompts read back into messages, for every kind of chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompting import chat_prompt, chat_template, prompts
from tests.support import tiny_tokenizers
from tests.support.chat_messages import assistant, system, user
from tests.support.conversations import CHAT, FRAGMENTS, TOKENIZERS, Message, rendered
from tests.support.tiny_tokenizers import BASE_FAMILIES

FAMILIES = sorted(TOKENIZERS)

ANY_TEXT = st.lists(
    st.sampled_from([*FRAGMENTS, "Today Date: ", "<|im_end|>\n"])
    | st.text(st.characters(exclude_categories=()), max_size=8)
).map("".join)


def parse(prompt: str, family: str) -> list[Message] | None:
    return chat_prompt.parse(prompt, TOKENIZERS[family]).messages


@pytest.mark.parametrize("family", CHAT)
def test_a_generation_prompt_is_an_empty_assistant_turn(family: str) -> None:
    prompt = TOKENIZERS[family].apply_chat_template(
        [user("hi")], tokenize=False, add_generation_prompt=True
    )

    assert parse(prompt, family) == [user("hi"), assistant("")]


# What templates add and change


@pytest.mark.parametrize("closed", [False, True])
def test_an_empty_think_block_before_a_trailing_answer_is_the_templates_own(closed: bool) -> None:
    messages = [user("hi"), assistant("Paris")]
    prompt = rendered(messages, "qwen3", closed=closed)

    assert "<think>\n\n</think>\n\nParis" in prompt
    assert parse(prompt, "qwen3") == messages


def test_an_empty_think_block_before_a_generation_prompt_is_the_templates_own() -> None:
    messages = [user("hi"), assistant("Paris"), assistant("")]
    prompt = rendered(messages, "qwen3", closed=False)

    assert prompt.endswith("</think>\n\nParis<|im_end|>\n<|im_start|>assistant\n")
    assert parse(prompt, "qwen3") == messages


def test_thoughts_stay_in_the_content() -> None:
    messages = [user("hi"), assistant("<think>\nEasy.\n</think>\n\nParis")]

    assert parse(rendered(messages, "qwen3", closed=False), "qwen3") == messages


def test_a_generation_prompt_with_thinking_off_renders_again_as_it_was() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    prompt = tokenizer.apply_chat_template(
        [user("hi")], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )

    messages = parse(prompt, "qwen3")

    assert messages == [user("hi"), assistant("<think>\n\n</think>\n\n")]
    assert chat_template.render_messages(messages, tokenizer) == prompt


def test_an_open_think_block_of_the_generation_prompt_is_the_templates_own() -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
    )
    messages = [user("hi"), assistant("")]

    prompt = chat_template.render_messages(messages, tokenizer)

    assert prompt.endswith("<think>\n")
    assert chat_prompt.parse(prompt, tokenizer).messages == messages


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 6])
def test_a_template_may_both_decorate_and_want_strict_alternation(turns: int) -> None:
    tokenizer = tiny_tokenizers.qwen3()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
    ) + tokenizer.chat_template
    messages = [(user, assistant)[i % 2](str(i)) for i in range(turns)]

    prompt = chat_template.render_messages(messages, tokenizer)

    assert chat_prompt.parse(prompt, tokenizer).messages == messages


@pytest.mark.parametrize("family", ["qwen25", "llama3"])
def test_a_system_block_of_the_templates_own_is_left_out(family: str) -> None:
    prompt = rendered([user("hi")], family, closed=False)

    assert "system" in prompt
    assert parse(prompt, family) == [user("hi")]


@pytest.mark.parametrize("family", ["chatml", "qwen25", "qwen3", "llama3", "llama2"])
def test_a_system_message_is_told_from_the_templates_own_words(family: str) -> None:
    messages = [system("Be brief."), user("hi")]

    assert parse(rendered(messages, family, closed=False), family) == messages


@pytest.mark.parametrize(
    "messages",
    [
        [user("hi")],
        [system("Be brief."), user("hi")],
        [user("what is <|start_header_id|>user<|end_header_id|>\n\nfor?")],
    ],
)
def test_a_prompt_rendered_on_another_day_is_read_all_the_same(messages: list[Message]) -> None:
    prompt = chat_template.apply_template(
        messages,
        TOKENIZERS["llama3"],
        date="01 Jan 2025",
    )

    assert "Today Date: 01 Jan 2025" in prompt
    assert parse(prompt, "llama3") == messages


def test_a_system_text_that_was_put_into_the_users_turn_stays_there() -> None:
    prompt = rendered([system("Be brief."), user("hi")], "gemma3", closed=False)

    assert parse(prompt, "gemma3") == [user("Be brief.\n\nhi")]


# Prompts that no messages render to


@pytest.mark.parametrize(
    ("family", "prompt", "expected"),
    [
        pytest.param(
            "qwen3",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n",
            [user("hi"), assistant("yo")],
            id="an answer without its think block",
        ),
        pytest.param(
            "qwen3",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nb\n</think>\n\nc"
            "<|im_end|>\n<|im_start|>user\nd",
            [user("a"), assistant("<think>\nb\n</think>\n\nc"), user("d")],
            id="thoughts before the last question",
        ),
        pytest.param(
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            [user("hi"), assistant("")],
            id="no system block",
        ),
        pytest.param(
            "llama3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
            [system("Be brief."), user("hi")],
            id="a system block without dates",
        ),
        pytest.param(
            "gemma2",
            "<start_of_turn>user\n hi \n<end_of_turn>\n<start_of_turn>model\n yo<end_of_turn>",
            [user(" hi \n"), assistant(" yo")],
            id="contents that the template would trim",
        ),
        pytest.param(
            "gemma3",
            "<start_of_turn>user\n hi<end_of_turn>\n",
            [user(" hi")],
            id="a header that system texts share",
        ),
        pytest.param(
            "gemma2",
            "<start_of_turn>user\n hi<end_of_turn><start_of_turn>model\n\n",
            [user(" hi"), assistant("\n")],
            id="no newline between turns",
        ),
        pytest.param(
            "gemma2",
            "<start_of_turn>user\nhi <start_of_turn>model\n",
            [user("hi "), assistant("")],
            id="no end of a turn",
        ),
    ],
)
def test_turns_are_told_by_their_headers(family: str, prompt: str, expected: list[Message]) -> None:
    assert parse(prompt, family) == expected


# Plain text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "prompt",
    ["The capital of France is", "", " ", "user\nhi", "Write <|im_start|>user\n and go on", "</s>"],
)
def test_plain_text_is_not_chat(family: str, prompt: str) -> None:
    parsed = chat_prompt.parse(prompt, TOKENIZERS[family])

    assert parsed == chat_prompt.ParsedPrompt(None, False, prompt, [0])


@pytest.mark.parametrize("family", sorted(BASE_FAMILIES))
def test_a_model_without_a_template_has_no_chat_prompts(family: str) -> None:
    for chat in CHAT:
        assert parse(rendered([user("hi")], chat, closed=True), family) is None


def test_a_template_that_marks_no_turns_makes_nothing_chat() -> None:
    tokenizer = tiny_tokenizers.gpt2()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"

    assert not chat_prompt.parse("hi", tokenizer).is_chat


def test_a_template_that_always_fails_makes_nothing_chat() -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = "{{ 1 / 0 }}"

    assert not chat_prompt.parse("<|im_start|>user\nhi", tokenizer).is_chat


def test_one_leading_bos_is_dropped_and_no_more() -> None:
    assert chat_prompt.parse("<bos><bos>hi<bos>", TOKENIZERS["gemma2"]).prompt == "<bos>hi<bos>"


# Positions, and any text at all


@pytest.mark.parametrize("bos", ["", "<bos>"])
def test_the_required_prefix_of_gemma_3_it_cannot_be_steered(bos: str) -> None:
    parsed = chat_prompt.parse(
        f"{bos}<start_of_turn>user\nhi", TOKENIZERS["gemma3"], "google/gemma-3-4b-it"
    )

    assert parsed.unsteerable_positions == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("prompt", "model_name"), [("hi\ud83d", ""), ("hi", "google/gemma-3-4b-it")]
)
def test_a_prompt_that_cannot_be_tokenised_has_no_positions(prompt: str, model_name: str) -> None:
    assert chat_prompt.parse(prompt, TOKENIZERS["gemma3"], model_name).unsteerable_positions == []


@settings(max_examples=100)
@given(st.sampled_from(FAMILIES), st.sampled_from(["", *CHAT]), ANY_TEXT)
def test_any_text_is_answered_and_none_of_it_invented(
    family: str, opened_by: str, text: str
) -> None:
    if opened_by:
        text = rendered([user("hi")], opened_by, closed=False) + text

    parsed = chat_prompt.parse(text, TOKENIZERS[family])

    assert parsed.prompt == chat_template.strip_bos(text, TOKENIZERS[family])
    assert parsed.is_chat == (parsed.messages is not None)
    assert set(parsed.unsteerable_positions) <= {0}
    place = 0
    for message in parsed.messages or []:
        assert message["role"] in chat_template.ROLES
        place = parsed.prompt.index(message["content"], place) + len(message["content"])


@pytest.mark.parametrize("family", CHAT)
def test_a_long_conversation_is_read_whole(family: str) -> None:
    messages = [(user, assistant)[i % 2](str(i)) for i in range(2001)]

    assert parse(rendered(messages, family, closed=False), family) == messages


# Where every position has features


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["hi", "<|im_start|>user\nhi", "<start_of_turn>user\nhi"])
@pytest.mark.parametrize("written", [True, False])
def test_the_parsed_prompt_has_the_tokens_of_the_prompt(
    family: str, text: str, written: bool
) -> None:
    """So that positions of a graph are positions of the prompt that a caller stored."""
    tokenizer = TOKENIZERS[family]
    prompt = (tokenizer.bos_token or "") * written + text

    parsed = chat_prompt.parse(prompt, tokenizer, leading_token=False)

    assert parsed.unsteerable_positions == []
    assert prompts.tokenize(parsed.prompt, tokenizer, leading_token=False) == prompts.tokenize(
        prompt, tokenizer, leading_token=False
    )
