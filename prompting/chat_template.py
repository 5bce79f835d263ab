"""Chat messages to text, by the model's own chat template.

A template is a program that comes with the weights: it runs in a process of its own, within bounds.
Knows a Hugging Face tokenizer and no model; imports neither transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errors import InvalidInput
from prompting.template_process import TemplateRefusal, template_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # `role` and `content`

ROLES = ("system", "user", "assistant")

# Text that no template changes, and space that a template can only remove.
_MARK = "\ue000\ue001"
_TRIMMABLE = "\x0b"


def render_messages(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    date: str | None = None,
) -> str:
    """Chat messages as text, by the model's own template, the last turn left open.

    Open means that the text ends where the content of the last message ends, whatever its role:
    the model goes on with that turn. A blank last assistant message after others asks for the
    template's generation prompt, as Neuronpedia's graph server takes it. Text is as the template
    writes it, with its BOS and any system block of its own.

    Args:
        date: as in `apply_template`.

    Raises InvalidInput when there is no template, or it refuses the messages, and of that
    TemplateTooCostly when it takes more time or memory than it may.
    """
    _check(messages)
    *earlier, last = messages
    if earlier and last["role"] == "assistant" and not last["content"].strip():
        return apply_template(earlier, tokenizer, add_generation_prompt=True, date=date)
    mark = _MARK
    while any(mark in message["content"] for message in messages):
        mark += _MARK

    def render_marked(content: str) -> str:
        marked = {"role": last["role"], "content": content}
        return apply_template([*earlier, marked], tokenizer, date=date)

    before, found, after = render_marked(last["content"] + mark + _TRIMMABLE).rpartition(mark)
    if found and not after.startswith(_TRIMMABLE):
        # A template that trims contents would also have trimmed what stands before the mark.
        before, found, _ = render_marked(last["content"].rstrip() + mark).rpartition(mark)
    if not found:
        raise InvalidInput(
            f"messages: the model's chat template does not show the last message (role "
            f"{last['role']!r}); end with a user or an assistant message"
        )
    return before


def apply_template(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    date: str | None = None,
) -> str:
    """The template's own rendering: every turn closed, then its generation prompt if asked.

    Args:
        date: stands for the date that the template writes, in any format; None: today's.

    Raises InvalidInput when there is no template, or it refuses the messages, and of that
    TemplateTooCostly when it takes more time or memory than it may.
    """
    if not tokenizer.chat_template:
        raise InvalidInput("messages: the loaded model has no chat template; send prompt instead")
    variables = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **tokenizer.special_tokens_map,
    }
    try:
        template = tokenizer.get_chat_template()
        return template_process().render(template, variables, date)
    except ValueError as error:  # there are several templates, and none is the default
        raise InvalidInput(_refusal(messages, "")) from error
    except TemplateRefusal as error:
        raise InvalidInput(_refusal(messages, str(error))) from error


def strip_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text without the BOS it may begin with (one, not more)."""
    return text.removeprefix(tokenizer.bos_token or "")


def refuse_surrogates(text: str, field: str) -> None:
    """Raise InvalidInput for half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{field} has half a surrogate pair (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; send valid Unicode text"
        ) from None


def _check(messages: Sequence[Message]) -> None:
    """Raise InvalidInput, naming the message, unless each has a role and a text."""
    if not messages:
        raise InvalidInput("messages is empty; give at least one message")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InvalidInput(
                f"messages[{i}].role is {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise InvalidInput(f"messages[{i}].content must be a string")
        refuse_surrogates(content, f"messages[{i}].content")


def _refusal(messages: Sequence[Message], words: str) -> str:
    """What a template's refusal of these messages, in its words or none, means to their author."""
    reason = f": {words}" if words else ""
    roles = [message["role"] for message in messages if message["role"] != "system"]
    advice = []
    if len(roles) < len(messages):
        advice.append("put the system text at the start of the first user message")
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        advice.append("begin with a user message and alternate user and assistant")
    hint = " and ".join(advice) or "send prompt instead"
    return f"messages: the model's chat template refuses them{reason}; {hint}"
