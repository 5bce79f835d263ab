"""Conversations that a family's template takes and takes nothing from, for Hypothesis."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import assume
from hypothesis import strategies as st

from prompting import chat_template
from tests.support.chat_messages import system
from tests.support.tiny_tokenizers import BASE_FAMILIES, CHAT_FAMILIES

Message = dict[str, str]

TOKENIZERS = {name: build() for name, build in {**CHAT_FAMILIES, **BASE_FAMILIES}.items()}
CHAT = sorted(CHAT_FAMILIES)

FRAGMENTS = [
    *("<|im_start|>", "<|im_start|>user\n", "<|im_end|>", "<think>", "</think>", "<bos>", "<s>"),
    *("<start_of_turn>model\n", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "</s>"),
    *("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", "<|begin_of_text|>"),
    *("user", "assistant", "\n", "\n\n", " ", "Paris", "مرحبا", "\U0001f99c", "\x00"),
]
TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=6).map("".join)


def rendered(messages: list[Message], family: str, *, closed: bool) -> str:
    render = chat_template.apply_template if closed else chat_template.render_messages
    return render(messages, TOKENIZERS[family])


@dataclass(frozen=True)
class Kind:
    """What a template keeps of a conversation, written down by hand for the tests."""

    # Texts that stand between turns: in a content they can't be told from the real ones.
    boundaries: tuple[str, ...]
    # What ends a turn: at the end of an open turn it can't be told from the real one.
    end: str
    keeps: Callable[[str], str] = lambda content: content
    has_system: bool = True
    strict: bool = False


CHATML = Kind(("<|im_end|>\n<|im_start|>",), "<|im_end|>\n")
GEMMA = Kind(
    ("<end_of_turn>\n<start_of_turn>",), "<end_of_turn>\n", str.strip, has_system=False, strict=True
)
KINDS = {
    "chatml": CHATML,
    "qwen25": CHATML,
    "qwen3": CHATML,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "llama3": Kind(("<|eot_id|><|start_header_id|>",), "<|eot_id|>", str.strip),
    "llama2": Kind(("[/INST]", "</s>", "SYS>>"), " [/INST]", strict=True),
}


@st.composite
def conversations(draw: st.DrawFn, family: str) -> list[Message]:
    """Messages that the family's template takes, and takes nothing from."""
    kind = KINDS[family]
    if kind.strict:
        roles = [("user", "assistant")[i % 2] for i in range(draw(st.integers(1, 5)))]
    else:
        roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=5))
    if kind.has_system and draw(st.booleans()):
        roles = ["system", *roles]
    messages = [{"role": role, "content": kind.keeps(draw(TEXT))} for role in roles]
    last = messages[-1]
    for message in messages:
        assume(not any(boundary in message["content"] for boundary in kind.boundaries))
    assume(not last["content"].endswith(kind.end))
    if family == "llama3":  # an empty system block is always there
        assume(messages[0] != system(""))
    if family == "qwen3":  # thinking moves, and a trailing answer loses its first newlines
        assume(not any("</think>" in m["content"] for m in messages if m["role"] == "assistant"))
        if last["role"] == "assistant":
            last["content"] = last["content"].lstrip("\n")
    return messages


CONVERSATIONS = st.sampled_from(CHAT).flatmap(
    lambda family: conversations(family).map(lambda messages: (family, messages))
)
