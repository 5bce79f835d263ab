"""How text becomes tokens, for a tokenizer of every family."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from errors import Internal, InvalidInput, PromptTooLong
from prompting import chat_template, prompts
from prompting.token_text import TokenText
from tests.support import tiny_tokenizers
from tests.support.chat_messages import assistant, system, user
from tests.support.programs import imported_by
from tests.support.tiny_tokenizers import BASE_FAMILIES, CHAT_FAMILIES

TOKENIZERS = {name: build() for name, build in {**CHAT_FAMILIES, **BASE_FAMILIES}.items()}
FAMILIES = sorted(TOKENIZERS)
CHAT = sorted(CHAT_FAMILIES)
WITH_BOS = [name for name in FAMILIES if TOKENIZERS[name].bos_token]
GEMMA_3 = "google/gemma-3-4b-it"

MARKERS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|eot_id|>", "<|endoftext|>", "<s>"]
TEXT = st.lists(st.text() | st.sampled_from([*MARKERS, "<bos>", "user", "\n", " "])).map("".join)


def library_rules() -> ModuleType:
    """circuit-tracer's own `ensure_tokenized`, without the imports of its package."""
    package = importlib.util.find_spec("circuit_tracer")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "replacement_model" / "common.py"
    spec = importlib.util.spec_from_file_location("circuit_tracer_common", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIBRARY = library_rules()


# Tokenising


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"bos_zero"}))
@settings(max_examples=50)
@given(text=TEXT.filter(bool))
def test_tokens_are_those_of_the_library(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]
    if family in ("gemma2", "gemma3") and text.startswith("<start_of_turn>"):
        text = "<bos>" + text
    expected = LIBRARY.ensure_tokenized(text, tokenizer, "cpu", "a-model").tolist()

    assert prompts.tokenize(text, tokenizer) == expected


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=50)
@given(text=TEXT)
def test_the_first_token_is_special_and_the_rest_is_the_text(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]

    ids = prompts.tokenize(text, tokenizer)

    assert ids[0] in tokenizer.all_special_ids
    shown = tokenizer.decode(ids)
    assert shown in (text, tokenizer.decode(ids[:1]) + text)


def test_a_bos_of_id_0_leads_the_prompt() -> None:
    tokenizer = TOKENIZERS["bos_zero"]

    ids = prompts.tokenize("the", tokenizer)

    assert ids[0] == tokenizer.bos_token_id == 0
    with pytest.raises(StopIteration):  # where the library loses its way
        LIBRARY.ensure_tokenized("the", tokenizer, "cpu", "a-model")


@pytest.mark.parametrize("family", WITH_BOS)
def test_a_written_bos_is_not_given_a_second(family: str) -> None:
    tokenizer = TOKENIZERS[family]

    assert prompts.tokenize(tokenizer.bos_token + "hi", tokenizer) == prompts.tokenize(
        "hi", tokenizer
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_text_is_the_leading_token_alone(family: str) -> None:
    tokenizer = TOKENIZERS[family]

    assert prompts.tokenize("", tokenizer) == prompts.tokenize("hi", tokenizer)[:1]


def test_a_tokenizer_without_bos_leads_with_its_pad_token() -> None:
    tokenizer = TOKENIZERS["qwen3"]

    assert prompts.tokenize("hi", tokenizer)[0] == tokenizer.pad_token_id


def test_a_chat_prompt_of_such_a_tokenizer_leads_with_its_turn_marker() -> None:
    tokenizer = TOKENIZERS["qwen3"]

    ids = prompts.tokenize(chat_template.render_messages([user("hi")], tokenizer), tokenizer)

    assert TokenText(tokenizer).strings(ids)[0] == "<|im_start|>"


@pytest.mark.parametrize("family", CHAT)
def test_a_chat_prompt_has_the_same_tokens_with_and_without_its_bos(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    rendered = chat_template.render_messages([user("hi"), assistant("yo")], tokenizer)

    stripped = chat_template.strip_bos(rendered, tokenizer)

    assert prompts.tokenize(stripped, tokenizer) == prompts.tokenize(rendered, tokenizer)


def test_a_base_model_keeps_a_turn_marker_as_leading_token() -> None:
    tokenizer = TOKENIZERS["gemma2_base"]

    ids = prompts.tokenize("<start_of_turn>user", tokenizer)

    assert TokenText(tokenizer).strings(ids)[0] == "<start_of_turn>"


def test_ids_are_plain_ints() -> None:
    assert {type(n) for n in prompts.tokenize("hi", TOKENIZERS["gpt2"])} == {int}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["\U0001f99c", "مرحبا بالعالم", "שלום", "a\x00b", "👩‍👩‍👧", "é"])
def test_any_unicode_text_is_kept(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]

    assert tokenizer.decode(prompts.tokenize(text, tokenizer)[1:]) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_surrogate_pair_is_named_with_its_place(family: str) -> None:
    with pytest.raises(InvalidInput, match=r"^invalid_input: prompt .*U\+D83D\) at character 2"):
        prompts.tokenize("hi\ud83d", TOKENIZERS[family])


def test_a_tokenizer_without_special_tokens_is_the_workers_fault() -> None:
    tokenizer = tiny_tokenizers.gpt2()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = None

    with pytest.raises(Internal, match="no special token"):
        prompts.tokenize("hi", tokenizer)


@pytest.mark.parametrize("bos", ["<bos>", ""])
def test_gemma_3_it_prompts_begin_with_their_required_prefix(bos: str) -> None:
    tokenizer = TOKENIZERS["gemma3"]

    ids = prompts.tokenize(f"{bos}<start_of_turn>user\nhi", tokenizer, GEMMA_3)

    assert ids[:4] == [2, 105, 2364, 107]
    assert ids == LIBRARY.ensure_tokenized(ids, tokenizer, "cpu", GEMMA_3).tolist()


@pytest.mark.parametrize("text", ["hi", "", "<bos>hi", "<bos><start_of_turn>model\n"])
def test_gemma_3_it_refuses_other_prompts_and_says_what_to_send(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"<bos><start_of_turn>user\\n.*send messages instead"):
        prompts.tokenize(text, TOKENIZERS["gemma3"], GEMMA_3)


@pytest.mark.parametrize(
    "prompt",
    [
        "<start_of_turn>user\n\nhi",
        "<bos><start_of_turn>user\n\n\nhi",
        [system(""), user("hi")],
    ],
)
def test_a_line_break_that_joins_gemma_3_it_s_prefix_is_told(
    prompt: str | list[dict[str, str]],
) -> None:
    with pytest.raises(InvalidInput, match=r"begins with a line break.*remove it"):
        prompts.prepare(prompt, TOKENIZERS["gemma3"], token_limit=64, model_name=GEMMA_3)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_strings_joined_are_the_prompt(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    ids = prompts.tokenize("the  capital .", tokenizer)

    shown = TokenText(tokenizer).strings(ids)

    assert "".join(shown) == tokenizer.convert_ids_to_tokens(ids[0]) + "the  capital ."


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [("", [0]), ("google/gemma-3-4b-pt", [0]), (GEMMA_3, [0, 1, 2, 3])],
)
def test_unsteerable_positions_are_those_the_library_holds_at_zero(
    model_name: str, expected: list[int]
) -> None:
    tokenizer = TOKENIZERS["gemma3"]
    ids = prompts.tokenize("<bos><start_of_turn>user\nhi", tokenizer, model_name)

    assert prompts.unsteerable_positions(ids, model_name) == expected


# Checking a prompt


def test_a_prompt_at_the_limit_passes_and_one_token_more_does_not() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    n = len(prompts.tokenize("The capital of France is", tokenizer))

    assert len(prompts.prepare("The capital of France is", tokenizer, token_limit=n).ids) == n
    with pytest.raises(PromptTooLong) as refused:
        prompts.prepare("The capital of France is", tokenizer, token_limit=n - 1)
    assert str(refused.value) == (
        f"prompt_too_long: the prompt has {n} tokens, the limit is {n - 1}"
    )


def test_megabytes_are_refused_by_their_characters() -> None:
    with pytest.raises(PromptTooLong, match="5000000 characters, the limit is 64 tokens"):
        prompts.prepare("hello" * 1_000_000, TOKENIZERS["gpt2"], token_limit=64)


def test_prepared_prompts_carry_text_tokens_and_positions() -> None:
    tokenizer = TOKENIZERS["gemma3"]

    prompt = prompts.prepare([user("hi")], tokenizer, token_limit=64, model_name=GEMMA_3)

    assert prompt.text == "<bos><start_of_turn>user\nhi"
    tokens = TokenText(tokenizer).strings(prompt.ids)
    assert tokens == ["<bos>", "<start_of_turn>", "user", "\n", "h", "i"]
    assert prompt.unsteerable_positions == [0, 1, 2, 3]


@pytest.mark.parametrize("text", [" ", "\n", "\t \n", "\x00"])
def test_white_space_is_a_prompt(text: str) -> None:
    tokenizer = TOKENIZERS["gpt2"]

    ids = prompts.prepare(text, tokenizer, token_limit=64).ids

    assert "".join(TokenText(tokenizer).strings(ids[1:])) == text


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidInput, match="prompt is empty"):
        prompts.prepare("", TOKENIZERS["gpt2"], token_limit=64)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("gpt2", "<|endoftext|>"),
        ("gpt2", "<|endoftext|>" * 3),
        ("gemma2", "<bos><start_of_turn><end_of_turn>"),
        ("llama3", "<|begin_of_text|>"),
        ("llama3", "<|start_header_id|><|end_header_id|>"),
        ("qwen3", "<|im_start|>"),
    ],
)
def test_a_prompt_of_only_special_tokens_is_refused(family: str, text: str) -> None:
    with pytest.raises(InvalidInput, match="only special tokens"):
        prompts.prepare(text, TOKENIZERS[family], token_limit=64)


def test_the_required_prefix_of_gemma_3_it_alone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="only special tokens"):
        prompts.prepare([user("")], TOKENIZERS["gemma3"], token_limit=64, model_name=GEMMA_3)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([user("hi")] * 65, "there are 65 messages, the limit is 64 tokens"),
        ([user("a" * 10_000), assistant("b" * 10_000)], "20000 characters, the limit is 64 tokens"),
    ],
)
def test_long_conversations_are_refused_before_the_template_renders_them(
    messages: list[dict[str, str]], sentence: str
) -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.chat_template = "{{ 1 / 0 }}"

    with pytest.raises(PromptTooLong, match=sentence):
        prompts.prepare(messages, tokenizer, token_limit=64)


def test_importing_loads_neither_transformers_nor_torch() -> None:
    program = "from prompting import chat_prompt, prompts"

    assert not imported_by(program, "torch", "transformers", "jinja2")


# Where every position has features


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=50)
@given(text=TEXT.filter(bool))
def test_without_a_leading_token_the_tokens_are_those_the_tokenizer_gives(
    family: str, text: str
) -> None:
    tokenizer = TOKENIZERS[family]
    own = tokenizer(text).input_ids
    bos = tokenizer.bos_token_id

    ids = prompts.tokenize(text, tokenizer, leading_token=False)

    written_and_added = own[:2] == [bos, bos]
    assert ids in (own, [bos, *own]) or (written_and_added and ids == own[1:])
    if ids == [bos, *own]:
        assert text.startswith(("<start_of_turn>", "<|"))  # a chat prompt that lost its BOS


def test_without_a_leading_token_none_is_put_in_front() -> None:
    prompt = prompts.prepare("the", TOKENIZERS["qwen3"], token_limit=64, leading_token=False)

    assert prompt.ids == TOKENIZERS["qwen3"]("the").input_ids
    assert (prompt.text_start, prompt.unsteerable_positions) == (0, [])


@pytest.mark.parametrize("family", WITH_BOS)
def test_without_a_leading_token_a_written_bos_is_kept_once(family: str) -> None:
    tokenizer = TOKENIZERS[family]

    prompt = prompts.prepare(
        tokenizer.bos_token + "hi", tokenizer, token_limit=64, leading_token=False
    )

    assert prompt.ids == [tokenizer.bos_token_id, *tokenizer.encode("hi", add_special_tokens=False)]
    assert (prompt.text_start, prompt.unsteerable_positions) == (1, [])


@pytest.mark.parametrize("family", CHAT)
def test_without_a_leading_token_a_chat_prompt_gets_back_the_bos_it_lost(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    rendered = chat_template.render_messages([user("hi"), assistant("yo")], tokenizer)
    stripped = chat_template.strip_bos(rendered, tokenizer)

    ids = prompts.tokenize(stripped, tokenizer, leading_token=False)

    assert ids == prompts.tokenize(rendered, tokenizer, leading_token=False)


def test_without_a_leading_token_special_tokens_alone_are_a_prompt() -> None:
    tokenizer = TOKENIZERS["qwen3"]

    prompt = prompts.prepare("<|im_start|>", tokenizer, token_limit=64, leading_token=False)

    assert TokenText(tokenizer).strings(prompt.ids) == ["<|im_start|>"]


def test_a_text_that_the_tokenizer_drops_has_no_token_to_attribute() -> None:
    tokenizer = tiny_tokenizers.chatml()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")

    with pytest.raises(InvalidInput, match="prompt has no token"):
        prompts.prepare("xx", tokenizer, token_limit=64, leading_token=False)
