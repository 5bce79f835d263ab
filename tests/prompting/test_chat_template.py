"""Chat messages rendered with a model's own template, the last turn left open."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import InvalidInput
from prompting import chat_template
from tests.support import tiny_tokenizers
from tests.support.chat_messages import assistant, system, user
from tests.support.tiny_tokenizers import BASE_FAMILIES, CHAT_FAMILIES

TOKENIZERS = {name: build() for name, build in {**CHAT_FAMILIES, **BASE_FAMILIES}.items()}
CHAT = sorted(CHAT_FAMILIES)

MARKERS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|eot_id|>", "<|endoftext|>", "<s>"]
TEXT = st.lists(st.text() | st.sampled_from([*MARKERS, "<bos>", "user", "\n", " "])).map("".join)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo"),
        (
            "qwen3",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyo",
        ),
        ("gemma2", "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo"),
        ("llama2", "<s>[INST] hi [/INST] yo"),
    ],
)
def test_the_last_turn_is_left_open(family: str, expected: str) -> None:
    assert (
        chat_template.render_messages([user("hi"), assistant("yo")], TOKENIZERS[family]) == expected
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", "<|im_start|>user\nhi"),
        ("gemma2", "<bos><start_of_turn>user\nhi"),
        ("llama2", "<s>[INST] hi"),
    ],
)
def test_a_last_user_turn_is_left_open_too(family: str, expected: str) -> None:
    assert chat_template.render_messages([user("hi")], TOKENIZERS[family]) == expected


@pytest.mark.parametrize("family", CHAT)
@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_last_assistant_turn_is_the_generation_prompt(family: str, blank: str) -> None:
    tokenizer = TOKENIZERS[family]

    rendered = chat_template.render_messages([user("hi"), assistant(blank)], tokenizer)

    assert rendered == tokenizer.apply_chat_template(
        [user("hi")], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("family", CHAT)
@settings(max_examples=50)
@given(content=TEXT.filter(lambda text: text.strip() and "</think>" not in text))
def test_an_open_turn_is_what_transformers_continues(family: str, content: str) -> None:
    tokenizer = TOKENIZERS[family]
    messages = [user("hi"), assistant(content)]

    rendered = chat_template.render_messages(messages, tokenizer)

    assert rendered == tokenizer.apply_chat_template(
        messages, tokenize=False, continue_final_message=True
    )


@pytest.mark.parametrize("content", ["", " ", "\n"])
def test_a_blank_user_turn_keeps_its_header_whole(content: str) -> None:
    # transformers' own continuation would cut the newline of the header, which Gemma 3 requires.
    assert chat_template.render_messages([user(content)], TOKENIZERS["gemma3"]) == (
        "<bos><start_of_turn>user\n"
    )


def test_contents_may_hold_the_marks_that_rendering_uses() -> None:
    content = "\ue000\ue001 and \ue000\ue001\ue000\ue001"

    assert chat_template.render_messages([user(content)], TOKENIZERS["chatml"]).endswith(content)


def test_a_model_without_a_template_asks_for_prompt() -> None:
    with pytest.raises(InvalidInput, match=r"messages: .* no chat template; send prompt instead"):
        chat_template.render_messages([user("hi")], TOKENIZERS["gpt2"])


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([system("S"), user("hi")], "System role not supported; put the system text at the start"),
        ([user("hi"), user("ho")], "must alternate.*; begin with a user message and alternate"),
        ([assistant("hi")], "must alternate.*; begin with a user message and alternate"),
    ],
)
def test_turns_that_the_template_refuses_are_answered_with_what_to_do(
    messages: list[dict[str, str]], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^invalid_input: messages: .*{sentence}"):
        chat_template.render_messages(messages, TOKENIZERS["gemma2"])


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ nothing.at_all }}", "{% if %}"])
def test_a_template_that_fails_shows_nothing_of_its_failure(template: str) -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = template

    with pytest.raises(InvalidInput, match=r"template refuses them; send prompt instead$"):
        chat_template.render_messages([user("hi")], tokenizer)


def test_a_template_that_hides_the_last_message_is_refused() -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = (
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )

    with pytest.raises(InvalidInput, match="does not show the last message"):
        chat_template.render_messages([user("hi"), system("S")], tokenizer)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages is empty"),
        ([user("hi"), {"role": "tool", "content": ""}], r"messages\[1\].role is 'tool'; it must"),
        ([{"content": "hi"}], r"messages\[0\].role is 'None'"),
        ([{"role": "user"}], r"messages\[0\].content must be a string"),
        ([user("hi"), assistant("\udc00")], r"messages\[1\].content has half a surrogate pair"),
    ],
)
def test_a_wrong_message_is_named(messages: list[dict[str, str]], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        chat_template.render_messages(messages, TOKENIZERS["chatml"])
