"""How text becomes tokens, once for every action.

A prompt is raw text, or chat messages rendered with the model's own template. Its tokens always
begin with a special token, and every position of the interface counts these tokens. The rules are
those of circuit-tracer's `ensure_tokenized`, so that a graph of the same text has the same nodes.

Knows a Hugging Face tokenizer and no model; imports neither transformers nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from errors import Internal, InvalidInput, PromptTooLong
from prompting.naming import is_gemma_3_it
from prompting.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")

# The longest tokens of the served families have 128 characters (runs of spaces).
MAX_CHARACTERS_PER_TOKEN = 256

# `<bos><start_of_turn>user\n`: what circuit-tracer demands of, and zeroes for, Gemma 3 it models.
_GEMMA_3_IT_PREFIX = [2, 105, 2364, 107]

# Text that no template changes, and space that a template can only remove.
_MARK = "\ue000\ue001"
_TRIMMABLE = "\x0b"


class ChatTurn(Protocol):
    """One message as an object, such as `schemas.ChatMessage`."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


Messages = Sequence[Mapping[str, str] | ChatTurn]


@dataclass(frozen=True)
class Prompt:
    """A checked prompt: `text` as given or rendered, and its n tokens, the leading one included."""

    text: str
    ids: list[int]
    tokens: list[str]
    unsteerable_positions: list[int]


def prepare(
    prompt: str | None,
    messages: Messages | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_limit: int,
    model_name: str = "",
) -> Prompt:
    """Render, tokenise and check what a request gives: exactly one of `prompt` and `messages`.

    Raises InvalidInput for what can't be rendered, tokenised or attributed, PromptTooLong above
    `token_limit` tokens (the leading special token counts).
    """
    if prompt is not None and messages is None:
        text = prompt
    elif messages is not None and prompt is None:
        check_messages_length(messages, token_limit)
        text = render_messages(messages, tokenizer)
    else:
        given = "neither" if prompt is None else "both"
        raise InvalidInput(f"give exactly one of prompt and messages, got {given}")
    if not text:
        raise InvalidInput("prompt is empty; it must have at least one character")
    check_length(text, token_limit)
    ids = tokenize(text, tokenizer, model_name)
    check_tokens(ids, tokenizer, model_name=model_name, token_limit=token_limit)
    return Prompt(
        text=text,
        ids=ids,
        tokens=token_strings(ids, tokenizer),
        unsteerable_positions=unsteerable_positions(ids, tokenizer, model_name),
    )


def render_messages(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    template_variables: Mapping[str, object] | None = None,
) -> str:
    """Chat messages as text, by the model's own template, the last turn left open.

    Open means that the text ends where the last message ends, whoever speaks: the model goes on
    with that turn. A blank last assistant message after others asks for the template's generation
    prompt, as Neuronpedia's graph server takes it. Text is as the template writes it, its BOS and
    any system block of its own included.

    Raises InvalidInput when there is no template, or it refuses the messages.
    """
    turns = _as_turns(messages)
    *earlier, last = turns
    if earlier and last["role"] == "assistant" and not last["content"].strip():
        return apply_template(
            earlier, tokenizer, add_generation_prompt=True, template_variables=template_variables
        )
    mark = _MARK
    while any(mark in turn["content"] for turn in turns):
        mark += _MARK

    def render_marked(content: str) -> str:
        marked = {"role": last["role"], "content": content}
        return apply_template([*earlier, marked], tokenizer, template_variables=template_variables)

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
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    template_variables: Mapping[str, object] | None = None,
) -> str:
    """The template's own rendering: every turn closed, then its generation prompt if asked.

    `template_variables` reach the template by name, and hide its globals (`strftime_now`).

    Raises InvalidInput when there is no template, or it refuses the messages.
    """
    turns = _as_turns(messages)
    if not tokenizer.chat_template:
        raise InvalidInput("messages: the loaded model has no chat template; send prompt instead")
    try:
        rendered = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **(template_variables or {}),
        )
    except Exception as error:
        # A template is a program of the model's own: it can fail in any way.
        raise InvalidInput(_refusal(turns, error)) from error
    return str(rendered)


def tokenize(prompt: str, tokenizer: PreTrainedTokenizerBase, model_name: str = "") -> list[int]:
    """The n token ids of a prompt, the first always a special token.

    As `ensure_tokenized` of circuit_tracer/replacement_model/common.py: a special token that the
    text begins with is kept; otherwise the first there is of BOS, pad, EOS and any other goes in
    front. Different from it where that is wrong: an id of 0 counts, empty text is that token
    alone, and a chat prompt that lost the BOS its template writes gets it back, so that positions
    are those of the graph.

    Raises InvalidInput for text that isn't Unicode, and for a Gemma 3 it prompt that doesn't begin
    with its user turn; Internal when the tokenizer has no special token.
    """
    ids = _encode(prompt, tokenizer)
    if is_gemma_3_it(model_name):
        if ids[:3] == _GEMMA_3_IT_PREFIX[1:]:
            ids = [_GEMMA_3_IT_PREFIX[0], *ids]
        if ids[:4] != _GEMMA_3_IT_PREFIX:
            raise InvalidInput(_without_gemma_3_prefix(prompt, tokenizer, model_name))
        return ids
    if ids and ids[0] in tokenizer.all_special_ids and not _lost_its_bos(ids, tokenizer):
        return ids
    return [_leading_special_id(tokenizer), *ids]


def token_strings(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token as it stands in the text: the graph's `prompt_tokens`."""
    return TokenText(tokenizer).strings(ids)


def unsteerable_positions(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,  # noqa: ARG001 - the same arguments as its siblings
    model_name: str = "",
) -> list[int]:
    """The positions whose features circuit-tracer holds at zero (its models' `zero_positions`).

    The leading special token; for Gemma 3 it models the four tokens of their required prefix.
    """
    return list(range(min(len(ids), 4 if is_gemma_3_it(model_name) else 1)))


def check_length(text: str, token_limit: int) -> None:
    """Refuse text that is certainly too long, before the work of tokenising it.

    Raises PromptTooLong.
    """
    _check_characters(len(text), token_limit)


def check_messages_length(messages: Messages, token_limit: int) -> None:
    """Refuse messages that are certainly too long, before the work of rendering them.

    Raises PromptTooLong.
    """
    if len(messages) > token_limit:
        raise PromptTooLong(
            f"there are {len(messages)} messages, the limit is {token_limit} tokens"
        )
    contents = [m.get("content") if isinstance(m, Mapping) else m.content for m in messages]
    _check_characters(sum(len(c) for c in contents if isinstance(c, str)), token_limit)


def check_tokens(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    token_limit: int,
    model_name: str = "",
) -> None:
    """Refuse tokens that are too many, or that leave nothing to attribute or steer.

    Raises PromptTooLong, InvalidInput.
    """
    if len(ids) > token_limit:
        raise PromptTooLong(f"the prompt has {len(ids)} tokens, the limit is {token_limit}")
    fixed = unsteerable_positions(ids, tokenizer, model_name)
    if len(ids) == len(fixed) or set(ids) <= _special_ids(tokenizer):
        shown = "".join(token_strings(ids[:8], tokenizer))
        raise InvalidInput(
            f"prompt has only special tokens ({shown!r}, {len(ids)} in all), which have no "
            "features; add text after them"
        )


def strip_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text without the BOS it may begin with (one, not more)."""
    bos = tokenizer.bos_token
    return text.removeprefix(bos) if bos else text


def _check_characters(n_characters: int, token_limit: int) -> None:
    if n_characters > token_limit * MAX_CHARACTERS_PER_TOKEN:
        raise PromptTooLong(
            f"the prompt has {n_characters} characters, the limit is {token_limit} tokens "
            f"(at most {MAX_CHARACTERS_PER_TOKEN} characters each)"
        )


def _as_turns(messages: Messages) -> list[dict[str, str]]:
    """Messages as the plain dicts that templates take. Raises InvalidInput."""
    if not messages:
        raise InvalidInput("messages is empty; give at least one message")
    turns = []
    for i, message in enumerate(messages):
        if isinstance(message, Mapping):
            role, content = message.get("role"), message.get("content")
        else:
            role, content = message.role, message.content
        if role not in ROLES:
            raise InvalidInput(
                f"messages[{i}].role is {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise InvalidInput(f"messages[{i}].content must be a string")
        _refuse_surrogates(content, f"messages[{i}].content")
        turns.append({"role": role, "content": content})
    return turns


def _without_gemma_3_prefix(
    prompt: str, tokenizer: PreTrainedTokenizerBase, model_name: str
) -> str:
    """Why a prompt has not the tokens that Gemma 3 it models require, and what to do."""
    if strip_bos(prompt, tokenizer).startswith("<start_of_turn>user\n"):
        return (
            "the first turn begins with a line break, which becomes one token with the line break "
            f"that {model_name} requires before it; remove it, or the empty system message"
        )
    return (
        f"prompt must begin with '<bos><start_of_turn>user\\n' for {model_name}; "
        "send messages instead, or begin the prompt with that"
    )


def _refusal(turns: list[dict[str, str]], error: Exception) -> str:
    """What a template's refusal of these turns means to their author."""
    from jinja2 import TemplateError  # transformers has it loaded by now

    # The template's own words; its subclasses are faults in the template.
    reason = f": {error}" if type(error) is TemplateError else ""
    roles = [turn["role"] for turn in turns]
    advice = []
    if "system" in roles:
        advice.append("put the system text at the start of the first user message")
        roles = [role for role in roles if role != "system"]
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        advice.append("begin with a user message and alternate user and assistant")
    hint = f"; {', and '.join(advice)}" if advice else "; send prompt instead"
    return f"messages: the model's chat template refuses them{reason}{hint}"


def _encode(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the text alone, special tokens in it recognised and none added."""
    _refuse_surrogates(prompt, "prompt")
    encoding = tokenizer(
        prompt, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return [int(token_id) for token_id in encoding.input_ids]


def _refuse_surrogates(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{field} has half a surrogate pair (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; send valid Unicode text"
        ) from None


def _leading_special_id(tokenizer: PreTrainedTokenizerBase) -> int:
    candidates = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    for token_id in [*candidates, *tokenizer.all_special_ids]:
        if token_id is not None:
            return int(token_id)
    raise Internal(
        "the model's tokenizer has no special token to lead a prompt; set its BOS, pad or EOS token"
    )


def _lost_its_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the text begins as the template's renderings do after their BOS."""
    bos = tokenizer.bos_token_id
    if bos is None or ids[0] == bos or not tokenizer.chat_template:
        return False
    try:
        opening = apply_template([{"role": "user", "content": "text"}], tokenizer)
    except InvalidInput:
        return False
    return _encode(opening, tokenizer)[:2] == [bos, ids[0]]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens, those with a role and those only marked as special (Llama 3's headers)."""
    marked = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)
